"""The compiled statistics of a solution; reference.py says what.

A tile at a time: first every element's bins, in loops that become vector code, then the counting,
which cannot. What is not counted goes to one bin more at a histogram's end, so that nothing
branches on an element.

Axis letters: N elements.
"""

from typing import Any

import numpy as np

from trajkit.kernels.cpu.bits import TILE, Layout, as_float, as_word, wide_vectors
from trajkit.kernels.cpu.compile import compiled, compiled_reordered
from trajkit.kernels.cpu.solve import Answer
from trajkit.kernels.flags import (
    FLAG_BELOW_HALF_ULP,
    FLAG_FEW_DISTINCT,
    FLAG_INVALID,
    FLAG_SMALL_RANGE,
    FLAG_STATIC,
)
from trajkit.kernels.state import DRIFT_T_BINS, DW_BINS, RSQ_BINS, ULPS_BINS, ULPS_STEPS

KEPT = RSQ_BINS + 1
"""where the bins of kept elements begin in the joint histogram of R²"""
# Rows of the scratch tile of bins, in units of TILE.
_RSQ, _DW, _DRIFT_T, _ULPS = (row * TILE for row in range(4))
ROWS = 4


@compiled
def _bin(position: float, bins: int) -> Any:
    """The bin of a position counted in bins; beyond the ends, the end bins."""
    return np.int32(min(max(position, 0.0), bins - 1.0))


@compiled
def _find_bins(lo: int, n: int, answer: Answer, layout: Layout, bins: Any) -> None:
    """The bins of a tile's elements."""
    wide_vectors()
    rsq_N, dw_N = answer.rsq[lo : lo + n], answer.dw[lo : lo + n]
    drift_N, flags_N = answer.drift_t[lo : lo + n], answer.flags[lo : lo + n]
    slope_N, mean_N = answer.slope[lo : lo + n], answer.mean[lo : lo + n]
    not_kept = np.uint8(FLAG_FEW_DISTINCT | FLAG_SMALL_RANGE)
    for i in range(n):
        fitted = rsq_N[i] == rsq_N[i]
        kept = np.uint8(flags_N[i] & not_kept) == np.uint8(0)
        bin_ = _bin(np.float64(rsq_N[i]) * RSQ_BINS, RSQ_BINS) if fitted else np.int32(RSQ_BINS)
        bins[_RSQ + i] = np.int32(bin_ + np.int32(KEPT)) if kept else bin_
    for i in range(n):
        counted = (rsq_N[i] == rsq_N[i]) & (dw_N[i] == dw_N[i])
        bin_ = _bin(np.float64(dw_N[i]) * (DW_BINS / 4), DW_BINS)
        bins[_DW + i] = bin_ if counted else np.int32(DW_BINS)
    for i in range(n):
        counted = (rsq_N[i] == rsq_N[i]) & (drift_N[i] == drift_N[i])
        bin_ = _bin((np.float64(drift_N[i]) + 20.0) * (DRIFT_T_BINS / 40), DRIFT_T_BINS)
        bins[_DRIFT_T + i] = bin_ if counted else np.int32(DRIFT_T_BINS)
    # floor(2 log2 m) of m = slope * steps / ulp, a bin being half a unit, from m's exponent and
    # from whether its significand reaches sqrt(2)
    lowest = np.int64(max(layout.e_min, -1022 + layout.mantissa) + 1023)
    for i in range(n):
        slope, mean = abs(np.float64(slope_N[i])), abs(np.float64(mean_N[i]))
        field = max(np.int64(as_word(mean) >> np.uint64(52)), lowest) - layout.mantissa
        moved = slope * ULPS_STEPS / as_float(np.uint64(np.uint64(field) << np.uint64(52)))
        raw = as_word(moved)
        half = np.int64((raw & np.uint64(0xFFFFFFFFFFFFF)) > np.uint64(0x6A09E667F3BCC))
        halves = 2 * (np.int64(raw >> np.uint64(52)) - 1023) + half
        bin_ = np.int32(min(max(halves + ULPS_BINS // 2, 0), ULPS_BINS - 1))
        bins[_ULPS + i] = bin_ if rsq_N[i] == rsq_N[i] else np.int32(ULPS_BINS)


@compiled
def _tally(
    n: int, bins: Any, hist_rsq: Any, hist_dw: Any, hist_drift_t: Any, hist_ulps: Any
) -> None:
    """Count a tile's bins."""
    for i in range(n):
        hist_rsq[bins[_RSQ + i]] += 1
        hist_dw[bins[_DW + i]] += 1
        hist_drift_t[bins[_DRIFT_T + i]] += 1
        hist_ulps[bins[_ULPS + i]] += 1


@compiled
def _count(lo: int, n: int, answer: Answer, threshold: Any, counts: Any) -> None:
    """Add a tile to ``counts``, which are those of Stats, in its order."""
    wide_vectors()
    rsq_N, flags_N = answer.rsq[lo : lo + n], answer.flags[lo : lo + n]
    static = invalid = fitted = above = few = small = below = kept = kept_above = 0
    for i in range(n):
        flags = np.int32(flags_N[i])
        is_few, is_small = flags & FLAG_FEW_DISTINCT != 0, flags & FLAG_SMALL_RANGE != 0
        moving = flags & (FLAG_STATIC | FLAG_INVALID) == 0
        is_fitted, is_above = rsq_N[i] == rsq_N[i], rsq_N[i] > threshold
        is_kept = is_fitted & (not (is_few | is_small))
        static += flags & FLAG_STATIC != 0
        invalid += flags & FLAG_INVALID != 0
        few += moving & is_few
        small += moving & is_small
        below += moving & (flags & FLAG_BELOW_HALF_ULP != 0)
        fitted += is_fitted
        above += is_above
        kept += is_kept
        kept_above += is_kept & is_above
    for k, count in enumerate(
        (n, static, invalid, fitted, above, few, small, below, kept, kept_above)
    ):
        counts[k] += count


@compiled_reordered
def _add_moments(lo: int, n: int, answer: Answer, moments: Any) -> None:
    """Add a tile to ``moments``: R², its square, |slope|, its square, |mean|; the largest |slope|."""
    wide_vectors()
    rsq_N, slope_N = answer.rsq[lo : lo + n], answer.slope[lo : lo + n]
    mean_N = answer.mean[lo : lo + n]
    rsq_sum = rsq_sumsq = slope_sum = slope_sumsq = mean_sum = 0.0
    for i in range(n):
        fitted = rsq_N[i] == rsq_N[i]
        rsq = np.float64(rsq_N[i]) if fitted else 0.0
        slope = abs(np.float64(slope_N[i])) if fitted else 0.0
        rsq_sum += rsq
        rsq_sumsq += rsq * rsq
        slope_sum += slope
        slope_sumsq += slope * slope
        mean_sum += abs(np.float64(mean_N[i])) if fitted else 0.0
    size_max = np.int64(0)
    for i in range(n):  # sizes are in the order of their bits, and integers have a vector maximum
        size = np.int64(np.uint32(as_word(slope_N[i])) & np.uint32(0x7FFFFFFF))
        size_max = max(size_max, size if rsq_N[i] == rsq_N[i] else np.int64(0))
    for k, total in enumerate((rsq_sum, rsq_sumsq, slope_sum, slope_sumsq, mean_sum)):
        moments[k] += total
    moments[5] = max(moments[5], np.float64(as_float(np.uint32(size_max))))


@compiled
def summarise(
    answer: Answer, threshold: Any, layout: Layout, counts: Any, moments: Any, hist_rsq: Any,
    hist_dw: Any, hist_drift_t: Any, hist_ulps: Any, bins: Any,
) -> None:  # fmt: skip
    """One pass over a solution; adds to ``counts`` [10], ``moments`` [6] and the histograms.

    Histograms have one bin more, for what is not counted; that of R² is two, of elements that are
    not kept and, from KEPT on, of those that are. ``bins`` is scratch of ROWS tiles.
    """
    for lo in range(0, len(answer.rsq), TILE):
        n = min(TILE, len(answer.rsq) - lo)
        _find_bins(lo, n, answer, layout, bins)
        _tally(n, bins, hist_rsq, hist_dw, hist_drift_t, hist_ulps)
        _count(lo, n, answer, threshold, counts)
        _add_moments(lo, n, answer, moments)
