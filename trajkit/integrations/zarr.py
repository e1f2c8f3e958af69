"""The codec ``trajkit.sparse`` for zarr-python, which finds it by an entry point of this package.

A store made with ``--codec sparse`` is opened by ``zarr.open`` wherever trajkit is installed.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import BytesBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.common import JSON

from trajkit.store.codecs import SparseCodec


@dataclass(frozen=True)
class Sparse(BytesBytesCodec):
    """Bytes of unsigned elements, sparse or dense (:class:`trajkit.store.codecs.SparseCodec`)."""

    itemsize: int
    """bytes an element"""
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """The codec of a ``zarr.json``; raises ValueError where its configuration is another."""
        configuration: Any = data.get("configuration")
        itemsize = configuration.get("itemsize") if isinstance(configuration, dict) else None
        if itemsize not in (1, 2, 4, 8) or len(configuration) != 1:
            raise ValueError(f"codec trajkit.sparse: expected an itemsize, found {configuration!r}")
        return cls(itemsize)

    def to_dict(self) -> dict[str, JSON]:
        """The codec as it stands in a ``zarr.json``."""
        return {"name": "trajkit.sparse", "configuration": {"itemsize": self.itemsize}}

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        out = np.empty(int(np.prod(chunk_spec.shape)), f"u{self.itemsize}")
        body = np.ascontiguousarray(chunk_bytes.as_numpy_array()).view(np.uint8)
        await asyncio.to_thread(SparseCodec().decode_body, body, out)
        return chunk_spec.prototype.buffer.from_bytes(out.tobytes())

    async def _encode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        codes = np.ascontiguousarray(chunk_bytes.as_numpy_array()).view(f"u{self.itemsize}")
        coded = await asyncio.to_thread(SparseCodec().encode_body, codes)
        return chunk_spec.prototype.buffer.from_bytes(coded)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Unknown before it is encoded."""
        raise NotImplementedError
