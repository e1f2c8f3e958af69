"""The bits of one chunk at every checkpoint of a window, in order, without the window in memory."""

from collections.abc import Iterator

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.kernels import api as kernels
from trajkit.store.chunks import ChunkReader
from trajkit.store.store import Store

WALK_FRAMES = 8
"""frames whose codes are read together"""


def walk_bytes(vector: FlatVector) -> int:
    """Bytes that a walk holds."""
    return (WALK_FRAMES + 2) * vector.chunk * vector.dtype.itemsize


def walk_frames(
    store: Store, reader: ChunkReader, vector: FlatVector, frames: range, k: int
) -> Iterator[tuple[int, Array]]:
    """(frame, bits) of chunk ``k`` at some frames; the bits, unsigned [n], are written over next.

    Args:
        store: the run.
        reader: of the vector's frames, open.
        vector: the flat vector.
        frames: which, one after another.
        k: the chunk.

    Raises:
        FormatError: damaged, or the bits of another frame.
    """
    start, stop = vector.chunk_span(k)
    dtype = vector.dtype.name
    bits, spare = (np.empty(vector.chunk, vector.dtype.bits) for _ in range(2))
    codes_BC = np.empty((min(WALK_FRAMES, len(frames)), vector.chunk), vector.dtype.bits)
    for begin in range(frames.start, frames.stop, WALK_FRAMES):
        some = range(begin, min(begin + WALK_FRAMES, frames.stop))
        store.read_code_rows(reader, some, k, codes_BC[: len(some)])
        for t, codes in zip(some, codes_BC, strict=False):
            if store.is_key(t):
                bits[:] = codes
            elif t == frames.start:
                store.read_bits(dtype, t, k, bits, spare)
            else:
                kernels.decode_frame(codes, bits, bits)
            store.check_bits(dtype, t, k, bits[: stop - start])
            yield t, bits[: stop - start]
