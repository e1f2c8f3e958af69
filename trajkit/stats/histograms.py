"""Quantiles and shares of counts in bins."""

import numpy as np

from trajkit.arrays import Array


def histogram_quantile(hist_B: Array, low: float, high: float, q: float = 0.5) -> float | None:
    """The q-quantile of a fixed-bin histogram on [low, high], linear within the bin.

    Args:
        hist_B: counts, int64 [B].
        low: lower end of the first bin.
        high: upper end of the last bin.
        q: in (0, 1).

    Returns:
        The quantile, off by at most one bin's width; None for an empty histogram.

    >>> histogram_quantile(np.array([1, 2, 1]), 0.0, 3.0)
    1.5
    """
    total = int(hist_B.sum())
    if total == 0:
        return None
    cumulative = np.cumsum(hist_B)
    b = int(np.searchsorted(cumulative, q * total))
    before = int(cumulative[b] - hist_B[b])
    width = (high - low) / len(hist_B)
    return low + width * (b + (q * total - before) / int(hist_B[b]))


def share(part: float, whole: float) -> float | None:
    """Part / whole, None where there is no whole."""
    return part / whole if whole else None
