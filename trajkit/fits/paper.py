"""The statistics of arXiv 2601.04537, by its own filters.

It looks at tensors whose name ends in ``.weight``, keeps an element only if max - min > 1e-4 over
all checkpoints and it takes at least 4 distinct bf16 values, and reports R² of value on training
step over what is kept. Its code samples 0.1 % of each tensor, at least 50 elements;
:func:`fit_sample` does the same, :func:`describe_kept` reads a fit of all elements.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.errors import InvalidInput
from trajkit.fits.window import Window
from trajkit.kernels.state import Stats
from trajkit.stats.axis import StepAxis
from trajkit.stats.histograms import histogram_quantile
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store, element_bits

MIN_RANGE = 1e-4
MIN_DISTINCT = 4
DISTINCT_IN = "bfloat16"
"""whatever dtype the weights are stored in"""
MIN_SAMPLE = 50


@dataclass(frozen=True, slots=True)
class PaperStats:
    """What the paper reports, and the share of elements that its filters keep."""

    elements: int
    """elements looked at, in ``.weight`` tensors"""
    kept: int
    share_kept: float | None
    mean_rsq: float | None
    """over kept elements; None when there are none"""
    median_rsq: float | None
    share_above: float | None
    """of kept elements, with R² above the threshold"""


def is_weight(name: str) -> bool:
    """Whether the paper looks at a tensor of this name."""
    return name.endswith(".weight")


def describe_kept(stats: Stats) -> PaperStats:
    """The paper's statistics from a fit with its filters, of ``.weight`` tensors alone.

    Mean and median come from 1,000 bins of R² on [0, 1]: each is off by half a bin at most.
    """
    hist = stats.hist_rsq_kept
    kept = int(hist.sum())
    middles = (np.arange(len(hist)) + 0.5) / len(hist)
    return PaperStats(
        elements=stats.elements,
        kept=kept,
        share_kept=kept / stats.elements if stats.elements else None,
        mean_rsq=float(hist @ middles) / kept if kept else None,
        median_rsq=histogram_quantile(hist, 0, 1),
        share_above=stats.kept_above / kept if kept else None,
    )


def fit_sample(
    traj: Source,
    window: Window,
    fraction: float,
    seed: int,
    threshold: float,
    budget_bytes: int,
) -> PaperStats:
    """The paper's statistics of a random sample of elements, in float64.

    Args:
        traj: the trajectory.
        window: the frames to fit.
        fraction: share of each ``.weight`` tensor to look at; at least 50 elements of each.
        seed: of the sample.
        threshold: for ``share_above``.
        budget_bytes: elements are taken in groups that fit into a quarter of it.

    Raises:
        InvalidInput: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InvalidInput(f"the sample must be a fraction in (0, 1], not {fraction}")
    store = as_store(traj)
    rng = np.random.default_rng(seed)
    looked, rsqs = 0, [np.empty(0)]
    largest_group = max(budget_bytes // 4 // (32 * len(store.steps)), 1)
    for info in store.tensors.values():
        if not is_weight(info.name) or not DTYPES[info.dtype].is_float or not info.size:
            continue
        size = min(info.size, max(MIN_SAMPLE, round(fraction * info.size)))
        chosen = np.sort(rng.choice(info.size, size, replace=False))
        looked += size
        for values_TM in _values(store, window, info, chosen, largest_group):
            rsqs.append(_rsq_of_kept(values_TM, window.axis))
    rsq = np.concatenate(rsqs)
    return PaperStats(
        elements=looked,
        kept=len(rsq),
        share_kept=len(rsq) / looked if looked else None,
        mean_rsq=float(rsq.mean()) if len(rsq) else None,
        median_rsq=float(np.median(rsq)) if len(rsq) else None,
        share_above=float((rsq > threshold).mean()) if len(rsq) else None,
    )


def _values(
    store: Store, window: Window, info: TensorInfo, chosen: Array, largest_group: int
) -> Iterator[Array]:
    """The chosen elements' values over the window, float64 [T, M], a group at a time."""
    for start in range(0, len(chosen), largest_group):
        elements = info.offset + chosen[start : start + largest_group]
        bits_TM = element_bits(store, info.dtype, elements)[window.first : window.stop]
        yield bits_TM.view(DTYPES[info.dtype].scalar).astype(np.float64)


def _rsq_of_kept(values_TM: Array, axis: StepAxis) -> Array:
    """R² of the elements that the filters keep, float64."""
    finite = np.isfinite(values_TM).all(axis=0)
    values_TM = values_TM[:, finite]
    rounded = np.sort(values_TM.astype(ml_dtypes.bfloat16).astype(np.float64), axis=0)
    n_distinct = 1 + (rounded[1:] != rounded[:-1]).sum(axis=0)
    kept = (np.ptp(values_TM, axis=0) > MIN_RANGE) & (n_distinct >= MIN_DISTINCT)
    y_TM = values_TM[:, kept] - values_TM[:, kept].mean(axis=0)
    u_T = np.array(axis.steps, np.float64) - axis.mean
    rsq: Array = (u_T @ y_TM) ** 2 / (axis.s_xx * (y_TM**2).sum(axis=0))
    return rsq
