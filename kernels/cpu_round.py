"""Compiled frame coding and extrapolation; reference.py and formats.py say what is computed.

Axis letters: N elements. Every result goes through a scratch tile, so that the output may be one
of the inputs and the loops are vector code all the same.
"""

from typing import Any

import numpy as np

from trajkit.kernels.cpu_bits import TILE, Layout, as_word, compiled, value_of
from trajkit.kernels.flags import FLAG_INVALID, FLAG_STATIC


@compiled
def encode(bits: Any, prev: Any, out: Any, scratch: Any, top: int) -> None:
    """Zigzag of bits - prev; ``scratch``: a tile of the frame's dtype, ``top``: the sign's place."""
    word = out.dtype.type
    one, zero, sign = word(1), word(0), word(top)
    for lo in range(0, len(out), TILE):
        n = min(TILE, len(out) - lo)
        bits_tile, prev_tile, out_tile = bits[lo : lo + n], prev[lo : lo + n], out[lo : lo + n]
        for i in range(n):  # bare indices: an index that might be negative is not vector code
            delta = word(bits_tile[i] - prev_tile[i])
            scratch[i] = word(delta << one) ^ word(zero - word(delta >> sign))
        for i in range(n):
            out_tile[i] = scratch[i]


@compiled
def decode(codes: Any, prev: Any, out: Any, scratch: Any) -> None:
    """Prev + unzigzag(code); ``scratch`` is a tile of the frame's dtype."""
    word = out.dtype.type
    one, zero = word(1), word(0)
    for lo in range(0, len(out), TILE):
        n = min(TILE, len(out) - lo)
        code_tile, prev_tile, out_tile = codes[lo : lo + n], prev[lo : lo + n], out[lo : lo + n]
        for i in range(n):
            code = code_tile[i]
            delta = word(code >> one) ^ word(zero - word(code & one))
            scratch[i] = word(prev_tile[i] + word(delta))
        for i in range(n):
            out_tile[i] = scratch[i]


@compiled
def _mix(z: Any) -> Any:
    """splitmix64's output function."""
    z = np.uint64((z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    z = np.uint64((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(z ^ (z >> np.uint64(31)))


@compiled
def _round(value: Any, noise: Any, stochastic: bool, layout: Layout) -> Any:
    """Magnitude bits and sign of a float32 rounded into a narrower format; -1 if not finite."""
    raw = np.int64(np.uint32(as_word(value)))
    field, fraction = (raw >> 23) & 0xFF, raw & 0x7FFFFF
    significand = fraction if field == 0 else fraction | 0x800000
    exponent = max(field, 1) - 127
    shift = 23 - layout.mantissa + max(layout.e_min - exponent, 0)
    if stochastic:
        significand = significand >> min(max(shift - 32, 0), 63)
        shift = min(shift, 32)
        add = noise >> (32 - shift)
    else:
        shift = min(shift, 26)
        add = (np.int64(1) << (shift - 1)) - 1 + ((significand >> shift) & 1)
    size = (max(exponent - layout.e_min, 0) << layout.mantissa) + ((significand + add) >> shift)
    finite = (field != 0xFF) & (size <= layout.max_finite)
    return (size | ((raw >> 31) << layout.sign)) if finite else np.int64(-1)


@compiled
def _write_tile(
    n: int, lo: int, hold: Any, out: Any, rounded: Any, is_open: Any, counts: Any
) -> None:
    """Write a tile of results, or the held bits; count moved, held, unchanged."""
    word = out.dtype.type
    held = same = 0
    for i in range(n):
        last = hold[lo + i]
        new = rounded[i] if is_open[i] != 0 else last
        held += is_open[i] == 0
        same += (is_open[i] != 0) & (new == last)
        rounded[i] = word(new)
    for i in range(n):
        out[lo + i] = rounded[i]
    counts[0] += n - held - same
    counts[1] += held
    counts[2] += same


@compiled
def _round_tile(
    n: int, index: Any, start: Any, stochastic: bool, layout: Layout, values: Any, rounded: Any,
    is_open: Any,
) -> None:  # fmt: skip
    """Round a tile of values; closes the gate where the result is not finite."""
    word = rounded.dtype.type
    if layout.mantissa >= 23:  # the work dtype itself: nothing to round
        for i in range(n):
            rounded[i] = word(as_word(values[i]))
            is_open[i] &= np.uint8(np.isfinite(values[i]))
        return
    for i in range(n):
        noise = np.int64(0)
        if stochastic:
            counter = np.uint64(index + np.uint64(i)) * np.uint64(0x9E3779B97F4A7C15)
            noise = np.int64(_mix(np.uint64(start + counter)) >> np.uint64(32))
        bits = _round(values[i], noise, stochastic, layout)
        is_open[i] &= np.uint8(bits >= 0)
        rounded[i] = word(bits)


@compiled
def _gate_tile(
    n: int, lo: int, rsq: Any, flags: Any, by_rsq: bool, by_flags: bool, threshold: Any,
    is_open: Any,
) -> None:  # fmt: skip
    """Where elements may move: R² above the threshold, neither static nor invalid."""
    stop = np.uint8(FLAG_STATIC | FLAG_INVALID)
    for i in range(n):
        is_open[i] = 1
    if by_flags:
        for i in range(n):
            is_open[i] = np.uint8((flags[lo + i] & stop) == 0)
    if by_rsq:
        for i in range(n):
            is_open[i] &= np.uint8(rsq[lo + i] > threshold)


@compiled
def line(
    from_mean: bool, last: Any, slope: Any, mean: Any, rsq: Any, flags: Any, dx: Any, by_rsq: bool,
    threshold: Any, stochastic: bool, start: Any, index: Any, layout: Layout, values: Any,
    words: Any, rounded: Any, is_open: Any, out: Any, counts: Any,
) -> None:  # fmt: skip
    """Base + slope · dx, gated and rounded. ``values``, ``words``, ``rounded``: scratch tiles."""
    real = values.dtype.type
    for lo in range(0, len(out), TILE):
        n = min(TILE, len(out) - lo)
        _gate_tile(n, lo, rsq, flags, by_rsq, True, threshold, is_open)
        if from_mean:
            for i in range(n):
                values[i] = real(mean[lo + i])
        else:
            for i in range(n):
                words[i] = last[lo + i]
            for i in range(n):
                values[i] = value_of(words[i], layout)
        for i in range(n):
            values[i] = values[i] + real(slope[lo + i]) * dx
        _round_tile(
            n, np.uint64(index + np.uint64(lo)), start, stochastic, layout, values, rounded, is_open
        )
        _write_tile(n, lo, last, out, rounded, is_open, counts)


@compiled
def pair(
    bits_a: Any, bits_b: Any, beta: Any, hold: Any, rsq: Any, flags: Any, by_rsq: bool,
    by_flags: bool, threshold: Any, stochastic: bool, start: Any, index: Any, layout: Layout,
    values: Any, words: Any, rounded: Any, is_open: Any, out: Any, counts: Any,
) -> None:  # fmt: skip
    """A + beta · (b - a), gated and rounded. ``values`` and ``words`` are scratch of two tiles."""
    for lo in range(0, len(out), TILE):
        n = min(TILE, len(out) - lo)
        _gate_tile(n, lo, rsq, flags, by_rsq, by_flags, threshold, is_open)
        for i in range(n):
            words[i] = bits_a[lo + i]
        for i in range(n):
            words[TILE + i] = bits_b[lo + i]
        for i in range(2 * TILE):
            values[i] = value_of(words[i], layout)
        for i in range(n):
            values[i] = values[i] + beta * (values[TILE + i] - values[i])
        _round_tile(
            n, np.uint64(index + np.uint64(lo)), start, stochastic, layout, values, rounded, is_open
        )
        _write_tile(n, lo, hold, out, rounded, is_open, counts)
