"""A trajectory: a store as its users see it, tensors by name and step."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.defaults import DEFAULT_MEMORY_BYTES, DEFAULT_STORE
from trajkit.errors import InvalidInput
from trajkit.store.history import read_history
from trajkit.store.store import Store
from trajkit.store.stream import stream_tensors
from trajkit.store.tensors import Source, as_store, element_bits, find_tensor, read_bits

if TYPE_CHECKING:
    import torch

    from trajkit.fits.kept import Fit

__all__ = ["Trajectory", "open"]


class Trajectory:
    """The committed checkpoints of one run, read from a store.

    It is a snapshot: checkpoints committed after opening are seen by :meth:`refresh`. Its length is
    the number of checkpoints, and iterating over it gives their steps.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def open(cls, path: Source = DEFAULT_STORE) -> Self:
        """The trajectory in the store at ``path``; raises :class:`NotFound` when there is none."""
        return cls(as_store(path))

    def refresh(self) -> Self:
        """See what was committed since; returns the trajectory itself.

        Raises:
            NotFound: the store is gone. FormatError: it is damaged.
        """
        self.store = Store.open(self.path)
        return self

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps.tolist())

    def __repr__(self) -> str:
        n = sum(v.size for v in self.store.vectors.values())
        held = f"{len(self.steps)} steps, {len(self.tensors)} tensors, {n:,} elements"
        return f"<Trajectory {self.path}: {held}>"

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self.store.path

    @property
    def steps(self) -> NDArray[np.int64]:
        """The committed training steps, int64 [T], ascending."""
        return self.store.steps

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor's name, dtype, shape and place, by name."""
        return self.store.tensors

    @property
    def fits(self) -> Mapping[str, "Fit"]:
        """The fits kept in the store, by name."""
        from trajkit.fits.kept import read_fits

        return read_fits(self.store)

    def tensor(self, name: str) -> TensorInfo:
        """One tensor's place; raises :class:`NotFound` and names the nearest when there is none."""
        return find_tensor(self.store, name)

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
        t = self.store.index_of(step)
        bits = read_bits(self.store, info.dtype, info.offset, info.stop, t)
        return bits.view(DTYPES[info.dtype].scalar).reshape(info.shape)

    def checkpoint(
        self, step: int, *, memory: str | int = DEFAULT_MEMORY_BYTES
    ) -> Iterator[tuple[str, Array]]:
        """Every tensor of a checkpoint as (name, array), one after another, bit for bit.

        Chunks are decoded ahead by all cores, in the order of the tensors in the store, so that it
        takes about as long as :func:`trajkit.restore`.

        Args:
            step: a committed training step.
            memory: budget for what is decoded ahead, such as ``"512MiB"``; the tensor in the making
                and those that the caller holds come on top.

        Yields:
            (name, array of the tensor's shape and dtype); the array is the caller's own.

        Raises:
            NotFound: no such step. FormatError: the store is damaged there. OverBudget: the budget
                is too small for one chunk.
        """
        return stream_tensors(self.store, self.store.index_of(step), memory)

    def history(self, name: str, *, memory: str | int = DEFAULT_MEMORY_BYTES) -> Array:
        """One tensor over all committed steps.

        Args:
            name: the tensor.
            memory: budget for the answer and what is decoded at once.

        Returns:
            An array [T, *shape] of the tensor's dtype.

        Raises:
            NotFound: no such tensor. OverBudget: T tensors do not fit the budget.
        """
        return read_history(self.store, self.tensor(name), memory)

    def trajectory(
        self, name: str, index: tuple[int, ...] | int = ()
    ) -> NDArray[np.float32] | NDArray[np.float64]:
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
        bits = element_bits(self.store, info.dtype, np.array([at]))[:, 0]
        wide = np.float64 if info.dtype == "float64" else np.float32
        values: NDArray[Any] = bits.view(DTYPES[info.dtype].scalar).astype(wide)
        return values

    def state_dict(
        self, step: int, *, estimator: str | None = None, **options: Any
    ) -> "dict[str, torch.Tensor]":
        """A step's tensors, by their names in the checkpoint, as torch tensors on the CPU.

        Args:
            step: a committed training step; with ``estimator``, a step to come.
            estimator: how to extrapolate.
            options: of the extrapolation, as :func:`trajkit.extrapolate` has them.

        Raises:
            NotFound: no such step or fit. Unsupported: torch or transformers are missing.
        """
        from trajkit.outputs.models import state_dict

        return state_dict(self, step, estimator=estimator, **options)


def open(path: Source = DEFAULT_STORE) -> Trajectory:  # noqa: A001 - as in zarr.open
    """The trajectory in the store at ``path``; raises :class:`NotFound` when there is none."""
    return Trajectory.open(path)
