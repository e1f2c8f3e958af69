"""Arrays on disk: what is written is plain Zarr v3, and what is not as written is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given
from hypothesis import strategies as st

from trajkit.disk import canonical_json, disk_errors, replace_file
from trajkit.errors import FormatError, StorageError
from trajkit.store import array as zarrays
from trajkit.store.array import ZArray
from trajkit.store.codecs import CODECS, codec_by_name
from trajkit.store.rows import RowWriter, write_row


def make(path: Path, size: int, chunk: int, rows: int | None, codec: str = "zstd") -> ZArray:
    return ZArray(path, np.dtype("uint16"), size, chunk, codec_by_name(codec), rows, ("t", "n"))


def values(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, size, np.uint16)


def open_with_tensorstore(path: Path) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return np.asarray(tensorstore.open(spec, open=True).result().read().result())


@given(
    size=st.integers(0, 200),
    chunk=st.integers(1, 60),
    shard_chunks=st.integers(1, 5),
    rows=st.integers(1, 3),
    codec=st.sampled_from([c for c in CODECS if c != "pcodec"]),
)
def test_three_readers_see_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    chunk: int,
    shard_chunks: int,
    rows: int,
    codec: str,
) -> None:
    path = tmp_path_factory.mktemp("array") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarrays, "SHARD_CHUNKS", shard_chunks)
        array = make(path, size, chunk, rows, codec)
        array.write_metadata()
        expected = np.stack([values(size, t) for t in range(rows)])
        for t in range(rows):
            write_row(array, expected[t], t)
        np.testing.assert_array_equal([array.read_row(t) for t in range(rows)], expected)
        for t in range(rows):
            for s in range(-(-array.n_chunks // shard_chunks)):
                array.check_shard(t, s)
        np.testing.assert_array_equal(np.asarray(zarr.open_array(path, mode="r")[:]), expected)
        if codec != "sparse":  # zarr-python knows it by its entry point
            np.testing.assert_array_equal(open_with_tensorstore(path), expected)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_pcodec_is_read_by_zarr_python(tmp_path: Path, dtype: str) -> None:
    array = ZArray(tmp_path / "a", np.dtype(dtype), 100, 30, codec_by_name("pcodec"), 1, ("t", "n"))
    array.write_metadata()
    write_row(array, values(100).astype(dtype), 0)
    np.testing.assert_array_equal(zarr.open_array(array.path, mode="r")[0], values(100))


def test_the_metadata_is_what_it_has_always_been(tmp_path: Path) -> None:
    """Golden: stores written by earlier versions must go on being verified as intact."""
    array = make(tmp_path / "a", 1000, 300, 5)
    assert array.metadata() == {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [5, 1000],
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1200]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1, 300],
                    "codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {
                            "name": "blosc",
                            "configuration": {
                                "typesize": 2,
                                "cname": "zstd",
                                "clevel": 1,
                                "shuffle": "bitshuffle",
                                "blocksize": 524288,
                            },
                        },
                        {"name": "crc32c"},
                    ],
                    "index_codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "crc32c"},
                    ],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {},
        "dimension_names": ["t", "n"],
    }


def test_an_uncompressed_shard_is_these_bytes(tmp_path: Path) -> None:
    """Golden: two chunks of two elements, each with its crc32c, then the index with its own."""
    array = make(tmp_path / "a", 3, 2, None, "none")
    write_row(array, np.array([1, 2, 3], np.uint16))
    assert (tmp_path / "a" / "c" / "0").read_bytes().hex() == (
        "01000200" + "91d167b2" + "03000000" + "fec2452a"
        "0000000000000000" + "0800000000000000" + "0800000000000000" + "0800000000000000"
        "12a46c81"
    )


def test_a_row_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    array = make(tmp_path / "a", 100, 10, 1)
    with pytest.raises(AssertionError, match="1 of 10 chunks"), RowWriter(array, 0) as writer:
        writer.append(array.codec.encode(values(10)))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(FormatError, match="missing from the store"):
        array.read_row(0)
    with pytest.raises(FormatError, match="missing from the store"):
        array.check_shard(0, 0)


def test_a_shard_is_its_chunks_and_nothing_else(tmp_path: Path) -> None:
    array = make(tmp_path / "a", 100, 10, 1)
    write_row(array, values(100))
    path = tmp_path / "a" / "c" / "0" / "0"
    whole = path.read_bytes()
    for damaged in (whole + b"\0", b"\0" + whole, whole[:-1], whole[1:], b"", whole[:100]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="c/0/0"):
            array.check_shard(0, 0)
        with pytest.raises(FormatError, match="c/0/0"):
            make(tmp_path / "a", 100, 10, 1).read_row(0)
    path.write_bytes(whole)
    array.check_shard(0, 0)


def test_the_indexes_kept_stay_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarrays, "_CACHED_INDEX_BYTES", 200)
    array = make(tmp_path / "a", 10, 5, 40)
    for t in range(40):
        write_row(array, values(10, t), t)
    for t in [*range(40), 3, 39, 0]:
        np.testing.assert_array_equal(array.read_row(t), values(10, t))
        assert len(array._indexes) <= 5


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zarr.json"
    replace_file(path, b"before")

    def refuse(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"zarr.json: No space left on device; what was commit"):
        replace_file(path, b"after")
    assert path.read_bytes() == b"before"


def test_disk_errors_pass_other_errors_on(tmp_path: Path) -> None:
    with pytest.raises(KeyError), disk_errors(tmp_path):
        raise KeyError("x")
    with pytest.raises(StorageError, match="this one") as caught, disk_errors(tmp_path):
        raise StorageError("this one")
    assert str(caught.value) == "this one"


def test_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": ["é"]}) == '{\n "a": [\n  "é"\n ],\n "b": 1\n}\n'.encode()
    assert canonical_json(json.loads(canonical_json({"x": [1, 2]}))) == canonical_json(
        {"x": [1, 2]}
    )
