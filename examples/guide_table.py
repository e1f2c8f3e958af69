"""Guided extrapolation beside every other rule, on runs whose later checkpoints are known.

    python examples/guide_table.py --out docs/guide.json \
        --run 'data/' data/adder-grpo runs/seed1/adder-grpo-heldout \
        --run 'seed 2' runs/seed2/adder-grpo runs/seed2/adder-grpo-heldout \
        --run 'learning rate 6e-5' runs/lr6e-5/adder-grpo runs/lr6e-5/adder-grpo-heldout
    python examples/guide_table.py --table docs/guide.json       # the README's tables, from the numbers

The runs are the committed example's, with other seeds and rates, and with later checkpoints:

    python examples/train_adder_grpo.py --out runs/seed1 --base data/adder-grpo/checkpoint-0 \
        --threads 1 --heldout 420 475 500 594 792 800 990 1386
    python examples/train_adder_grpo.py --out runs/seed2 --seed 2 --threads 1 --heldout ...
    python examples/train_adder_grpo.py --out runs/lr6e-5 --base data/adder-grpo/checkpoint-0 \
        --learning-rate 6e-5 --threads 1 --heldout ...

`seed1` is the run of `data/` made again to step 1386 (its path is the same, its bits are not quite).
Each run is ingested up to its window's end; what every rule writes for later steps is judged by
p(correct), the mean probability of the right answer over 1,000 additions, beside the real checkpoint
of that step. Probes are additions that are not among these, and no rule sees a later checkpoint.
Responses are sampled from the run's first checkpoint, or are the right answers. 95 % bootstrap
intervals over the additions; differences are paired.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adder import (
    EVALUATION_SEED,
    LARGEST,
    ExtrapolatedLogits,
    answer_for,
    answer_log_probabilities,
    evaluation_pairs,
    load_model,
    prompt_for,
)

import trajkit
from trajkit.errors import TrajkitError

WINDOWS = (0.5, 1.0, 1.5, 2.5)
"""horizons, in windows beyond the last checkpoint seen"""
JUDGED = 1000
"""additions that every row is judged on"""
PROBES = (32, 128, 512)
DRAWS = (1, 2, 3)
"""seeds of the probes' additions and of the responses to them; the first one's are in the tables"""
RESAMPLES = 2000
BOOTSTRAP_SEED = 7
GRID_ALONE = 71
"""forwards of a search without curves at other horizons"""
RULES: Mapping[str, Mapping[str, Any]] = {
    "hold": {"estimator": "damped", "damping": 0.0, "gate": "none"},
    "two-point": {"estimator": "two-point"},
    "anchored, no gate": {"estimator": "anchored", "gate": "none"},
    "line, no gate": {"estimator": "line", "gate": "none"},
    "anchored, R² > 0.7 (default)": {"estimator": "anchored", "rsq_threshold": 0.7},
    "rank-1, from the last": {"estimator": "rank-k-anchored", "rank": 1.0},
    "best of the backtest": {"estimator": "auto"},
}
GUIDED = "guided, 512 own samples"
Numbers = dict[str, Any]


def main() -> None:
    """Measure, or print the tables of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs=3, action="append", metavar=("NAME", "SEEN", "LATER"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument(
        "--table", nargs="+", type=Path, help="print the tables of these JSON files"
    )
    options = parser.parse_args()
    found: list[Numbers]
    if options.table is not None:
        found = [run for path in options.table for run in json.loads(path.read_text())]
        if options.out is not None:
            write_numbers(options.out, found)
        print(tables(found))
        return
    found = []
    for name, seen, later in options.run:
        found.append(measure(name, Path(seen), Path(later)))
        write_numbers(options.out, found)
    print(tables(found))


def write_numbers(path: Path, found: Sequence[Numbers]) -> None:
    """Numbers in six digits, a row a line."""
    short = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.6g}"))
    lines = []
    for run in short:
        rows = ",\n".join(f"  {json.dumps(row)}" for row in run.pop("rows"))
        lines.append(f'{json.dumps(run)[:-1]}, "rows": [\n{rows}\n]}}')
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def measure(name: str, seen: Path, later: Path) -> Numbers:
    """Every row at every horizon of one run."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        trajkit.ingest(seen, folder / "s.zarr")
        traj = trajkit.open(folder / "s.zarr")
        trajkit.fit(traj, rsq_threshold=0.7)
        backtest = trajkit.backtest(traj)
        first, last = int(traj.steps[0]), int(traj.steps[-1])
        base, tokenizer = load_model(seen / f"checkpoint-{first}")
        second, moved = (trajkit.load_model(traj, last, dtype="float32") for _ in range(2))
        judge = Judge(tokenizer)
        rows: list[Numbers] = []
        for windows in WINDOWS:
            step = last + round(windows * (last - first))
            alpha = (step - first) / (last - first)
            p = {"logits": judge(ExtrapolatedLogits(base, second, alpha))}
            real = later / f"checkpoint-{step}"
            if real.exists():
                p["real"] = judge(load_model(real)[0])
            best = backtest.best_for(step - last)["rule"]
            extra: Numbers = {"best of the backtest": {"rule": best}}
            for rule, how in RULES.items():
                trajkit.load_weights(moved, traj, step, **how)
                p[rule] = judge(moved)
            for label, probes, search in guides(folder, seen / f"checkpoint-{first}", tokenizer):
                started = time.perf_counter()
                found = trajkit.guide(traj, probes, step, **search)
                seconds = time.perf_counter() - started
                written = RULES["hold"] if found.refusal else found.options
                trajkit.load_weights(moved, traj, step, **written)
                p[label] = judge(moved)
                extra[label] = {
                    "rule": found.rule,
                    "kl": found.kl,
                    "kl_hold": found.kl_hold,
                    "kl_anchored": found.kl_anchored,
                    "kl_two_point": found.kl_two_point,
                    "kl_choosing": found.choosing.chosen,
                    "refusal": found.refusal,
                    "rules": len(found.candidates),
                    "seconds": round(seconds, 1),
                }
            for label, values in p.items():
                row = {
                    "windows": windows,
                    "step": step,
                    "row": label,
                    **interval(values),
                    "minus_logits": interval(values - p["logits"]),
                    "minus_hold": interval(values - p["hold"]),
                    **extra.get(label, {}),
                }
                rows.append(row)
                print(
                    f"{name:20} {step:6} {label:30} {row['p']:.4f}  {row.get('rule', '')}",
                    flush=True,
                )
    return {"run": name, "first": first, "last": last, "judged": JUDGED, "rows": rows}


class Judge:
    """The probability of each right answer under a model, over the additions judged."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pairs = judged_pairs()

    def __call__(self, model: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        log_p = answer_log_probabilities(model, self.tokenizer, self.pairs)
        values: np.ndarray[Any, np.dtype[np.float64]] = log_p.double().exp().numpy()
        return values


def judged_pairs() -> list[tuple[int, int]]:
    """The additions that are judged."""
    return evaluation_pairs(JUDGED, EVALUATION_SEED)


def guides(folder: Path, base: Path, tokenizer: Any) -> list[tuple[str, Path, Numbers]]:
    """(row, probe file, options of the search); the files are made once."""
    found: list[tuple[str, Path, Numbers]] = []
    for draw in DRAWS:
        for n in PROBES:
            for kind in ("own samples", "right answers"):
                path = folder / f"{kind}-{n}-{draw}.jsonl".replace(" ", "-")
                if not path.exists():
                    write_probes(path, base, n, draw, own=kind == "own samples")
                label = f"guided, {n} {kind}" + (f", draw {draw}" if draw > 1 else "")
                if draw == 1 or (n == min(PROBES) and kind == "own samples"):
                    found.append((label, path, {"budget": GRID_ALONE}))
    families = {"depth": "families", "budget": 100}
    found.append(("guided by families, 512 own samples", found_path(found), families))
    return found


def found_path(guides: Sequence[tuple[str, Path, Numbers]]) -> Path:
    """The probes of the row that is in the tables."""
    return next(path for label, path, _ in guides if label == GUIDED)


def write_probes(path: Path, base: Path, n: int, seed: int, *, own: bool) -> None:
    """One response each to additions that are not judged: the first checkpoint's own, or right."""
    judged = set(judged_pairs())
    rest = [
        pair
        for a in range(LARGEST + 1)
        for b in range(LARGEST + 1)
        if (pair := (a, b)) not in judged
    ]
    chosen = random.Random(seed).sample(rest, n)
    lines = [{"prompt": prompt_for(a, b)} for a, b in chosen]
    if not own:
        lines = [
            line | {"response": answer_for(a, b), "eos": True}
            for line, (a, b) in zip(lines, chosen, strict=True)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    from trajkit.outputs.models import build_model, load_tokenizer
    from trajkit.outputs.sampling import Sampling, sample_file
    from trajkit.outputs.weights import FolderWeights

    prompts = path.with_suffix(".prompts")
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = FolderWeights(base)
    model = build_model(weights, dtype="float32")
    sampling = Sampling(temperature=1.0, max_new_tokens=5, seed=seed, batch=128)
    sample_file(model, load_tokenizer(weights), prompts, path, sampling, {})


def interval(values: Any) -> dict[str, float]:
    """The mean over the additions, and its 95 % bootstrap interval."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"p": float(values.mean()), "low": float(low), "high": float(high)}


def tables(found: Sequence[Numbers]) -> str:
    """The README's tables: rules, then probes."""
    return f"{rule_table(found)}\n\n{probe_table(found)}"


def rule_table(found: Sequence[Numbers]) -> str:
    """A row a rule under each run's name, a column a horizon: p(correct) and half of its interval."""
    head = "".join(f" +{w:g} windows |" for w in WINDOWS)
    lines = [f"| p(correct) |{head}", "|---|" + "---|" * len(WINDOWS)]
    for run in found:
        steps = [step_of(run, w) for w in WINDOWS]
        name = f"{run['run']}, steps {run['first']} to {run['last']}"
        lines.append(line(f"*{name}*", [f"*step {step:,}*" for step in steps]))
        for label in (*RULES, GUIDED, "logits", "real"):
            lines.append(line(shown(label), [cell_of(run, label, w) for w in WINDOWS]))
        chosen = [row_of(run, GUIDED, w) for w in WINDOWS]
        rules = [f"`{r['rule']}`{' (refused)' if r['refusal'] else ''}" for r in chosen if r]
        lines.append(line("the rule chosen", rules))
        shares = [f"{r['kl'] / r['kl_hold']:.2f}" for r in chosen if r]
        lines.append(line("its KL over holding's", shares))
    return "\n".join(lines)


def probe_table(found: Sequence[Numbers]) -> str:
    """p(correct) of guided weights less that of the logits, by the probes that chose, a run a column."""
    labels = [f"guided, {n} {kind}" for kind in ("own samples", "right answers") for n in PROBES]
    labels += [f"guided, {min(PROBES)} own samples, draw {draw}" for draw in DRAWS[1:]]
    labels.append("guided by families, 512 own samples")
    horizons = ", ".join(f"+{w:g}" for w in WINDOWS)
    names = "".join(f" {run['run']} |" for run in found)
    lines = [
        f"| p(correct) less the logits', at {horizons} windows |{names}",
        "|---|" + "---|" * len(found),
    ]
    for label in labels:
        rows = [[row_of(run, label, w) for w in WINDOWS] for run in found]
        cells = [
            ", ".join(signed(r["minus_logits"]["p"]) if r else "" for r in row) for row in rows
        ]
        lines.append(line(label, cells))
    return "\n".join(lines)


def line(name: str, cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {name} | " + " | ".join(cells) + " |"


def step_of(run: Numbers, windows: float) -> int:
    """The training step of a horizon."""
    return next(int(r["step"]) for r in run["rows"] if r["windows"] == windows)


def row_of(run: Numbers, label: str, windows: float) -> Numbers | None:
    """One row of the numbers."""
    return next((r for r in run["rows"] if (r["row"], r["windows"]) == (label, windows)), None)


def cell_of(run: Numbers, label: str, windows: float) -> str:
    """Mean and interval as a cell."""
    row = row_of(run, label, windows)
    if row is None:
        return ""
    p, half = row["p"], (row["high"] - row["low"]) / 2
    text = f"{p:.3f} ± {half:.3f}".replace("0.", ".")
    return f"**{text}**" if label == GUIDED else text


def signed(value: float) -> str:
    """A difference in three digits.

    >>> signed(-0.0123), signed(0.5)
    ('-.012', '+.500')
    """
    return f"{value:+.3f}".replace("0.", ".", 1)


def shown(label: str) -> str:
    """A row's name in the table."""
    return f"**{label}**" if label == GUIDED else label


if __name__ == "__main__":
    try:
        main()
    except TrajkitError as error:
        raise SystemExit(str(error)) from error
