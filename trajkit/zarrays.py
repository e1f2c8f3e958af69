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

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import xxhash

from trajkit.codecs import Array, Codec, with_checksum, without_checksum
from trajkit.errors import FormatError, StorageError, TrajkitError
from trajkit.native import read_rows

SHARD_CHUNKS = 1024
"""chunks a shard file at most (512 MiB of bf16), so that a frame is a handful of files"""

KEPT_OPEN = 256
"""shard files a reader keeps open at most: a process may open 1,024 files, mostly"""

_INDEX_ENTRY_BYTES = 16
_MISSING = 2**64 - 1
_CACHED_INDEX_BYTES = 1 << 24
_HASHED_BYTES = 1 << 20


def canonical_json(document: Any) -> bytes:
    """The one spelling of a JSON document that trajkit writes, so that any changed byte shows."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def group_document(attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ``zarr.json`` of a Zarr group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}}


GROUP = canonical_json(group_document())
"""the ``zarr.json`` of a group without attributes, as trajkit writes it"""


def check_content(path: Path, contents: Sequence[bytes]) -> Iterator[str]:
    """A line for a file that holds none of the contents trajkit may have written there."""
    try:
        if path.read_bytes() not in contents:
            yield f"{path}: damaged: not what trajkit wrote"
    except OSError as error:
        yield f"{path}: {error.strerror}"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside it, to the disk, then renamed into place."""
    part = path.with_name(path.name + ".part")
    with disk_errors(path), part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with disk_errors(path):
        part.replace(path)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with disk_errors(path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class disk_errors:  # noqa: N801 - used as a context manager, reads as a phrase
    """Turn the operating system's errors into one line that names the path."""

    path: Path

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, TrajkitError):
            reason = error.strerror or str(error)
            raise StorageError(
                f"{self.path}: {reason}; what was committed is intact, and the same command "
                "continues once the cause is gone"
            ) from error


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
        with _reading(path) as fd:
            place = self._index(fd, path, row, s)[inner]
            if read_rows(self.codec, [fd], place.view(np.int64).reshape(1, 2), out.reshape(1, -1)):
                return
            offset, n_bytes = place.tolist()
            try:
                if offset + n_bytes > os.fstat(fd).st_size:  # also: marked as missing
                    raise FormatError("the file ends before it does")
                self.codec.decode(os.pread(fd, n_bytes, offset), out)
            except FormatError as error:
                raise FormatError(f"{path}: chunk {k}: {error}") from error

    def read_row(self, row: int = 0) -> Array:
        """A whole row, for arrays that are small by design."""
        out = np.empty(self.n_chunks * self.chunk, self.dtype)
        for k in range(self.n_chunks):
            self.read_chunk(row, k, out[k * self.chunk : (k + 1) * self.chunk])
        return out[: self.size]

    def write_row(self, values: Array, row: int = 0) -> None:
        """A whole row at once, for arrays that are small by design."""
        with RowWriter(self, row) as writer:
            for k in range(self.n_chunks):
                start, stop = self.span(k)
                chunk = np.zeros(self.chunk, self.dtype)
                chunk[: stop - start] = values[start:stop]
                writer.append(self.codec.encode(chunk))

    def check_shard(self, row: int, s: int) -> None:
        """Check that shard ``s`` is exactly its chunks and its index.

        Raises:
            FormatError: it is not. StorageError: the disk refused to read it.
        """
        path = self._shard_path(row, s)
        with _reading(path) as fd:
            index = self._index(fd, path, row, s, cached=False)
            size = os.fstat(fd).st_size
        used = index[index[:, 0] != _MISSING].astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(used[:, 1])])
        body = size - len(index) * _INDEX_ENTRY_BYTES - 4
        if not np.array_equal(used[:, 0], starts[:-1]) or starts[-1] != body:
            raise FormatError(f"{path}: the chunks do not fill the file end to end")

    def row_digest(self, row: int = 0) -> str:
        """xxh3-128, in hex, of a row's shard files, one after the other; raises OSError."""
        found = xxhash.xxh3_128()
        for path in self.shard_paths(row):
            with path.open("rb", buffering=0) as file:
                while content := file.read(_HASHED_BYTES):
                    found.update(content)
        return found.hexdigest()

    def _index(self, fd: int, path: str, row: int, s: int, cached: bool = True) -> Array:
        """The shard's index, uint64 [chunks a shard, 2]; those read last are kept."""
        key = (row, s)
        if cached:
            with self._lock:
                if key in self._indexes:
                    self._indexes.move_to_end(key)
                    return self._indexes[key]
        n_bytes = self.shard_chunks * _INDEX_ENTRY_BYTES + 4
        size = os.fstat(fd).st_size
        if size < n_bytes:
            raise FormatError(f"{path}: {size} bytes are fewer than the shard's index")
        try:
            body = without_checksum(os.pread(fd, n_bytes, size - n_bytes))
        except FormatError as error:
            raise FormatError(f"{path}: shard index: {error}") from error
        index = np.frombuffer(body, "<u8").reshape(-1, 2)
        with self._lock:
            self._indexes[key] = index
            while len(self._indexes) * n_bytes > _CACHED_INDEX_BYTES:
                self._indexes.popitem(last=False)
        return index


class ChunkReader:
    """Reads many chunks of one array in one call that holds no lock.

    Keeps up to ``KEPT_OPEN`` shard files open; use it in a ``with`` block. Safe to call from many
    threads at once.
    """

    def __init__(self, array: ZArray) -> None:
        self.array = array
        self._open: dict[tuple[int, int], int] = {}
        self._lock = Lock()

    def __enter__(self) -> "ChunkReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def read_rows(self, rows: range, k: int, out_TN: Array) -> None:
        """Fill ``out_TN`` [T, C], contiguous, with chunk ``k`` of T rows.

        Raises as :meth:`ZArray.read_chunk`.
        """
        self._read([(row, k) for row in rows], out_TN)

    def read_chunks(self, chunks: range, out: Array) -> None:
        """Fill ``out`` [chunks * C], contiguous, with chunks of the first row; raises likewise."""
        self._read([(0, k) for k in chunks], out.reshape(len(chunks), -1))

    def _read(self, cells: Sequence[tuple[int, int]], out_TN: Array) -> None:
        """Fill a row of ``out_TN`` for each (row, chunk)."""
        array = self.array
        places_T2 = np.empty((len(cells), 2), np.int64)
        fds = []
        with ExitStack() as stack:
            for t, (row, k) in enumerate(cells):
                s, inner = divmod(k, array.shard_chunks)
                fds.append(self._descriptor(row, s, stack))
                path = array._shard_path(row, s)
                places_T2[t] = array._index(fds[t], path, row, s)[inner].view(np.int64)
            done = 0
            while done < len(cells):
                done += read_rows(array.codec, fds[done:], places_T2[done:], out_TN[done:])
                if done < len(cells):  # it says what is wrong, if anything is
                    array.read_chunk(*cells[done], out_TN[done])
                    done += 1

    def _descriptor(self, row: int, s: int, stack: ExitStack) -> int:
        """A descriptor of a shard file: kept open, or until the stack is left."""
        path = self.array._shard_path(row, s)
        with self._lock:
            fd = self._open.get((row, s))
            if fd is None and len(self._open) < KEPT_OPEN:
                with _refusals(path):
                    fd = self._open[row, s] = os.open(path, os.O_RDONLY)
        return stack.enter_context(_reading(path)) if fd is None else fd


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    """What the system refuses about a shard file becomes one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{path}: missing from the store") from None
    except OSError as error:
        if isinstance(error, TrajkitError):
            raise
        raise StorageError(f"{path}: {error.strerror or error}") from error


@contextmanager
def _reading(path: str) -> Iterator[int]:
    """A descriptor of a shard file to read from; what the system refuses becomes one line."""
    with _refusals(path):
        fd = os.open(path, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)


WRITE_BACK_BYTES = 1 << 22
"""so much written to a file is sent on to the disk"""


@dataclass(slots=True)
class WriteBack:
    """A file being written: lets the disk begin before the end, so that fsync finds little left."""

    fd: int
    start: int = 0
    stop: int = 0
    n_bytes: int = 0

    def wrote(self, offset: int, n_bytes: int) -> None:
        """Count a write; begin to write back once there is enough."""
        self.start = min(self.start, offset) if self.n_bytes else offset
        self.stop = max(self.stop, offset + n_bytes)
        self.n_bytes += n_bytes
        if self.n_bytes >= WRITE_BACK_BYTES and hasattr(os, "posix_fadvise"):
            # Linux begins to write dirty pages back when told that they are not needed
            os.posix_fadvise(self.fd, self.start, self.stop - self.start, os.POSIX_FADV_DONTNEED)
            self.n_bytes = 0


class RowWriter:
    """Writes one row's shard files from chunks that are appended in order.

    Files are written beside their place and renamed when they are complete and on disk. Leaving the
    ``with`` block by an error removes what was not finished.
    """

    def __init__(self, array: ZArray, row: int = 0) -> None:
        self.array = array
        self.row = row
        self.n_bytes = 0
        self._next_chunk = 0
        self._file: BinaryIO | None = None
        self._path = Path()
        self._index: Array = np.empty((0, 2), np.uint64)
        self._offset = 0
        self._write_back = WriteBack(-1)
        self._hash = xxhash.xxh3_128()

    def __enter__(self) -> "RowWriter":
        with disk_errors(self.array.path):
            self.array.row_path(self.row).mkdir(parents=True, exist_ok=True)
        return self

    @property
    def digest(self) -> str:
        """xxh3-128, in hex, of all bytes written: :meth:`ZArray.row_digest` of a finished row."""
        return self._hash.hexdigest()

    def append(self, coded: bytes) -> None:
        """Write the next chunk's coded bytes."""
        s, inner = divmod(self._next_chunk, self.array.shard_chunks)
        with disk_errors(self.array.path):
            if self._file is None:
                self._path = self.array.row_path(self.row) / str(s)
                self._file = self._path.with_name(self._path.name + ".part").open("wb")
                self._index = np.full((self.array.shard_chunks, 2), _MISSING, "<u8")
                self._offset = 0
                self._write_back = WriteBack(self._file.fileno())
            self._file.write(coded)
            self._hash.update(coded)
            self._write_back.wrote(self._offset, len(coded))
        self._index[inner] = self._offset, len(coded)
        self._offset += len(coded)
        self._next_chunk += 1
        if self._next_chunk == self.array.n_chunks or inner + 1 == self.array.shard_chunks:
            self._finish_shard()

    def _finish_shard(self) -> None:
        assert self._file is not None
        with disk_errors(self.array.path):
            index = with_checksum(self._index.tobytes())
            self._file.write(index)
            self._hash.update(index)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.n_bytes += self._file.tell()
            self._file.close()
            Path(self._file.name).replace(self._path)
        self._file = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses the flush as well; the file goes anyway
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
        elif kind is None:
            with disk_errors(self.array.path):
                sync_directory(self.array.row_path(self.row))
        if kind is None and self._next_chunk != self.array.n_chunks:
            raise AssertionError(f"{self._next_chunk} of {self.array.n_chunks} chunks were written")
