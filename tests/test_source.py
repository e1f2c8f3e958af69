"""Byte sources: the local file, and that whatever keeps the contract is read like one."""

import ast
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trajkit.errors import FormatError, StorageError
from trajkit.remote.source import LocalFile, read_bytes
from trajkit.store.array import ZArray
from trajkit.store.chunks import ChunkReader
from trajkit.store.codecs import codec_by_name
from trajkit.store.rows import write_row

ROOT = Path(__file__).resolve().parent.parent


class Remote:
    """What an object store is to a reader: no descriptor, ranges alone."""

    fd = None
    opened = 0

    def __init__(self, content: bytes) -> None:
        self.content = content

    @classmethod
    def open(cls, path: str) -> "Remote":
        cls.opened += 1
        return cls(Path(path).read_bytes())

    @property
    def size(self) -> int:
        return len(self.content)

    def mark(self) -> tuple[int, int]:
        return len(self.content), 0

    def read_into(self, offset: int, buffer: memoryview) -> int:
        found = self.content[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self.content = b""


@pytest.mark.parametrize("codec", ["zstd", "lz4", "none", "pcodec"])
def test_an_array_without_descriptors_reads_the_same(tmp_path: Path, codec: str) -> None:
    values = np.random.default_rng(0).integers(0, 9, (3, 3000), np.uint16)
    array = ZArray(tmp_path, values.dtype, 3000, 512, codec_by_name(codec), rows=3)
    for row in range(3):
        write_row(array, values[row], row)
    remote = replace(array, open_source=Remote.open)
    before = Remote.opened
    with ChunkReader(array) as here, ChunkReader(remote) as there:
        for k in range(array.n_chunks):
            a, b = np.empty((2, 3, 512), np.uint16)
            here.read_rows(range(3), k, a)
            there.read_rows(range(3), k, b)
            np.testing.assert_array_equal(a, b)
    assert Remote.opened > before
    for row in range(3):
        np.testing.assert_array_equal(remote.read_row(row), values[row])
        assert remote.row_digest(row) == array.row_digest(row)
        remote.check_shard(row, 0)


def test_damage_is_found_whatever_the_source(tmp_path: Path) -> None:
    array = ZArray(tmp_path, np.dtype("uint16"), 3000, 512, codec_by_name("zstd"))
    write_row(array, np.arange(3000, dtype=np.uint16))
    (path,) = array.shard_paths(0)
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    for opener in (LocalFile.open, Remote.open):
        with pytest.raises(FormatError, match="chunk 0"):
            replace(array, open_source=opener).read_row()


def test_a_local_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    with LocalFile.open(path) as source:
        assert (source.size, source.name) == (100, str(path))
        assert read_bytes(source, 90, 20) == bytes(range(90, 100))
        assert read_bytes(source, 200, 20) == b""
        before = source.mark()
        with path.open("ab") as file:
            file.write(b"more")
        assert source.mark() != before
        assert source.size == 104
        fd = source.fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(StorageError, match="gone: cannot be read"):
        LocalFile(fd, "gone").read_into(0, memoryview(bytearray(1)))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="expected a file"):
        LocalFile.open(tmp_path / "pipe")


def test_checkpoints_and_arrays_read_through_sources_alone() -> None:
    """One place reads from a descriptor; the compiled reader is handed the source's own."""
    reading = {"pread", "preadv", "readv", "mmap"}
    found = set()
    for path in sorted((ROOT / "trajkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in reading
                and isinstance(node.value, ast.Name)
            ):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"trajkit/remote/source.py", "trajkit/store/native.py"}  # it proves its own
