"""One group of frames inside a Triton kernel: decode and add up, all in registers.

A comparison of two scalars is never combined with a block by ``&``: Triton 3.9's interpreter gives
it the type of what was compared. Scalars go into the block first, by ``tl.where``. A module's
constant stands to the right of an operator: to the left, Triton 3.7's interpreter makes a constant
of the whole block.

Axes: N elements, BLOCK of them a program; frames of a batch are counted by t.
"""

import triton
import triton.language as tl

from trajkit.kernels.gpu.bits import _decode, _value

TINY_MOVE = tl.constexpr(2.0**-50)  # below this, squares of differences leave float32's range
HUGE_MOVE = tl.constexpr(2.0**58)  # above this, 64 of them may


@triton.jit
def _code_ptrs(codes_ptr, n_load, BLOCK: tl.constexpr, PAIRED: tl.constexpr):
    """Pointers to this program's codes of frame 0, or to words of two, and which may be read."""
    if PAIRED:
        units = tl.program_id(0).to(tl.int64) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
        code_ptrs = codes_ptr.to(tl.pointer_type(tl.uint32)) + units
    else:
        units = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        code_ptrs = codes_ptr + units
    return code_ptrs, units < n_load


@triton.jit
def _load_codes(code_ptrs, inside_codes, t, row_stride, n_frames):
    """Codes of frame t (the last one where t is beyond it); zeros beyond the elements."""
    row = tl.cast(t, tl.int64)
    row = tl.maximum(tl.minimum(row, n_frames - 1), 0)
    return tl.load(
        code_ptrs + row * row_stride, mask=inside_codes, other=0, eviction_policy="evict_first"
    )


@triton.jit
def _load_frame(frames_ptr, t):
    """Step about the group's mean, step since the last frame, V's weight, is it a key: of frame t."""
    u = tl.load(frames_ptr + 4 * t).to(tl.float32, bitcast=True)
    du = tl.load(frames_ptr + 4 * t + 1).to(tl.float32, bitcast=True)
    weight = tl.load(frames_ptr + 4 * t + 3).to(tl.float32, bitcast=True)
    return u, du, weight, tl.load(frames_ptr + 4 * t + 2)


@triton.jit
def _distinct_key(y, ROUNDED: tl.constexpr):
    """What tells a value apart: itself, or itself rounded to bfloat16 (NaN: anything)."""
    if ROUNDED:
        bits = y.to(tl.uint32, bitcast=True)
        key = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        key = y
    return key


@triton.jit
def _add_frame(
    code,
    t,
    frames_ptr,
    bits,
    y,
    y_first,
    y_group,
    slot_a,
    slot_b,
    s_d,
    s_ud,
    s_dd,
    q,
    p,
    v,
    y_min,
    y_max,
    seen,
    DTYPE: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRED: tl.constexpr,
    ROUNDED: tl.constexpr,
):
    """Decode frame t and add it to the float32 sums of its group."""
    u, du, weight, is_key = _load_frame(frames_ptr, t)
    bits = _decode(code, bits, is_key, SHIFT, PAIRED)
    y_last = y
    y = _value(bits, DTYPE)
    d = y - y_group
    e = y - y_last
    s_d += d
    s_ud += u * d
    s_dd += d * d
    square = e * e
    q += square
    p += du * e
    v += weight * square
    y_min = tl.minimum(y_min, y, propagate_nan=tl.PropagateNan.ALL)
    y_max = tl.maximum(y_max, y, propagate_nan=tl.PropagateNan.ALL)
    # The last value is always one of the three, so a value that is none of them is a change, too.
    # Until four distinct values have been seen the three are all there are; then nobody counts.
    key = _distinct_key(y, ROUNDED)
    is_new = (key != _distinct_key(y_first, ROUNDED)) & (key != slot_a) & (key != slot_b)
    slot_b = tl.where(is_new, slot_a, slot_b)
    slot_a = tl.where(is_new, key, slot_a)
    seen += tl.where(is_new, 65537, (y != y_last).to(tl.int32))  # low half: changes; high: new
    return bits, y, slot_a, slot_b, s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen


@triton.jit
def _sum_scaled(
    code_ptrs,
    inside_codes,
    row_stride,
    frames_ptr,
    start,
    stop,
    y_group,
    moved,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRED: tl.constexpr,
):
    """The six sums of frames start .. stop - 1 again, where squares leave float32's range.

    Each element is multiplied by the power of two that brings its largest move near 1 (2^126 at
    most), and its sums are divided by it at the end, in float64. bfloat16 and float32 only: their
    bits are their float32's.
    """
    field = (moved.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    field = tl.minimum(tl.maximum(254 - field, 1), 253)
    field = tl.where(moved > 0, field, 127)
    scale = (field << 23).to(tl.float32, bitcast=True)
    bits = y_group.to(tl.uint32, bitcast=True)
    y_group = y_group * scale
    y = y_group
    s_d = tl.zeros((BLOCK,), tl.float32)
    s_ud = tl.zeros((BLOCK,), tl.float32)
    s_dd = tl.zeros((BLOCK,), tl.float32)
    q = tl.zeros((BLOCK,), tl.float32)
    p = tl.zeros((BLOCK,), tl.float32)
    v = tl.zeros((BLOCK,), tl.float32)
    for t in range(start, stop):
        u, du, weight, is_key = _load_frame(frames_ptr, t)
        code = _load_codes(code_ptrs, inside_codes, t, row_stride, stop)
        bits = _decode(code, bits, is_key, SHIFT, PAIRED)
        y_last = y
        y = bits.to(tl.float32, bitcast=True) * scale
        d = y - y_group
        e = y - y_last
        s_d += d
        s_ud += u * d
        s_dd += d * d
        square = e * e
        q += square
        p += du * e
        v += weight * square
    unscale = ((254 - field) << 23).to(tl.float32, bitcast=True)
    return s_d, s_ud, s_dd, q, p, v, unscale


@triton.jit
def _sum_group(
    code_ptrs,
    inside_codes,
    row_stride,
    frames_ptr,
    start,
    stop,
    bits,
    y_first,
    slot_a,
    slot_b,
    y_min,
    y_max,
    seen,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    SHIFT: tl.constexpr,
    PAIRED: tl.constexpr,
    ROUNDED: tl.constexpr,
    DEEP: tl.constexpr,  # eight frames in flight instead of four
):
    """What frames start .. stop - 1, at most GROUP of them, add to the state of [BLOCK] elements.

    `bits` are those before frame `start`. The six sums come out in float32 about
    `y_group`; V's are in units of the group's least step.
    """
    y = _value(bits, DTYPE)
    y_group = y
    s_d = tl.zeros((BLOCK,), tl.float32)
    s_ud = tl.zeros((BLOCK,), tl.float32)
    s_dd = tl.zeros((BLOCK,), tl.float32)
    q = tl.zeros((BLOCK,), tl.float32)
    p = tl.zeros((BLOCK,), tl.float32)
    v = tl.zeros((BLOCK,), tl.float32)
    fours = stop - (stop - start) % 4
    code_0 = _load_codes(code_ptrs, inside_codes, start + 0, row_stride, fours)
    code_1 = _load_codes(code_ptrs, inside_codes, start + 1, row_stride, fours)
    code_2 = _load_codes(code_ptrs, inside_codes, start + 2, row_stride, fours)
    code_3 = _load_codes(code_ptrs, inside_codes, start + 3, row_stride, fours)
    if DEEP:
        next_0 = _load_codes(code_ptrs, inside_codes, start + 4, row_stride, fours)
        next_1 = _load_codes(code_ptrs, inside_codes, start + 5, row_stride, fours)
        next_2 = _load_codes(code_ptrs, inside_codes, start + 6, row_stride, fours)
        next_3 = _load_codes(code_ptrs, inside_codes, start + 7, row_stride, fours)
    for t in range(start, fours, 4):
        bits, y, slot_a, slot_b, s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen = _add_frame(
            code_0, t, frames_ptr, bits, y, y_first, y_group, slot_a, slot_b,
            s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen, DTYPE, SHIFT, PAIRED, ROUNDED,
        )  # fmt: skip
        if DEEP:
            code_0 = next_0
            next_0 = _load_codes(code_ptrs, inside_codes, t + 8, row_stride, fours)
        else:
            code_0 = _load_codes(code_ptrs, inside_codes, t + 4, row_stride, fours)
        bits, y, slot_a, slot_b, s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen = _add_frame(
            code_1, t + 1, frames_ptr, bits, y, y_first, y_group, slot_a, slot_b,
            s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen, DTYPE, SHIFT, PAIRED, ROUNDED,
        )  # fmt: skip
        if DEEP:
            code_1 = next_1
            next_1 = _load_codes(code_ptrs, inside_codes, t + 9, row_stride, fours)
        else:
            code_1 = _load_codes(code_ptrs, inside_codes, t + 5, row_stride, fours)
        bits, y, slot_a, slot_b, s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen = _add_frame(
            code_2, t + 2, frames_ptr, bits, y, y_first, y_group, slot_a, slot_b,
            s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen, DTYPE, SHIFT, PAIRED, ROUNDED,
        )  # fmt: skip
        if DEEP:
            code_2 = next_2
            next_2 = _load_codes(code_ptrs, inside_codes, t + 10, row_stride, fours)
        else:
            code_2 = _load_codes(code_ptrs, inside_codes, t + 6, row_stride, fours)
        bits, y, slot_a, slot_b, s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen = _add_frame(
            code_3, t + 3, frames_ptr, bits, y, y_first, y_group, slot_a, slot_b,
            s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen, DTYPE, SHIFT, PAIRED, ROUNDED,
        )  # fmt: skip
        if DEEP:
            code_3 = next_3
            next_3 = _load_codes(code_ptrs, inside_codes, t + 11, row_stride, fours)
        else:
            code_3 = _load_codes(code_ptrs, inside_codes, t + 7, row_stride, fours)
    for t in range(fours, stop):  # at most three, and only at the end of a batch
        code = _load_codes(code_ptrs, inside_codes, t, row_stride, stop)
        bits, y, slot_a, slot_b, s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen = _add_frame(
            code, t, frames_ptr, bits, y, y_first, y_group, slot_a, slot_b,
            s_d, s_ud, s_dd, q, p, v, y_min, y_max, seen, DTYPE, SHIFT, PAIRED, ROUNDED,
        )  # fmt: skip

    unscale = tl.full((BLOCK,), 1.0, tl.float32)
    if DTYPE == "bfloat16" or DTYPE == "float32":
        moved = tl.maximum(y_max - y_first, y_first - y_min)
        out_of_range = ((moved > 0) & (moved < TINY_MOVE)) | (moved > HUGE_MOVE)
        out_of_range = out_of_range & _is_finite(y_min, y_max)
        if tl.max(out_of_range.to(tl.int32), axis=0) > 0:
            s_d, s_ud, s_dd, q, p, v, unscale = _sum_scaled(
                code_ptrs, inside_codes, row_stride, frames_ptr, start, stop, y_group, moved,
                BLOCK, DTYPE, SHIFT, PAIRED,
            )  # fmt: skip

    return bits, y_group, slot_a, slot_b, s_d, s_ud, s_dd, q, p, v, unscale, y_min, y_max, seen


@triton.jit
def _is_finite(y_min, y_max):
    """Where no NaN or infinity has been met: minimum and maximum keep either."""
    return (y_min > float("-inf")) & (y_max < float("inf"))
