"""Straightness under reinforcement learning and under supervised fine-tuning.

The same model, prompts, learning rate, optimizer and number of steps by GRPO, by GRPO with a random
reward, by cross-entropy on the model's own right samples, and by supervised fine-tuning on the right
answers. The paper (arXiv 2601.04537): median R² about .85 for RL and .43 for fine-tuning, which is what
a driftless walk scores.

    python examples/experiments/rl_vs_sft.py --out out

About 12 minutes of processor time, 6 minutes on two cores. At full size on a GPU, the same:

    python examples/experiments/rl_vs_sft.py --device cuda --model FOLDER --probes PROBES.jsonl \\
        --largest 99999 --completion-tokens 12 --rows-a-pass 64 --workers 1
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiment import (
    RATE,
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
from lean_training import Setting
from path_figures import run_setting

SIGNALS = {
    "sft": "fine-tuning on right answers",
    "own": "on own right samples",
    "grpo": "GRPO, exact-match reward",
    "random": "GRPO, random reward",
}
SEEDS = (1, 2, 3, 4, 5)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One run of one signal."""
    rest, base, probes, device = split_job(job)
    return run_setting(Setting(**rest), base, device=device, probes=probes)


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every signal with every seed."""
    rate = {} if options.learning_rate == RATE else {"learning_rate": options.learning_rate}
    return [
        {"signal": s, "seed": seed, "steps": options.steps, "every": options.every,
         **rate, **job_options(options)}
        for seed in options.seeds for s in options.signals
    ]  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """A column a signal."""
    by = {s: of(runs, signal=s) for s in SIGNALS if of(runs, signal=s)}
    rows = [
        ("p(correct) at the end, from {:.3f}".format(runs[0]["p_start"]), "p_correct", 3),
        ("median R², bf16", "bf16_median_rsq", 3),
        ("that of a driftless walk, rounded alike", "bf16_null_median_rsq", 3),
        ("median R², float32 (driftless walk: .438)", "fp32_median_rsq", 3),
        ("median R², bf16, the paper's filters", "bf16_paper_median_rsq", 3),
        ("share of elements that pass them", "bf16_paper_kept", 3),
        ("share with R² > .7, bf16", "bf16_above", 3),
        ("that of the walk", "bf16_null_above", 3),
        ("share with drift \\|t\\| ≥ 2, float32 (walk: .054)", "fp32_t_above_2", 3),
        ("mean cosine of a change with the sum of all others, float32 (walk: 0)", "fp32_cosine", 3),
        ("growth exponent of \\|W - W0\\|², float32 (walk: 1, line: 2)", "fp32_growth", 2),
        ("net over path, float32 (walk: .17)", "fp32_net_over_path", 3),
        ("net displacement, float32", "fp32_net", 3),
        ("outputs: median R² of token log-probs (walk: .438)", "outputs_median_rsq", 3),
        ("the same, changed by more than .2", "outputs_paper_median_rsq", 3),
    ]
    head = [f"mean ± 95 % of {len(by['grpo'])} seeds", *(SIGNALS[s] for s in by)]
    cells = ([name, *(said(column(by[s], key), d) for s in by)] for name, key, d in rows)
    return markdown(head, cells)


def sentence(runs: list[dict[str, Any]]) -> str:
    """Whether the claim held, by pairs of the same seed."""
    gaps = []
    for one in of(runs, signal="grpo"):
        for other in of(runs, signal="sft", seed=one["job"]["seed"]):
            gaps.append(one["bf16_median_rsq"] - other["bf16_median_rsq"])
    mean, half = mean_and_half(gaps)
    rl = said(column(of(runs, signal="grpo"), "bf16_median_rsq"))
    sft = said(column(of(runs, signal="sft"), "bf16_median_rsq"))
    if mean - half > 0:
        outcome = "The claim held here: GRPO's weights were straighter than fine-tuning's"
    elif mean + half < 0:
        outcome = "The claim did not hold here: fine-tuning's weights were straighter than GRPO's"
    else:
        outcome = "Undecided here: GRPO and fine-tuning did not differ beyond chance"
    return (
        f"{outcome}: median R² {rl} (GRPO) and {sft} (fine-tuning), "
        f"{mean:+.3f} ± {half:.3f} in pairs of one seed; {processor_minutes(runs)}."
    )


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """R² of weights and outputs of every run, beside the walk's."""
    figure, axes = new_figure(3)
    titles = (
        ("bf16_median_rsq", "weights, bf16: median R²"),
        ("fp32_median_rsq", "weights, float32: median R²"),
        ("outputs_median_rsq", "outputs: median R²"),
    )
    names = ("SFT", "own right\nsamples", "GRPO", "random\nreward")
    for ax, (key, title) in zip(axes, titles, strict=True):
        null = key.replace("median", "null_median")
        for x, (signal, tone) in enumerate(
            zip(SIGNALS, ("orange", "violet", "blue", "grey"), strict=True)
        ):
            values = column(of(runs, signal=signal), key)
            mean, half = mean_and_half(values)
            ax.errorbar(x, mean, half, fmt="o", ms=6, capsize=3, color=colour(tone))
            ax.plot([x + 0.2] * len(values), values, ".", ms=3, color=colour(tone))
            walk, _ = mean_and_half(column(of(runs, signal=signal), null))
            ax.plot([x - 0.35, x + 0.35], [walk, walk], "--", lw=1.2, color=colour("pink"))
        ax.set_xticks(range(len(names)), names)
        ax.set_ylim(0, 1)
        ax.set_title(title, fontsize=9.5)
    axes[0].set_ylabel("dashed: a driftless walk's")
    save_figure(figure, path)


def main() -> None:
    """Run what is missing; print the table and the sentence, write the figure."""
    parser = parser_for("rl_vs_sft", __doc__ or "", SEEDS)
    parser.add_argument("--steps", type=int, default=396)
    parser.add_argument("--every", type=int, default=12, help="steps between checkpoints")
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS), choices=list(SIGNALS))
    parser.add_argument("--learning-rate", type=float, default=RATE)
    options = read_options(parser)
    runs = run_all(options, run, jobs(options))
    conclude(options, runs, table, sentence, draw)


if __name__ == "__main__":
    main()
