"""Intervals of what `trajkit activations` says: a bootstrap over prompts, and walks for the outputs.

    trajkit ingest data/adder-grpo
    trajkit activations --probes data/adder-grpo-probes.jsonl
    trajkit logprobs --probes data/adder-grpo-probes.jsonl
    python examples/activations_by_prompt.py trajectory.zarr data/adder-grpo-probes.jsonl

Each prompt's probes are measured apart at the first and the last step; the sums of the decomposition add
up over prompts, so prompts are drawn anew with replacement (seed 7, 2,000 draws) and 95 % of the draws
lie in the interval. The median R² of tokens' log-probabilities stands beside that of 999 walks made of
the run's own changes (seed 0), which is what `trajkit activations` does for neurons. Neurons, tokens
and prompts are those of one run: no interval here is over runs.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

import trajkit
from trajkit.outputs.activations import activations
from trajkit.outputs.activations_fit import shares_by_module
from trajkit.outputs.activations_kept import read_activations
from trajkit.outputs.kept import read_outputs
from trajkit.outputs.linearity import fit_outputs
from trajkit.outputs.shares import PARTS, SUMS, Shares
from trajkit.stats.flips import flipped_walks
from trajkit.store.store import Store

DRAWS, SEED = 2000, 7


def sums_by_prompt(store: Path, probes: Path) -> dict[str, np.ndarray]:
    """The decomposition's sums of every module at the last step, [prompts, sums]."""
    prompts = defaultdict(list)
    for line in probes.read_text("utf-8").splitlines():
        prompts[json.loads(line)["prompt"]].append(line)
    steps = Store.open(store).steps.tolist()
    found = defaultdict(list)
    for lines in prompts.values():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "p.jsonl")
            path.write_text("\n".join(lines) + "\n", "utf-8")
            made = activations(
                trajkit.open(store), path, steps=(steps[0], steps[-1]), out=Path(folder, "a")
            )
            for name, shares in shares_by_module(read_activations(Path(made.path))).items():
                found[name].append(shares.values())
    return {name: np.array(rows) for name, rows in found.items()}


def main(store: Path, probes: Path) -> None:
    """Print the intervals."""
    rng = np.random.default_rng(SEED)
    for name, rows in sums_by_prompt(store, probes).items():
        draws = rng.integers(len(rows), size=(DRAWS, len(rows)))
        drawn = [Shares(*rows[draw].sum(axis=0).tolist()).describe() for draw in draws]
        told = Shares(*dict(zip(SUMS, rows.sum(axis=0).tolist(), strict=True)).values()).describe()
        print(f"{name}, {len(rows)} prompts")
        for key in ("relative_change", *(f"along_{p}" for p in PARTS), *PARTS):
            low, high = np.quantile([d[key] for d in drawn], [0.025, 0.975])
            print(f"  {key:16} {told[key]:6.3f} ({low:.3f} to {high:.3f})")
    outputs = read_outputs(Store.open(store))
    fit = fit_outputs(outputs).describe()
    own = flipped_walks(outputs.log_p.astype(np.float64), outputs.record.steps)
    print(f"log p of {fit['tokens']} tokens: median R² {fit['median_rsq']:.3f}")
    print(f"  its own walks {own.low:.3f} to {own.high:.3f}, p {own.p:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
