"""Compiled frame coding; reference.py says what is computed.

Axis letters: N elements. Every result goes through a scratch tile, so that the output may be one
of the inputs and the loops are vector code all the same.
"""

from typing import Any

from trajkit.kernels.cpu.bits import TILE
from trajkit.kernels.cpu.compile import compiled


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
