"""Convert: the same checkpoints in another codec, other keys, gone on with after an interrupt."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from store_series import same_bits
from test_events import make_store

import trajkit
from trajkit.errors import AlreadyExists, FormatError, InvalidInput
from trajkit.store.store import Store
from trajkit.store.writer import StoreWriter


def test_there_and_back(tmp_path: Path) -> None:
    """Keys by cost, then every third frame, then by cost: every bit, digest, file and fit."""
    series = make_store(tmp_path, "sparse", None, True)
    first = tmp_path / "s.zarr"
    fit = trajkit.fit(first)
    there = trajkit.convert(first, "zstd", keyframes=3)
    assert (there.store, there.steps, there.converted) == (str(tmp_path / "s-zstd.zarr"), 14, 14)
    back = trajkit.convert(there.store, "sparse", tmp_path / "back.zarr")
    for path, codec, keys in ((there.store, "zstd", [0, 3, 6, 9, 12]), (back.store, "sparse", [0])):
        store = Store.open(path)
        assert (store.commit.codec, store.keys) == (codec, keys)
        assert trajkit.verify(path).ok
        traj = trajkit.open(path)
        for t, bits in enumerate(series):
            assert same_bits(traj.read("b.weight", 10 * t).view(np.uint16).ravel(), bits[3000:])
        assert same_bits(traj.fits["default"].slope("a.weight"), fit.slope("a.weight"))
    before, after = Store.open(first).commit, Store.open(back.store).commit
    assert before == after  # stored bytes, changes and digests too
    trajkit.restore(back.store, 30, tmp_path / "out")
    source = (tmp_path / "3" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == source


def test_an_interrupted_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path, "zstd", 4, False)
    commit_frame = StoreWriter.commit_frame

    def interrupted(self: StoreWriter, frame: object) -> None:
        if len(self.layout().steps) == 5:
            raise KeyboardInterrupt
        commit_frame(self, frame)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreWriter, "commit_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trajkit.convert(tmp_path / "s.zarr", "sparse")
    assert len(Store.open(tmp_path / "s-sparse.zarr").steps) == 5
    monkeypatch.undo()
    assert trajkit.convert(tmp_path / "s.zarr", "sparse").converted == 9
    assert trajkit.convert(tmp_path / "s.zarr", "sparse").converted == 0
    digests = [
        [f.digest for f in Store.open(tmp_path / name).commit.frames]
        for name in ("s.zarr", "s-sparse.zarr")
    ]
    assert digests[0] == digests[1]


def test_what_is_in_the_way_or_damaged_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, "sparse", None, False)
    path = tmp_path / "s.zarr"
    with pytest.raises(AlreadyExists, match="of other checkpoints, codec or keys"):
        trajkit.convert(path, "zstd", path)
    with pytest.raises(InvalidInput, match="unknown codec"):
        trajkit.convert(path, "zip")
    with pytest.raises(InvalidInput, match="keyframes must be"):
        trajkit.convert(path, "zstd", keyframes=0)
    shard = Store.open(path).frames["bfloat16"].row_path(6) / "0"
    other = Store.open(path).frames["bfloat16"].row_path(5) / "0"
    shutil.copy(other, shard)  # whole, with right checksums, of another step
    with pytest.raises(FormatError, match="do not match their digest"):
        trajkit.convert(path, "lz4", tmp_path / "new.zarr")


def test_the_control_store_becomes_smaller(tmp_path: Path) -> None:
    control = ROOT / "data" / "adder-grpo-random.zarr"
    result = trajkit.convert(control, "sparse", tmp_path / "s.zarr")
    assert result.stored_bytes < result.stored_bytes_before / 1.15
