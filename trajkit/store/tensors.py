"""Tensors and elements of a store's checkpoints, bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.errors import NotFound
from trajkit.parallel import count_workers
from trajkit.store.store import Store


class HasStore(Protocol):
    """What stands for a run: a :class:`trajkit.Trajectory`, for one."""

    @property
    def store(self) -> Store: ...


Source = str | PathLike[str] | Store | HasStore
"""what every verb takes as a run: a store's path, the store, or its trajectory"""


def as_store(source: Source) -> Store:
    """The store that ``source`` names; a path is opened.

    Raises:
        NotFound: there is no store at the path. FormatError: it is damaged.
    """
    if isinstance(source, Store):
        return source
    return Store.open(source) if isinstance(source, str | PathLike) else source.store


def path_of(source: Source) -> Path:
    """The folder of the store that ``source`` names; there need be nothing yet."""
    return Path(source) if isinstance(source, str | PathLike) else as_store(source).path


def find_tensor(store: Store, name: str) -> TensorInfo:
    """One tensor's place; raises :class:`NotFound` and names the nearest when there is none."""
    try:
        return store.tensors[name]
    except KeyError:
        from difflib import get_close_matches

        near = get_close_matches(name, store.tensors, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise NotFound(f"{store.path}: no tensor {name!r}{hint}") from None


def read_bits(store: Store, dtype: str, start: int, stop: int, t: int) -> Array:
    """The bits of elements [start, stop) of a dtype's flat vector at frame ``t``, unsigned."""
    vector = store.vectors[dtype]
    out = np.empty(stop - start, vector.dtype.bits)
    chunks = range(start // vector.chunk, -(-stop // vector.chunk)) if stop > start else range(0)

    def decode(k: int) -> None:
        bits = np.empty(vector.chunk, vector.dtype.bits)
        store.read_bits(dtype, t, k, bits, np.empty_like(bits))
        lo, hi = vector.chunk_span(k)
        a, b = max(lo, start), min(hi, stop)
        out[a - start : b - start] = bits[a - lo : b - lo]

    with ThreadPoolExecutor(count_workers()) as pool:
        for _ in pool.map(decode, chunks):
            pass
    return out


def element_bits(store: Store, dtype: str, elements: Array) -> Array:
    """The bits of chosen elements of a flat vector over all steps.

    Args:
        store: the run.
        dtype: which flat vector.
        elements: int64 [M], indices into it, any order.

    Returns:
        Unsigned [T, M]. Reads the chunks the elements lie in, no others.
    """
    vector = store.vectors[dtype]
    n_frames = len(store.steps)
    codes = np.empty((n_frames, len(elements)), vector.dtype.bits)
    places = [
        (k, np.flatnonzero(elements // vector.chunk == k))
        for k in np.unique(elements // vector.chunk).tolist()
    ]

    def gather(t: int) -> None:
        chunk = np.empty(vector.chunk, vector.dtype.bits)
        for k, where in places:
            store.read_codes(dtype, t, k, chunk)
            codes[t, where] = chunk[elements[where] - k * vector.chunk]

    with ThreadPoolExecutor(count_workers()) as pool:
        for _ in pool.map(gather, range(n_frames)):
            pass
    return _accumulate_codes(codes, store.commit.keyframes)


def _accumulate_codes(codes: Array, keyframes: int) -> Array:
    """The bits [T, M] from codes [T, M]: running wrapping sums of deltas from each key frame on."""
    one = codes.dtype.type(1)
    deltas = (codes >> one) ^ (np.zeros_like(codes) - (codes & one))
    out = np.empty_like(codes)
    for key in range(0, len(codes), keyframes):
        run = slice(key, key + keyframes)
        deltas[key] = codes[key]
        np.cumsum(deltas[run], axis=0, dtype=codes.dtype, out=out[run])
    return out
