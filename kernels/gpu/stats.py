"""Counts, moments and histograms of a solution on the device, in torch: see reference.summarise.

Axis letter: N elements, taken a piece at a time so that temporaries stay below 300 MB.
"""

import torch

from trajkit.kernels import flags as flag
from trajkit.kernels.formats import format_of
from trajkit.kernels.state import (
    DRIFT_T_BINS,
    DW_BINS,
    RSQ_BINS,
    ULPS_BINS,
    ULPS_STEPS,
    Solution,
    Stats,
    new_stats,
)

PIECE = 1 << 22  # elements at a time


def summarise(solution: Solution, threshold: float, steps_window: float, dtype: str) -> Stats:
    """The statistics of a solution; counts and histograms exactly those of the reference."""
    stats = new_stats(threshold, steps_window)
    for start in range(0, solution.slope.shape[0], PIECE):
        part = slice(start, start + PIECE)
        stats = stats + _summarise_piece(
            solution.slope[part],
            solution.mean[part],
            solution.rsq[part],
            solution.flags[part],
            solution.dw[part],
            solution.drift_t[part],
            new_stats(threshold, steps_window),
            dtype,
        )
    return stats


def _summarise_piece(
    slope_N: torch.Tensor,
    mean_N: torch.Tensor,
    rsq_N: torch.Tensor,
    flags_N: torch.Tensor,
    dw_N: torch.Tensor,
    drift_t_N: torch.Tensor,
    stats: Stats,
    dtype: str,
) -> Stats:
    """Fill `stats` with a piece of a solution; one wait for the device."""

    def has(mask: int) -> torch.Tensor:
        return (flags_N & mask) != 0

    threshold = torch.tensor(stats.threshold, dtype=torch.float32).item()
    fitted_N = torch.isfinite(rsq_N)
    above_N = fitted_N & (rsq_N > threshold)
    small_N, few_N = has(flag.FLAG_SMALL_RANGE), has(flag.FLAG_FEW_DISTINCT)
    kept_N = fitted_N & ~few_N & ~small_N
    moving_N = ~has(flag.FLAG_STATIC | flag.FLAG_INVALID)
    below_N = moving_N & has(flag.FLAG_BELOW_HALF_ULP)
    masks = {
        "static": has(flag.FLAG_STATIC),
        "invalid": has(flag.FLAG_INVALID),
        "fitted": fitted_N,
        "above_threshold": above_N,
        "few_distinct": moving_N & few_N,
        "small_range": moving_N & small_N,
        "below_half_ulp": below_N,
        "kept": kept_N,
        "kept_above": kept_N & above_N,
    }
    rsq, slope, mean = (a[fitted_N].double() for a in (rsq_N, slope_N.abs(), mean_N))
    moments = {
        "rsq_sum": rsq.sum(),
        "rsq_sumsq": (rsq * rsq).sum(),
        "abs_slope_sum": slope.sum(),
        "slope_sumsq": (slope * slope).sum(),
        "abs_mean_sum": mean.abs().sum(),
        "max_abs_slope": slope.max() if slope.numel() else slope.sum(),
    }
    ulps = torch.log2(slope * ULPS_STEPS / _ulp_of(mean, dtype))
    hists = {
        "hist_rsq": _histogram(rsq, 0, 1, RSQ_BINS),
        "hist_rsq_kept": _histogram(rsq_N[kept_N].double(), 0, 1, RSQ_BINS),
        "hist_dw": _histogram(dw_N[fitted_N].double(), 0, 4, DW_BINS),
        "hist_drift_t": _histogram(drift_t_N[fitted_N].double(), -20, 20, DRIFT_T_BINS),
        "hist_ulps": _histogram(ulps, -16, 16, ULPS_BINS),
    }
    stats.elements = slope_N.shape[0]
    counts = torch.stack([mask.sum() for mask in masks.values()]).tolist()
    for name, count in zip(masks, counts, strict=True):
        setattr(stats, name, count)
    for name, value in zip(moments, torch.stack(list(moments.values())).tolist(), strict=True):
        setattr(stats, name, value)
    for name, histogram in hists.items():
        setattr(stats, name, histogram.cpu().numpy())
    return stats


def _ulp_of(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """The spacing of the dtype's numbers at float64 values, see formats.ulp_of."""
    form = format_of(dtype)
    exponent = (torch.frexp(values.abs())[1] - 1).clamp(min=form.e_min)
    exponent = torch.where(values == 0, form.e_min, exponent)
    return torch.ldexp(torch.ones_like(values), exponent - form.mantissa)


def _histogram(values: torch.Tensor, low: float, high: float, bins: int) -> torch.Tensor:
    """Counts of equal bins on [low, high], values beyond in the end bins, NaN nowhere."""
    known = values[~values.isnan()].clamp(low, high)
    index = torch.floor((known - low) * (bins / (high - low))).long().clamp(max=bins - 1)
    return torch.bincount(index, minlength=bins)
