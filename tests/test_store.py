"""The store: any series goes in and comes out bit for bit, for trajkit and for any Zarr reader."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given
from hypothesis import strategies as st
from store_series import any_bits, drift, same_bits, small_series, write_checkpoint

import trajkit
from trajkit.arrays import DTYPES
from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.layout import lay_out
from trajkit.checkpoints.reader import FlatReader
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, NotFound, Unsupported
from trajkit.reports.info import describe_store
from trajkit.reports.verify import verify
from trajkit.store.commit import Commit, Frame, table_document
from trajkit.store.store import Store
from trajkit.store.writer import StoreWriter
from trajkit.trajectory import Trajectory

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 7, 30]), max_size=3).map(tuple)
MODELS = st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), min_size=1, max_size=6)


@given(
    model=MODELS,
    codec=st.sampled_from(["zstd", "lz4", "pcodec", "none"]),
    keyframes=st.one_of(st.none(), st.integers(1, 4)),
    chunk=st.sampled_from([1, 3, 16, 1000]),
    checkpoints=st.integers(1, 6),
    calls=st.lists(st.integers(0, 6), max_size=3),
    with_previous=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_whatever_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory,
    model: list[tuple[str, tuple[int, ...]]],
    codec: str,
    keyframes: int | None,
    chunk: int,
    checkpoints: int,
    calls: list[int],
    with_previous: bool,
    seed: int,
) -> None:
    """Every dtype, shape, bit pattern, codec, K and C, in any split into calls."""
    root = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(seed)
    first = {f"t{i}": any_bits(rng, d, shape) for i, (d, shape) in enumerate(model)}
    series = drift(rng, first, checkpoints, 0.5)
    for name in first:  # one jump to unrelated bits
        series[-1][name] = any_bits(rng, first[name].dtype.name, first[name].shape)
    folders = [
        write_checkpoint(root / f"checkpoint-{7 * i}", state) for i, state in enumerate(series)
    ]
    path = root / "s.zarr"
    cuts = sorted({0, checkpoints, *(c for c in calls if c < checkpoints)})
    for begin, end in pairwise(cuts):
        previous = None
        with StoreWriter(path, 2) as writer:
            for i in range(begin, end):
                checkpoint = open_checkpoint(folders[i], 7 * i)
                if i == 0:
                    writer.create(checkpoint, codec, keyframes, None, chunk)
                reader = FlatReader(checkpoint, writer.layout().vectors)
                writer.append(reader, previous if with_previous else None)
                previous = reader
    traj = trajkit.open(path)
    assert traj.steps.tolist() == [7 * i for i in range(checkpoints)]
    for i, state in enumerate(series):
        for name, array in state.items():
            assert same_bits(traj.read(name, 7 * i), array)
    assert verify(path, against=root).bad == ()


def test_a_step_decodes_from_raw_tensorstore_reads(tmp_path: Path) -> None:
    folders = small_series(tmp_path, 6)
    trajkit.ingest(tmp_path, tmp_path / "s.zarr", keyframes=4)
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(tmp_path / "s.zarr/frames/bfloat16")},
    }
    frames = tensorstore.open(spec).result()
    name, _, shape, offset = json.loads((tmp_path / "s.zarr/tensors/zarr.json").read_bytes())[
        "attributes"
    ]["tensors"][0]
    t, keyframes = 5, 4

    # six lines of numpy
    codes = frames[t - t % keyframes : t + 1].read().result()
    bits = codes[0]
    for code in codes[1:]:
        bits = bits + ((code >> 1) ^ (0 - (code & 1)))
    tensor = bits[offset : offset + np.prod(shape)].reshape(shape)
    tensor = tensor.view(ml_dtypes.bfloat16)

    assert same_bits(tensor, trajkit.open(tmp_path / "s.zarr").read(name, 60))
    checkpoint = open_checkpoint(folders[5], 60)
    entry = checkpoint.tensors[name]
    raw = checkpoint.files[0].path.read_bytes()[entry.begin : entry.begin + entry.n_bytes]
    assert tensor.tobytes() == raw


def arrays_below(path: Path) -> list[Path]:
    """Every folder that is a Zarr array."""
    documents = {p.parent: json.loads(p.read_bytes()) for p in path.rglob("zarr.json")}
    return [p for p, document in documents.items() if document["node_type"] == "array"]


def test_every_array_opens_in_other_readers(adder_store: Path) -> None:
    """Frames, digests, steps and fits, with no warning from zarr."""
    arrays = arrays_below(adder_store)
    names = {p.relative_to(adder_store).as_posix() for p in arrays}
    assert {"steps", "frames/bfloat16", "digests/bfloat16"} < names
    folder = trajkit.open(adder_store).fits["default"].folder.relative_to(adder_store)
    assert f"{folder.as_posix()}/bfloat16/slope" in names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(adder_store, mode="r")
        np.testing.assert_array_equal(group["steps"][:], trajkit.open(adder_store).steps)
        for path in arrays:
            name = path.relative_to(adder_store).as_posix()
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
            theirs = tensorstore.open(spec).result().read().result()
            array = group[name]
            assert isinstance(array, zarr.Array)
            np.testing.assert_array_equal(np.asarray(array[...]), theirs)
        store = Store.open(adder_store)
        assert group.attrs["steps"] == store.steps.tolist()
        assert dict(group.attrs["sizes"]) == dict(store.commit.sizes)


def test_the_real_run_is_at_least_five_times_smaller(adder_store: Path) -> None:
    store = Store.open(adder_store)
    assert store.raw_bytes / store.stored_bytes >= 5


def commit(**changes: object) -> Commit:
    fields = {
        "codec": "zstd",
        "keyframes": 64,
        "chunk": 100,
        "sizes": {"bfloat16": 5},
        "tensors_sha256": 64 * "0",
        "cast": None,
        "frames": (Frame(0, 32 * "d", 16 * "a", 10), Frame(5, 32 * "e", 16 * "a", 10)),
    }
    return Commit(**(fields | changes))  # type: ignore[arg-type]


def test_a_commit_comes_back_and_any_changed_byte_is_refused() -> None:
    content = canonical_json(commit().document())
    assert Commit.parse(Path("zarr.json"), content) == commit()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, Unsupported)):
            Commit.parse(Path("zarr.json"), bytes(damaged))


@pytest.mark.parametrize(
    "changes",
    [
        {"keyframes": 0},
        {"chunk": 0},
        {"codec": "zip"},
        {"frames": (Frame(5, 32 * "d", 16 * "a", 1), Frame(5, 32 * "e", 16 * "a", 1))},
        {"frames": (Frame(5, 32 * "d", 16 * "a", 1), Frame(0, 32 * "e", 16 * "a", 1))},
    ],
)
def test_what_no_store_can_be_is_refused(changes: dict[str, object]) -> None:
    content = canonical_json(commit(**changes).document())
    with pytest.raises(FormatError, match=r"zarr.json: attributes.\w+: expected"):
        Commit.parse(Path("zarr.json"), content)


def test_opening_what_is_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no store at .*: make one with 'trajkit ingest CKPTS'"):
        Store.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotFound, match="no store"):
        Store.open(tmp_path / "file")
    (tmp_path / "folder" / "zarr.json").mkdir(parents=True)
    with pytest.raises(FormatError, match="expected a file, found a folder"):
        Store.open(tmp_path / "folder")
    zarr.open_group(tmp_path / "other", mode="w")
    with pytest.raises(FormatError, match=r"a Zarr group, but not a trajkit store"):
        Store.open(tmp_path / "other")
    later = commit().document()
    later["attributes"]["version"] = 3
    (tmp_path / "zarr.json").write_bytes(canonical_json(later))
    with pytest.raises(Unsupported, match="store format version 3; this trajkit reads versions 1"):
        Store.open(tmp_path)


def test_a_damaged_tensor_table_is_refused(tmp_path: Path) -> None:
    small_series(tmp_path, 1)
    trajkit.ingest(tmp_path, tmp_path / "s.zarr")
    table = tmp_path / "s.zarr" / "tensors" / "zarr.json"
    content = table.read_bytes()
    table.write_bytes(content.replace(b"norm", b"morn"))
    with pytest.raises(FormatError, match=r"tensors/zarr.json: damaged"):
        Store.open(tmp_path / "s.zarr")
    table.unlink()
    with pytest.raises(FormatError, match=r"tensors/zarr.json: missing"):
        Store.open(tmp_path / "s.zarr")


def test_two_thousand_steps_of_five_thousand_tensors_open(tmp_path: Path) -> None:
    vectors = lay_out((f"layers.{i}.w", "bfloat16", (4096, 4096)) for i in range(5000))
    table = canonical_json(table_document(vectors))
    (tmp_path / "tensors").mkdir()
    (tmp_path / "tensors" / "zarr.json").write_bytes(table)
    import hashlib

    frames = tuple(Frame(10 * t, f"{t:032x}", f"{t:016x}", 10**9 + t) for t in range(2000))
    document = commit(
        sizes={"bfloat16": vectors["bfloat16"].size},
        chunk=vectors["bfloat16"].chunk,
        tensors_sha256=hashlib.sha256(table).hexdigest(),
        frames=frames,
    ).document()
    (tmp_path / "zarr.json").write_bytes(canonical_json(document))
    traj = Trajectory.open(tmp_path)
    assert len(traj.steps) == 2000
    assert len(traj.tensors) == 5000


def test_info_says_what_is_there(adder_store: Path) -> None:
    info = describe_store(Store.open(adder_store))
    assert info.codec == "zstd"
    assert info.elements == {"bfloat16": sum(int(np.prod(t["shape"])) for t in info.tensors)}
    assert info.raw_bytes == len(info.steps) * 2 * info.elements["bfloat16"]
    assert info.fits == {"default": info.steps}
