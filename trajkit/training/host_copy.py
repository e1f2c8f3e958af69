"""A copy of a model's tensors in host memory, laid out as the store's flat vectors.

One buffer a dtype, pinned where the tensors are on a CUDA device. Copying rounds once, to nearest
even, where the store keeps another floating-point dtype, on the tensor's own device.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.cast import convert_bits
from trajkit.checkpoints.layout import FlatVector, TensorInfo, tensors_of
from trajkit.store.description import Description
from trajkit.training.tensors import dtype_of


class HostCopy:
    """One checkpoint in memory: what :class:`trajkit.store.writer.StoreWriter` appends.

    Args:
        vectors: the store's.
        description: of its files.
        pinned: whether a CUDA device copies into it.
    """

    def __init__(
        self, vectors: Mapping[str, FlatVector], description: Description, pinned: bool = False
    ) -> None:
        self.step = -1
        self.description = description
        self._buffers = {
            dtype: torch.empty(vector.n_bytes, dtype=torch.uint8, pin_memory=pinned)
            for dtype, vector in vectors.items()
        }
        self._bits = {d: b.numpy().view(vectors[d].dtype.bits) for d, b in self._buffers.items()}
        self._views = {
            name: _view(self._buffers[info.dtype], info)
            for name, info in tensors_of(vectors).items()
        }

    @torch.no_grad()
    def take(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors as they are now; when this returns, they may change again."""
        self.step = step
        devices = set()
        for name, view in self._views.items():
            tensor = tensors[name]
            if tensor.is_cuda:
                devices.add(tensor.device)
                view.copy_(tensor.to(view.dtype), non_blocking=True)
            elif tensor.dtype == torch.float64 and view.dtype.itemsize < 4:
                view.view(torch.uint8).copy_(_round_once(tensor, dtype_of(view)).view(torch.uint8))
            else:
                view.copy_(tensor)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()

    def fill(self, dtype: str, start: int, stop: int, out: Array) -> None:
        """Fill ``out`` (unsigned [stop - start]) with bits [start, stop) of a vector."""
        out[:] = self._bits[dtype][start:stop]

    def bits(self, dtype: str, start: int, stop: int) -> Array:
        """Bits [start, stop) of a vector, unsigned: the copy's own memory."""
        return self._bits[dtype][start:stop]

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"step {self.step} of the model"

    def check_tied(self) -> None:
        """Nothing to prove: each tensor is here under one name."""

    def check_unchanged(self) -> None:
        """Nothing writes to the copy."""

    def describe(self, keep: Callable[[str, bytes], tuple[str, str]]) -> tuple[str, bytes]:
        """The name and the bytes of the record of the files that a restored step has."""
        return self.description.pack(keep)


def _view(buffer: Tensor, info: TensorInfo) -> Tensor:
    """A tensor's place in its dtype's buffer, in its own shape."""
    itemsize = DTYPES[info.dtype].itemsize
    part = buffer[info.offset * itemsize : info.stop * itemsize]
    return part.view(getattr(torch, info.dtype)).view(info.shape)


def _round_once(tensor: Tensor, dtype: str) -> Tensor:
    """float64 rounded to a narrow dtype at once; torch goes by way of float32, rounding twice."""
    bits = tensor.contiguous().numpy().reshape(-1).view(np.uint64)
    narrow = convert_bits(bits, DTYPES["float64"], DTYPES[dtype])
    whole = torch.from_numpy(narrow.view(np.uint8)).view(getattr(torch, dtype))
    return whole.view(tensor.shape)
