"""A trajectory: a store as its users see it, tensors by name and step."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from trajkit.codecs import Array
from trajkit.dtypes import DTYPES
from trajkit.errors import InvalidInput, NotFound
from trajkit.ingest import DEFAULT_STORE
from trajkit.layout import TensorInfo
from trajkit.parallel import count_workers
from trajkit.store import Store

if TYPE_CHECKING:
    from trajkit.fits import Fit

__all__ = ["Trajectory", "open"]


class Trajectory:
    """The committed checkpoints of one run, read from a store.

    It is a snapshot: checkpoints committed after opening are seen by opening again.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def open(cls, path: str | Path = DEFAULT_STORE) -> Self:
        """The trajectory in the store at ``path``; raises :class:`NotFound` when there is none."""
        return cls(Store.open(path))

    def __repr__(self) -> str:
        n = sum(v.size for v in self.store.vectors.values())
        held = f"{len(self.steps)} steps, {len(self.tensors)} tensors, {n:,} elements"
        return f"<Trajectory {self.path}: {held}>"

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self.store.path

    @property
    def steps(self) -> Array:
        """The committed training steps, int64 [T], ascending."""
        return self.store.steps

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor's name, dtype, shape and place, by name."""
        return self.store.tensors

    @property
    def fits(self) -> Mapping[str, "Fit"]:
        """The fits kept in the store, by name."""
        from trajkit.fits import read_fits

        return read_fits(self.store)

    def tensor(self, name: str) -> TensorInfo:
        """One tensor's place; raises :class:`NotFound` and names the nearest when there is none."""
        try:
            return self.tensors[name]
        except KeyError:
            from difflib import get_close_matches

            near = get_close_matches(name, self.tensors, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise NotFound(f"{self.path}: no tensor {name!r}{hint}") from None

    def read(self, name: str, step: int) -> Array:
        """One tensor as it was at a step, bit for bit.

        Args:
            name: the tensor.
            step: a committed training step.

        Returns:
            An array of the tensor's shape and dtype; bfloat16 and float8 as ml_dtypes have them.

        Raises:
            NotFound: no such tensor or step. FormatError: the store is damaged there.
        """
        info = self.tensor(name)
        bits = self.read_bits(info.dtype, info.offset, info.stop, self.store.index_of(step))
        return bits.view(DTYPES[info.dtype].scalar).reshape(info.shape)

    def read_bits(self, dtype: str, start: int, stop: int, t: int) -> Array:
        """The bits of elements [start, stop) of a dtype's flat vector at frame ``t``, unsigned."""
        vector = self.store.vectors[dtype]
        out = np.empty(stop - start, vector.dtype.bits)
        chunks = (
            range(start // vector.chunk, -(-stop // vector.chunk)) if stop > start else range(0)
        )

        def decode(k: int) -> None:
            bits = np.empty(vector.chunk, vector.dtype.bits)
            self.store.read_bits(dtype, t, k, bits, np.empty_like(bits))
            lo, hi = vector.chunk_span(k)
            a, b = max(lo, start), min(hi, stop)
            out[a - start : b - start] = bits[a - lo : b - lo]

        with ThreadPoolExecutor(count_workers()) as pool:
            for _ in pool.map(decode, chunks):
                pass
        return out

    def trajectory(self, name: str, index: tuple[int, ...] | int = ()) -> Array:
        """One element over all committed steps.

        Args:
            name: the tensor.
            index: the element's place in the tensor's shape; negative counts from the end.

        Returns:
            float32 [T] (float64 for a float64 tensor).
        """
        info = self.tensor(name)
        index = (index,) if isinstance(index, int) else tuple(index)
        if len(index) != len(info.shape):
            raise InvalidInput(f"{name!r} has {len(info.shape)} axes, the index {len(index)}")
        if any(not -n <= i < n for i, n in zip(index, info.shape, strict=True)):
            raise InvalidInput(f"index {index} is outside {name!r} of shape {info.shape}")
        wrapped = [i % n for i, n in zip(index, info.shape, strict=True)]
        at = info.offset + (int(np.ravel_multi_index(wrapped, info.shape)) if index else 0)
        bits = self.element_bits(info.dtype, np.array([at]))[:, 0]
        wide = np.float64 if info.dtype == "float64" else np.float32
        return bits.view(DTYPES[info.dtype].scalar).astype(wide)

    def element_bits(self, dtype: str, elements: Array) -> Array:
        """The bits of chosen elements of a flat vector over all steps.

        Args:
            dtype: which flat vector.
            elements: int64 [M], indices into it, any order.

        Returns:
            Unsigned [T, M]. Reads the chunks the elements lie in, no others.
        """
        vector = self.store.vectors[dtype]
        n_frames = len(self.steps)
        codes = np.empty((n_frames, len(elements)), vector.dtype.bits)
        places = [
            (k, np.flatnonzero(elements // vector.chunk == k))
            for k in np.unique(elements // vector.chunk).tolist()
        ]

        def gather(t: int) -> None:
            chunk = np.empty(vector.chunk, vector.dtype.bits)
            for k, where in places:
                self.store.read_codes(dtype, t, k, chunk)
                codes[t, where] = chunk[elements[where] - k * vector.chunk]

        with ThreadPoolExecutor(count_workers()) as pool:
            for _ in pool.map(gather, range(n_frames)):
                pass
        return _accumulate_codes(codes, self.store.commit.keyframes)


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


def open(path: str | Path = DEFAULT_STORE) -> Trajectory:  # noqa: A001 - as in zarr.open
    """The trajectory in the store at ``path``; raises :class:`NotFound` when there is none."""
    return Trajectory.open(path)
