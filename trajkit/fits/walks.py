"""What a driftless walk with a fit's own increments scores, tensor by tensor, and what drifts.

Narrow formats are seen through their rounding (:mod:`trajkit.stats.rounding`): by default as if
fp32 master weights walked (``master``). Where the elements turn back no more often than the toss of
a coin would have it, narrow weights may be all there is (``stored``); the drift's p-values are then
the larger of both, and the record has the null of both. Formats of 32 bits and more are ``stored``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import TensorInfo, module_of
from trajkit.kernels.state import Stats
from trajkit.stats.drift import DriftShares, count_drifting
from trajkit.stats.histograms import histogram_quantile, share
from trajkit.stats.movement import Movement
from trajkit.stats.nulls import null_above, null_median
from trajkit.stats.rounding import T_EDGES_E, WALKS_A_GROUP, Mixture, Process, rounded_walks
from trajkit.stats.student import student_tail
from trajkit.stats.verdict import Signs, Verdict, judge

CHATTER = 0.55
"""above this share of reversals rounding flips to and fro: there are masters that are finer"""


def process_of(dtype: str) -> Process:
    """The process taken for a dtype where nothing else is known."""
    return "stored" if DTYPES[dtype].itemsize >= 4 else "master"


MOST_MODULES = 256
"""modules that a fit keeps a row of: those with the most elements"""


@dataclass
class _Pool:
    """What is collected of some tensors."""

    stats: Stats | None = None
    parts: list[tuple[float, Mixture]] = field(default_factory=list)
    """fitted elements and walks, of every tensor that moved"""
    moves: dict[Process, Movement] = field(default_factory=dict)

    def add(self, stats: Stats, process: Process, moves: Movement, walk: Mixture | None) -> None:
        self.stats = stats if self.stats is None else self.stats + stats
        self.moves[process] = self.moves[process] + moves if process in self.moves else moves
        if walk is not None:
            self.parts.append((stats.fitted, walk))


class FitWalks:
    """The walks that stand beside a fit, collected tensor by tensor."""

    def __init__(self, steps: tuple[int, ...], threshold: float) -> None:
        self.steps = steps
        self.threshold = threshold
        self._all = _Pool()
        self._modules: dict[str, _Pool] = {}

    def add(self, info: TensorInfo, stats: Stats, moves: Movement) -> dict[str, Any]:
        """Count one tensor; returns its columns of the fit's table."""
        process = process_of(info.dtype)
        walk = rounded_walks(self.steps, process).mix(moves.changes_B)
        if not stats.fitted:
            walk = None
        module = self._modules.setdefault(module_of(info.name), _Pool())
        for pool in (self._all, module):
            pool.add(stats, process, moves, walk)
        if walk is None:
            verdict = "static" if len(self.steps) > 2 else None
            return {
                "null_median_rsq": None,
                "null_above_threshold": None,
                "null_median_durbin_watson": None,
                "null_share_drift_t_above_2": None,
                "drifting": 0,
                "verdict": verdict,
            }
        shares = self._drifting(stats, walk, process, moves)
        return {
            "null_median_rsq": walk.median_rsq,
            "null_above_threshold": walk.above(self.threshold),
            "null_median_durbin_watson": walk.median_dw,
            "null_share_drift_t_above_2": walk.share_t_above_2,
            "drifting": shares.significant,
            "verdict": self._judge(stats, walk, shares, process, moves.changes_B),
        }

    def summary(self) -> Mapping[str, Any]:
        """What the record says beside the fit of all elements."""
        found: dict[str, Any] = {
            "median_rsq": null_median(self.steps),
            "above_threshold": null_above(self.steps, self.threshold),
            "continuous_median_rsq": null_median(self.steps),
            "continuous_above_threshold": null_above(self.steps, self.threshold),
        }
        return {**found, **self._describe(self._all)}

    def modules(self) -> tuple[Mapping[str, Any], ...]:
        """The same of each module, layers and experts folded, its elements all together.

        The share that drifts is by the false discovery rate of the module's own histogram of t, and
        the verdict by its own R², Durbin-Watson and walks: no vote of its tensors.
        """
        shown = ("median_rsq", "above_threshold", "drift_share", "drift_excess", "verdict")
        rows = []
        for name, pool in self._modules.items():
            stats = pool.stats
            if stats is None or not stats.elements:
                continue
            found = self._describe(pool)
            row: dict[str, Any] = {
                "module": name,
                "elements": stats.elements,
                "fitted": stats.fitted,
                "median_rsq": histogram_quantile(stats.hist_rsq, 0, 1),
                "share_above_threshold": share(stats.above_threshold, stats.fitted),
            }
            names = (f"null_{key}" if key in shown[:2] else key for key in shown)
            rows.append(row | dict(zip(names, (found.get(key) for key in shown), strict=True)))
        kept = sorted(rows, key=lambda row: -row["elements"])[:MOST_MODULES]
        return tuple(sorted(kept, key=lambda row: str(row["module"])))

    def rsq(self) -> tuple[float, ...] | None:
        """Shares of R² of the walks beside all elements, in 1,000 bins; None where none moved."""
        parts = self._all.parts
        return tuple(Mixture.pool(parts).rsq_R.tolist()) if parts else None

    def _describe(self, pool: _Pool) -> Mapping[str, Any]:
        """What some tensors' walks score together, how many elements drift beside, the verdict."""
        if not pool.parts or pool.stats is None:
            return {"verdict": "static" if len(self.steps) > 2 else None, "drift_share": None}
        walk = Mixture.pool(pool.parts)
        process: Process = "master" if "master" in pool.moves else "stored"
        moves = pool.moves[process]
        shares = self._drifting(pool.stats, walk, process, moves)
        changes_B = sum(m.changes_B for m in pool.moves.values())
        found: dict[str, Any] = {
            "median_rsq": walk.median_rsq,
            "above_threshold": walk.above(self.threshold),
            "median_durbin_watson": walk.median_dw,
            "share_drift_t_above_2": walk.share_t_above_2,
            "process": process,
            "reversal_share": moves.reversal_share,
            "increment_ulps": self._ulps(process, moves),
            "drift_share": shares.share,
            "drift_excess": shares.excess,
            "verdict": self._judge(pool.stats, walk, shares, process, np.asarray(changes_B)),
        }
        if process == "master":
            other = rounded_walks(self.steps, "stored").mix(moves.changes_B)
            assert other is not None
            found["stored_median_rsq"] = other.median_rsq
            found["stored_above_threshold"] = other.above(self.threshold)
        return found

    def _ulps(self, process: Process, moves: Movement) -> float | None:
        ulps = rounded_walks(self.steps, process).typical_ulps(moves.changes_B)
        return ulps if np.isfinite(ulps) else None

    def _drifting(
        self, stats: Stats, walk: Mixture, process: Process, moves: Movement
    ) -> DriftShares:
        """How many elements drift; p-values by Student's t too, where the process is not known."""
        tail_E = walk.t_tail_E
        if process == "master" and (moves.reversal_share or 0.0) > CHATTER:
            tail_E = tail_E + 1 / WALKS_A_GROUP  # none of so many is not never
        elif len(self.steps) > 2:
            student_E = student_tail(T_EDGES_E, len(self.steps) - 2)
            continuous = not moves.changes_B[1:-1].any()
            tail_E = student_E if continuous else np.maximum(tail_E, student_E)
        return count_drifting(stats.hist_drift_t, tail_E)

    def _judge(
        self, stats: Stats, walk: Mixture, shares: DriftShares, process: Process, changes_B: Array
    ) -> Verdict | None:
        line = None
        if (shares.share or 0.0) >= 0.5:
            line = rounded_walks(self.steps, "line").mix(changes_B)
        known_dw = stats.hist_dw.sum() >= stats.fitted / 2
        signs = Signs(
            checkpoints=len(self.steps),
            elements=stats.elements,
            fitted=stats.fitted,
            drift_share=shares.share,
            drift_excess=shares.excess,
            median_rsq=histogram_quantile(stats.hist_rsq, 0, 1),
            line_rsq=None if line is None else line.median_rsq,
            median_dw=histogram_quantile(stats.hist_dw, 0, 4) if known_dw else None,
            walk_dw=walk.median_dw,
            line_dw=None if line is None else line.median_dw,
        )
        return judge(signs)
