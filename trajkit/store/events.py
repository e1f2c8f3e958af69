"""The changes of a chunk over many frames, read from sparse frames without decoding them to codes."""

import numpy as np

from trajkit.arrays import Array
from trajkit.kernels import api as kernels
from trajkit.kernels.events import Events, append_changes
from trajkit.store.chunks import ChunkReader
from trajkit.store.codecs import SparseCodec
from trajkit.store.store import Store

DENSEST_EVENTS = 0.05
"""mean share of elements that change up to which a fit takes changes, not frames. The arithmetic took
1.5 times as long from frames there (T = 64, bf16, one core), and as long from both at .1"""


def has_events(store: Store) -> bool:
    """Whether a fit reads changes from this store: it keeps them, and they are few."""
    density = store.commit.density
    few = density is None or density <= DENSEST_EVENTS
    return isinstance(store.codec, SparseCodec) and few


def read_events(
    store: Store, reader: ChunkReader, frames: range, k: int, arena: Array, fresh: bool
) -> Events | None:
    """The changes of chunk ``k`` over some frames; None where the frames themselves are cheaper.

    Args:
        store: the run.
        reader: of one of its vectors' frames, open.
        frames: which, one after another.
        k: the chunk.
        arena: memory for the events, contiguous; what comes back lies in it.
        fresh: begin with the bits of the first frame; else with the changes since the one before.

    Raises:
        FormatError: a frame is damaged or missing.
    """
    if not has_events(store) or not len(frames):
        return None
    array = reader.array
    dtype, vector = array.path.name, store.vectors[array.path.name]
    start, stop = vector.chunk_span(k)
    most = int(DENSEST_EVENTS * len(frames) * vector.chunk)
    memory = arena.reshape(-1).view(np.uint8)
    room = min(most, memory.nbytes // (4 + array.dtype.itemsize)) // 2 * 2  # codes begin aligned
    places = memory[: 4 * room].view(np.int32)
    codes = memory[4 * room : (4 + array.dtype.itemsize) * room].view(array.dtype)
    starts = np.zeros(len(frames) + 1, np.int64)
    bits, row = (np.empty(vector.chunk, array.dtype) for _ in range(2))
    first, done = None, 0
    if fresh:
        store.read_bits(dtype, frames[0], k, bits, row)
        first, done = bits[: stop - start].copy(), 1
    while done < len(frames):
        keys = (i for i in range(done, len(frames)) if store.is_key(frames[i]))
        until = next(keys, len(frames))
        done += reader.read_events(frames[done:until], k, places, codes, starts[done : until + 1])
        if done < len(frames):  # a key, or a dense chunk, or a damaged one, or there is no room
            store.read_codes(dtype, frames[done], k, row)
            if store.is_key(frames[done]):
                before = np.empty_like(row)
                store.read_bits(dtype, frames[done] - 1, k, before, bits)
                kernels.encode_frame(row, before, row)
            end = append_changes(row, places, codes, int(starts[done]))
            if end < 0:
                return None
            starts[done + 1] = end
            done += 1
    n = int(starts[-1])
    if n and int(places[:n].max()) >= stop - start:  # in the padding: no writer's, and no matter
        return None
    return Events(first, places[:n], codes[:n], starts)
