"""``rank-k``: straight lines in the few directions along which the run has moved most.

With the deltas from the first checkpoint D = U S V', the coefficients U_tj S_j along direction j are
extended to the target by ordinary least squares on the training step (arXiv 2605.21468 for K = 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trajkit.fits.estimators.combined import Combined
from trajkit.fits.estimators.estimator import Parameter

if TYPE_CHECKING:
    from trajkit.arrays import Array


@dataclass(frozen=True)
class RankK(Combined):
    """first + Σ_j V_j (the line through U_tj S_j, at the target), j = 1 to K.

    >>> import numpy as np
    >>> steps = np.arange(3)
    >>> RankK().weights(np.outer(steps, steps), steps, 4).round(6).tolist()
    [-1.4, 0.8, 1.6]
    """

    rank: int = 1

    name: ClassVar[str] = "rank-k"
    formula: ClassVar[str] = "first + lines in the K largest directions"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("rank", "K", "how many directions (default 1)", 1, 1024, whole=True),
    )
    needs_gram: ClassVar[bool] = True
    anchored: ClassVar[bool] = False
    """whether it goes on from the last checkpoint, not along the line itself"""

    def weights(self, gram_TT: Array, steps_T: Array, step: int) -> Array:
        """From the deltas' inner products [T, T]; see :mod:`trajkit.stats.combinations`."""
        from trajkit.stats.combinations import rank_weights

        return rank_weights(gram_TT, steps_T, float(step), int(self.rank), self.anchored)


@dataclass(frozen=True)
class RankKAnchored(RankK):
    """last + Σ_j V_j h (the slope of U_tj S_j): the same slopes, from the last checkpoint."""

    name: ClassVar[str] = "rank-k-anchored"
    formula: ClassVar[str] = "last + slopes in the K largest directions"
    anchored: ClassVar[bool] = True
