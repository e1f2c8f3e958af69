"""Sharded Zarr v3 arrays on disk, written a row at a time and read a chunk at a time.

The files are plain Zarr v3 (zarr-python and tensorstore open them); the reading and writing is
trajkit's own, since a fit over thousands of checkpoints reads millions of chunks and a general
reader's cost a chunk would set the pace (DESIGN.md has the measurement), and since a writer that
streams chunk after chunk needs no shard in memory.

An array has shape [N] or [T, N]. A row of N elements is cut into chunks of C elements (the last one
padded with zeros, as Zarr has it), and chunks into shard files. A shard file is its chunks end to
end, then an index of (offset, length) pairs, little-endian uint64, then the index's crc32c.
Every byte of it is under a checksum.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xxhash

from trajkit.arrays import Array
from trajkit.disk import canonical_json, disk_errors, replace_file
from trajkit.errors import FormatError, StorageError, TrajkitError
from trajkit.remote.source import ByteSource, LocalFile, read_bytes
from trajkit.store.codecs import Codec, PlainCodec, without_checksum
from trajkit.store.native import read_rows

SHARD_CHUNKS = 1024
"""chunks a shard file at most (512 MiB of bf16), so that a frame is a handful of files"""

_INDEX_ENTRY_BYTES = 16
MISSING = 2**64 - 1
_CACHED_INDEX_BYTES = 1 << 24
_HASHED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ZArray:
    """One array of a store: where it lies, its shape and its coding.

    ``rows`` is None for shape [N]; otherwise the array is [rows, N] and grows by rows.
    """

    path: Path
    dtype: np.dtype[Any]
    size: int
    """N, elements a row"""
    chunk: int
    """C, elements a chunk"""
    codec: Codec
    rows: int | None = None
    dimension_names: tuple[str, ...] = ("element",)
    open_source: Callable[[str], ByteSource] = field(
        default=LocalFile.open, repr=False, compare=False
    )
    """opens a shard file by its path; raises OSError where there is none"""
    _indexes: "OrderedDict[tuple[int, int], Array]" = field(
        default_factory=OrderedDict, repr=False, compare=False
    )
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)
    _rows_folder: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keep the folder of all rows as a string: a fit opens millions of files."""
        object.__setattr__(self, "_rows_folder", f"{self.path}/c")

    @property
    def n_chunks(self) -> int:
        """Chunks a row; an empty row has none."""
        return -(-self.size // self.chunk)

    @property
    def shard_chunks(self) -> int:
        """Chunks a shard file."""
        return max(1, min(self.n_chunks, SHARD_CHUNKS))

    def span(self, k: int) -> tuple[int, int]:
        """The elements [start, stop) of a row that chunk ``k`` holds, padding left out."""
        return k * self.chunk, min((k + 1) * self.chunk, self.size)

    def metadata(self) -> dict[str, Any]:
        """The array's ``zarr.json``."""
        lead = [] if self.rows is None else [1]
        shape = [self.size] if self.rows is None else [self.rows, self.size]
        index_codecs = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [*lead, self.chunk * self.shard_chunks]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [*lead, self.chunk],
                        "codecs": self.codec.metadata(self.dtype.itemsize),
                        "index_codecs": index_codecs,
                        "index_location": "end",
                    },
                }
            ],
            "attributes": {},
            "dimension_names": list(self.dimension_names),
        }

    def write_metadata(self) -> None:
        """Write ``zarr.json``, whole or not at all."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / "zarr.json", canonical_json(self.metadata()))

    def row_path(self, row: int) -> Path:
        """The folder of a row's shard files."""
        return self.path / "c" if self.rows is None else self.path / "c" / str(row)

    def _shard_path(self, row: int, s: int) -> str:
        if self.rows is None:
            return f"{self._rows_folder}/{s}"
        return f"{self._rows_folder}/{row}/{s}"

    def shard_paths(self, row: int) -> Iterator[Path]:
        """The shard files that a whole row consists of."""
        for s in range(-(-self.n_chunks // self.shard_chunks)):
            yield self.row_path(row) / str(s)

    def read_chunk(self, row: int, k: int, out: Array) -> None:
        """Fill ``out`` (contiguous, C elements of the array's dtype, padding included) with a chunk.

        Raises:
            FormatError: the shard file is missing, short or damaged; ``out`` is then not to be
                used. StorageError: the disk refused to read it.
        """
        s, inner = divmod(k, self.shard_chunks)
        path = self._shard_path(row, s)
        with self.reading(path) as source:
            place = self._index(source, path, row, s)[inner]
            row_TN, places_T2 = out.reshape(1, -1), place.view(np.int64).reshape(1, 2)
            if read_rows(self.codec, [source.fd], places_T2, row_TN):
                return
            offset, n_bytes = place.tolist()
            try:
                if offset + n_bytes > source.size:  # also: marked as missing
                    raise FormatError("the file ends before it does")
                self.codec.decode(read_bytes(source, offset, n_bytes), out)
            except FormatError as error:
                raise FormatError(f"{path}: chunk {k}: {error}") from error

    def read_row(self, row: int = 0) -> Array:
        """A whole row, for arrays that are small by design; raises as :meth:`read_chunk`."""
        self.check_extent(row)
        out = np.empty(self.n_chunks * self.chunk, self.dtype)
        for k in range(self.n_chunks):
            self.read_chunk(row, k, out[k * self.chunk : (k + 1) * self.chunk])
        return out[: self.size]

    def check_extent(self, row: int) -> None:
        """Check that a row's files could hold it, before memory is taken for so many chunks.

        Raises:
            FormatError: a shard file is missing, or all are too small (the last is named).
                StorageError: the disk refused to look.
        """
        held = 0
        for path in self.shard_paths(row):
            with self.reading(str(path)) as source:
                held += source.size
        least = self.n_chunks * _INDEX_ENTRY_BYTES
        if isinstance(self.codec, PlainCodec):
            least += self.n_chunks * self.chunk * self.dtype.itemsize
        if held < least:
            raise FormatError(
                f"{path}: {held} bytes, with the row's other files, cannot hold {self.n_chunks} "
                f"chunks of {self.chunk} elements"
            )

    def check_shard(self, row: int, s: int) -> None:
        """Check that shard ``s`` is exactly its chunks and its index.

        Raises:
            FormatError: it is not. StorageError: the disk refused to read it.
        """
        path = self._shard_path(row, s)
        with self.reading(path) as source:
            index = self._index(source, path, row, s, cached=False)
            size = source.size
        used = index[index[:, 0] != MISSING].astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(used[:, 1])])
        body = size - len(index) * _INDEX_ENTRY_BYTES - 4
        if not np.array_equal(used[:, 0], starts[:-1]) or starts[-1] != body:
            raise FormatError(f"{path}: the chunks do not fill the file end to end")

    def row_digest(self, row: int = 0) -> str:
        """xxh3-128, in hex, of a row's shard files, one after the other.

        Raises:
            StorageError: one is missing, or cannot be read.
        """
        found = xxhash.xxh3_128()
        buffer = memoryview(bytearray(_HASHED_BYTES))
        for path in self.shard_paths(row):
            try:
                with self.reading(str(path)) as source:
                    at = 0
                    while n_bytes := source.read_into(at, buffer):
                        found.update(buffer[:n_bytes])
                        at += n_bytes
            except FormatError as error:
                raise StorageError(str(error)) from None
        return found.hexdigest()

    def _index(self, source: ByteSource, path: str, row: int, s: int, cached: bool = True) -> Array:
        """The shard's index, uint64 [chunks a shard, 2]; those read last are kept."""
        key = (row, s)
        if cached:
            with self._lock:
                if key in self._indexes:
                    self._indexes.move_to_end(key)
                    return self._indexes[key]
        n_bytes = self.shard_chunks * _INDEX_ENTRY_BYTES + 4
        size = source.size
        if size < n_bytes:
            raise FormatError(f"{path}: {size} bytes are fewer than the shard's index")
        try:
            body = without_checksum(read_bytes(source, size - n_bytes, n_bytes))
        except FormatError as error:
            raise FormatError(f"{path}: shard index: {error}") from error
        index = np.frombuffer(body, "<u8").reshape(-1, 2)
        with self._lock:
            self._indexes[key] = index
            while len(self._indexes) * n_bytes > _CACHED_INDEX_BYTES:
                self._indexes.popitem(last=False)
        return index

    @contextmanager
    def reading(self, path: str) -> Iterator[ByteSource]:
        """A shard file to read from; what the system refuses becomes one line."""
        with refusals(path):
            source = self.open_source(path)
            try:
                yield source
            finally:
                source.close()


@contextmanager
def refusals(path: str) -> Iterator[None]:
    """What the system refuses about a shard file becomes one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{path}: missing from the store") from None
    except OSError as error:
        if isinstance(error, TrajkitError):
            raise
        raise StorageError(f"{path}: {error.strerror or error}") from error
