"""Extrapolated weights and extrapolated logits beside the run that went on, seed by seed.

GRPO on the adder; from steps 0 to 396 alone, p(correct) at later steps by extrapolated weights (the
paper's two points; trajkit's default) and by l0 + alpha (l1 - l0), beside holding the last checkpoint
and the real later steps, which nothing looked at. The paper (arXiv 2601.04537): weights hold for about
half a window to a whole one and then fall; logits go on further.

    python examples/experiments/extrapolation.py --out out

About 5 minutes of processor time, 3 on two cores; ``--device cuda --model FOLDER`` as in rl_vs_sft.py.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

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
    read_options,
    run_all,
    said,
    save_figure,
    split_job,
)
from lean_training import Setting, train

SEEDS = (1, 2, 3)
TARGETS = (1.5, 2.0, 2.5)
"""in windows; 1 is the last checkpoint that is seen"""
RULES = {
    "hold": "hold the last checkpoint",
    "two-point": "weights, two points (the paper's)",
    "anchored": "weights, `anchored` with R² > .7 (default)",
    "logits": "logits, l0 + alpha (l1 - l0)",
    "real": "the real step",
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One seed: p(correct) of every rule at every target."""
    import torch

    # adder is found by way of lean_training
    from adder import ExtrapolatedLogits, load_model, probability_correct

    import trajkit

    rest, base, _, device = split_job(job)
    window, every = rest.pop("window"), rest.pop("every")
    targets = {f"{t:g}": round(t * window) for t in TARGETS}
    setting = Setting(steps=max(targets.values()), **rest)
    torch.set_num_threads(1)
    began = time.process_time()
    model, tokenizer = load_model(base)
    model = model.to(device).train()
    first, real = copy.deepcopy(model).eval(), {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "run.zarr"
        with trajkit.Recorder(store, every, tokenizer=tokenizer) as recorder:

            def watch(step: int, now: Any, metrics: dict[str, float]) -> None:
                if step <= window:
                    recorder.record(step, now)
                if step == window or step in targets.values():
                    rounded = copy.deepcopy(now).to(torch.bfloat16).to(torch.float32)
                    real[step] = rounded.eval()

            train(model, tokenizer, setting, watch)
        trained = time.process_time()
        found = {}
        last = real[window]
        trajkit.fit(store)
        for name, step in targets.items():
            found[f"hold_{name}"] = probability_correct(last, tokenizer)
            found[f"real_{name}"] = probability_correct(real[step], tokenizer)
            both = ExtrapolatedLogits(first, last, step / window)
            found[f"logits_{name}"] = probability_correct(both, tokenizer)
            for estimator in ("two-point", "anchored"):
                out = Path(folder) / f"{estimator}-{step}"
                trajkit.extrapolate(store, steps=[step], out=out, estimator=estimator)
                weights = next(p.parent for p in out.rglob("model.safetensors"))
                there, _ = load_model(weights)
                found[f"{estimator}_{name}"] = probability_correct(there.to(device), tokenizer)
    return {
        **{k: float(f"{v:.5g}") for k, v in found.items()},
        "training_seconds": round(trained - began, 1),
        "measuring_seconds": round(time.process_time() - trained, 1),
    }


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every seed."""
    return [
        {"seed": seed, "window": options.window, "every": options.every, **job_options(options)}
        for seed in options.seeds
    ]


def table(runs: list[dict[str, Any]]) -> str:
    """A row a rule, a column a target."""
    window = runs[0]["job"]["window"]
    head = [f"p(correct), mean ± 95 % of {len(runs)} seeds, from steps 0 to {window}"]
    head += [f"step {round(t * window)}" for t in TARGETS]
    rows = [
        [label, *(said(column(runs, f"{rule}_{t:g}")) for t in TARGETS)]
        for rule, label in RULES.items()
    ]
    return markdown(head, rows)


def sentence(runs: list[dict[str, Any]]) -> str:
    """Where each rule was better than holding, by pairs of the same seed."""

    def holds(rule: str) -> str:
        good = []
        for t in TARGETS:
            gaps = [r[f"{rule}_{t:g}"] - r[f"hold_{t:g}"] for r in of(runs)]
            mean, half = mean_and_half(gaps)
            if mean - half > 0:
                good.append(f"{t:g}")
        return f"at {', '.join(good)} windows" if good else "nowhere"

    weights, logits = holds("two-point"), holds("logits")
    if "nowhere" in (weights, logits):
        outcome = "The claim did not hold here for one of weights and logits"
    else:
        outcome = "The claims held here"
    return (
        f"{outcome}: better than holding beyond chance are the paper's weights {weights}, logits "
        f"{logits}; {processor_minutes(runs)}."
    )


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """p(correct) over the target."""
    figure, (ax,) = new_figure(1, 6.4, 3.8)
    for (rule, label), tone in zip(
        RULES.items(), ("grey", "orange", "violet", "green", "blue"), strict=True
    ):
        found = [mean_and_half(column(runs, f"{rule}_{t:g}")) for t in TARGETS]
        means, halves = [m for m, _ in found], [0.0 if h != h else h for _, h in found]
        style = {"marker": "o", "ms": 3.5, "lw": 1.3, "capsize": 2.5, "color": colour(tone)}
        ax.errorbar(TARGETS, means, halves, label=label.replace("`", ""), **style)
    ax.set_xticks(TARGETS)
    ax.set_xlabel("target, in windows from the start (1: the last checkpoint seen)")
    ax.set_ylabel("p(correct)")
    ax.legend(frameon=False, fontsize=8.5)
    save_figure(figure, path)


def main() -> None:
    """Run what is missing; print the table and the sentence, write the figure."""
    parser = parser_for("extrapolation", __doc__ or "", SEEDS)
    add = parser.add_argument
    add("--window", type=int, default=396, help="last step that is seen")
    add("--every", type=int, default=12, help="steps between checkpoints")
    options = read_options(parser)
    runs = run_all(options, run, jobs(options))
    conclude(options, runs, table, sentence, draw)


if __name__ == "__main__":
    main()
