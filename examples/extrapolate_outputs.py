"""p(correct) over alpha: extrapolated logits beside extrapolated weights and the real later steps.

    python examples/extrapolate_outputs.py --out docs/outputs.svg

Takes the first and the last checkpoint of a run's window, decodes its additions with
l0 + alpha (l1 - l0) for alpha 1 to 5, and draws the mean probability of the right answer with 95 %
bootstrap intervals, beside weights extrapolated to the same training steps and the real checkpoints
that the run reached later. A minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from adder import ExtrapolatedLogits, answer_log_probabilities, evaluation_pairs, load_model

import trajkit

ROOT = Path(__file__).resolve().parent.parent
ALPHAS = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
ESTIMATORS = ("two-point", "anchored")
RESAMPLES = 2000
SEED = 7
"""of the bootstrap"""


def main() -> None:
    """Measure, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seen", type=Path, default=ROOT / "data" / "adder-grpo")
    parser.add_argument("--held-out", type=Path, default=ROOT / "data" / "adder-grpo-heldout")
    parser.add_argument("--out", type=Path, required=True, help="picture to write: .svg, .png")
    options = parser.parse_args()
    curves = measure(options.seen, options.held_out)
    for name, points in curves.items():
        for point in points:
            print(
                f"{name:24}{point['alpha']:>7.3f}{point['step']:>7.0f}{point['p']:>9.4f}"
                f"   {point['low']:.4f} to {point['high']:.4f}"
            )
    draw(curves, options.out)
    options.out.with_suffix(".json").write_text(json.dumps(curves, indent=1) + "\n")


def measure(seen: Path, held_out: Path) -> dict[str, list[dict[str, float]]]:
    """Every curve as points: alpha, step, p(correct), and its interval."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "trajkit.zarr"
        trajkit.ingest(seen, store)
        traj = trajkit.open(store)
        trajkit.fit(traj, rsq_threshold=0.7)
        first, last = int(traj.steps[0]), int(traj.steps[-1])
        _, tokenizer = load_model(seen / f"checkpoint-{first}")
        base, second, moved = (
            trajkit.load_model(traj, step=s, dtype="float32") for s in (first, last, last)
        )

        def judge(model: Any, alpha: float) -> dict[str, float]:
            return {
                "alpha": alpha,
                "step": first + alpha * (last - first),
                **interval(model, tokenizer),
            }

        curves = {
            "logits": [judge(ExtrapolatedLogits(base, second, a), a) for a in ALPHAS],
        }
        for estimator in ESTIMATORS:
            curves[f"weights, {estimator}"] = points = []
            for alpha in ALPHAS:
                step = round(first + alpha * (last - first))
                trajkit.load_weights(moved, traj, step, estimator=estimator)
                points.append(judge(moved, alpha))
        curves["the real run"] = [judge(second, 1.0)]
        later = sorted(held_out.iterdir(), key=lambda p: int(p.name.split("-")[1]))
        for checkpoint in later:
            model, _ = load_model(checkpoint)
            alpha = (int(checkpoint.name.split("-")[1]) - first) / (last - first)
            curves["the real run"].append(judge(model, alpha))
    return curves


def interval(model: Any, tokenizer: Any) -> dict[str, float]:
    """Mean probability of the right answer, and its 95 % bootstrap interval over the additions."""
    p = answer_log_probabilities(model, tokenizer, evaluation_pairs()).double().exp().numpy()
    rng = np.random.default_rng(SEED)
    means = p[rng.integers(0, len(p), (RESAMPLES, len(p)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"p": float(p.mean()), "low": float(low), "high": float(high)}


def draw(curves: dict[str, list[dict[str, float]]], out: Path) -> None:
    """One picture: p(correct) over alpha, a training step for each alpha above it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "trajkit"
    colours = {
        "logits": "#1f6feb",
        "weights, two-point": "#d1630f",
        "weights, anchored": "#8a6d3b",
        "the real run": "#111111",
    }
    figure, ax = plt.subplots(figsize=(7.4, 4.2), layout="constrained")
    for name, points in curves.items():
        x, y, low, high = (np.array([p[k] for p in points]) for k in ("alpha", "p", "low", "high"))
        style = "o" if name == "the real run" else "o-"
        ax.errorbar(
            x, y, (y - low, high - y), fmt=style, color=colours[name], ms=4, lw=1.6, elinewidth=1,
            capsize=2, label=name, zorder=3 if name == "the real run" else 2,
        )  # fmt: skip
    ax.set_xlabel("alpha (1: the last checkpoint seen)")
    ax.set_ylabel("p(correct), 400 additions")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", lw=0.5)
    ax.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
