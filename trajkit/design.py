"""The step axis of a fit, and what R² a driftless random walk scores on it.

A walk regressed on time has a high R² whatever its length (Nelson and Kang 1984; Durlauf and
Phillips 1988), so an R² means little without the null of its own step vector beside it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trajkit.codecs import Array

_WALKS = 1 << 15
_DRAWS = 4 * 10**7
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class StepAxis:
    """The training steps of a window, and their moments.

    >>> axis = StepAxis.of([0, 10, 20])
    >>> axis.mean, axis.s_xx, axis.span, axis.unit
    (10.0, 200.0, 20, 10.0)
    """

    steps: tuple[int, ...]
    mean: float
    """x̄, in training steps"""
    s_xx: float
    """sum of (x - x̄)², in squared training steps"""

    @classmethod
    def of(cls, steps: Array | list[int]) -> "StepAxis":
        """The axis of ascending training steps."""
        ints = [int(s) for s in steps]
        origin = ints[0]  # exact for windows far from step 0
        shifted = [s - origin for s in ints]
        mean = sum(shifted) / len(shifted)
        return cls(tuple(ints), origin + mean, float(sum((s - mean) ** 2 for s in shifted)))

    @property
    def span(self) -> int:
        """Training steps from the first checkpoint to the last."""
        return self.steps[-1] - self.steps[0]

    @property
    def unit(self) -> float:
        """The largest distance from x̄: steps in this unit lie in [-1, 1]."""
        return max(self.mean - self.steps[0], self.steps[-1] - self.mean) or 1.0


@lru_cache(maxsize=32)
def null_rsq(steps: tuple[int, ...], seed: int = 0) -> Array:
    """R² of driftless Gaussian random walks observed at these steps.

    The increment between two checkpoints has variance proportional to the training steps between
    them.

    Args:
        steps: training steps, ascending.
        seed: of the draws; the same seed gives the same numbers.

    Returns:
        float64 [W], ascending: 32,768 walks, fewer for T above 1,220 (at least 4,096).
        Empty for fewer than two steps. Memory: blocks of 16 MiB.
    """
    if len(steps) < 2:
        return np.empty(0)
    x = np.asarray(steps, np.float64)
    scale = np.sqrt(np.diff(x))
    u = x - x.mean()
    n_walks = int(np.clip(_DRAWS // len(x), 4096, _WALKS))
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK_BYTES // (8 * len(x)))
    parts = []
    for start in range(0, n_walks, rows):
        n = min(rows, n_walks - start)
        y = np.zeros((n, len(x)))
        np.cumsum(rng.standard_normal((n, len(x) - 1)) * scale, axis=1, out=y[:, 1:])
        y -= y.mean(axis=1, keepdims=True)
        parts.append((y @ u) ** 2 / ((u @ u) * np.einsum("ij,ij->i", y, y)))
    return np.sort(np.minimum(np.concatenate(parts), 1.0))


def null_median(steps: tuple[int, ...]) -> float | None:
    """Median R² of the driftless walk; None for fewer than two steps.

    >>> 0.42 < null_median(tuple(range(14))) < 0.48  # REFERENCE: .451
    True
    """
    rsq = null_rsq(steps)
    return float(np.median(rsq)) if len(rsq) else None


def null_above(steps: tuple[int, ...], threshold: float) -> float | None:
    """Share of driftless walks whose R² is above the threshold; None for fewer than two steps."""
    rsq = null_rsq(steps)
    return float(np.mean(rsq > threshold)) if len(rsq) else None
