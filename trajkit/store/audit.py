"""Frames checked against their digests while a fit passes over their codes.

A checksum says that a chunk is as it was written, not that it lies where it was written: a frame's
file in another's place passes. The digests of the decoded bits tell. To decode and digest every
chunk of every frame would cost a fit a sixth of its time; instead each chunk checks the bits that
it ends with (all deltas since the last key frame are in them), and each shard file of each frame
is checked in one of its chunks.
"""

import numpy as np

from trajkit.arrays import Array
from trajkit.kernels import api as kernels
from trajkit.store.store import Store


def frames_to_check(n_frames: int, k: int, n_chunks: int, shard_chunks: int) -> range:
    """The frames of a window, counted from its first, whose bits chunk ``k`` checks.

    Over the chunks of one shard file these are all frames, each once.

    >>> [list(frames_to_check(5, k, 3, 2)) for k in range(3)]
    [[0, 2, 4], [1, 3], [0, 1, 2, 3, 4]]
    """
    s, inner = divmod(k, shard_chunks)
    return range(inner, n_frames, min(shard_chunks, n_chunks - s * shard_chunks))


class Audit:
    """The frames of a window that one chunk checks, as their codes come by in order."""

    def __init__(self, store: Store, dtype: str, k: int, first: int, stop: int) -> None:
        array = store.frames[dtype]
        wanted = frames_to_check(stop - first, k, array.n_chunks, array.shard_chunks)
        self._store = store
        self._dtype = dtype
        self._k = k
        start, end = store.vectors[dtype].chunk_span(k)
        self._n = end - start
        self._wanted = [first + i for i in reversed(wanted)]
        self._bits: Array | None = None
        """at the frame that came last; None where no decoding has begun"""

    def take(self, begin: int, is_key_T: Array, codes_TN: Array) -> None:
        """Decode frames [begin, begin + T) as far as is needed, and check those wanted.

        Raises:
            FormatError: a frame's bits do not match their digest.
        """
        keyframes = self._store.commit.keyframes
        for t, (is_key, codes) in enumerate(zip(is_key_T, codes_TN, strict=True), begin):
            if not self._wanted:
                return
            if is_key:
                next_key = t + keyframes - t % keyframes
                if next_key <= self._wanted[-1]:
                    self._bits = None
                else:
                    self._bits = np.array(codes)
            elif self._bits is not None:
                kernels.decode_frame(codes, self._bits, self._bits)
            if t == self._wanted[-1]:
                self._wanted.pop()
                if self._bits is not None:
                    self._store.check_bits(self._dtype, t, self._k, self._bits[: self._n])
