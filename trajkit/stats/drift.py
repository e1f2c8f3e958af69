"""How many elements drift: a false discovery rate on the histogram of the drift's t.

The p-value of an element is the share of driftless walks whose |t| is at least the lower edge of its
bin of |t|, so it is never too small. Benjamini and Hochberg (1995): reject all elements at or above
the smallest edge e with m P0(|t| >= e) <= q #{|t| >= e}, for m elements that have a t. Their
expected share of driftless ones is then at most q, and with no drift anywhere the chance of any
rejection is at most q.

Axis letters: E lower edges of |t|, E2 = 2 (E - 1) bins of t.
"""

from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array

FALSE_DISCOVERY_RATE = 0.05


@dataclass(frozen=True, slots=True)
class DriftShares:
    """How many of some elements drift."""

    tested: int
    """elements that have a t"""
    significant: int
    """rejected at a false discovery rate of 5 %"""
    excess: float
    """(S - S0) / (1 - S0), S the share with |t| >= 2 and S0 that of driftless walks; 0 where it is
    within three standard errors of S0. Drifts too small to be told element by element show here."""

    @property
    def share(self) -> float | None:
        """Significant elements of those tested."""
        return self.significant / self.tested if self.tested else None


def fold_histogram(hist_E2: Array) -> Array:
    """Counts at or above each lower edge of |t| but the last, int64 [E - 1].

    >>> fold_histogram(np.array([1, 2, 3, 4]))
    array([10,  5])
    """
    half = len(hist_E2) // 2
    size = hist_E2[half:] + hist_E2[:half][::-1]
    return np.asarray(np.cumsum(size[::-1])[::-1])


def count_drifting(
    hist_drift_t: Array, t_tail_E: Array, q: float = FALSE_DISCOVERY_RATE
) -> DriftShares:
    """How many elements drift, from the histogram of their t.

    Args:
        hist_drift_t: the kernels' histogram on [-20, 20], values beyond in the end bins.
        t_tail_E: P0(|t| >= e) at the lower edges of the folded bins, from 0 on.
        q: the false discovery rate.

    >>> hist = np.array([40, 0, 0, 30, 30, 0, 0, 0])  # edges 0, 5, 10, 15
    >>> count_drifting(hist, np.array([1.0, 0.001, 0.0005, 0.0001]))
    DriftShares(tested=100, significant=40, excess=0.0)
    """
    at_least = fold_histogram(hist_drift_t)
    tail = t_tail_E[: len(at_least)]
    tested = int(at_least[0])
    if not tested:
        return DriftShares(0, 0, 0.0)
    rejected = np.flatnonzero((at_least > 0) & (tested * tail <= q * at_least))
    significant = int(at_least[rejected[0]]) if len(rejected) else 0
    at_two = round(2 * len(at_least) / 20)
    seen, null = at_least[at_two] / tested, float(tail[at_two])
    error = np.sqrt(null * (1 - null) / tested)
    excess = (seen - null) / (1 - null) if abs(seen - null) > 3 * error and null < 1 else 0.0
    return DriftShares(tested, significant, float(excess))
