"""The sparse codec: every chunk comes back by three readers, and no crafted one leads out of bounds."""

import struct
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from trajkit.errors import FormatError
from trajkit.kernels.cpu.sparse import room, write_changes
from trajkit.kernels.sparse import DENSEST, ESCAPE, HEAD_BYTES, MAX_LOW, read_changes
from trajkit.store import native
from trajkit.store.array import ZArray
from trajkit.store.codecs import SparseCodec, with_checksum, without_checksum
from trajkit.store.rows import RowWriter

WIDTHS = ("uint8", "uint16", "uint32", "uint64")
GUARD = 64
"""elements on either side of what a reader may write to"""


def draw_codes(seed: int, dtype: str, n: int, density: float, bits: int) -> np.ndarray:
    """Codes of ``n`` elements of which so many changed, by values of up to so many bits."""
    rng = np.random.default_rng(seed)
    bits = min(bits, 8 * np.dtype(dtype).itemsize)
    values = rng.integers(1, 2**bits, n, np.uint64, endpoint=False) if bits > 1 else np.ones(n)
    large = rng.random(n) < 0.02  # a sign that turned, among small steps
    values = np.where(large, np.iinfo(dtype).max, values.astype(dtype)).astype(dtype)
    return np.where(rng.random(n) < density, values, 0).astype(dtype)


def decode_guarded(coded: bytes, n: int, dtype: str) -> np.ndarray:
    """The chunk; fails where anything beside it was written, or anything at all of a refused one."""
    memory = np.full(n + 2 * GUARD, 171, dtype)
    out = memory[GUARD : GUARD + n]
    try:
        SparseCodec().decode(coded, out)
    except FormatError:
        if coded[0] == 1:
            assert (out == 171).all(), "a chunk was written and then refused"
        raise
    finally:
        assert (memory[:GUARD] == 171).all()
        assert (memory[GUARD + n :] == 171).all()
    return out


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(WIDTHS),
    n=st.sampled_from([1, 2, 3, 7, 63, 64, 65, 1000, 4097]),
    density=st.sampled_from([0.0, 0.003, 0.01, 0.1, 0.3, 0.5, 1.0]),
    bits=st.sampled_from([1, 2, 7, 16, 40, 64]),
)
def test_every_chunk_comes_back(seed: int, dtype: str, n: int, density: float, bits: int) -> None:
    codes = draw_codes(seed, dtype, n, density, bits)
    coded = SparseCodec().encode(codes)
    np.testing.assert_array_equal(decode_guarded(coded, n, dtype), codes)
    body = without_checksum(coded)
    if body[0] == 1:
        places, values = read_changes(np.array(body))
        np.testing.assert_array_equal(places, np.flatnonzero(codes))
        np.testing.assert_array_equal(values, codes[codes != 0])
    assert len(coded) <= codes.nbytes + 21 + 16 + 1  # at worst blosc's bytes, or a head


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("place", [0, 1, 254, 255, 256, 2**18 - 1])
def test_one_change_alone(dtype: str, place: int) -> None:
    codes = np.zeros(1 << 18, dtype)
    for value in (1, 2, ESCAPE, np.iinfo(dtype).max):
        codes[place] = value
        coded = SparseCodec().encode(codes)
        assert len(coded) < 40 + 2 * codes.itemsize
        np.testing.assert_array_equal(decode_guarded(coded, len(codes), dtype), codes)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_too_many_changes_go_the_dense_way(dtype: str) -> None:
    few, many = np.zeros(999, dtype), np.zeros(999, dtype)
    few[: 999 // DENSEST] = 1
    many[: 999 // DENSEST + 1] = 1
    assert SparseCodec().encode(few)[0] == 1
    assert SparseCodec().encode(many)[0] == 0
    np.testing.assert_array_equal(decode_guarded(SparseCodec().encode(many), 999, dtype), many)


def test_what_is_written_never_leaves_its_room() -> None:
    """The worst for each dtype: as many changes as there may be, of values that all escape."""
    for dtype in map(np.dtype, WIDTHS):
        for n in (3, 6, 300, 3000):
            codes = np.zeros(n, dtype)
            codes[n - n // DENSEST :] = np.random.default_rng(n).integers(
                1, np.iinfo(dtype).max, n // DENSEST, dtype, endpoint=True
            )
            most, n_bytes = room(n, dtype.itemsize)
            out = np.full(n_bytes + 100, 99, np.uint8)
            places, values = np.empty(most + 64, np.int32), np.empty(most + 64, np.uint64)
            assert write_changes(codes, most, places, values, out[:n_bytes]) > 0
            assert (out[n_bytes:] == 99).all()


def test_at_random_density_it_comes_near_the_bound() -> None:
    """1 % change, nine in ten by one ulp: order-0 entropy of places and values."""
    rng = np.random.default_rng(7)
    n, p = 1 << 18, 0.01
    codes = np.zeros(n, np.uint16)
    changed = rng.random(n) < p
    codes[changed] = np.where(rng.random(changed.sum()) < 0.9, rng.integers(1, 3, changed.sum()), 3)
    values = -(0.9 * np.log2(0.45) + 0.1 * np.log2(0.1))
    bound = 16 / (-p * np.log2(p) - (1 - p) * np.log2(1 - p) + p * values)
    assert codes.nbytes / len(SparseCodec().encode(codes)) > 0.9 * bound


def sparse_body(codes: np.ndarray) -> bytearray:
    body = bytearray(SparseCodec().encode_body(codes))
    assert body[0] == 1
    return body


def crafted(body: bytes) -> bytes:
    """With a checksum that is right."""
    return with_checksum(bytes(body))


def head(body: bytearray, **fields: int) -> bytes:
    """The chunk with other numbers in its head."""
    at = {"n": 4, "size": 8, "gap_bytes": 12, "value_bytes": 16}
    changed = bytearray(body)
    for name, value in fields.items():
        if name in at:
            struct.pack_into("<I", changed, at[name], value)
        else:
            changed[{"kind": 0, "k": 1, "j": 2, "itemsize": 3}[name]] = value
    return bytes(changed)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_crafted_chunks_are_refused(dtype: str, tmp_path: Path) -> None:
    """Counts that lie, gaps beyond the block, sizes that do not add up: by either reader."""
    n = 512
    codes = draw_codes(1, dtype, n, 0.1, 5)
    body = sparse_body(codes)
    changes = int(np.count_nonzero(codes))
    gap_bytes, value_bytes = struct.unpack_from("<II", body, 12)
    lies = [
        *(head(body, n=m) for m in (changes - 1, changes + 1, 0, n, n + 1, 2**31, 2**32 - 1)),
        *(head(body, size=m) for m in (n - 1, n + 1, 0, 2**32 - 1)),
        *(head(body, gap_bytes=m) for m in (gap_bytes - 1, gap_bytes + 1, 0, 2**32 - 1)),
        *(head(body, value_bytes=m) for m in (value_bytes - 1, value_bytes + 1, 0, 2**32 - 1)),
        *(head(body, k=m) for m in (body[1] + 1, MAX_LOW, MAX_LOW + 1, 63, 64, 255)),
        *(head(body, j=m) for m in (body[2] + 1, MAX_LOW, MAX_LOW + 1, 64, 255)),
        *(head(body, itemsize=m) for m in (0, 3, 16, 2 * codes.itemsize)),
        *(head(body, kind=m) for m in (0, 2, 255)),
        bytes(body[:HEAD_BYTES]),
        bytes(body[:-1]),
        bytes(body) + bytes(1),
        bytes(body) + bytes(codes.itemsize),
        beyond(n, codes.itemsize),
        too_large(n, codes.itemsize),
        many_zeros(n, codes.itemsize),
    ]
    for lie in lies:
        with pytest.raises(FormatError):
            decode_guarded(crafted(lie), n, dtype)
        assert read_natively(tmp_path, crafted(lie), n, dtype) == 0


def beyond(n: int, itemsize: int) -> bytes:
    """One change at the first place that is not in the chunk."""
    unary = np.zeros(n + 8, np.uint8)
    unary[n] = 1
    gaps = np.packbits(unary, bitorder="little").tobytes()
    return struct.pack("<4B4I", 1, 0, 0, itemsize, 1, n, len(gaps), 1) + gaps + b"\1"


def too_large(n: int, itemsize: int) -> bytes:
    """One change whose code has a bit more than its dtype, or two escapes and one exception."""
    if itemsize <= 2:  # quotient 15, low bits all ones: 2^(j + 4)
        j = 8 * itemsize - 4 + 1
        low = ((1 << j) - 1).to_bytes(-(-j // 8), "little")
        return struct.pack("<4B4I", 1, 0, j, itemsize, 1, n, 1, 2) + b"\1" + low + b"\0\x80"
    unary = bytes([0, 0, 1, 0, 2])[:5]  # a one after sixteen zeros, twice
    return (
        struct.pack("<4B4I", 1, 0, 0, itemsize, 2, n, 1, 5) + b"\3" + unary + bytes([7] * itemsize)
    )


def many_zeros(n: int, itemsize: int) -> bytes:
    """A value's quotient beyond the one that means an exception."""
    unary = b"\0\0\2"  # seventeen zeros and a one
    return struct.pack("<4B4I", 1, 0, 0, itemsize, 1, n, 1, 3) + b"\1" + unary


def read_natively(folder: Path, coded: bytes, n: int, dtype: str) -> int:
    """Rows that the compiled reader takes of an array whose one chunk has these bytes."""
    array = ZArray(folder / "a", np.dtype(dtype), n, n, SparseCodec(), 1)
    with RowWriter(array) as writer:
        writer.append(coded)
    memory = np.full(n + 2 * GUARD, 171, dtype)
    with (folder / "a" / "c" / "0" / "0").open("rb") as file:
        places = np.array([[0, len(coded)]], np.int64)
        out_TN = memory[GUARD : GUARD + n].reshape(1, -1)
        done = native.read_rows(array.codec, [file.fileno()], places, out_TN)
    assert (memory[:GUARD] == 171).all()
    assert (memory[GUARD + n :] == 171).all()
    return done


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(WIDTHS),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_bytes_changed_at_random_never_lead_out_of_bounds(
    seed: int, dtype: str, flips: list[tuple[int, int]]
) -> None:
    codes = draw_codes(seed, dtype, 700, 0.08, 6)
    body = sparse_body(codes)
    for at, change in flips:
        body[1 + at % (len(body) - 1)] ^= change
    with suppress(FormatError):
        decode_guarded(crafted(bytes(body)), 700, dtype)


def test_the_compiled_reader_reads_what_python_does(tmp_path: Path) -> None:
    for dtype in WIDTHS:
        for density in (0.0, 0.05, 1.0):
            codes = draw_codes(3, dtype, 777, density, 9)
            assert read_natively(tmp_path, SparseCodec().encode(codes), 777, dtype) == 1


ZARR = """
import sys, numpy as np, zarr
np.save(sys.argv[2], zarr.open_array(sys.argv[1], mode="r")[...])
"""


def test_zarr_finds_the_codec_by_the_entry_point(tmp_path: Path) -> None:
    """In a process of its own, from the entry points that pyproject names, and nothing imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "trajkit_entry-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trajkit-entry\nVersion: 0\n")
    lines = [f"{name} = {place}" for name, place in project["entry-points"]["zarr.codecs"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[zarr.codecs]", *lines, ""]))
    codes = np.stack([draw_codes(t, "uint16", 700, 0.05 if t else 1, 4) for t in range(3)])
    names = ("checkpoint", "element")
    array = ZArray(tmp_path / "a", np.dtype("uint16"), 700, 256, SparseCodec(), 3, names)
    for t, row in enumerate(codes):
        padded = np.zeros(768, np.uint16)
        padded[:700] = row
        with RowWriter(array, t) as writer:
            for k in range(3):
                writer.append(array.codec.encode(padded[256 * k : 256 * (k + 1)]))
    array.write_metadata()
    command = [sys.executable, "-c", ZARR, str(array.path), str(tmp_path / "out.npy")]
    path = f"{tmp_path / 'site'}:{ROOT}"
    subprocess.run(command, check=True, env={"PYTHONPATH": path, "PATH": ""}, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), codes)


def test_zarr_writes_what_trajkit_reads(tmp_path: Path) -> None:
    from trajkit.integrations.zarr import Sparse

    zarr.registry.register_codec("trajkit.sparse", Sparse)
    codes = draw_codes(5, "uint32", 600, 0.1, 4)
    array = ZArray(tmp_path / "a", np.dtype("uint32"), 600, 200, SparseCodec())
    array.write_metadata()
    zarr.open_array(array.path, mode="r+")[...] = codes
    np.testing.assert_array_equal(array.read_row(), codes)
    with pytest.raises(ValueError, match="itemsize"):
        Sparse.from_dict({"name": "trajkit.sparse", "configuration": {"itemsize": 3}})
