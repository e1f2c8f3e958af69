"""The Triton kernels that make new checkpoints: gate, line or pair, one rounding, counts.

A product and a sum are each rounded to float32. Telling the compiler not to fuse them is not enough
(CUDA 12.9's assembler fuses pairs of them for sm_100 whatever it is told), so the product is taken
in float64, where that of two float32 is exact, and rounded; nothing can fuse that. The factor comes
from memory as a float64, lest the compiler see that it is a float32 and undo it.
"""

import triton
import triton.language as tl

from trajkit.kernels.gpu.bits import _round, _value


@triton.jit
def _mix(z):
    """splitmix64's output function, see sums.uniform_noise."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _round_or_hold(
    value,
    held,
    hold,
    out_ptr,
    counts_ptr,
    noise_low,
    noise_high,
    offsets,
    inside,
    STOCHASTIC: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Round into the dtype, keep `hold` where held or not finite, and count."""
    noise = tl.zeros(value.shape, tl.uint32)
    if STOCHASTIC:
        low = tl.cast(noise_low, tl.uint32).to(tl.uint64)
        high = tl.cast(noise_high, tl.uint32).to(tl.uint64) << 32
        step = offsets.to(tl.uint64) * 0x9E3779B97F4A7C15
        noise = (_mix(step + (high | low)) >> 32).to(tl.uint32)
    bits, finite = _round(value, noise, STOCHASTIC, DTYPE)
    bits = bits.to(hold.dtype)
    held = held | (finite == 0)
    bits = tl.where(held, hold, bits)
    tl.store(out_ptr + offsets, bits, mask=inside)
    unchanged = inside & (held == 0) & (bits == hold)
    n_inside = tl.sum(inside.to(tl.int32), axis=0)
    n_held = tl.sum((inside & held).to(tl.int32), axis=0)
    n_unchanged = tl.sum(unchanged.to(tl.int32), axis=0)
    tl.atomic_add(counts_ptr, (n_inside - n_held - n_unchanged).to(tl.int64), sem="relaxed")
    tl.atomic_add(counts_ptr + 1, n_held.to(tl.int64), sem="relaxed")
    tl.atomic_add(counts_ptr + 2, n_unchanged.to(tl.int64), sem="relaxed")


@triton.jit
def _times(value, factor_ptr):
    """A block times a number, rounded to float32, by a multiplication that cannot be fused."""
    return (value.to(tl.float64) * tl.load(factor_ptr)).to(tl.float32)


@triton.jit
def _is_held(
    rsq_ptr,
    flags_ptr,
    held_flags,
    threshold,
    offsets,
    inside,
    BLOCK: tl.constexpr,
    BY_RSQ: tl.constexpr,
    BY_FLAGS: tl.constexpr,
):
    """Where the gate is closed: by a flag, or an R² that is not above the threshold."""
    held = tl.zeros((BLOCK,), tl.int1)
    if BY_FLAGS:
        flags = tl.load(flags_ptr + offsets, mask=inside, other=0)
        held = held | ((flags & held_flags) != 0)
    if BY_RSQ:
        rsq = tl.load(rsq_ptr + offsets, mask=inside, other=0.0)
        held = held | ((rsq > threshold) == 0)  # NaN is held
    return held


@triton.jit(do_not_specialize=["held_flags", "noise_low", "noise_high"])
def _extrapolate_line_kernel(
    last_ptr,  # unsigned [N]
    slope_ptr,  # float32 [N]
    mean_ptr,  # float32 [N]
    rsq_ptr,  # float32 [N]
    flags_ptr,  # uint8 [N]
    out_ptr,  # unsigned [N]
    counts_ptr,  # int64 [3]: moved, held, unchanged
    dx_ptr,  # float64 [1], a float32 number
    held_flags,
    threshold,
    noise_low,
    noise_high,
    n_elements,
    FROM_MEAN: tl.constexpr,
    BY_RSQ: tl.constexpr,
    BY_FLAGS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    SHIFT: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n_elements
    hold = tl.load(last_ptr + offsets, mask=inside, other=0)
    slope = tl.load(slope_ptr + offsets, mask=inside, other=0.0)
    if FROM_MEAN:
        start = tl.load(mean_ptr + offsets, mask=inside, other=0.0)
    else:
        start = _value(hold.to(tl.uint32) << SHIFT, DTYPE)
    held = _is_held(
        rsq_ptr, flags_ptr, held_flags, threshold, offsets, inside, BLOCK, BY_RSQ, BY_FLAGS
    )  # fmt: skip
    _round_or_hold(
        start + _times(slope, dx_ptr), held, hold, out_ptr, counts_ptr, noise_low, noise_high,
        offsets, inside, STOCHASTIC, DTYPE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["held_flags", "noise_low", "noise_high"])
def _extrapolate_pair_kernel(
    a_ptr,  # unsigned [N], as the two below
    b_ptr,
    hold_ptr,
    rsq_ptr,  # float32 [N]
    flags_ptr,  # uint8 [N]
    out_ptr,  # unsigned [N]
    counts_ptr,  # int64 [3]: moved, held, unchanged
    beta_ptr,  # float64 [1], a float32 number
    held_flags,
    threshold,
    noise_low,
    noise_high,
    n_elements,
    BY_RSQ: tl.constexpr,
    BY_FLAGS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    SHIFT: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n_elements
    a = _value(tl.load(a_ptr + offsets, mask=inside, other=0).to(tl.uint32) << SHIFT, DTYPE)
    b = _value(tl.load(b_ptr + offsets, mask=inside, other=0).to(tl.uint32) << SHIFT, DTYPE)
    hold = tl.load(hold_ptr + offsets, mask=inside, other=0)
    held = _is_held(
        rsq_ptr, flags_ptr, held_flags, threshold, offsets, inside, BLOCK, BY_RSQ, BY_FLAGS
    )  # fmt: skip
    _round_or_hold(
        a + _times(b - a, beta_ptr), held, hold, out_ptr, counts_ptr, noise_low, noise_high,
        offsets, inside, STOCHASTIC, DTYPE,
    )  # fmt: skip
