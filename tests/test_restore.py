"""Restore: the files of an ingested checkpoint, byte for byte."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import SEEN
from store_series import any_bits, contents, drift, small_series, write_checkpoint

import trajkit
from trajkit.checkpoints.record import SourceRecord, source_path
from trajkit.disk import canonical_json
from trajkit.errors import AlreadyExists, FormatError, NotFound, OverBudget
from trajkit.store.store import Store


def test_the_real_run_comes_back_byte_for_byte(adder_store: Path, tmp_path: Path) -> None:
    traj = trajkit.open(adder_store)
    for step in (0, int(traj.steps[7]), int(traj.steps[-1])):
        result = trajkit.restore(traj, step, tmp_path / str(step))
        assert contents(tmp_path / str(step)) == contents(SEEN / f"checkpoint-{step}")
        assert (result.converted, result.dtypes) == (False, ("bfloat16",))


def test_shards_index_metadata_and_order_come_back(tmp_path: Path) -> None:
    """Another number of shards at every step, mixed dtypes, scalars, and empty tensors."""
    rng = np.random.default_rng(0)
    first = {
        "b": any_bits(rng, "bfloat16", (40, 3)),
        "a": any_bits(rng, "float32", ()),
        "none": any_bits(rng, "bfloat16", (0, 4)),
        "f8": any_bits(rng, "float8_e4m3fn", (33,)),
        "mask": any_bits(rng, "bool", (9,)),
        "ids": any_bits(rng, "int64", (5,)),
    }
    for i, state in enumerate(drift(rng, first, 5)):
        order = dict(reversed(state.items())) if i % 2 else state
        metadata = {"format": "pt", "note": f"é {i}"} if i else None
        folder = tmp_path / "ckpts" / f"checkpoint-{i}"
        write_checkpoint(folder, order, i + 1, metadata, config={"i": i}, tokenizer={"t": 1})
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    for i in range(5):
        trajkit.restore(traj, i, tmp_path / "out" / str(i))
        assert contents(tmp_path / "out" / str(i)) == contents(tmp_path / f"ckpts/checkpoint-{i}")


def test_wrapped_names_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = {"a": any_bits(rng, "bfloat16", (4,)), "b": any_bits(rng, "bfloat16", (4,))}
    for step, prefix in enumerate(["", "module.", "_orig_mod.", ""]):
        state = {prefix + name: array for name, array in plain.items()}
        write_checkpoint(tmp_path / "ckpts" / f"checkpoint-{step}", state)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    assert set(traj.tensors) == {"a", "b"}
    for step in range(4):
        trajkit.restore(traj, step, tmp_path / "out" / str(step))
        restored = contents(tmp_path / "out" / str(step))
        assert restored == contents(tmp_path / "ckpts" / f"checkpoint-{step}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_converted_step_is_written_in_the_stores_dtype(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    state = {"w": rng.standard_normal((6, 5)), "n": rng.integers(0, 9, 3)}
    write_checkpoint(tmp_path / "ckpts" / "checkpoint-1", state, metadata={"format": "pt"})
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", dtype=dtype)
    traj = trajkit.open(tmp_path / "s.zarr")
    result = trajkit.restore(traj, 1, tmp_path / "out")
    assert result.converted
    assert result.dtypes == (dtype, "int64")
    target = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[dtype]
    expected = {"w": state["w"].astype(target), "n": state["n"]}
    write_checkpoint(tmp_path / "expected", expected, metadata={"format": "pt"})
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_an_output_that_exists_is_replaced_by_force_only(tmp_path: Path) -> None:
    small_series(tmp_path / "ckpts", 2)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    out = tmp_path / "out"
    trajkit.restore(traj, 20, out)
    with pytest.raises(AlreadyExists, match="replace it with --force"):
        trajkit.restore(traj, 10, out)
    assert contents(out) == contents(tmp_path / "ckpts" / "checkpoint-20")
    trajkit.restore(traj, 10, out, force=True)
    assert contents(out) == contents(tmp_path / "ckpts" / "checkpoint-10")
    with pytest.raises(NotFound, match="step 15 is not in the store; it holds 2 steps from 10 to"):
        trajkit.restore(traj, 15, tmp_path / "no")
    with pytest.raises(OverBudget, match="restore needs at least"):
        trajkit.restore(traj, 10, tmp_path / "no", memory=100)
    assert not (tmp_path / "no").exists()


def test_damage_leaves_nothing_behind(tmp_path: Path) -> None:
    small_series(tmp_path / "ckpts", 2)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    path = tmp_path / "s.zarr" / "frames" / "bfloat16" / "c" / "1" / "0"
    damaged = bytearray(path.read_bytes())
    damaged[10] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match=r"c/1/0: chunk 0: checksum .*; step 20, tensors model"):
        trajkit.restore(trajkit.open(tmp_path / "s.zarr"), 20, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpts", "s.zarr"]


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/tmp/x.safetensors", "//tmp/x", "a//x", "a/../../x", "a\n", ""]
)
@pytest.mark.parametrize("where", ["files", "index", "assets", "kept"])
def test_a_store_cannot_write_outside_the_output(tmp_path: Path, name: str, where: str) -> None:
    """A record made by hand, every digest right, whose names leave the folder."""
    small_series(tmp_path / "ckpts", 1, config={})
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    record = SourceRecord.read(store.path, store.commit.frames[0].source)
    hostile = {
        "files": replace(record, files=((name, record.files[0][1]),)),
        "index": replace(record, index=(name, "{}")),
        "assets": replace(record, assets={name: record.assets["config.json"]}),
        "kept": replace(record, assets={"config.json": (name, 64 * "0")}),
    }[where]
    source, content = hostile.pack()
    source_path(store.path, source).write_bytes(content)
    commit = replace(store.commit, frames=(replace(store.commit.frames[0], source=source),))
    (store.path / "zarr.json").write_bytes(canonical_json(commit.document()))
    with pytest.raises(FormatError, match="refused: the file name"):
        trajkit.restore(trajkit.open(store.path), 10, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpts", "s.zarr"]


def test_the_source_record_keeps_the_headers(tmp_path: Path) -> None:
    """What dtypes the files had can be read off the store, whatever they were converted to."""
    rng = np.random.default_rng(0)
    write_checkpoint(tmp_path / "ckpts" / "checkpoint-1", {"w": rng.standard_normal(4)})
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", dtype="bfloat16")
    store = Store.open(tmp_path / "s.zarr")
    raw = source_path(store.path, store.commit.frames[0].source).read_bytes()
    header = json.loads(json.loads(gzip.decompress(raw))["files"][0][1])
    assert header["w"]["dtype"] == "F64"
