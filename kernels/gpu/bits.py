"""Bits and numbers inside a Triton kernel: decode a frame, read a value, round a value.

The bits of every dtype lie at the top of a uint32, zeros below: a float32 and a bfloat16 are then
their own float32, and the wrapping add of a delta needs no mask. ``SHIFT`` is 32 minus the
dtype's width. ``PAIRED`` codes are words of two 16-bit codes each, BLOCK / 2 of them.
"""

import triton
import triton.language as tl


@triton.jit
def _to_top(code, SHIFT: tl.constexpr, PAIRED: tl.constexpr):
    """Codes as read, one by one or in words of two, as tops of uint32 [BLOCK]."""
    if PAIRED:  # noqa: SIM108 - the two have different types
        top = tl.interleave(code << 16, code & 0xFFFF0000)
    else:
        top = code.to(tl.uint32) << SHIFT
    return top


@triton.jit
def _decode(code, bits, is_key, SHIFT: tl.constexpr, PAIRED: tl.constexpr):
    """The frame's bits from its codes and the frame before: unzigzag and a wrapping add."""
    if PAIRED:  # both codes of a word at once
        sign = (code & 0x00010001) * 0xFFFF
        delta = ((code >> 1) & 0x7FFF7FFF) ^ sign
    else:
        sign = 0 - (code & 1)
        delta = (code >> 1) ^ sign
    delta = _to_top(tl.where(is_key != 0, code, delta), SHIFT, PAIRED)
    return tl.where(is_key != 0, delta, bits + delta)


@triton.jit
def _value(bits, DTYPE: tl.constexpr):
    """The float32 that the top bits stand for; exact for every dtype."""
    if DTYPE == "bfloat16" or DTYPE == "float32":
        value = bits.to(tl.float32, bitcast=True)
    elif DTYPE == "float16" or DTYPE == "float8_e5m2":  # e5m2 is a float16 cut short
        value = (bits >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    else:  # float8_e4m3fn: bias 7, no infinities, one NaN; 2^120 moves the bias to float32's
        magnitude = (bits >> 4) & 0x07F00000
        scaled = magnitude.to(tl.float32, bitcast=True) * 1.329227995784916e36
        scaled = tl.where(magnitude == 0x07F00000, float("nan"), scaled)
        value = (scaled.to(tl.uint32, bitcast=True) | (bits & 0x80000000)).to(
            tl.float32, bitcast=True
        )
    return value


@triton.jit
def _round(value, noise, STOCHASTIC: tl.constexpr, DTYPE: tl.constexpr):
    """A float32 rounded once: its bits (uint32, lowest bits used), and where they are finite.

    To nearest even, or up with the probability of what is cut off, as formats.bits_of does.
    """
    raw = value.to(tl.uint32, bitcast=True)
    field = ((raw >> 23) & 0xFF).to(tl.int32)
    if DTYPE == "float32":
        bits = raw
        finite = field != 0xFF
    else:
        if DTYPE == "bfloat16":
            MANTISSA: tl.constexpr = 7
            E_MIN: tl.constexpr = -126
            WIDTH: tl.constexpr = 16
            LARGEST: tl.constexpr = 0x7F7F
        elif DTYPE == "float16":
            MANTISSA: tl.constexpr = 10
            E_MIN: tl.constexpr = -14
            WIDTH: tl.constexpr = 16
            LARGEST: tl.constexpr = 0x7BFF
        elif DTYPE == "float8_e5m2":
            MANTISSA: tl.constexpr = 2
            E_MIN: tl.constexpr = -14
            WIDTH: tl.constexpr = 8
            LARGEST: tl.constexpr = 0x7B
        else:
            MANTISSA: tl.constexpr = 3
            E_MIN: tl.constexpr = -6
            WIDTH: tl.constexpr = 8
            LARGEST: tl.constexpr = 0x7E
        fraction = (raw & 0x7FFFFF).to(tl.int64)
        significand = tl.where(field == 0, fraction, fraction | 0x800000)
        exponent = tl.maximum(field, 1) - 127
        shift = (23 - MANTISSA + tl.maximum(E_MIN - exponent, 0)).to(tl.int64)
        if STOCHASTIC:
            significand = significand >> tl.minimum(tl.maximum(shift - 32, 0), 63)
            shift = tl.minimum(shift, 32)
            add = noise.to(tl.int64) >> (32 - shift)
        else:
            shift = tl.minimum(shift, 26)
            one = tl.full(shift.shape, 1, tl.int64)
            add = (one << (shift - 1)) - 1 + ((significand >> shift) & 1)
        size = (tl.maximum(exponent - E_MIN, 0) << MANTISSA).to(tl.int64)
        size += (significand + add) >> shift
        finite = (field != 0xFF) & (size <= LARGEST)
        size = tl.where(finite, size, 0)
        bits = size.to(tl.uint32) | ((raw >> 31) << (WIDTH - 1))
    return bits, finite


@triton.jit
def _top_bits(value, DTYPE: tl.constexpr, SHIFT: tl.constexpr):
    """The bits of a float32 that the dtype holds exactly, at the top of a uint32."""
    if DTYPE == "bfloat16" or DTYPE == "float32":
        top = value.to(tl.uint32, bitcast=True)
    else:
        bits, _finite = _round(value, 0, False, DTYPE)
        top = bits << SHIFT
    return top
