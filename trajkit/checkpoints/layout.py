"""Where every element of a model lies: flat vectors, tensors in them, chunks of them.

All tensors of one dtype lie end to end in one flat vector of N elements, in the order in which the
first checkpoint's files hold them. One vector a dtype gives even chunks whatever the tensors'
sizes, and one frame a checkpoint.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from trajkit.arrays import DTYPES
from trajkit.errors import FormatError

CHUNK_ELEMENTS = 1 << 18
"""C: elements a chunk. Measured (DESIGN.md): smaller costs calls, larger falls out of the cache"""


def module_of(name: str) -> str:
    """The module a tensor belongs to, layers and experts folded.

    >>> module_of("model.layers.12.mlp.up_proj.weight")
    'model.layers.*.mlp.up_proj'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name).removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's place in its dtype's flat vector.

    >>> info = TensorInfo("w", "bfloat16", (3, 4), offset=100)
    >>> info.size, info.stop
    (12, 112)
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """index of its first element in the flat vector"""

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """Index after its last element in the flat vector."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a tensor that lies in some range of its flat vector."""

    tensor: TensorInfo
    start: int
    """first element, counted within the tensor"""
    stop: int
    """after the last element, counted within the tensor"""
    at: int
    """where the part begins, counted from the start of the range"""


class FlatVector:
    """All tensors of one dtype, end to end."""

    def __init__(self, dtype: str, tensors: Iterable[TensorInfo], chunk: int) -> None:
        self.dtype = DTYPES[dtype]
        self.tensors = tuple(tensors)
        self._starts = np.array([t.offset for t in self.tensors], np.int64)
        self._stops = np.array([t.stop for t in self.tensors], np.int64)
        if not np.array_equal(self._starts[1:], self._stops[:-1]) or self._starts[:1].any():
            raise FormatError(f"tensor table: the {dtype} tensors do not lie end to end")
        self.size = int(self._stops[-1])
        self.chunk = min(chunk, max(self.size, 1))

    @property
    def n_chunks(self) -> int:
        """Chunks a frame."""
        return -(-self.size // self.chunk)

    @property
    def n_bytes(self) -> int:
        """Bytes of one checkpoint's elements of this dtype."""
        return self.size * self.dtype.itemsize

    def chunk_span(self, k: int) -> tuple[int, int]:
        """The elements [start, stop) that chunk ``k`` holds."""
        return k * self.chunk, min((k + 1) * self.chunk, self.size)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """The tensors' parts in [start, stop), in order; empty tensors are passed over."""
        first = int(np.searchsorted(self._stops, start, side="right"))
        last = int(np.searchsorted(self._starts, stop, side="left"))
        for tensor in self.tensors[first:last]:
            lo, hi = max(start, tensor.offset), min(stop, tensor.stop)
            if lo < hi:
                yield Span(tensor, lo - tensor.offset, hi - tensor.offset, lo - start)


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], chunk: int = CHUNK_ELEMENTS
) -> dict[str, FlatVector]:
    """The flat vectors, by dtype, of tensors given as (name, dtype, shape) in file order.

    >>> table = [("a", "bfloat16", (2, 3)), ("b", "float32", ()), ("c", "bfloat16", (4,))]
    >>> vectors = lay_out(table)
    >>> vectors["bfloat16"].size, vectors["bfloat16"].tensors[1].offset
    (10, 6)
    """
    by_dtype: dict[str, list[TensorInfo]] = {}
    for name, dtype, shape in tensors:
        row = by_dtype.setdefault(dtype, [])
        row.append(TensorInfo(name, dtype, shape, row[-1].stop if row else 0))
    return {dtype: FlatVector(dtype, row, chunk) for dtype, row in by_dtype.items()}


def tensors_of(vectors: Mapping[str, FlatVector]) -> dict[str, TensorInfo]:
    """Every tensor by name, vector after vector."""
    return {t.name: t for vector in vectors.values() for t in vector.tensors}
