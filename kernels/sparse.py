"""The sparse form of a chunk of a delta frame, and how numpy reads it.

:mod:`trajkit.kernels.cpu.sparse` writes it and reads it, believing nothing.

A delta frame of codes is zero where nothing changed. The form holds, for each element that changed, the
*gap* of unchanged ones before it and its *value*, code - 1, both in Rice's way: the low ``k`` bits as
they are, the rest, a *quotient* q, in unary as q zeros and a one. Bits are counted from the lowest of
each byte on, and every stream begins on a byte. A value with the quotient ``ESCAPE`` is not what its
bits say: its code stands among the exceptions, as a whole word. All numbers are little-endian:

    uint8   1: this form                           uint32  n, elements that changed
    uint8   k of the gaps, at most MAX_LOW         uint32  N, elements of the chunk
    uint8   k of the values, at most MAX_LOW       uint32  bytes of the gaps' quotients
    uint8   bytes of a code                        uint32  bytes of the values' quotients
    low bits of the gaps      quotients of the gaps
    low bits of the values    quotients of the values
    exceptions, to the end

What MUST hold: n <= N; the streams and a whole number of exceptions fill the bytes exactly; a stream of
quotients holds exactly n ones; no place is beyond N; as many exceptions as values that escaped; no value
is beyond the width of a code. What does not hold is refused before anything is written.

With changes at random a gap takes within .05 bits of its entropy (R. F. Rice, 1979; a geometric
distribution is what Golomb's codes, of which these are the ones with powers of two, are the best for).

Axis letters: N elements, E changes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SPARSE = 1
"""the first byte of the form"""
HEAD_BYTES = 20
ESCAPE = 16
"""the quotient that says: the code is among the exceptions"""
MAX_LOW = 24
"""low bits at most, of gaps and of values"""
DENSEST = 3
"""the form is made of chunks of which at most one element in so many changed"""


def read_changes(body: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The places (ascending, int64 [E]) and codes (unsigned [E]) of a chunk that is as it should be."""
    k, j, itemsize = (int(b) for b in body[1:4])
    n, _, gap_bytes, value_bytes = body[4:HEAD_BYTES].view("<u4").tolist()
    ends = np.cumsum([HEAD_BYTES, -(-n * k // 8), gap_bytes, -(-n * j // 8), value_bytes])
    parts = np.split(body, ends)[1:5]
    low, gaps, value_low, quotients = (np.unpackbits(part, bitorder="little") for part in parts)
    _, gaps = _join(low, gaps, n, k)
    quotients, values = _join(value_low, quotients, n, j)
    codes = (values + 1).astype(f"<u{itemsize}")
    codes[quotients == ESCAPE] = body[ends[-1] :].view(codes.dtype)
    return np.cumsum(gaps + 1) - 1, codes


def _join(low: NDArray[Any], unary: NDArray[Any], n: int, k: int) -> tuple[Any, Any]:
    """Quotients, and the numbers that they make with ``k`` low bits each."""
    quotients = np.diff(np.flatnonzero(unary), prepend=-1) - 1
    return quotients, (quotients << k) + low[: n * k].reshape(n, k) @ (1 << np.arange(k))
