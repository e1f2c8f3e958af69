"""What a driftless walk with a fit's own increments scores, tensor by tensor, and what drifts.

Narrow formats are seen through their rounding (:mod:`trajkit.stats.rounding`): by default as if
fp32 master weights walked (``master``). Where the elements turn back no more often than the toss of
a coin would have it, narrow weights may be all there is (``stored``); the drift's p-values are then
the larger of both, and the record has the null of both. Formats of 32 bits and more are ``stored``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.kernels.state import Stats
from trajkit.stats.drift import DriftShares, count_drifting
from trajkit.stats.histograms import histogram_quantile
from trajkit.stats.movement import Movement, no_movement
from trajkit.stats.nulls import null_above, null_median
from trajkit.stats.rounding import T_EDGES_E, WALKS_A_GROUP, Mixture, Process, rounded_walks
from trajkit.stats.student import student_tail
from trajkit.stats.verdict import Signs, Verdict, judge

CHATTER = 0.55
"""above this share of reversals rounding flips to and fro: there are masters that are finer"""


def process_of(dtype: str) -> Process:
    """The process taken for a dtype where nothing else is known."""
    return "stored" if DTYPES[dtype].itemsize >= 4 else "master"


class FitWalks:
    """The walks that stand beside a fit, collected tensor by tensor."""

    def __init__(self, steps: tuple[int, ...], threshold: float) -> None:
        self.steps = steps
        self.threshold = threshold
        self._parts: list[tuple[float, Mixture]] = []
        self._moves: dict[Process, Movement] = {}

    def add(self, info: TensorInfo, stats: Stats, moves: Movement) -> dict[str, Any]:
        """Count one tensor; returns its columns of the fit's table."""
        process = process_of(info.dtype)
        known = self._moves.get(process, no_movement(len(self.steps)))
        self._moves[process] = known + moves
        walk = rounded_walks(self.steps, process).mix(moves.changes_B)
        if walk is None or not stats.fitted:
            verdict = "static" if len(self.steps) > 2 else None
            return {
                "null_median_rsq": None,
                "null_above_threshold": None,
                "drifting": 0,
                "verdict": verdict,
            }
        self._parts.append((stats.fitted, walk))
        shares = self._drifting(stats, walk, process, moves)
        return {
            "null_median_rsq": walk.median_rsq,
            "null_above_threshold": walk.above(self.threshold),
            "drifting": shares.significant,
            "verdict": self._judge(stats, walk, shares, process, moves.changes_B),
        }

    def summary(self, stats: Stats) -> Mapping[str, Any]:
        """What the record says beside the fit of all elements."""
        found: dict[str, Any] = {
            "median_rsq": null_median(self.steps),
            "above_threshold": null_above(self.steps, self.threshold),
            "continuous_median_rsq": null_median(self.steps),
            "continuous_above_threshold": null_above(self.steps, self.threshold),
        }
        if not self._parts:
            found |= {"verdict": "static" if len(self.steps) > 2 else None, "drift_share": None}
            return found
        walk = Mixture.pool(self._parts)
        process: Process = "master" if "master" in self._moves else "stored"
        moves = self._moves[process]
        shares = self._drifting(stats, walk, process, moves)
        changes_B = sum(m.changes_B for m in self._moves.values())
        found |= {
            "median_rsq": walk.median_rsq,
            "above_threshold": walk.above(self.threshold),
            "median_durbin_watson": walk.median_dw,
            "process": process,
            "reversal_share": moves.reversal_share,
            "increment_ulps": self._ulps(process, moves),
            "drift_share": shares.share,
            "drift_excess": shares.excess,
            "verdict": self._judge(stats, walk, shares, process, np.asarray(changes_B)),
        }
        if process == "master":
            other = rounded_walks(self.steps, "stored").mix(moves.changes_B)
            assert other is not None
            found["stored_median_rsq"] = other.median_rsq
            found["stored_above_threshold"] = other.above(self.threshold)
        return found

    def rsq(self) -> tuple[float, ...] | None:
        """Shares of R² of the walks beside all elements, in 1,000 bins; None where none moved."""
        return tuple(Mixture.pool(self._parts).rsq_R.tolist()) if self._parts else None

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
