"""The spectrum of a run's changes, step by step: is training a low-pass filter.

Every step is recorded in float32; the spectrum of the changes of all weights together comes from
their inner products, and so does that along the main directions of the first half of the run, judged on
the second half. Beside GRPO: fine-tuning, a random reward, noise alone through the same AdamW (whose
momentum is a low-pass filter itself), and GRPO and fine-tuning by plain SGD, which has none. The paper
(arXiv 2601.04537) explains straight paths by noisy rewards that work as a low-pass filter.

    python examples/experiments/low_pass.py --out out

About 5 minutes of processor time, 3 on two cores; ``--device cuda --model FOLDER`` as in rl_vs_sft.py
(a store of every step in float32 is needed in the temporary folder meanwhile).
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from experiment import (
    colour,
    column,
    conclude,
    job_options,
    markdown,
    mean_and_half,
    new_figure,
    of,
    parser_for,
    processor_minutes,
    run_all,
    said,
    save_figure,
    split_job,
)
from lean_training import Setting, train
from spectra import bins, directions, filtered_walk, low_share, spectrum

ARMS: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "GRPO, random reward": {"signal": "random"},
    "fine-tuning": {"signal": "sft"},
    "noise alone, AdamW": {"signal": "sft", "snr_db": -math.inf},
    "GRPO by SGD": {"optimizer": "sgd", "learning_rate": 1e-2},
    "fine-tuning by SGD": {"signal": "sft", "optimizer": "sgd", "learning_rate": 1e-2},
}
SEEDS = (1, 2, 3)
PERIOD = 33
"""steps: longer periods count as slow"""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One run of one arm, recorded every step, and its spectra."""
    import torch

    # adder is found by way of lean_training
    from adder import load_model, probability_correct

    import trajkit

    rest, base, _, device = split_job(job)
    setting = Setting(**ARMS[rest.pop("arm")], every=1, **rest)
    began = time.process_time()
    torch.set_num_threads(1)
    model, tokenizer = load_model(base)
    model = model.to(device).train()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "every.zarr"
        with trajkit.Recorder(store, 1, None, tokenizer=tokenizer) as recorder:
            train(model, tokenizer, setting, lambda step, m, _: recorder.record(step, m) and None)
        trained = time.process_time()
        gram_KK = gram_of(store)
    chance = probability_correct(model.eval(), tokenizer)
    return {
        "p_correct": round(chance, 5),
        **spectral_figures(gram_KK),
        "training_seconds": round(trained - began, 1),
        "measuring_seconds": round(time.process_time() - trained, 1),
    }


def gram_of(store: Path) -> Any:
    """Inner products of all changes between recorded steps, by trajkit's pass over the store."""
    from trajkit.evidence.gram import group_modules, measure_grams, plan_gram
    from trajkit.fits.window import choose_window
    from trajkit.progress import silent
    from trajkit.store.tensors import as_store

    opened = as_store(store)
    window = choose_window(opened, None, None)
    frames = tuple(range(window.first, window.stop))
    total = np.zeros((len(frames) - 1,) * 2)
    for vector in opened.vectors.values():
        plan = plan_gram(vector, len(frames), window.n_frames, 1 << 30)
        groups = group_modules(opened)
        parts = measure_grams(opened, vector, window, frames, groups, plan, silent)
        total += sum(part.gram_KK for part in parts.values())
    return total


def spectral_figures(gram_KK: Any) -> dict[str, Any]:
    """What one run's inner products say."""
    n = len(gram_KK)
    raw_M = spectrum(gram_KK)
    along_LJ, late_LL = directions(gram_KK, 10)
    first_LL = np.outer(along_LJ[:, 0], along_LJ[:, 0])
    rest_LL = late_LL - along_LJ @ along_LJ.T
    period = min(PERIOD, len(late_LL))
    return {
        "low": _five(low_share(raw_M, n, min(PERIOD, n))),
        "net": _five(float(raw_M[0])),
        "late_low": _five(low_share(spectrum(late_LL), len(late_LL), period)),
        "first_power": _five(float(np.trace(first_LL) / np.trace(late_LL))),
        "first_low": _five(low_share(spectrum(first_LL), len(late_LL), period)),
        "ten_power": _five(float((along_LJ**2).sum() / np.trace(late_LL))),
        "rest_low": _five(low_share(spectrum(rest_LL), len(late_LL), period)),
        "spectrum": [[_five(f), _five(p)] for f, p in bins(raw_M, n)],
    }


def _five(value: float) -> float:
    return float(f"{value:.5g}")


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every arm with every seed."""
    return [
        {"arm": arm, "seed": seed, "steps": options.steps, **job_options(options)}
        for seed in options.seeds for arm in ARMS
    ]  # fmt: skip


def walks(n: int) -> list[tuple[str, float, float]]:
    """What walks have: name, slow share of n changes, and of the later half of them."""
    late = n - n // 2
    rows = []
    for name, decay in (("a walk", 0.0), ("a walk through β1 = .9", 0.9)):
        slow = low_share(filtered_walk(n, decay), n, min(PERIOD, n))
        rows.append((name, slow, low_share(filtered_walk(late, decay), late, min(PERIOD, late))))
    return rows


def table(runs: list[dict[str, Any]]) -> str:
    """A row an arm, and two of walks."""
    columns = {
        f"raw: slow share (periods ≥ {PERIOD} steps)": "low",
        "raw: net displacement's share": "net",
        "later half: slow share": "late_low",
        "first direction: share of the power": "first_power",
        "first direction: slow share": "first_low",
        "ten directions: share of the power": "ten_power",
        "the rest: slow share": "rest_low",
    }
    n = runs[0]["job"]["steps"]
    rows = [
        [arm, *(said(column(of(runs, arm=arm), key)) for key in columns.values())]
        for arm in ARMS if of(runs, arm=arm)
    ]  # fmt: skip
    for name, slow, late in walks(n):
        rows.append([name, f"{slow:.3f}", "", f"{late:.3f}", "", "", "", f"{late:.3f}"])
    return markdown([f"mean ± 95 % of {len(of(runs, arm='GRPO'))} seeds", *columns], rows)


def sentence(runs: list[dict[str, Any]]) -> str:
    """Whether rewards filter: GRPO against fine-tuning and against noise, by the same optimizer."""
    low = {arm: column(of(runs, arm=arm), "low") for arm in ARMS}

    def more(one: str, other: str) -> tuple[float, float]:
        return mean_and_half(a - b for a, b in zip(low[one], low[other], strict=True))

    against, half = more("GRPO", "fine-tuning")
    noise, noise_half = more("GRPO", "noise alone, AdamW")
    plain, plain_half = more("GRPO by SGD", "fine-tuning by SGD")
    if against - half > 0 and plain - plain_half > 0:
        outcome = "The claim held here: GRPO's changes are slower than fine-tuning's"
    elif against + half < 0 and plain + plain_half < 0:
        outcome = "The claim did not hold here: GRPO's changes are less slow than fine-tuning's"
    else:
        outcome = "Undecided here whether GRPO's changes are slower than fine-tuning's"
    return (
        f"{outcome}: slow share {against:+.3f} ± {half:.3f} by AdamW, "
        f"{plain:+.3f} ± {plain_half:.3f} by SGD; against noise alone through AdamW "
        f"{noise:+.3f} ± {noise_half:.3f}; {processor_minutes(runs)}."
    )


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Power over a flat spectrum's, mean of the seeds, and a walk's through Adam's mean."""
    figure, axes = new_figure(2)
    tones = dict(zip(ARMS, ("blue", "grey", "orange", "pink", "green", "violet"), strict=True))
    n = runs[0]["job"]["steps"]
    for ax, wanted in zip(axes, (list(ARMS)[:4], list(ARMS)[4:]), strict=True):
        for arm in wanted:
            group = [np.array(r["spectrum"]) for r in of(runs, arm=arm)]
            if group:
                found = np.mean(group, axis=0)
                style = {"marker": "o", "ms": 2.5, "lw": 1.3, "color": colour(tones[arm])}
                ax.plot(found[1:, 0], found[1:, 1], label=arm, **style)
        ax.axhline(1, lw=1, ls="--", color=colour("grey"), label="a walk")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("frequency, cycles a step")
        ax.legend(frameon=False, fontsize=8.5)
    walk = np.array(bins(filtered_walk(n, 0.9), n))
    axes[0].plot(
        walk[1:, 0], walk[1:, 1], ":", lw=1.3, color=colour("pink"), label="a walk through β1 = .9"
    )
    axes[0].legend(frameon=False, fontsize=8.5)
    axes[0].set_ylabel("power of the changes, over a walk's")
    save_figure(figure, path)


def main() -> None:
    """Run what is missing; print the table and the sentence, write the figure."""
    parser = parser_for("low_pass", __doc__ or "", SEEDS)
    parser.add_argument("--steps", type=int, default=198)
    options = parser.parse_args()
    runs = run_all(options, run, jobs(options))
    conclude(options, runs, table, sentence, draw)


if __name__ == "__main__":
    main()
