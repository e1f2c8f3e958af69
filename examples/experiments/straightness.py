"""What makes the path of the weights straighter: reward variance, samples, batch, rate, optimizer.

One thing at a time is changed in a GRPO run of the adder, and the same in supervised fine-tuning where
it has it. The paper (arXiv 2601.04537) names noisy, sparse rewards as the cause of straight paths: then
replacing rewards by tosses of a coin, fewer samples and smaller batches should straighten.

    python examples/experiments/straightness.py --out out

About 15 minutes of processor time, 8 on two cores; ``--device cuda --model FOLDER`` as in rl_vs_sft.py.
The rate of plain SGD is set beforehand by its step: AdamW's is about 2e-5 √N = .006, and the clipped
gradient's norm is at most 1, so .01; with momentum .9, a tenth.
"""

from __future__ import annotations

import argparse
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
    run_all,
    said,
    save_figure,
    split_job,
)
from lean_training import Setting
from path_figures import run_setting

VARIANTS: dict[str, dict[str, Any]] = {
    "GRPO as it is": {},
    "a quarter of the rewards tossed": {"tossed": 0.25},
    "half of the rewards tossed": {"tossed": 0.5},
    "three quarters of the rewards tossed": {"tossed": 0.75},
    "2 samples a prompt, 128 prompts": {"prompts": 128, "generations": 2},
    "32 samples a prompt, 8 prompts": {"prompts": 8, "generations": 32},
    "a quarter of the batch (8 prompts)": {"prompts": 8},
    "twice the batch (64 prompts)": {"prompts": 64},
    "learning rate x 1/4": {"learning_rate": 5e-6},
    "learning rate x 4": {"learning_rate": 8e-5},
    "AdamW without momentum": {"optimizer": "adamw-no-momentum"},
    "SGD, rate .01": {"optimizer": "sgd", "learning_rate": 1e-2},
    "SGD, momentum .9, rate .001": {"optimizer": "sgd-momentum", "learning_rate": 1e-3},
    "SFT as it is": {"signal": "sft"},
    "SFT, a quarter of the batch (8 prompts)": {"signal": "sft", "prompts": 8},
    "SFT, 8 times the batch (256 prompts)": {"signal": "sft", "prompts": 256},
    "SFT, learning rate x 4": {"signal": "sft", "learning_rate": 8e-5},
    "SFT, SGD, rate .01": {"signal": "sft", "optimizer": "sgd", "learning_rate": 1e-2},
}
SEEDS = (1, 2, 3)
KEY = "fp32_median_rsq"
"""what is compared: rounding hides small steps, and some variants make smaller ones"""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One run of one variant."""
    rest, base, _, device = split_job(job)
    setting = Setting(**VARIANTS[rest.pop("variant")], **rest)
    return run_setting(setting, base, device=device, probes=None)


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every variant with every seed."""
    return [
        {"variant": v, "seed": seed, "steps": options.steps, "every": options.every,
         **job_options(options)}
        for seed in options.seeds for v in options.variants
    ]  # fmt: skip


def base_of(variant: str) -> str:
    """The run that a variant is compared with."""
    return "SFT as it is" if variant.startswith("SFT") else "GRPO as it is"


def gap(runs: list[dict[str, Any]], variant: str) -> tuple[float, float]:
    """Change of median R² in float32 against the run as it is, in pairs of one seed."""
    plain = {r["job"]["seed"]: r[KEY] for r in of(runs, variant=base_of(variant))}
    pairs = of(runs, variant=variant)
    return mean_and_half(r[KEY] - plain[r["job"]["seed"]] for r in pairs)


def table(runs: list[dict[str, Any]]) -> str:
    """A row a variant."""
    columns = {
        "median R², float32 (walk: .438)": KEY,
        "median R², bf16": "bf16_median_rsq",
        "a walk's, rounded alike": "bf16_null_median_rsq",
        "cosine with all others": "fp32_cosine",
        "growth": "fp32_growth",
        "net displacement": "fp32_net",
        "p(correct)": "p_correct",
    }
    names = list(dict.fromkeys(r["job"]["variant"] for r in runs))
    seeds = len({r["job"]["seed"] for r in runs})
    head = [f"mean ± 95 % of {seeds} seeds", "R², float32, less the run's as it is", *columns]
    rows = []
    for name in names:
        mean, half = gap(runs, name)
        change = "" if base_of(name) == name else f"{mean:+.3f} ± {half:.3f}"
        rows.append(
            [name, change, *(said(column(of(runs, variant=name), k)) for k in columns.values())]
        )
    return markdown(head, rows)


def sentence(runs: list[dict[str, Any]]) -> str:
    """Which changes straightened and which bent, intervals that leave out 0."""
    names = [n for n in dict.fromkeys(r["job"]["variant"] for r in runs) if base_of(n) != n]
    gaps = {name: gap(runs, name) for name in names}
    up = [n for n, (mean, half) in gaps.items() if mean - half > 0]
    down = [n for n, (mean, half) in gaps.items() if mean + half < 0]
    noisy = [n for n in names if "tossed" in n]
    if noisy and all(n in down for n in noisy):
        outcome = "The claim did not hold here: noise in the reward made the path less straight"
    elif noisy and all(n in up for n in noisy):
        outcome = "The claim held here: noise in the reward made the path straighter"
    else:
        outcome = "Undecided here whether noise in the reward straightens"
    return (
        f"{outcome}. Straighter: {'; '.join(up) or 'nothing'}. Less straight: "
        f"{'; '.join(down) or 'nothing'}. Of {len(names)} intervals of 95 % one in twenty leaves out 0 "
        f"by chance; {processor_minutes(runs)}."
    )


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Median R² of every variant in float32, its interval, and the run as it is."""
    figure, (ax,) = new_figure(1, 8.4, 4.8)
    names = list(dict.fromkeys(r["job"]["variant"] for r in runs))[::-1]
    for y, name in enumerate(names):
        mean, half = mean_and_half(column(of(runs, variant=name), KEY))
        tone = "orange" if name.startswith("SFT") else "blue"
        ax.errorbar(mean, y, xerr=half, fmt="o", ms=5, capsize=2.5, color=colour(tone))
    for name, tone in (("GRPO as it is", "blue"), ("SFT as it is", "orange")):
        if name in names:
            middle, _ = mean_and_half(column(of(runs, variant=name), KEY))
            ax.axvline(middle, lw=0.8, ls=":", color=colour(tone))
    null, _ = mean_and_half(column(runs, "fp32_null_median_rsq"))
    ax.axvline(null, lw=1.2, ls="--", color=colour("pink"))
    ax.set_yticks(range(len(names)), names)
    ax.set_xlim(0, 1)
    ax.set_xlabel("median R² of weights, float32; dashed: a driftless walk's")
    save_figure(figure, path)


def main() -> None:
    """Run what is missing; print the table and the sentence, write the figure."""
    parser = parser_for("straightness", __doc__ or "", SEEDS)
    add = parser.add_argument
    add("--steps", type=int, default=198)
    add("--every", type=int, default=6, help="steps between checkpoints")
    add("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    options = parser.parse_args()
    runs = run_all(options, run, jobs(options))
    conclude(options, runs, table, sentence, draw)


if __name__ == "__main__":
    main()
