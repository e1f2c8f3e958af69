"""Other readers: zarr-python and tensorstore read a store with no trajkit, whatever its codec."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from store_series import any_bits, drift, same_bits, small_series, write_checkpoint

import trajkit
from trajkit.arrays import DTYPES
from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.reader import FlatReader
from trajkit.disk import canonical_json
from trajkit.integrations.zarr import Sparse
from trajkit.store.commit import chunk_digest
from trajkit.store.store import Store
from trajkit.store.writer import StoreWriter

KEYFRAMES = 3
STEPS = [10, 20, 30, 40, 50]


Made = tuple[Path, list[dict[str, np.ndarray]]]
Read = Callable[[Path], np.ndarray]

PAIRS = [
    *((codec, reader) for codec in ("zstd", "lz4", "none") for reader in ("zarr", "tensorstore")),
    ("pcodec", "zarr"),  # tensorstore has no pcodec
    ("sparse", "zarr"),
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """By codec: a fitted store of every dtype in chunks of 40 elements, and what went in."""
    made = {}
    zarr.registry.register_codec("trajkit.sparse", Sparse)  # an installation's entry point does it
    for codec in dict(PAIRS):
        root = tmp_path_factory.mktemp(codec)
        rng = np.random.default_rng(0)
        first = {d: any_bits(rng, d, (10, 11)) for d in DTYPES}
        first["scalar"] = any_bits(rng, "bfloat16", ())
        first["none"] = any_bits(rng, "bfloat16", (0, 4))
        series = drift(rng, first, len(STEPS))
        with StoreWriter(root / "s.zarr", 1) as writer:
            for step, state in zip(STEPS, series, strict=True):
                checkpoint = open_checkpoint(write_checkpoint(root / str(step), state), step)
                if step == STEPS[0]:
                    writer.create(checkpoint, codec, KEYFRAMES, None, chunk=40)
                with FlatReader(checkpoint, writer.layout().vectors) as reader:
                    writer.append(reader, None)
        trajkit.fit(trajkit.open(root / "s.zarr"))
        made[codec] = root / "s.zarr", series
    return made


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, stores: dict[str, Made]) -> Iterator[tuple[Made, Read]]:
    """A store, and a function from an array's folder to its content by a reader not ours."""
    codec, reader = request.param
    with warnings.catch_warnings():
        if codec == "pcodec":  # zarr-python says so of every numcodecs.* codec
            warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3")
        yield stores[codec], {"zarr": read_by_zarr, "tensorstore": read_by_tensorstore}[reader]


def read_by_zarr(path: Path) -> np.ndarray:
    array = zarr.open_array(path, mode="r")
    return np.asarray(array[...])


def read_by_tensorstore(path: Path) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return np.asarray(tensorstore.open(spec).result().read().result())


def decode(codes_TN: np.ndarray) -> np.ndarray:
    """The bits [T, N] of coded frames, written from the format's page and nothing else."""
    bits = codes_TN.copy()
    for t in range(len(codes_TN)):
        if t % KEYFRAMES:
            delta = (codes_TN[t] >> 1) ^ (np.zeros_like(codes_TN[t]) - (codes_TN[t] & 1))
            bits[t] = bits[t - 1] + delta
    return bits


def test_every_step_of_every_dtype(pair: tuple[Made, Read]) -> None:
    """Table, frames and steps are enough: every tensor of every step comes out bit for bit."""
    (path, series), read = pair
    np.testing.assert_array_equal(read(path / "steps"), STEPS)
    table = json.loads((path / "tensors" / "zarr.json").read_bytes())["attributes"]["tensors"]
    assert {name for name, *_ in table} == set(series[0])
    bits = {d: decode(read(path / "frames" / d)) for d in {row[1] for row in table}}
    for t, state in enumerate(series):
        for name, dtype, shape, offset in table:
            flat = bits[dtype][t, offset : offset + int(np.prod(shape))]
            assert same_bits(flat.view(DTYPES[dtype].scalar).reshape(shape), state[name])


def test_digests_are_of_the_decoded_bits(pair: tuple[Made, Read]) -> None:
    (path, _), read = pair
    for dtype, vector in Store.open(path).vectors.items():
        bits = decode(read(path / "frames" / dtype))
        digests = read(path / "digests" / dtype)
        assert digests.shape == (len(STEPS), vector.n_chunks)
        for t, k in np.ndindex(digests.shape):
            assert chunk_digest(bits[t, slice(*vector.chunk_span(k))]) == digests[t, k]


def test_fits(pair: tuple[Made, Read]) -> None:
    """Every array below ``fits/`` opens, and the values are the ones trajkit gives."""
    (path, _), read = pair
    traj = trajkit.open(path)
    fit = traj.fits["default"]
    arrays = [
        p.parent
        for p in (path / "fits").rglob("zarr.json")
        if json.loads(p.read_bytes())["node_type"] == "array"
    ]
    contents = {p.relative_to(fit.folder).as_posix(): read(p) for p in arrays}
    assert {"bfloat16/slope", "float32/rsq", "float64/mean", "bfloat16/last"} <= contents.keys()
    for name in ("bfloat16", "float32", "float16"):
        info = traj.tensors[name]
        for quantity in ("slope", "mean", "rsq", "flags"):
            theirs = contents[f"{name}/{quantity}"][info.offset : info.stop].reshape(info.shape)
            assert same_bits(theirs, getattr(fit, quantity)(name))


def test_the_group_lists_its_arrays(tmp_path: Path) -> None:
    """``zarr.open_group`` walks the store, fits included, and shows the commit as attributes."""
    small_series(tmp_path / "ckpts", 3)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    trajkit.fit(trajkit.open(tmp_path / "s.zarr"))
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert {"steps", "tensors", "frames", "digests", "assets", "fits"} == set(group.keys())
    assert set(group["frames"].keys()) == {"bfloat16", "float32"}  # type: ignore[union-attr]
    assert group.attrs["steps"] == [10, 20, 30]
    assert zarr.open_array(tmp_path / "s.zarr/frames/float32", mode="r").shape == (3, 17)


def test_a_store_in_mid_append_reads_as_its_commit(tmp_path: Path) -> None:
    """A frame beyond the commit is on disk: who goes by ``steps`` in the attributes sees none."""
    small_series(tmp_path / "ckpts", 3)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    array = store.frames["float32"]
    array.row_path(3).mkdir()
    (array.row_path(3) / "0").write_bytes((array.row_path(2) / "0").read_bytes())
    ahead = array.metadata()
    ahead["shape"][0] = 4
    (array.path / "zarr.json").write_bytes(canonical_json(ahead))
    committed = len(zarr.open_group(store.path, mode="r").attrs["steps"])  # type: ignore[arg-type]
    assert committed == 3
    for reader in (read_by_zarr, read_by_tensorstore):
        frames = reader(array.path)[:committed]
        codes = np.empty(array.chunk, np.uint32)
        for t in range(committed):
            array.read_chunk(t, 0, codes)
            np.testing.assert_array_equal(frames[t], codes[: array.size])


def test_other_readers_refuse_a_damaged_chunk(tmp_path: Path) -> None:
    """The checksums are Zarr's own: a flipped bit stops them as it stops trajkit."""
    small_series(tmp_path / "ckpts", 1)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    path = tmp_path / "s.zarr" / "frames" / "bfloat16"
    shard = path / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    for at in (20, len(content) - 10):  # a chunk, and the shard's index
        content[at] ^= 1
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=r"(?i)checksum|crc32c"):
            read_by_zarr(path)
        with pytest.raises(ValueError, match="Digest mismatch"):
            read_by_tensorstore(path)
        content[at] ^= 1
