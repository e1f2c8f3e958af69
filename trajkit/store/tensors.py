"""Tensors and elements of a store's checkpoints, bit for bit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.checkpoints.record import SourceRecord
from trajkit.checkpoints.tied import possible_partners
from trajkit.errors import Mismatch, NotFound
from trajkit.kernels import api as kernels
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
    if stop - start > vector.chunk:
        store.frames[dtype].check_extent(t)
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


def check_absent(store: Store, t: int, record: SourceRecord) -> None:
    """Check that what a checkpoint's files leave out is in them under another name.

    Raises:
        Mismatch: the store has other bits for a tensor than for the one it is said to be tied to.
    """
    left = set(record.absent)
    written = {name: info for name, info in store.tensors.items() if name not in left}
    for name in record.absent:
        info = find_tensor(store, name)
        for partner in possible_partners(name, info.shape, written):
            chunk = store.vectors[info.dtype].chunk
            for at in range(0, info.size, chunk):
                a, b = (
                    read_bits(store, i.dtype, i.offset + at, min(i.offset + at + chunk, i.stop), t)
                    for i in (info, written[partner])
                )
                if not np.array_equal(a, b):
                    raise Mismatch(
                        f"{store.path}: step {store.steps[t]}: the layout leaves out {name!r}, "
                        f"which is not what {partner!r} is; the store is damaged"
                    )


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
    out = np.empty((n_frames, len(elements)), vector.dtype.bits)
    places = {
        k: np.flatnonzero(elements // vector.chunk == k)
        for k in np.unique(elements // vector.chunk).tolist()
    }
    runs = [range(*pair) for pair in pairwise([*store.keys, n_frames])]

    def gather(place: tuple[int, range]) -> None:
        k, frames = place
        within = elements[places[k]] - k * vector.chunk
        for t, bits in chunk_history(store, dtype, k, frames):
            out[t, places[k]] = bits[within]

    with ThreadPoolExecutor(count_workers()) as pool:
        for _ in pool.map(gather, [(k, frames) for k in places for frames in runs]):
            pass
    return out


def chunk_history(store: Store, dtype: str, k: int, frames: range) -> Iterator[tuple[int, Array]]:
    """The bits of chunk ``k`` at each of some frames, checked: (frame, unsigned [elements]).

    ``frames`` begin at a key frame; the array is the same one each time.
    """
    vector = store.vectors[dtype]
    start, stop = vector.chunk_span(k)
    bits = np.empty(vector.chunk, vector.dtype.bits)
    codes = np.empty_like(bits)
    for t in frames:
        store.read_codes(dtype, t, k, codes)
        if store.is_key(t):
            bits[:] = codes
        else:
            kernels.decode_frame(codes, bits, bits)
        store.check_bits(dtype, t, k, bits[: stop - start])
        yield t, bits[: stop - start]
