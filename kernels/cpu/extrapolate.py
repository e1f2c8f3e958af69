"""Compiled extrapolation: gate, line or pair, one rounding; reference.py says what is computed.

Axis letters: N elements. Everything goes through scratch tiles: loops that read and write the
arguments run over what is left of them, all others over whole tiles, so that their length is a
constant. Nothing branches on an element: half of the gates are closed in no order, and a
mispredicted branch costs more than the arithmetic.
"""

from typing import Any

import numpy as np

from trajkit.kernels.cpu.bits import TILE, Layout, as_word, value_of
from trajkit.kernels.cpu.compile import compiled

WIDE_ROWS = 3
"""rows of scratch in words as wide as the arithmetic: rounded bits, gate, the bits to hold"""
_GATE, _HOLD = TILE, 2 * TILE


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
def _round_bf16(index: Any, start: Any, stochastic: bool, values: Any, wide: Any) -> None:
    """A tile of float32 to their upper halves; closes the gate where one is not finite."""
    half, one, even, inf = np.uint32(16), np.uint32(1), np.uint32(0x7FFF), np.uint32(0x7F80)
    if stochastic:
        for i in range(TILE):
            counter = np.uint64(index + np.uint64(i)) * np.uint64(0x9E3779B97F4A7C15)
            wide[i] = np.uint32(_mix(np.uint64(start + counter)) >> np.uint64(48))
    else:
        for i in range(TILE):
            odd = np.uint32(np.uint32(as_word(values[i]) >> half) & one)
            wide[i] = np.uint32(even + odd)
    for i in range(TILE):  # the sum of a NaN may wrap, so that both it and the result are looked at
        raw = as_word(values[i])
        bits = np.uint32(np.uint32(raw + wide[i]) >> half)
        was, now = np.uint32(np.uint32(raw >> half) & inf), np.uint32(bits & inf)
        wide[i] = bits
        wide[_GATE + i] = wide[_GATE + i] & np.uint32((was != inf) & (now != inf))


@compiled
def _round_tile(
    index: Any, start: Any, stochastic: bool, layout: Layout, values: Any, wide: Any
) -> None:
    """Round a tile of values into its first row; closes the gate where one is not finite."""
    word = wide.dtype.type
    if layout.mantissa >= 23:  # the work dtype itself: nothing to round
        for i in range(TILE):
            wide[i] = as_word(values[i])
            wide[_GATE + i] = wide[_GATE + i] & word(np.isfinite(values[i]))
    elif layout.direct:
        _round_bf16(index, start, stochastic, values, wide)
    else:
        for i in range(TILE):
            noise = np.int64(0)
            if stochastic:
                counter = np.uint64(index + np.uint64(i)) * np.uint64(0x9E3779B97F4A7C15)
                noise = np.int64(_mix(np.uint64(start + counter)) >> np.uint64(32))
            bits = _round(values[i], noise, stochastic, layout)
            wide[_GATE + i] = wide[_GATE + i] & word(bits >= 0)
            wide[i] = word(bits)


@compiled
def _open_gate(
    lo: int, n: int, rsq: Any, flags: Any, by_rsq: bool, held: Any, threshold: Any, wide: Any
) -> None:
    """Where elements may move: R² above the threshold, none of the flags ``held``."""
    word = wide.dtype.type
    if held != 0:
        flags_tile = flags[lo : lo + n]
        for i in range(n):
            wide[_GATE + i] = word(np.uint8(flags_tile[i] & held) == np.uint8(0))
    else:
        for i in range(n):
            wide[_GATE + i] = word(1)
    if by_rsq:
        rsq_tile = rsq[lo : lo + n]
        for i in range(n):
            wide[_GATE + i] = wide[_GATE + i] & word(rsq_tile[i] > threshold)
    for i in range(n, TILE):
        wide[_GATE + i] = word(0)


@compiled
def _write_tile(lo: int, n: int, hold: Any, out: Any, wide: Any, counts: Any) -> None:
    """Write a tile of results, or the held bits; count moved, held, unchanged."""
    word, narrow = wide.dtype.type, out.dtype.type
    hold_tile, out_tile = hold[lo : lo + n], out[lo : lo + n]
    for i in range(n):
        wide[_HOLD + i] = word(hold_tile[i])
    is_open = moved = word(0)
    for i in range(TILE):
        last, mask = wide[_HOLD + i], word(word(0) - wide[_GATE + i])
        wide[i] = word(last ^ word(word(wide[i] ^ last) & mask))
    for i in range(TILE):
        is_open = word(is_open + wide[_GATE + i])
    for i in range(TILE):
        moved = word(moved + word(wide[i] != wide[_HOLD + i]))
    for i in range(n):
        out_tile[i] = narrow(wide[i])
    counts[0] += np.int64(moved)
    counts[1] += n - np.int64(is_open)
    counts[2] += np.int64(is_open) - np.int64(moved)


@compiled
def line(
    from_mean: bool, last: Any, slope: Any, mean: Any, rsq: Any, flags: Any, dx: Any, by_rsq: bool,
    held: Any, threshold: Any, stochastic: bool, start: Any, index: Any, layout: Layout,
    values: Any, words: Any, wide: Any, out: Any, counts: Any,
) -> None:  # fmt: skip
    """Base + slope · dx, gated and rounded.

    ``values`` and ``words`` are scratch of two tiles, ``wide`` of :data:`WIDE_ROWS`.
    """
    real = values.dtype.type
    for lo in range(0, len(out), TILE):
        n = min(TILE, len(out) - lo)
        _open_gate(lo, n, rsq, flags, by_rsq, held, threshold, wide)
        if from_mean:
            mean_tile = mean[lo : lo + n]
            for i in range(n):
                values[i] = real(mean_tile[i])
        else:
            last_tile = last[lo : lo + n]
            for i in range(n):
                words[i] = last_tile[i]
            for i in range(TILE):
                values[i] = value_of(words[i], layout)
        slope_tile = slope[lo : lo + n]
        for i in range(n):
            values[i] = values[i] + real(slope_tile[i]) * dx
        _round_tile(np.uint64(index + np.uint64(lo)), start, stochastic, layout, values, wide)
        _write_tile(lo, n, last, out, wide, counts)


@compiled
def pair(
    bits_a: Any, bits_b: Any, beta: Any, hold: Any, rsq: Any, flags: Any, by_rsq: bool, held: Any,
    threshold: Any, stochastic: bool, start: Any, index: Any, layout: Layout,
    values: Any, words: Any, wide: Any, out: Any, counts: Any,
) -> None:  # fmt: skip
    """A + beta · (b - a), gated and rounded; scratch as for :func:`line`."""
    for lo in range(0, len(out), TILE):
        n = min(TILE, len(out) - lo)
        _open_gate(lo, n, rsq, flags, by_rsq, held, threshold, wide)
        a_tile, b_tile = bits_a[lo : lo + n], bits_b[lo : lo + n]
        for i in range(n):
            words[i] = a_tile[i]
        for i in range(n):
            words[TILE + i] = b_tile[i]
        for i in range(2 * TILE):
            values[i] = value_of(words[i], layout)
        for i in range(TILE):
            values[i] = values[i] + beta * (values[TILE + i] - values[i])
        _round_tile(np.uint64(index + np.uint64(lo)), start, stochastic, layout, values, wide)
        _write_tile(lo, n, hold, out, wide, counts)
