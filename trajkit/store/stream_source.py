"""One step of a delta stream as a frame: the state before it in memory, and what the delta changes."""

from collections.abc import Callable, Mapping

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.deltas import Change
from trajkit.checkpoints.layout import FlatVector, tensors_of
from trajkit.checkpoints.reader import FlatReader
from trajkit.store.description import Description
from trajkit.store.store import Store


class State:
    """A whole checkpoint's bits in memory, by dtype: what deltas are applied to."""

    def __init__(self, vectors: Mapping[str, FlatVector]) -> None:
        self.vectors = vectors
        self.bits = {d: np.empty(v.size, v.dtype.bits) for d, v in vectors.items()}

    def read_anchor(self, reader: FlatReader) -> None:
        """Take an anchor's bits."""
        for dtype, vector in self.vectors.items():
            for k in range(vector.n_chunks):
                start, stop = vector.chunk_span(k)
                reader.fill(dtype, start, stop, self.bits[dtype][start:stop])
        reader.check_unchanged()

    def read_store(self, store: Store, t: int) -> None:
        """Take frame ``t`` of a store."""
        for dtype, vector in self.vectors.items():
            chunk, scratch = np.empty((2, vector.chunk), vector.dtype.bits)
            for k in range(vector.n_chunks):
                start, stop = vector.chunk_span(k)
                store.read_bits(dtype, t, k, chunk, scratch)
                self.bits[dtype][start:stop] = chunk[: stop - start]


class StreamStep:
    """A step of a stream, as :class:`trajkit.store.writer.StoreWriter` appends it."""

    def __init__(
        self, step: int, state: State, changes: Mapping[str, Change], description: Description
    ) -> None:
        self.step = step
        self.label = f"step {step} of the stream"
        self.state = state
        self.description = description
        self.places = {d: np.empty(0, np.int64) for d in state.vectors}
        """of changed elements in each dtype's vector, ascending"""
        self.values = {d: np.empty(0, v.dtype.bits) for d, v in state.vectors.items()}
        table = tensors_of(state.vectors)
        for dtype in state.vectors:
            mine = [(table[n], c) for n, c in changes.items() if table[n].dtype == dtype]
            mine.sort(key=lambda pair: pair[0].offset)
            if mine:
                self.places[dtype] = np.concatenate([i.offset + c.indices for i, c in mine])
                self.values[dtype] = np.concatenate([c.bits for _, c in mine])

    def fill(self, dtype: str, start: int, stop: int, out: Array) -> None:
        """Fill ``out`` (unsigned [stop - start]) with bits [start, stop) of a vector."""
        out[:] = self.state.bits[dtype][start:stop]
        a, b = np.searchsorted(self.places[dtype], [start, stop])
        out[self.places[dtype][a:b] - start] = self.values[dtype][a:b]

    def apply(self) -> None:
        """Make the changes part of the state."""
        for dtype, places in self.places.items():
            self.state.bits[dtype][places] = self.values[dtype]

    def check_tied(self) -> None:
        """Nothing to prove: each tensor is here under one name."""

    def check_unchanged(self) -> None:
        """The delta was read whole."""

    def describe(self, keep: Callable[[str, bytes], tuple[str, str]]) -> tuple[str, bytes]:
        """The name and the bytes of the record of the files that a restored step has."""
        return self.description.pack(keep)
