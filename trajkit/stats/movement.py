"""How often elements change, and whether they turn back: what tells the size of increments.

Axis letters: T checkpoints, M elements looked at, B bins of the number of changes.
"""

from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.stats.rounding import change_edges, count_changes


@dataclass(frozen=True, slots=True)
class Movement:
    """Counts over some elements; those of two parts add up with ``+``."""

    changes_B: Array
    """elements by how often they changed, float64 [B]; an element of a sample stands for several"""
    pairs: float = 0.0
    """changes that another one followed"""
    reversals: float = 0.0
    """of these, how often the next went the other way; half of them do in a walk of whole ulps"""

    def __add__(self, other: "Movement") -> "Movement":
        """The counts of both parts."""
        return Movement(
            self.changes_B + other.changes_B,
            self.pairs + other.pairs,
            self.reversals + other.reversals,
        )

    @property
    def reversal_share(self) -> float | None:
        """Reversals of pairs, None where there is no pair."""
        return self.reversals / self.pairs if self.pairs else None


def no_movement(n_frames: int) -> Movement:
    """The zero of ``+``."""
    return Movement(np.zeros(len(change_edges(n_frames))))


def measure_movement(values_TM: Array, weight: float = 1.0) -> Movement:
    """The movement of some elements, each standing for ``weight``; those not finite are left out.

    >>> measure_movement(np.array([[0.0, 5], [1, 5], [0, 5]]))
    Movement(changes_B=array([1., 0., 1.]), pairs=1.0, reversals=1.0)
    """
    finite_M = np.isfinite(values_TM).all(axis=0)
    before_TM, after_TM = values_TM[:-1, finite_M], values_TM[1:, finite_M]
    sign_TM = (after_TM > before_TM).astype(np.int8) - (after_TM < before_TM).astype(np.int8)
    changes_M = np.count_nonzero(sign_TM, axis=0)
    last_M = np.zeros(sign_TM.shape[1], np.int8)
    reversals = 0
    for sign_M in sign_TM:
        reversals += int(np.count_nonzero(sign_M * last_M < 0))
        np.copyto(last_M, sign_M, where=sign_M != 0)
    pairs = int(np.maximum(changes_M - 1, 0).sum())
    counts_B = count_changes(changes_M, len(values_TM)) * weight
    return Movement(counts_B, pairs * weight, reversals * weight)
