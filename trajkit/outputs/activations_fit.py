"""A line through every mean activation, by the streaming fit of the weights, and its walks beside it.

Axis letters: T checkpoints, E columns of all layers, N of a part of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import TensorInfo, module_of
from trajkit.errors import InvalidInput
from trajkit.fits.walks import FitWalks
from trajkit.kernels import api as kernels
from trajkit.kernels.state import Solution, Stats
from trajkit.outputs.activations_kept import Activations
from trajkit.outputs.shares import Shares
from trajkit.stats.flips import flipped_walks, sample_columns
from trajkit.stats.histograms import histogram_quantile, share
from trajkit.stats.movement import Movement, measure_movement

_BLOCK_BYTES = 1 << 26
SIGNIFICANT = 0.05
"""p-value above which a layer's straightness is no more than its own walks have"""


@dataclass(frozen=True, slots=True)
class ActivationsFit:
    """Lines through the columns of every layer."""

    name: str
    steps: tuple[int, ...]
    threshold: float
    rsq: Array
    """float32 [E]; NaN where nothing changes"""
    slope: Array
    """float32 [E], change a training step"""
    layers: tuple[Mapping[str, Any], ...]
    """a row a layer: columns, median R², share above, that of its walks, share that drifts, verdict;
    ``own_walks_...`` is the median R² of walks made of the layer's own changes, and its p-value
    (:mod:`trajkit.stats.flips`)"""
    modules: tuple[Mapping[str, Any], ...]
    """the same of each module, layers folded"""
    whole: Mapping[str, Any]
    """the same of all columns"""
    stats: Stats
    """of all columns"""

    def describe(self) -> dict[str, Any]:
        """The fit in numbers; JSON types."""
        return {
            "activations": self.name,
            "checkpoints": len(self.steps),
            "from_step": self.steps[0],
            "to_step": self.steps[-1],
            "rsq_threshold": self.threshold,
            **self.whole,
            "layers": [dict(row) for row in self.layers],
            "modules": [dict(row) for row in self.modules],
        }


def fit_activations(kept: Activations, threshold: float = 0.7) -> ActivationsFit:
    """Fit a line to every column by the kernels that fit weights, and judge it as they are.

    Args:
        kept: measured at two checkpoints or more.
        threshold: R² above which a column counts as linear.

    Raises:
        InvalidInput: fewer than two checkpoints. FormatError: the activations are damaged.

    Notes:
        float64 sums. Memory: columns of all checkpoints in blocks of 64 MiB. The neurons of a layer
        move together, and the shares behind a verdict of weights count each as a witness. So a layer
        whose median R² 5 % or more of the walks made of its own changes reach is ``wandering`` here,
        whatever its elements look like one by one; of six checkpoints or fewer all are.
    """
    steps = kept.record.steps
    if len(steps) < 2:
        raise InvalidInput(
            f"{kept.path}: a line needs 2 checkpoints or more, measured are {len(steps)}"
        )
    total = int(kept.offsets[-1])
    rsq, slope = np.empty(total, np.float32), np.empty(total, np.float32)
    block = max(_BLOCK_BYTES // (8 * len(steps)), 1)
    walks, rows = FitWalks(steps, threshold), []
    everything: Stats | None = None
    for i, layer in enumerate(kept.record.layers):
        stats: Stats | None = None
        moves: Movement | None = None
        begin, end = int(kept.offsets[i]), int(kept.offsets[i + 1])
        for start in range(begin, end, block):
            stop = min(start + block, end)
            values_TN = np.ascontiguousarray(kept.rows("mean", start, stop))
            solution = _fit(values_TN, steps)
            rsq[start:stop], slope[start:stop] = solution.rsq, solution.slope
            span = float(steps[-1] - steps[0])
            part = kernels.summarise(solution, threshold, span, "float64", backend="cpu")
            moved = measure_movement(values_TN)
            stats = part if stats is None else stats + part
            moves = moved if moves is None else moves + moved
        if stats is None or moves is None:
            continue
        everything = stats if everything is None else everything + stats
        columns = walks.add(TensorInfo(layer, "float64", (end - begin,), begin), stats, moves)
        drift_share = share(columns["drifting"], stats.fitted)
        rows.append({"layer": layer, **_numbers(stats), **columns, "drift_share": drift_share})
    assert everything is not None
    modules: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        modules.setdefault(module_of(row["layer"]), []).append(i)
        rows[i] = _beside_own_walks(row, kept, [i])
    found = walks.summary()
    whole = {
        **_numbers(everything),
        "null_median_rsq": found["median_rsq"],
        "null_above_threshold": found["above_threshold"],
        "drift_share": found.get("drift_share"),
        "verdict": found.get("verdict"),
    }
    folded = [_beside_own_walks(row, kept, modules[row["module"]]) for row in walks.modules()]
    whole = _beside_own_walks(whole, kept, range(len(rows)))
    return ActivationsFit(
        kept.record.name,
        steps,
        threshold,
        rsq,
        slope,
        tuple(rows),
        tuple(folded),
        whole,
        everything,
    )


def shares_by_module(kept: Activations, t: int = -1) -> dict[str, Shares]:
    """What changed the linear layers' outputs from the first row to row ``t``, layers folded."""
    found: dict[str, Shares] = {}
    for layer, sums in zip(kept.record.linear, kept.parts()[t], strict=True):
        name, shares = module_of(layer), Shares(*sums.tolist())
        found[name] = found[name] + shares if name in found else shares
    return found


def _beside_own_walks(
    row: Mapping[str, Any], kept: Activations, layers: Sequence[int]
) -> dict[str, Any]:
    """The row with what walks made of these layers' own changes score, and its verdict by that."""
    columns = np.concatenate([np.arange(kept.offsets[i], kept.offsets[i + 1]) for i in layers])
    sample = columns[sample_columns(len(columns))]
    own = flipped_walks(_columns(kept, sample), kept.record.steps)
    numbers = {"low": None, "median": None, "high": None, "p": None} if own is None else asdict(own)
    verdict = row["verdict"]
    if own is not None and own.p > SIGNIFICANT and verdict in ("straight", "drifting"):
        verdict = "wandering"
    return {**row, **{f"own_walks_{k}": v for k, v in numbers.items()}, "verdict": verdict}


def _columns(kept: Activations, columns: Array) -> Array:
    """Some columns at all checkpoints, float64 [T, N], read a stretch of the array at a time."""
    block = max(_BLOCK_BYTES // (8 * len(kept.record.steps)), 1)
    parts = []
    for _, chosen in groupby(columns.tolist(), key=lambda column: column // block):
        wanted = np.array(list(chosen))
        first, stop = int(wanted[0]), int(wanted[-1]) + 1
        parts.append(kept.rows("mean", first, stop)[:, wanted - first])
    return np.concatenate(parts, axis=1)


def _fit(values_TN: Array, steps: tuple[int, ...]) -> Solution:
    """The lines of some columns: every row is a key frame of float64 bits."""
    all_keys = np.ones(len(steps), np.bool_)
    return kernels.fit_frames(
        values_TN.view(np.uint64), all_keys, np.array(steps), "float64", backend="cpu"
    )


def _numbers(stats: Stats) -> dict[str, Any]:
    return {
        "columns": stats.elements,
        "fitted": stats.fitted,
        "median_rsq": histogram_quantile(stats.hist_rsq, 0, 1),
        "mean_rsq": stats.rsq_sum / stats.fitted if stats.fitted else None,
        "share_above_threshold": share(stats.above_threshold, stats.fitted),
        "median_durbin_watson": histogram_quantile(stats.hist_dw, 0, 4),
    }


__all__ = ["ActivationsFit", "fit_activations", "shares_by_module"]
