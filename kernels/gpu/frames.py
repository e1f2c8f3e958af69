"""The two Triton kernels that read frames: into a state in memory, or into a solution at once.

A program owns BLOCK elements and walks down the batch; the running bits, the shifts and the sums
stay in registers. Inside a group of 64 frames the sums are float32, about the group's first value
(d') and the group's mean step (u'); after each group they are folded into float64 about the
window's first value, with d = d' + D and u = u' + c:

    S_d  += S_d' + n D
    S_dd += S_dd' + D (2 S_d' + n D)
    S_ud += S_ud' + c S_d' + D sum(u)
    Q += Q'    P += P'    V += V' / h (V' = sum (h / du) (dy)^2, h the group's least du)

so rounding does not grow with T, nor with a first checkpoint that lies far from all others.
"""

import triton
import triton.language as tl

from trajkit.kernels.gpu.bits import _to_top, _top_bits, _value
from trajkit.kernels.gpu.solve import _solve_block, _solve_drift
from trajkit.kernels.gpu.sums import (
    _code_ptrs,
    _distinct_key,
    _is_finite,
    _load_codes,
    _sum_group,
)
from trajkit.kernels.state import MAX_CHANGES, SLOTS

CHANGES_END = tl.constexpr(MAX_CHANGES)
DISTINCT_END = tl.constexpr(SLOTS + 1)


@triton.jit
def _add_to(total_ptrs, value, known, inside):
    """Add to a sum in memory, or begin it where it is not yet known."""
    total = tl.load(total_ptrs, mask=known, other=0.0)
    tl.store(total_ptrs, total + value, mask=inside)


@triton.jit
def _accumulate_frames_kernel(
    codes_ptr,  # [B, >= N], rows row_stride apart
    row_stride,
    frames_ptr,  # int32 [B, 4]: bits of float32 u', of float32 du, is_key, bits of float32 h / du
    groups_ptr,  # float64 [G, 3]: mean u, sum of u, 1 / h
    s_d_ptr,  # float64 [N], as the five below
    s_ud_ptr,
    s_dd_ptr,
    q_ptr,
    p_ptr,
    v_ptr,
    y_first_ptr,  # float32 [N], as the two below
    y_min_ptr,
    y_max_ptr,
    bits_last_ptr,  # as the codes, [N]
    changes_ptr,  # uint16 [N]
    distinct_ptr,  # uint8 [N]
    slots_ptr,  # as the codes, [3, N], rows slots_stride apart
    slots_stride,
    invalid_ptr,  # uint8 [N]
    n_elements,
    n_load,  # N, or N rounded up to a multiple of 16 where the rows of codes are that long
    n_frames,
    FRESH: tl.constexpr,  # no state yet: frame 0 is a key, and no state is read
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRED: tl.constexpr,
    ROUNDED: tl.constexpr,  # distinct values are counted after rounding to bfloat16
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n_elements
    code_ptrs, inside_codes = _code_ptrs(codes_ptr, n_load, BLOCK, PAIRED)
    SLOT_DTYPE: tl.constexpr = "bfloat16" if ROUNDED else DTYPE
    SLOT_SHIFT: tl.constexpr = 16 if ROUNDED else SHIFT
    DEEP: tl.constexpr = DTYPE == "bfloat16" and FRESH  # with a state to go on from sm_80 spills
    slot_1_ptr = slots_ptr + slots_stride + offsets
    slot_2_ptr = slots_ptr + tl.cast(2, tl.int64) * slots_stride + offsets
    if FRESH:
        code = _load_codes(code_ptrs, inside_codes, 0, row_stride, n_frames)
        bits = _to_top(code, SHIFT, PAIRED)
        y_first = _value(bits, DTYPE)
        slot_a = _distinct_key(y_first, ROUNDED)
        slot_b = slot_a
        y_min = y_first
        y_max = y_first
    else:
        bits = tl.load(bits_last_ptr + offsets, mask=inside, other=0).to(tl.uint32) << SHIFT
        y_first = tl.load(y_first_ptr + offsets, mask=inside, other=0.0)
        y_min = tl.load(y_min_ptr + offsets, mask=inside, other=0.0)
        y_max = tl.load(y_max_ptr + offsets, mask=inside, other=0.0)
        slot_b = tl.load(slot_1_ptr, mask=inside, other=0)
        slot_b = _value(slot_b.to(tl.uint32) << SLOT_SHIFT, SLOT_DTYPE)
        slot_a = tl.load(slot_2_ptr, mask=inside, other=0)
        slot_a = _value(slot_a.to(tl.uint32) << SLOT_SHIFT, SLOT_DTYPE)
        n_distinct = tl.load(distinct_ptr + offsets, mask=inside, other=0).to(tl.int32)
        last = _distinct_key(_value(bits, DTYPE), ROUNDED)
        slot_a = tl.where(n_distinct < DISTINCT_END, slot_a, last)  # see _add_frame
    seen = tl.zeros((BLOCK,), tl.int32)

    for start in range(0, n_frames, GROUP):
        stop = tl.minimum(start + GROUP, n_frames)
        (
            bits, y_group, slot_a, slot_b, s_d, s_ud, s_dd, q, p, v, unscale, y_min, y_max, seen,
        ) = _sum_group(
            code_ptrs, inside_codes, row_stride, frames_ptr, start, stop,
            bits, y_first, slot_a, slot_b, y_min, y_max, seen, BLOCK, DTYPE, SHIFT, PAIRED, ROUNDED,
            DEEP,
        )  # fmt: skip
        # The float64 sums stay in memory: in registers they would cost as many as all the rest.
        # From the second group on a block finds its own in the cache.
        known = tl.where(inside, start, 0) > 0 if FRESH else inside
        n = (stop - start).to(tl.float64)
        u_mean = tl.load(groups_ptr + 3 * (start // GROUP))
        u_sum = tl.load(groups_ptr + 3 * (start // GROUP) + 1)
        per_du = tl.load(groups_ptr + 3 * (start // GROUP) + 2)
        unscale = unscale.to(tl.float64)
        _add_to(v_ptr + offsets, v.to(tl.float64) * per_du * unscale * unscale, known, inside)
        _add_to(q_ptr + offsets, q.to(tl.float64) * unscale * unscale, known, inside)
        _add_to(p_ptr + offsets, p.to(tl.float64) * unscale, known, inside)
        shift = y_group.to(tl.float64) - y_first.to(tl.float64)
        s_d = s_d.to(tl.float64) * unscale
        s_ud = s_ud.to(tl.float64) * unscale + u_mean * s_d + shift * u_sum
        _add_to(s_ud_ptr + offsets, s_ud, known, inside)
        s_dd = s_dd.to(tl.float64) * unscale * unscale + shift * (2.0 * s_d + n * shift)
        _add_to(s_dd_ptr + offsets, s_dd, known, inside)
        _add_to(s_d_ptr + offsets, s_d + n * shift, known, inside)
        tl.debug_barrier()  # a later load may run in another thread than this store

    changes = seen & 0xFFFF
    distinct = (seen >> 16) & 0xFFFF
    invalid = 1 - _is_finite(y_min, y_max).to(tl.int32)
    if FRESH:
        distinct += 1
    else:
        changes += tl.load(changes_ptr + offsets, mask=inside, other=0).to(tl.int32)
        distinct += tl.load(distinct_ptr + offsets, mask=inside, other=0).to(tl.int32)
        invalid |= tl.load(invalid_ptr + offsets, mask=inside, other=0).to(tl.int32)
    tl.store(y_min_ptr + offsets, y_min, mask=inside)
    tl.store(y_max_ptr + offsets, y_max, mask=inside)
    bits_type: tl.constexpr = bits_last_ptr.dtype.element_ty
    tl.store(bits_last_ptr + offsets, (bits >> SHIFT).to(bits_type), mask=inside)
    tl.store(changes_ptr + offsets, tl.minimum(changes, CHANGES_END).to(tl.uint16), mask=inside)
    tl.store(distinct_ptr + offsets, tl.minimum(distinct, DISTINCT_END).to(tl.uint8), mask=inside)
    tl.store(invalid_ptr + offsets, invalid.to(tl.uint8), mask=inside)
    if FRESH:
        tl.store(y_first_ptr + offsets, y_first, mask=inside)
        slot = _distinct_key(y_first, ROUNDED)
        slot = (_top_bits(slot + 0.0, SLOT_DTYPE, SLOT_SHIFT) >> SLOT_SHIFT).to(bits_type)
        tl.store(slots_ptr + offsets, slot, mask=inside)
    slot_b = tl.where(distinct == 2, slot_a, slot_b)  # a slot not taken repeats the one before
    slot_b = (_top_bits(slot_b + 0.0, SLOT_DTYPE, SLOT_SHIFT) >> SLOT_SHIFT).to(bits_type)
    slot_a = (_top_bits(slot_a + 0.0, SLOT_DTYPE, SLOT_SHIFT) >> SLOT_SHIFT).to(bits_type)
    tl.store(slot_1_ptr, slot_b, mask=inside)
    tl.store(slot_2_ptr, slot_a, mask=inside)


@triton.jit
def _fit_frames_kernel(
    codes_ptr,  # [B, >= N], rows row_stride apart; B <= 64, frame 0 a key
    row_stride,
    frames_ptr,  # int32 [B, 4], as for _accumulate_frames_kernel
    groups_ptr,  # float64 [1, 3]
    design_ptr,  # float64 [7]
    few,
    slope_ptr,  # float32 [N], as the other results, but flags uint8 [N]
    mean_ptr,
    rsq_ptr,
    flags_ptr,
    dw_ptr,
    drift_t_ptr,
    out_bits_ptr,  # as the codes, [N]
    n_elements,
    n_load,
    n_frames,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRED: tl.constexpr,
    ROUNDED: tl.constexpr,
    E_MIN: tl.constexpr,
    MANTISSA: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n_elements
    code_ptrs, inside_codes = _code_ptrs(codes_ptr, n_load, BLOCK, PAIRED)
    code = _load_codes(code_ptrs, inside_codes, 0, row_stride, n_frames)
    bits = _to_top(code, SHIFT, PAIRED)
    y_first = _value(bits, DTYPE)
    slot = _distinct_key(y_first, ROUNDED)
    bits, _y_group, _slot_a, _slot_b, s_d, s_ud, s_dd, q, p, v, unscale, y_min, y_max, seen = (
        _sum_group(
            code_ptrs, inside_codes, row_stride, frames_ptr, 0, n_frames, bits, y_first,
            slot, slot, y_first, y_first, tl.zeros((BLOCK,), tl.int32),
            BLOCK, DTYPE, SHIFT, PAIRED, ROUNDED, DTYPE == "bfloat16",
        )
    )  # fmt: skip
    bits_type: tl.constexpr = out_bits_ptr.dtype.element_ty
    tl.store(out_bits_ptr + offsets, (bits >> SHIFT).to(bits_type), mask=inside)
    moving = (seen & 0xFFFF) > 0
    valid = _is_finite(y_min, y_max)
    unscale = unscale.to(tl.float64)
    _solve_drift(
        v.to(tl.float64) * unscale * unscale * tl.load(groups_ptr + 2),
        y_first,
        _value(bits, DTYPE),
        moving & valid,
        design_ptr,
        drift_t_ptr,
        offsets,
        inside,
    )
    s_d = s_d.to(tl.float64) * unscale
    _solve_block(
        s_d,
        s_ud.to(tl.float64) * unscale + tl.load(groups_ptr) * s_d,
        s_dd.to(tl.float64) * unscale * unscale,
        q.to(tl.float64) * unscale * unscale,
        p.to(tl.float64) * unscale,
        y_first,
        y_min,
        y_max,
        moving,
        ((seen >> 16) & 0xFFFF) + 1,
        1 - valid.to(tl.int32),
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
