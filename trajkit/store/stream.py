"""A checkpoint's tensors one after another, decoded ahead by all cores; memory bounded by a budget."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import FlatVector, TensorInfo
from trajkit.parallel import count_workers, map_in_order, plan_workers
from trajkit.store.store import Store
from trajkit.text import parse_bytes

_CHUNKS_A_WORKER = 6
"""in work, decoded and waiting, and scratch"""


def stream_tensors(store: Store, t: int, memory: str | int) -> Iterator[tuple[str, Array]]:
    """(name, array) of every tensor of frame ``t``, in the table's order.

    Raises:
        FormatError: the store is damaged there. OverBudget: one chunk does not fit the budget.
    """
    chunk_bytes = max((v.chunk * v.dtype.itemsize for v in store.vectors.values()), default=0)
    one = _CHUNKS_A_WORKER * chunk_bytes
    workers = plan_workers("checkpoint", count_workers(), one, parse_bytes(memory)).workers
    return _stream(store, t, workers)


def _stream(store: Store, t: int, workers: int) -> Iterator[tuple[str, Array]]:
    with ThreadPoolExecutor(workers) as pool:
        for vector in store.vectors.values():

            def decode(k: int, vector: FlatVector = vector) -> Array:
                bits = np.empty(vector.chunk, vector.dtype.bits)
                store.read_bits(vector.dtype.name, t, k, bits, np.empty_like(bits))
                return bits

            chunks = map_in_order(pool, decode, range(vector.n_chunks), 2 * workers)
            yield from assemble_tensors(vector, chunks)


def assemble_tensors(
    vector: FlatVector, chunks: Iterator[tuple[int, Array]]
) -> Iterator[tuple[str, Array]]:
    """Whole tensors from (chunk index, bits [C]) in order; tensors without elements where they lie."""
    tensors, n_given = vector.tensors, 0
    bits: Array | None = None
    for k, piece in chunks:
        for span in vector.spans(*vector.chunk_span(k)):
            info = span.tensor
            while tensors[n_given].size == 0:
                yield _empty(tensors[n_given], vector)
                n_given += 1
            if span.start == 0:
                bits = np.empty(info.size, vector.dtype.bits)
            assert bits is not None
            bits[span.start : span.stop] = piece[span.at : span.at + span.stop - span.start]
            if span.stop == info.size:
                yield info.name, bits.view(DTYPES[info.dtype].scalar).reshape(info.shape)
                bits, n_given = None, n_given + 1
    for info in tensors[n_given:]:
        yield _empty(info, vector)


def _empty(info: TensorInfo, vector: FlatVector) -> tuple[str, Array]:
    none = np.empty(0, vector.dtype.bits)
    return info.name, none.view(DTYPES[info.dtype].scalar).reshape(info.shape)
