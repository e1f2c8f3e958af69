"""The main job on real data: ingest, fit, extrapolate, report, and a judgement by held-out steps.

Run by ``make demo``. It shows trajkit the checkpoints of ``data/adder-grpo`` (a GRPO run, steps 0 to
396), has it write the checkpoints of later steps, and compares those with the real ones in
``data/adder-grpo-heldout``: by distance in weight space, relative to holding the last checkpoint,
and by p(correct), the mean probability of the right answer over 400 fixed additions.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from adder import load_model, probability_correct

ROOT = Path(__file__).resolve().parent.parent
SEEN = ROOT / "data" / "adder-grpo"
HELD_OUT = ROOT / "data" / "adder-grpo-heldout"
ESTIMATORS = ("anchored", "line", "two-point")


def main() -> None:
    """Run the demo in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out", help="folder to work in")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    steps = sorted(int(folder.name.split("-")[1]) for folder in HELD_OUT.iterdir())
    last = max(int(folder.name.split("-")[1]) for folder in SEEN.iterdir())
    targets = ",".join(map(str, steps))
    trajkit(out, "ingest", str(SEEN))
    trajkit(out, "fit", "--rsq-threshold", "0.7")
    for estimator in ESTIMATORS:
        options = ("--steps", targets, "--estimator", estimator, "-o", f"out-{estimator}")
        trajkit(out, "extrapolate", *options)
    trajkit(out, "report")
    print_table(out, last, steps)
    print("\nlook at")
    print(f"  {out / 'report' / 'index.html'}   the page about this run")
    for step in steps:
        print(f"  {out / 'out-anchored' / f'step_{step}'}   loads in transformers like any other")
    print(f"  {out / 'trajkit.zarr'}   all {last // 12 + 1} checkpoints, lossless")


def trajkit(folder: Path, *arguments: str) -> None:
    """Run one command as a person would, in ``folder``, and show it."""
    shown = [str(Path(a).relative_to(ROOT)) if Path(a).is_absolute() else a for a in arguments]
    print(f"\n$ trajkit {' '.join(shown)}", flush=True)
    command = [str(Path(sys.executable).with_name("trajkit")), *arguments]
    subprocess.run(command, cwd=folder, check=True)


def print_table(out: Path, last: int, steps: list[int]) -> None:
    """Compare what was written with the checkpoints the run really reached."""
    hold_weights, hold_p = measure(SEEN / f"checkpoint-{last}")
    print(f"\nSeen: steps 0 to {last}. Judged on later checkpoints that trajkit was not shown.")
    print("distance: from the real checkpoint in weight space, holding the last one = 1")
    print("p(correct): mean probability of the right answer, 400 additions\n")
    print(f"{'':24}{'step':>6}{'distance':>11}{'p(correct)':>13}")
    for step in steps:
        real_weights, real_p = measure(HELD_OUT / f"checkpoint-{step}")
        unit = float(np.linalg.norm(hold_weights - real_weights))
        print(f"{f'hold step {last}':24}{step:>6}{1.0:>11.3f}{hold_p:>13.4f}")
        for estimator in ESTIMATORS:
            weights, p = measure(out / f"out-{estimator}" / f"step_{step}")
            distance = float(np.linalg.norm(weights - real_weights)) / unit
            print(f"{estimator:24}{step:>6}{distance:>11.3f}{p:>13.4f}")
        print(f"{f'the real step {step}':24}{step:>6}{0.0:>11.3f}{real_p:>13.4f}\n")


def measure(folder: Path) -> tuple[np.ndarray, float]:
    """A checkpoint's weights as one vector, float64 [N], and its p(correct)."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, tokenizer = load_model(folder)
    weights = [p.detach().double().numpy().ravel() for p in model.parameters()]
    return np.concatenate(weights), probability_correct(model, tokenizer)


if __name__ == "__main__":
    main()
