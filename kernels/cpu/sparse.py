"""Compiled coding of sparse chunks; :mod:`trajkit.kernels.sparse` says what their bytes are.

Reading is one pass over the bits of both streams of quotients, a word of 64 at a time: the place of
change e is what the low bits before it add up to, and (bits passed - e) times 2^k, and e. Nothing is
believed: sizes are compared before the loop begins, and places and values before they are written.

Axis letters: N elements, E changes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from trajkit.kernels.cpu.bits import flat, memory_of
from trajkit.kernels.cpu.compile import compiled, inlined
from trajkit.kernels.sparse import DENSEST, ESCAPE, HEAD_BYTES, MAX_LOW, SPARSE

PAD_BYTES = 8
"""bytes that may be read beyond the end of a chunk, whatever they hold"""
BLOCK = 64
"""elements looked at together for a change"""
SAMPLED = 2048
"""changes of a chunk by which its k are chosen"""
_I64 = ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def _word_at(typingctx: Any, octets: Any, at: Any) -> Any:
    """Eight bytes from any place, little-endian."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.gep(memory_of(context, builder, signature.args[0], args[0]), [args[1]])
        word = builder.load(builder.bitcast(place, _I64.as_pointer()))
        word.align = 1
        return word

    return types.uint64(octets, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _put_word(typingctx: Any, octets: Any, at: Any, word: Any) -> Any:
    """Write eight bytes to any place, little-endian."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.gep(memory_of(context, builder, signature.args[0], args[0]), [args[1]])
        store = builder.store(args[2], builder.bitcast(place, _I64.as_pointer()))
        store.align = 1
        return context.get_dummy_value()

    return types.void(octets, types.int64, types.uint64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _lowest(typingctx: Any, word: Any) -> Any:
    """The place of the lowest bit that is set; 64 of zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _ones(typingctx: Any, word: Any) -> Any:
    """How many bits are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@compiled
def _uint32(octets: Any, at: int) -> int:
    """The little-endian uint32 at a place."""
    return np.int64(_word_at(octets, np.int64(at)) & np.uint64(0xFFFFFFFF))


@compiled
def _count_ones(octets: Any, start: int, stop: int) -> int:
    """Bits set in the bytes from ``start`` to ``stop``."""
    found = np.int64(0)
    for at in range(start, stop, 8):
        word = _word_at(octets, np.int64(at))
        if stop - at < 8:
            word &= (np.uint64(1) << np.uint64(8 * (stop - at))) - np.uint64(1)
        found += _ones(word)
    return found


@compiled
def count_changes(octets: Any, n_body: int, size: int, itemsize: int) -> int:
    """Changes of a chunk of ``size`` elements in ``octets``; -1 where its head does not fit.

    After this, reading cannot leave the chunk: streams lie end to end in it and hold the ones asked for.
    """
    if n_body < HEAD_BYTES or octets[0] != SPARSE or octets[3] != itemsize:
        return np.int64(-1)
    k, j = np.int64(octets[1]), np.int64(octets[2])
    n, gap_bytes, value_bytes = _uint32(octets, 4), _uint32(octets, 12), _uint32(octets, 16)
    if k > MAX_LOW or j > MAX_LOW or n > size or _uint32(octets, 8) != size:
        return np.int64(-1)
    gaps = HEAD_BYTES + (n * k + 7) // 8
    values = gaps + gap_bytes + (n * j + 7) // 8
    left = n_body - values - value_bytes
    if left < 0 or left % itemsize != 0:
        return np.int64(-1)
    if _count_ones(octets, gaps, gaps + gap_bytes) != n:
        return np.int64(-1)
    return n if _count_ones(octets, values, values + value_bytes) == n else np.int64(-1)


@compiled
def read_changes(octets: Any, n_body: int, size: int, places: Any, codes: Any) -> bool:
    """Fill ``places`` and ``codes`` with the changes :func:`count_changes` has counted, if they fit.

    Both are as long as the changes are many; the bytes may be followed by PAD_BYTES of anything.
    """
    itemsize, n = np.int64(codes.itemsize), np.int64(len(places))
    k, j = np.int64(octets[1]), np.int64(octets[2])
    gap_bytes, value_bytes = _uint32(octets, 12), _uint32(octets, 16)
    low_at, gap_at = np.int64(HEAD_BYTES), HEAD_BYTES + (n * k + 7) // 8
    value_low_at = gap_at + gap_bytes
    value_at = value_low_at + (n * j + 7) // 8
    left_at = value_at + value_bytes
    one, low_mask = np.uint64(1), (np.uint64(1) << np.uint64(k)) - np.uint64(1)
    value_mask = (np.uint64(1) << np.uint64(j)) - np.uint64(1)
    most = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * itemsize)
    word, word_from = _word_at(octets, gap_at), np.int64(0)
    sum_low = np.int64(0)
    inside = True
    for e in range(n):
        while word == np.uint64(0):  # there are n ones: this ends before the stream does
            word_from += 64
            word = _word_at(octets, gap_at + (word_from >> 3))
        bit = word_from + _lowest(word)
        word &= word - one
        at = e * k
        low = _word_at(octets, low_at + (at >> 3)) >> np.uint64(at & 7)
        sum_low += np.int64(low & low_mask)
        place = ((bit - e) << k) + sum_low + e
        inside &= place < size
        places[e] = np.int32(place)
    if not inside:
        return False
    word, word_from, before = _word_at(octets, value_at), np.int64(0), np.int64(-1)
    fits = True
    for e in range(n):
        while word == np.uint64(0):
            word_from += 64
            word = _word_at(octets, value_at + (word_from >> 3))
        bit = word_from + _lowest(word)
        word &= word - one
        quotient = bit - before - 1
        before = bit
        at = e * j
        low = _word_at(octets, value_low_at + (at >> 3)) >> np.uint64(at & 7)
        code = (np.uint64(quotient) << np.uint64(j)) + (low & value_mask) + one
        if quotient >= ESCAPE:
            if quotient > ESCAPE or left_at + itemsize > n_body:
                return False
            code = _word_at(octets, left_at) & most
            left_at += itemsize
        fits &= code <= most
        codes[e] = codes.dtype.type(code)
    return fits and left_at == n_body


@compiled
def _find_changes(codes: Any, places: Any, most: int) -> int:
    """Fill ``places`` with where codes are not zero; how many, or -1 where there are more than ``most``.

    Nothing in the inner loop branches: ``places`` has a block more than ``most``.
    """
    inlined()
    n, block = np.int64(0), np.int64(BLOCK)
    nothing = codes.dtype.type(0)
    for start in range(0, len(codes), block):
        stop = min(start + block, len(codes))
        any_bit = nothing
        for i in range(start, stop):
            any_bit = codes.dtype.type(any_bit | codes[i])
        if any_bit == nothing:
            continue
        for i in range(start, stop):
            places[n] = np.int32(i)
            n += np.int64(codes[i] != nothing)
        if n > most:
            return np.int64(-1)
    return n


@compiled
def _choose_gap_bits(places: Any, n: int) -> int:
    """The k with the fewest bits for the gaps, of the three that suit their mean, by some thousands."""
    mean = (np.int64(places[n - 1]) + 1 - n) / n
    middle = np.int64(0)
    while middle < MAX_LOW - 1 and mean * 0.69 >= 2.0 ** (middle + 1):
        middle += 1
    stride = max(n // SAMPLED, 1)
    best, least = middle, np.int64(1) << 62
    for k in range(max(middle - 1, 0), middle + 2):
        bits = np.int64(0)
        for e in range(0, n, stride):
            before = np.int64(places[e - 1]) if e > 0 else np.int64(-1)
            bits += k + 1 + ((np.int64(places[e]) - before - 1) >> k)
        if bits < least:
            best, least = k, bits
    return best


@compiled
def _choose_value_bits(codes: Any, places: Any, n: int, width: int) -> int:
    """The k with the fewest bits for the values, judged by some thousands of them."""
    stride = max(n // SAMPLED, 1)
    one, escape = codes.dtype.type(1), np.uint64(ESCAPE)
    best, least = np.int64(0), np.int64(1) << 62
    for k in range(min(width, MAX_LOW) + 1):
        bits = np.int64(0)
        for e in range(0, n, stride):
            value = np.uint64(codes.dtype.type(codes[places[e]] - one))
            quotient = min(value >> np.uint64(k), escape)
            bits += np.int64(quotient) + 1 + k + (width if quotient == escape else 0)
        if bits < least:
            best, least = k, bits
        elif bits > 2 * least:
            break
    return best


@compiled
def _put_uint32(out: Any, at: int, value: int) -> None:
    """Write a little-endian uint32."""
    for i in range(4):
        out[at + i] = np.uint8((value >> (8 * i)) & 255)


@compiled
def _put_low_bits(values: Any, n: int, k: int, out: Any, at: int) -> int:
    """Write the low ``k`` bits of each value, from byte ``at`` on; the byte after the stream."""
    mask = (np.uint64(1) << np.uint64(k)) - np.uint64(1)
    stop = at + (n * k + 7) // 8
    held, kept = np.uint64(0), np.int64(0)
    for e in range(n):
        held |= (values[e] & mask) << np.uint64(kept)
        kept += k
        if kept >= 32:
            _put_word(out, at, held)
            at += 4
            held >>= np.uint64(32)
            kept -= 32
    _put_word(out, at, held)
    return stop


@compiled
def _put_quotients(values: Any, n: int, k: int, capped: bool, out: Any, at: int) -> tuple[int, int]:
    """Write quotients, where ``capped`` at most ESCAPE; the byte after, and how many escaped."""
    one, escape = np.uint64(1), np.uint64(ESCAPE)
    shift = np.uint64(k)
    held, here, bit, escaped = np.uint64(0), np.int64(0), np.int64(0), np.int64(0)
    for e in range(n):
        quotient = values[e] >> shift
        if capped and quotient >= escape:
            quotient = escape
            escaped += 1
        bit += np.int64(quotient)
        while (bit >> 6) > here:
            _put_word(out, at + 8 * here, held)
            held = np.uint64(0)
            here += 1
        held |= one << np.uint64(bit & 63)
        bit += 1
    _put_word(out, at + 8 * here, held)
    return at + (bit + 7) // 8, escaped


@compiled
def write_changes(codes: Any, most: int, places: Any, values: Any, out: Any) -> int:
    """Write the sparse form of ``codes`` to ``out``; its bytes, or -1 where more than ``most`` changed.

    ``places`` (int32) and ``values`` (uint64) have a block of 64 more than ``most``, ``out`` what
    :func:`room` says.
    """
    size, itemsize = np.int64(len(codes)), np.int64(codes.itemsize)
    one = codes.dtype.type(1)
    n = _find_changes(codes, places, most)
    if n < 0:
        return np.int64(-1)
    k = j = np.int64(0)
    if n > 0:
        k = _choose_gap_bits(places, n)
        j = _choose_value_bits(codes, places, n, 8 * itemsize)
    before = np.int64(-1)
    for e in range(n):
        values[e] = np.uint64(np.int64(places[e]) - before - 1)
        before = np.int64(places[e])
    gap_at = _put_low_bits(values, n, k, out, np.int64(HEAD_BYTES))
    low_at, _ = _put_quotients(values, n, k, False, out, gap_at)
    for e in range(n):
        values[e] = np.uint64(codes.dtype.type(codes[places[e]] - one))
    value_at = _put_low_bits(values, n, j, out, low_at)
    at, escaped = _put_quotients(values, n, j, True, out, value_at)
    out[0], out[1], out[2], out[3] = SPARSE, k, j, itemsize
    _put_uint32(out, 4, n)
    _put_uint32(out, 8, size)
    _put_uint32(out, 12, low_at - gap_at)
    _put_uint32(out, 16, at - value_at)
    for e in range(n if escaped > 0 else 0):
        if values[e] >> np.uint64(j) >= np.uint64(ESCAPE):
            _put_word(out, at, values[e] + np.uint64(1))
            at += itemsize
    return at


@compiled
def fill(octets: Any, n_body: int, places: Any, codes: Any, out: Any) -> bool:
    """Write a chunk's codes, zero where nothing changed; False, and nothing written, where it cannot be.

    ``places`` and ``codes`` are scratch as long as ``out``.
    """
    n = count_changes(octets, n_body, np.int64(len(out)), np.int64(out.itemsize))
    if n < 0 or not read_changes(octets, n_body, np.int64(len(out)), places[:n], codes[:n]):
        return False
    out[:] = out.dtype.type(0)
    for e in range(n):
        out[places[e]] = codes[e]
    return True


@compiled
def append_changes(row: Any, places: Any, codes: Any, at: int) -> int:
    """Add the changes of a row of codes to events, from ``at`` on; the end, or -1 without room."""
    for i in range(len(row)):
        if row[i] != row.dtype.type(0):
            if at >= len(places):
                return np.int64(-1)
            places[at], codes[at] = np.int32(i), row[i]
            at += 1
    return at


def room(size: int, itemsize: int) -> tuple[int, int]:
    """Changes that :func:`write_changes` takes, and bytes that it writes, at most."""
    most = size // DENSEST
    bits = most * (2 * MAX_LOW + ESCAPE + 2 + 8 * itemsize) + size
    return most, HEAD_BYTES + bits // 8 + 8 * PAD_BYTES


Allocate = Callable[[str, int, "np.dtype[Any]"], NDArray[Any]]
"""scratch of a name, a length and a dtype: the calling thread's own, of any content"""


def encode_sparse(codes_N: NDArray[Any], allocate: Allocate) -> bytes | None:
    """The sparse form of a chunk; None where more than one element in DENSEST changed.

    Args:
        codes_N: unsigned [N], contiguous.
        allocate: gives scratch, some bytes an element.

    Notes:
        Equal codes have equal bytes.
    """
    most, n_bytes = room(codes_N.size, codes_N.itemsize)
    places = allocate("places", most + BLOCK, np.dtype(np.int32))
    values = allocate("values", most + BLOCK, np.dtype(np.uint64))
    out = allocate("sparse", n_bytes, np.dtype(np.uint8))
    written = write_changes(flat(codes_N), most, flat(places), flat(values), flat(out))
    return None if written < 0 else out[:written].tobytes()


def decode_sparse(body: NDArray[np.uint8], out_N: NDArray[Any], allocate: Allocate) -> bool:
    """Fill ``out_N`` (unsigned [N], contiguous) from the sparse form; False where it is not one.

    ``body`` is believed in nothing. Where it is refused, nothing has been written.
    """
    octets = allocate("sparse", len(body) + PAD_BYTES, np.dtype(np.uint8))
    octets[: len(body)] = body
    places = allocate("places", out_N.size, np.dtype(np.int32))
    codes = allocate("values", out_N.size, out_N.dtype)
    return bool(fill(flat(octets), len(body), flat(places), flat(codes), flat(out_N)))
