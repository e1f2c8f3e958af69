"""The Triton kernel that finishes a fit: slope, mean, R² and their company, in float64.

Formulas and their letters: reference.solve.
"""

import triton
import triton.language as tl

from trajkit.kernels import flags as flag
from trajkit.kernels.gpu.bits import _value
from trajkit.kernels.state import RESIDUAL_FLOOR

FLAG_STATIC = tl.constexpr(flag.FLAG_STATIC)
FLAG_INVALID = tl.constexpr(flag.FLAG_INVALID)
FLAG_FEW_DISTINCT = tl.constexpr(flag.FLAG_FEW_DISTINCT)
FLAG_SMALL_RANGE = tl.constexpr(flag.FLAG_SMALL_RANGE)
FLAG_BELOW_HALF_ULP = tl.constexpr(flag.FLAG_BELOW_HALF_ULP)
RESIDUAL_PART = tl.constexpr(RESIDUAL_FLOOR)


@triton.jit
def _half_ulp(value, E_MIN: tl.constexpr, MANTISSA: tl.constexpr):
    """Half the spacing of the dtype's numbers at a float64: 2^(max(e, e_min) - mantissa - 1)."""
    exponent = ((value.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023
    exponent = tl.maximum(exponent, E_MIN) - MANTISSA - 1
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _solve_drift(v, y_first, y_last, moving, design_ptr, drift_t_ptr, offsets, inside):
    """Store t of the drift. Apart from the rest, and before it: together they want more registers."""
    t_count = tl.load(design_ptr)
    u_span = tl.load(design_ptr + 4)
    nan = float("nan")
    total = y_last.to(tl.float64) - y_first.to(tl.float64)
    spread = v - total / u_span * total
    certain = tl.where(total > 0, float("inf"), tl.where(total < 0, float("-inf"), nan))
    drift_t = total / tl.sqrt(spread / (t_count - 2.0) * u_span)
    drift_t = tl.where(spread > v * RESIDUAL_PART, drift_t, certain)
    drift_t = tl.where(tl.where(moving, t_count, 0.0) > 2.0, drift_t, nan)
    tl.store(drift_t_ptr + offsets, drift_t.to(tl.float32), mask=inside)


@triton.jit
def _solve_block(
    s_d,
    s_ud,
    s_dd,
    q,
    p,
    y_first,
    y_min,
    y_max,
    moving,
    distinct,
    invalid,
    design_ptr,
    few,
    slope_ptr,
    mean_ptr,
    rsq_ptr,
    flags_ptr,
    dw_ptr,
    offsets,
    inside,
    E_MIN: tl.constexpr,
    MANTISSA: tl.constexpr,
):
    """Solve [BLOCK] elements in float64 and store them; `design_ptr` is what _design lists."""
    t_count = tl.load(design_ptr)
    u_mean = tl.load(design_ptr + 1)
    s_uu = tl.load(design_ptr + 2)
    s_du2 = tl.load(design_ptr + 3)
    u_span = tl.load(design_ptr + 4)
    x_unit = tl.load(design_ptr + 5)
    min_range = tl.load(design_ptr + 6)
    nan = float("nan")
    valid = invalid == 0
    moving = tl.where(moving & valid, t_count, 0.0) > 1.0
    curved = tl.where(moving, t_count, 0.0) > 2.0

    y_first = y_first.to(tl.float64)
    s_cd = s_ud - u_mean * s_d
    sst = s_dd - s_d * s_d / t_count
    slope = tl.where(moving, s_cd / s_uu, 0.0)
    mean = tl.where(moving, y_first + s_d / t_count, y_first)
    explained = slope * s_cd
    rsq = tl.minimum(tl.maximum(explained / sst, 0.0), 1.0)
    rsq = tl.where(curved, rsq, tl.where(moving, 1.0, nan))
    sse = sst - explained
    dw = (q - 2.0 * slope * p + slope * slope * s_du2) / sse
    dw = tl.where(curved & (sse > sst * RESIDUAL_PART), dw, nan)

    value_range = y_max.to(tl.float64) - y_min.to(tl.float64)
    still = tl.where(moving, 0.0, t_count) > 1.0
    flags = tl.where(still, FLAG_STATIC, 0)
    flags |= tl.where(distinct < few, FLAG_FEW_DISTINCT, 0)
    small = tl.where(value_range <= min_range, min_range, 0.0) > 0.0
    flags |= tl.where(small, FLAG_SMALL_RANGE, 0)
    below = tl.abs(slope) * u_span < _half_ulp(mean, E_MIN, MANTISSA)
    flags |= tl.where(below, FLAG_BELOW_HALF_ULP, 0)
    flags = tl.where(valid, flags, FLAG_INVALID)

    slope = tl.where(valid, slope / x_unit, nan)
    mean = tl.where(valid, mean, nan)
    tl.store(slope_ptr + offsets, slope.to(tl.float32), mask=inside)
    tl.store(mean_ptr + offsets, mean.to(tl.float32), mask=inside)
    tl.store(rsq_ptr + offsets, rsq.to(tl.float32), mask=inside)
    tl.store(flags_ptr + offsets, flags.to(tl.uint8), mask=inside)
    tl.store(dw_ptr + offsets, dw.to(tl.float32), mask=inside)


@triton.jit
def _solve_kernel(
    s_d_ptr,  # float64 [N], as the five below
    s_ud_ptr,
    s_dd_ptr,
    q_ptr,
    p_ptr,
    v_ptr,
    y_first_ptr,  # float32 [N], as the two below
    y_min_ptr,
    y_max_ptr,
    bits_last_ptr,  # unsigned [N]
    changes_ptr,  # uint16 [N]
    distinct_ptr,  # uint8 [N]
    invalid_ptr,  # uint8 [N]
    design_ptr,  # float64 [7]
    few,
    slope_ptr,  # float32 [N], as the other results, but flags uint8 [N]
    mean_ptr,
    rsq_ptr,
    flags_ptr,
    dw_ptr,
    drift_t_ptr,
    out_bits_ptr,  # unsigned [N]
    n_elements,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    SHIFT: tl.constexpr,
    E_MIN: tl.constexpr,
    MANTISSA: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n_elements
    bits = tl.load(bits_last_ptr + offsets, mask=inside, other=0)
    tl.store(out_bits_ptr + offsets, bits, mask=inside)
    y_first = tl.load(y_first_ptr + offsets, mask=inside, other=0.0)
    moving = tl.load(changes_ptr + offsets, mask=inside, other=0) > 0
    invalid = tl.load(invalid_ptr + offsets, mask=inside, other=0)
    _solve_drift(
        tl.load(v_ptr + offsets, mask=inside, other=0.0),
        y_first,
        _value(bits.to(tl.uint32) << SHIFT, DTYPE),
        moving & (invalid == 0),
        design_ptr,
        drift_t_ptr,
        offsets,
        inside,
    )
    _solve_block(
        tl.load(s_d_ptr + offsets, mask=inside, other=0.0),
        tl.load(s_ud_ptr + offsets, mask=inside, other=0.0),
        tl.load(s_dd_ptr + offsets, mask=inside, other=0.0),
        tl.load(q_ptr + offsets, mask=inside, other=0.0),
        tl.load(p_ptr + offsets, mask=inside, other=0.0),
        y_first,
        tl.load(y_min_ptr + offsets, mask=inside, other=0.0),
        tl.load(y_max_ptr + offsets, mask=inside, other=0.0),
        moving,
        tl.load(distinct_ptr + offsets, mask=inside, other=0),
        invalid,
        design_ptr,
        few,
        slope_ptr,
        mean_ptr,
        rsq_ptr,
        flags_ptr,
        dw_ptr,
        offsets,
        inside,
        E_MIN,
        MANTISSA,
    )
