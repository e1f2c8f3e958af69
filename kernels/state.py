"""What the kernels hand to each other: sums of a window, a solution, statistics of a solution.

Axis letters: T checkpoints, N elements. The arrays are numpy's, or torch's on one device for the
GPU backend; the scalars live on the host, in float64.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.formats import format_of

Array = Any
"""numpy.ndarray, or torch.Tensor on the GPU backend"""

SLOTS = 3
"""distinct values remembered for each element; one more is counted, and there counting stops"""
MAX_CHANGES = 65535
"""the count of changes stops here"""
RESIDUAL_FLOOR = 2.0**-20
"""residual sums below this part of the total are rounding of float32 partial sums, not residuals"""
RSQ_BINS, DW_BINS, DRIFT_T_BINS, ULPS_BINS = 1000, 80, 80, 64
ULPS_STEPS = 100
"""hist_ulps counts the movement of the line over so many training steps"""
SUMS_VERSION = 2
"""of the fields of :class:`Sums` and of the arithmetic that fills them: sums of another version are
not added to, so whoever changes either raises it"""
SUMS_SCALARS = ("count", "x_ref", "x_unit", "x_first", "x_last", "s_u", "s_uu", "s_du2")
"""the scalars of :class:`Sums`; they belong to its arrays and to no others"""


@dataclass(slots=True)
class Sums:
    """The state of N elements after ``count`` checkpoints (DESIGN, section 4).

    With u_t = (x_t - x_ref) / x_unit, d_t = y_t - y_first and Δ the difference to the checkpoint
    before. An element that is ``invalid`` has no meaningful sums.
    """

    dtype: str
    """the elements' format, e.g. "bfloat16" """
    count: int
    """T, checkpoints so far"""
    x_ref: float
    """the training step where u = 0; near the middle of the window keeps rounding smallest"""
    x_unit: float
    """training steps a unit of u"""
    x_first: float
    """the first training step (NaN while count is 0)"""
    x_last: float
    """the last training step (NaN while count is 0)"""
    s_u: float
    """sum u_t"""
    s_uu: float
    """sum u_t²"""
    s_du2: float
    """sum (Δu_t)²"""
    distinct_in: str
    """the format in which values are told apart: ``dtype``, or "bfloat16" (each value rounded to it)"""
    s_d: Array
    """sum d_t, float64 [N]"""
    s_ud: Array
    """sum u_t d_t, float64 [N]"""
    s_dd: Array
    """sum d_t², float64 [N]"""
    q: Array
    """sum (Δd_t)², float64 [N]"""
    p: Array
    """sum Δu_t Δd_t, float64 [N]"""
    v: Array
    """sum (Δd_t)² / Δu_t, float64 [N]"""
    y_first: Array
    """the first value, float32 [N] (float64 for float64)"""
    y_min: Array
    """the smallest value, as y_first"""
    y_max: Array
    """the largest value, as y_first"""
    bits_last: Array
    """the last bit pattern, unsigned [N]: where decoding goes on"""
    changes: Array
    """checkpoints whose value differs from the one before, uint16 [N], stops at 65535"""
    distinct: Array
    """distinct values seen, uint8 [N], stops at 4"""
    slots: Array
    """bit patterns, in ``distinct_in``, of the first distinct values (0.0 for -0.0), in words of the
    dtype's width, unsigned [3, N]; slots not yet taken repeat the last one taken"""
    invalid: Array
    """1 where a NaN or an Inf has been seen, uint8 [N]"""

    @property
    def size(self) -> int:
        """N."""
        return int(self.s_d.shape[0])

    @property
    def scalars(self) -> dict[str, float]:
        """The host's scalars by name (``SUMS_SCALARS``)."""
        return {name: getattr(self, name) for name in SUMS_SCALARS}


@dataclass(slots=True)
class Solution:
    """The fitted line of N elements: y = mean + slope (x - x̄).

    Static elements: slope 0, mean the value, the rest NaN. Invalid elements: all NaN. One
    checkpoint: slope 0, rsq NaN, not static.
    """

    slope: Array
    """per training step, float32 [N]"""
    mean: Array
    """the value at x̄, float32 [N]"""
    rsq: Array
    """R², float32 [N], in [0, 1]; 1 for two checkpoints"""
    flags: Array
    """uint8 [N], see :mod:`trajkit.kernels.flags`"""
    dw: Array
    """Durbin-Watson of the residuals, float32 [N]; NaN below three checkpoints and where the
    residuals are no larger than rounding (SSE <= 2^-20 SST)"""
    drift_t: Array
    """t of the drift, each difference weighted by 1/Δx, float32 [N]; NaN below three checkpoints,
    ±inf where the differences vary no more than rounding (their residual sum <= 2^-20 V)"""
    bits_last: Array
    """bit patterns of the last checkpoint, unsigned [N]"""


@dataclass(slots=True)
class Stats:
    """Counts, moments and histograms of a solution; those of two parts add up with ``+``.

    A *fitted* element has a finite R²; a *kept* one is fitted and has neither few distinct values
    nor a small range. Histograms count fitted elements (``hist_rsq_kept``: kept). ``few_distinct``,
    ``small_range`` and ``below_half_ulp`` count among elements neither static nor invalid.
    """

    threshold: float
    """rsq above this counts as above the threshold"""
    steps_window: float
    """training steps from the first to the last checkpoint: slope times this is the movement"""
    elements: int
    static: int
    invalid: int
    fitted: int
    above_threshold: int
    few_distinct: int
    small_range: int
    below_half_ulp: int
    kept: int
    kept_above: int
    rsq_sum: float
    rsq_sumsq: float
    abs_slope_sum: float
    slope_sumsq: float
    abs_mean_sum: float
    max_abs_slope: float
    """the one field that is no sum: the larger of the two is kept"""
    hist_rsq: NDArray[np.int64]
    """[1000] on [0, 1]"""
    hist_rsq_kept: NDArray[np.int64]
    """[1000] on [0, 1]"""
    hist_dw: NDArray[np.int64]
    """[80] on [0, 4]; NaN is not counted"""
    hist_drift_t: NDArray[np.int64]
    """[80] on [-20, 20], values beyond (±inf too) in the end bins; NaN is not counted"""
    hist_ulps: NDArray[np.int64]
    """[64] on [-16, 16]: log2 of the ulps (at \\|mean\\|) the line moves in 100 training steps,
    values beyond (slope 0 too) in the end bins"""

    def __add__(self, other: "Stats") -> "Stats":
        """The statistics of both parts; raises ValueError if they count by different rules."""
        for name in ("threshold", "steps_window"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"statistics of different {name} do not add up: "
                    f"{getattr(self, name)} and {getattr(other, name)}"
                )
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        total["threshold"], total["steps_window"] = self.threshold, self.steps_window
        total["max_abs_slope"] = max(self.max_abs_slope, other.max_abs_slope)
        return Stats(**total)


def new_stats(threshold: float, steps_window: float) -> Stats:
    """The statistics of no elements, the zero of ``+``.

    >>> (new_stats(0.7, 100.0) + new_stats(0.7, 100.0)).elements
    0
    """
    bins = (RSQ_BINS, RSQ_BINS, DW_BINS, DRIFT_T_BINS, ULPS_BINS)
    hists = [np.zeros(n, dtype=np.int64) for n in bins]
    numbers: list[Any] = [*[0] * 10, *[0.0] * 6, *hists]
    return Stats(threshold, steps_window, *numbers)


def check_axis(x_ref: float, x_unit: float) -> None:
    """Raise ValueError unless the units of the step axis are finite, and x_unit positive."""
    if not (np.isfinite(x_ref) and np.isfinite(x_unit) and x_unit > 0):
        raise ValueError(f"x_ref must be finite and x_unit positive, got {x_ref} and {x_unit}")


def choose_distinct(dtype: str, distinct_in: str | None) -> str:
    """The format in which values are told apart, by default their own.

    Both float8 are exact in bfloat16, and stay as they are.

    >>> [choose_distinct(d, "bfloat16") for d in ("float16", "float8_e5m2")]
    ['bfloat16', 'float8_e5m2']
    """
    if distinct_in not in (None, dtype, "bfloat16"):
        raise ValueError(
            f"{dtype} values are told apart as they are or in bfloat16, got {distinct_in}"
        )
    return dtype if distinct_in is None or format_of(dtype).width == 8 else distinct_in


def new_sums(
    n: int, dtype: str, x_ref: float, x_unit: float, distinct_in: str | None = None
) -> Sums:
    """The sums of no checkpoints, in numpy arrays of N elements; see :class:`Sums`.

    Args:
        n: N.
        dtype: "bfloat16", "float16", "float32", "float64", "float8_e4m3fn" or "float8_e5m2".
        x_ref: the training step where u = 0; rounding is smallest near the middle of the window.
        x_unit: training steps a unit of u, e.g. half the window
            (:func:`trajkit.kernels.steps.span_units`).
        distinct_in: the format in which values are told apart where distinct ones are counted: the
            dtype itself (None), or "bfloat16", to which each is rounded first.

    Raises:
        NotImplementedError: a dtype no line is fitted to.
        ValueError: ``x_unit`` not positive and finite, ``x_ref`` not finite, or another
            ``distinct_in`` than None, the dtype and "bfloat16".
    """
    form = format_of(dtype)
    check_axis(x_ref, x_unit)
    distinct_in = choose_distinct(dtype, distinct_in)
    nan = float("nan")
    sums: list[Any] = [np.zeros(n, dtype=np.float64) for _ in range(6)]
    values: list[Any] = [np.zeros(n, dtype=form.work) for _ in range(3)]
    others: list[Any] = [
        np.zeros(n, dtype=form.bits),
        np.zeros(n, dtype=np.uint16),
        np.zeros(n, dtype=np.uint8),
        np.zeros((SLOTS, n), dtype=form.bits),
        np.zeros(n, dtype=np.uint8),
    ]
    return Sums(
        dtype,
        0,
        float(x_ref),
        float(x_unit),
        nan,
        nan,
        0.0,
        0.0,
        0.0,
        distinct_in,
        *sums,
        *values,
        *others,
    )
