"""One row of an array, written chunk after chunk into shard files."""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import xxhash

from trajkit.arrays import Array
from trajkit.disk import WriteBack, create_file, disk_errors, refuse_links, sync_directory
from trajkit.store.array import MISSING, ZArray
from trajkit.store.codecs import with_checksum


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
        self._path = self._part = Path()
        self._index: Array = np.empty((0, 2), np.uint64)
        self._offset = 0
        self._write_back = WriteBack(-1)
        self._hash = xxhash.xxh3_128()

    def __enter__(self) -> "RowWriter":
        above = self.array.path.parent
        root = above if self.array.rows is None else above.parent
        refuse_links(root, self.array.row_path(self.row))
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
                self._part = self._path.with_name(self._path.name + ".part")
                self._file = os.fdopen(create_file(self._part), "wb")
                self._index = np.full((self.array.shard_chunks, 2), MISSING, "<u8")
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
            self._part.replace(self._path)
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
            self._part.unlink(missing_ok=True)
        elif kind is None:
            with disk_errors(self.array.path):
                sync_directory(self.array.row_path(self.row))
        if kind is None and self._next_chunk != self.array.n_chunks:
            raise AssertionError(f"{self._next_chunk} of {self.array.n_chunks} chunks were written")


def write_row(array: ZArray, values: Array, row: int = 0) -> None:
    """A whole row at once, for arrays that are small by design."""
    with RowWriter(array, row) as writer:
        for k in range(array.n_chunks):
            start, stop = array.span(k)
            chunk = np.zeros(array.chunk, array.dtype)
            chunk[: stop - start] = values[start:stop]
            writer.append(array.codec.encode(chunk))
