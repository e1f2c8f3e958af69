"""The main job on real data: ingest, fit, extrapolate, report, and a judgement by held-out steps.

Run by ``make demo``. It shows trajkit the checkpoints of ``data/adder-grpo`` (a GRPO run, steps 0 to
396), has it write the checkpoints of later steps, and compares those with the real ones in
``data/adder-grpo-heldout``: by distance in weight space, relative to holding the last checkpoint,
and by p(correct), the mean probability of the right answer over 400 fixed additions. Beside the
weights stand the outputs: the logits of steps 0 and 396 extrapolated to the later step. Where the
extra ``models`` is installed, the commands about outputs are run too.
"""

import argparse
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from adder_numpy import load_weights, probability_correct

ROOT = Path(__file__).resolve().parent.parent
SEEN = ROOT / "data" / "adder-grpo"
HELD_OUT = ROOT / "data" / "adder-grpo-heldout"
ESTIMATORS = ("anchored", "line", "two-point")
MARKER = ".trajkit-demo"
"""A file that says that a folder was made by an earlier demo and may be replaced."""


def main() -> None:
    """Run the demo in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out", help="folder to work in")
    out = parser.parse_args().out
    started = time.monotonic()
    make_folder(out)
    seen, held_out = list_steps(SEEN), list_steps(HELD_OUT)
    print(
        f"{len(seen)} checkpoints of a small model that GRPO taught to add, steps {seen[0]} to "
        f"{seen[-1]}.\ntrajkit sees these, and writes steps {', '.join(map(str, held_out))}."
        "\nIt takes about a minute, most of it compiling kernels, once."
    )
    trajkit(out, "ingest", str(SEEN))
    trajkit(out, "fit", "--rsq-threshold", "0.7")
    targets = ",".join(map(str, held_out))
    for estimator in ESTIMATORS:
        options = ("--steps", targets, "--estimator", estimator, "-o", f"out-{estimator}")
        trajkit(out, "extrapolate", *options)
    if all(map(find_spec, ("torch", "transformers", "zarr"))):
        run_outputs(out, seen[-1], held_out[-1])
    else:
        print("\nLeft out: logprobs and generate, which need pip install 'trajkit[models]'.")
    rewards = ROOT / "data" / "adder-grpo.csv"
    trajkit(out, "report", "--rewards", str(rewards))
    print_table(out, seen[-1], held_out)
    print(f"Done in {time.monotonic() - started:.0f} s. Look at, in {out.resolve()}:")
    print("  report/index.html   the page about this run, beginning with what it says of drift")
    for step in held_out:
        print(f"  out-anchored/step_{step}   a checkpoint folder like those that were ingested")
    print(f"  trajkit.zarr   all {len(seen)} checkpoints, lossless")
    print("On a run of your own: trajkit ingest YOUR-CHECKPOINTS/, then the same commands.")


def run_outputs(out: Path, last: int, target: int) -> None:
    """Score fixed responses under every checkpoint, and decode with extrapolated logits."""
    probes = ROOT / "data" / "adder-grpo-probes.jsonl"
    trajkit(out, "logprobs", "--probes", str(probes))
    trajkit(out, "fit", "--outputs", "default")
    models = ("--base", "0", "--second", str(last), "--steps", str(target))
    prompts = ("--prompts", str(ROOT / "data" / "adder-grpo-prompts.jsonl"))
    options = ("--max-new-tokens", "5", "-o", f"step_{target}.jsonl")
    trajkit(out, "generate", *models, *prompts, *options)


def make_folder(out: Path) -> None:
    """Make a folder to work in, or clear what an earlier demo left there, and nothing else."""
    names = {MARKER, "trajkit.zarr", "report", *(f"out-{estimator}" for estimator in ESTIMATORS)}
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        sys.exit(f"{out}: not a folder, so it is left alone; choose another --out")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    strangers = sorted(there - names if MARKER in there else there)
    if strangers:
        sys.exit(f"{out}: holds {strangers[0]}, not made by this demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    for name in there - {MARKER}:
        shutil.rmtree(out / name)


def list_steps(folder: Path) -> list[int]:
    """The steps of the ``checkpoint-N`` folders in a folder, ascending."""
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def trajkit(folder: Path, *arguments: str) -> None:
    """Run one command as a person would, in ``folder``, and show it."""
    shown = [str(Path(a).relative_to(ROOT)) if Path(a).is_absolute() else a for a in arguments]
    print(f"\n$ trajkit {' '.join(shown)}", flush=True)
    command = [str(Path(sys.executable).with_name("trajkit")), *arguments]
    done = subprocess.run(command, cwd=folder, check=False)
    if done.returncode != 0:
        sys.exit(f"trajkit {arguments[0]} failed; what it says stands above")


def print_table(out: Path, last: int, steps: list[int]) -> None:
    """Compare what was written with the checkpoints the run really reached."""
    hold_weights, hold_p = measure(SEEN / f"checkpoint-{last}")
    base, second = (load_weights(SEEN / f"checkpoint-{step}") for step in (0, last))
    print(f"\nSeen: steps 0 to {last}. Judged by later checkpoints, which trajkit was not shown.")
    print("distance: from the real checkpoint in weight space, holding the last one = 1")
    print("p(correct): mean probability of the right answer, 400 additions\n")
    print(f"{'':24}{'step':>6}{'distance':>11}{'p(correct)':>13}")
    worse, beaten = [], []
    for step in steps:
        real_weights, real_p = measure(HELD_OUT / f"checkpoint-{step}")
        unit = float(np.linalg.norm(hold_weights - real_weights))
        print(f"{f'hold step {last}':24}{step:>6}{1.0:>11.3f}{hold_p:>13.4f}")
        off = []
        for estimator in ESTIMATORS:
            weights, p = measure(out / f"out-{estimator}" / f"step_{step}")
            off.append(abs(p - real_p))
            distance = float(np.linalg.norm(weights - real_weights)) / unit
            print(f"{estimator:24}{step:>6}{distance:>11.3f}{p:>13.4f}")
            if distance > 1:
                worse.append(f"{estimator} at {step}")
        folder = SEEN / f"checkpoint-{last}"
        p = probability_correct(folder, second, base, alpha=step / last)
        print(f"{f'logits of 0 and {last}':24}{step:>6}{'':>11}{p:>13.4f}")
        if abs(p - real_p) > min(off):
            beaten.append(str(step))
        print(f"{f'the real step {step}':24}{step:>6}{0.0:>11.3f}{real_p:>13.4f}\n")
    print(f"Further from the real checkpoint than holding: {', '.join(worse) or 'none'}.")
    print(f"Weights nearer to the real p(correct) than logits: {', '.join(beaten) or 'nowhere'}.\n")


def measure(folder: Path) -> tuple[np.ndarray, float]:
    """A checkpoint's weights as one vector, float64 [N], and its p(correct)."""
    weights = load_weights(folder)
    flat = [weights[name].astype(np.float64).ravel() for name in sorted(weights)]
    return np.concatenate(flat), probability_correct(folder, weights)


if __name__ == "__main__":
    main()
