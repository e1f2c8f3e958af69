"""Chunks read by compiled code: the same as through Python, whatever lies on the disk."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import blosc

from trajkit.errors import FormatError, StorageError
from trajkit.kernels import reference
from trajkit.kernels.cpu import shuffle
from trajkit.kernels.cpu.read import RowReader
from trajkit.kernels.cpu.shuffle import can_unshuffle
from trajkit.store import native
from trajkit.store.array import ZArray
from trajkit.store.chunks import ChunkReader
from trajkit.store.codecs import CODECS, codec_by_name, with_checksum
from trajkit.store.rows import RowWriter, write_row

WIDTHS = ("uint8", "uint16", "uint32", "uint64")
COMPILED = ("zstd", "lz4", "sparse", "none")


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir())) if opened.is_dir() else None
    yield
    assert before is None or len(list(opened.iterdir())) <= before


def frames(dtype: str, n: int, rows: int, kind: str, seed: int = 0) -> np.ndarray:
    """Rows as stores have them, and worse."""
    rng = np.random.default_rng(seed)
    width = 8 * np.dtype(dtype).itemsize
    spread = {"zeros": 0, "small": 1, "quarter": width // 4, "half": width // 2}.get(kind, width)
    values = rng.integers(0, 2**spread, (rows, n), "uint64").astype(dtype)
    if kind == "rare":  # a high plane here and there
        values[rng.random((rows, n)) < 0.999] = 0
    return values


def write(path: Path, values: np.ndarray, chunk: int, codec: str, rows: bool = True) -> ZArray:
    n_rows = len(values) if rows else None
    array = ZArray(path, values.dtype, values.shape[1], chunk, codec_by_name(codec), n_rows)
    for t, row in enumerate(values):
        write_row(array, row, t)
    return array


@given(
    codec=st.sampled_from(sorted(CODECS)),
    dtype=st.sampled_from(WIDTHS),
    chunk=st.sampled_from([1, 7, 255, 256, 300, 512, 4096, 70_000, 1 << 18]),
    kind=st.sampled_from(["zeros", "small", "quarter", "half", "any", "rare"]),
    seed=st.integers(0, 9),
)
def test_it_reads_what_the_array_reads(
    tmp_path_factory: pytest.TempPathFactory,
    codec: str,
    dtype: str,
    chunk: int,
    kind: str,
    seed: int,
) -> None:
    values = frames(dtype, 2 * chunk + chunk // 2, 3, kind, seed)
    array = write(tmp_path_factory.mktemp("array"), values, chunk, codec)
    with ChunkReader(array) as reader:
        for k in range(array.n_chunks):
            one, all_TN = np.empty(chunk, dtype), np.full((3, chunk), 170, dtype)
            reader.read_rows(range(3), k, all_TN)
            for t in range(3):
                array.read_chunk(t, k, one)
                np.testing.assert_array_equal(all_TN[t], one)
        together = np.empty(array.n_chunks * chunk, dtype)
        reader.read_chunks(range(array.n_chunks), together)
        np.testing.assert_array_equal(together[: values.shape[1]], values[0])


@pytest.mark.parametrize("codec", COMPILED)
@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("kind", ["small", "half", "any"])
def test_compiled_code_reads_every_row_of_these(
    tmp_path: Path, codec: str, dtype: str, kind: str
) -> None:
    """So that nothing falls back on Python unseen: bit planes, stored blocks and plain bytes."""
    values = frames(dtype, 1 << 16, 5, kind)
    array = write(tmp_path / "a", values, 1 << 16, codec)
    fds, places = [], []
    for t in range(5):
        fds.append(os.open(tmp_path / "a" / "c" / str(t) / "0", os.O_RDONLY))
        index = np.frombuffer(os.pread(fds[t], 20, os.fstat(fds[t]).st_size - 20)[:16], "<u8")
        places.append(index.astype(np.int64))
    out = np.full_like(values, 170)
    assert native.read_rows(array.codec, fds, np.stack(places), out) == 5
    np.testing.assert_array_equal(out, values)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_without_the_libraries_functions_it_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setattr(native, "find_reader", lambda: None)
    values = frames("uint16", 1000, 2, "small")
    with ChunkReader(write(tmp_path, values, 256, codec)) as reader:
        out = np.empty((2, 256), np.uint16)
        reader.read_rows(range(2), 3, out)
    np.testing.assert_array_equal(out[:, :232], values[:, 768:])


@pytest.mark.parametrize("codec", COMPILED)
def test_every_flipped_bit_of_a_chunk_is_refused(tmp_path: Path, codec: str) -> None:
    values = frames("uint16", 512, 1, "small")
    write(tmp_path / "a", values, 512, codec)
    path = tmp_path / "a" / "c" / "0" / "0"
    whole = path.read_bytes()
    out = np.empty((1, 512), np.uint16)
    for bit in range(0, 8 * len(whole), 5 if codec == "none" else 1):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        array = ZArray(tmp_path / "a", values.dtype, 512, 512, codec_by_name(codec), 1)
        with pytest.raises(FormatError, match="c/0/0"), ChunkReader(array) as reader:
            reader.read_rows(range(1), 0, out)


@pytest.mark.parametrize("codec", COMPILED)
def test_valid_checksums_over_other_content_are_refused(tmp_path: Path, codec: str) -> None:
    """What only a program could have written: headers that lie, chunks of another size."""
    coder = codec_by_name(codec)
    chunk = frames("uint16", 4096, 1, "small")[0]
    whole = coder.encode(chunk)[:-4]
    bad = [whole[:15], whole[:-1], whole + b"\0", coder.encode(chunk[:-256])[:-4], b""]
    for at in (4, 8, 12) if codec != "none" else ():
        for value in (0, 1, 2**31 - 1, 2**32 - 1):
            if at == 8 and value == 0:
                continue  # c-blosc itself divides by it; it refuses all the same
            bad.append(whole[:at] + value.to_bytes(4, "little") + whole[at + 4 :])
    for body in bad:
        array = ZArray(tmp_path / "a", np.dtype("uint16"), 4096, 4096, coder, 1)
        with RowWriter(array) as writer:
            writer.append(with_checksum(body))
        out = np.empty((1, 4096), np.uint16)
        with ChunkReader(array) as reader:
            if body[8:12] == (2**31 - 1).to_bytes(4, "little"):
                continue  # a block longer than the chunk is one block to blosc
            with pytest.raises(FormatError, match="c/0/0"):
                reader.read_rows(range(1), 0, out)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_chunk_that_is_not_there_is_refused(tmp_path: Path, codec: str) -> None:
    """A shard whose index, under a valid checksum, marks a chunk as missing."""
    array = write(tmp_path / "a", frames("uint16", 256, 1, "small"), 256, codec)
    path = tmp_path / "a" / "c" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-20] + with_checksum(b"\xff" * 16))
    array = ZArray(array.path, array.dtype, 256, 256, array.codec, 1)
    with pytest.raises(FormatError, match="c/0/0"), ChunkReader(array) as reader:
        reader.read_rows(range(1), 0, np.empty((1, 256), np.uint16))


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    array = write(tmp_path, frames("uint16", 600, 3, "small"), 256, "lz4")
    (tmp_path / "c" / "1" / "0").unlink()
    out = np.empty((3, 256), np.uint16)
    with (
        pytest.raises(FormatError, match=r"c/1/0: missing from the store"),
        ChunkReader(array) as reader,
    ):
        reader.read_rows(range(3), 0, out)


def test_a_refusing_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = write(tmp_path, frames("uint16", 600, 1, "small"), 256, "lz4")

    def refuse(path: str, flags: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(StorageError, match=r"c/0/0: Too many open files"),
        ChunkReader(array) as reader,
    ):
        reader.read_rows(range(1), 0, np.empty((1, 256), np.uint16))


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_more_rows_than_files_may_stay_open(tmp_path: Path, at_once: int) -> None:
    values = frames("uint16", 700, 9, "small")
    array = write(tmp_path, values, 256, "lz4")
    with ChunkReader(array, kept_open=3, at_once=at_once) as reader:
        for k in (0, 1, 0):
            out = np.empty((9, 256), np.uint16)
            reader.read_rows(range(9), k, out)
            np.testing.assert_array_equal(out, values[:, 256 * k : 256 * (k + 1)])
        assert len(reader._open) == 3


@given(
    dtype=st.sampled_from(WIDTHS),
    block=st.sampled_from([256, 512, 2048, 4096]),
    kind=st.sampled_from(["zeros", "small", "quarter", "half", "any", "rare"]),
    seed=st.integers(0, 99),
)
def test_bit_planes_are_those_of_blosc(dtype: str, block: int, kind: str, seed: int) -> None:
    codes = frames(dtype, 1 << 14, 1, kind, seed)[0]
    codes[: 1 << 13] = 0  # compressible whatever the rest is, so that blosc shuffles it
    coded = bytearray(
        blosc.compress(
            codes, b"lz4", 1, blosc.BITSHUFFLE, block * codes.itemsize, typesize=codes.itemsize
        )
    )
    block = int.from_bytes(coded[8:12], "little") // codes.itemsize  # it may choose a longer one
    assert coded[2] & 6 == 4
    coded[2] ^= 4
    planes = np.empty_like(codes)
    blosc.decompress(bytes(coded), planes)
    assert can_unshuffle(block, len(codes))
    for unshuffle in (reference.unshuffle, shuffle.unshuffle):
        out = np.full_like(codes, 170)
        unshuffle(planes, block, out)
        np.testing.assert_array_equal(out, codes)


def test_what_the_kernel_cannot_unshuffle_it_leaves_to_blosc() -> None:
    assert [b for b in (0, -256, 100, 500, 512) if can_unshuffle(b, 1000)] == []
    assert can_unshuffle(512, 1024)


def test_rows_that_do_not_fit_are_refused() -> None:
    reader = RowReader(0, 0, 0)
    with pytest.raises(ValueError, match="rows must lie end to end"):
        reader.read(
            np.zeros(2, np.int64), np.zeros((2, 2)), None, np.zeros((2, 9), np.uint8)[:, :8]
        )


@pytest.mark.parametrize("wrong", ["pread", "crc32c", "blosc_decompress"])
def test_a_function_that_does_something_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """A library may rename or change what it shows; then every chunk is read through Python."""
    functions = native.look_up_functions()
    assert functions is not None
    assert native.prove(functions) == (True, True, True)
    changed = functions._replace(**{wrong: ctypes.CDLL(None).abs})
    right = {"pread": (False, True, True), "crc32c": (True, False, True)}
    assert native.prove(changed) == right.get(wrong, (True, True, False))
    monkeypatch.setattr(native, "look_up_functions", lambda: changed)
    native.find_reader.cache_clear()
    try:
        assert native.find_reader() is None
        values = frames("uint16", 1000, 2, "small")
        with ChunkReader(write(tmp_path, values, 256, "zstd")) as reader:
            out = np.empty((2, 256), np.uint16)
            reader.read_rows(range(2), 1, out)
        np.testing.assert_array_equal(out, values[:, 256:512])
    finally:
        native.find_reader.cache_clear()
