"""Keys by cost: which frames are keys, what a step costs to read, and stores of a fixed K."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from store_series import same_bits, write_checkpoint

import trajkit
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, InvalidInput
from trajkit.reports.info import describe_store
from trajkit.store import commit as commits
from trajkit.store.commit import KEY_BYTES, Commit, Frame, add_frame
from trajkit.store.store import Store

CONTROL = ROOT / "data" / "adder-grpo-random.zarr"
EMPTY = Commit("sparse", None, 100, {"bfloat16": 5}, 64 * "0", None, ())


def grow(commit: Commit, stored_bytes: int, changed: int = 1) -> Commit:
    t = len(commit.frames)
    is_key = commit.is_key(t)
    frame = Frame(t, f"{t:032x}", f"{t:016x}", stored_bytes, is_key, None if is_key else changed)
    return add_frame(commit, frame)


@given(
    key=st.integers(1, 1000),
    deltas=st.lists(st.integers(0, 1200), min_size=1, max_size=60),
)
def test_reading_a_step_takes_nine_keys_bytes_at_most(key: int, deltas: list[int]) -> None:
    commit = EMPTY
    for n in deltas:
        commit = grow(commit, key if commit.is_key(len(commit.frames)) else n)
    assert commit.frames[0].is_key
    spent = 0
    for frame in commit.frames[1:]:
        if frame.is_key:
            assert spent >= KEY_BYTES * key
            spent = 0
        else:
            assert spent < KEY_BYTES * key  # so with this delta: a key's eight, and one frame more
            spent += frame.stored_bytes


def test_deltas_that_cost_nothing_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MOST_DELTAS", 7)
    commit = EMPTY
    for _ in range(30):
        commit = grow(commit, 100 if commit.is_key(len(commit.frames)) else 0)
    assert [t for t, f in enumerate(commit.frames) if f.is_key] == [0, 8, 16, 24]


def test_a_commit_with_keys_comes_back_and_any_changed_byte_is_refused() -> None:
    commit = grow(grow(grow(EMPTY, 10), 85), 10)
    assert [f.is_key for f in commit.frames] == [True, False, True]
    content = canonical_json(commit.document())
    assert Commit.parse(Path("zarr.json"), content) == commit
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(trajkit.errors.TrajkitError):
            Commit.parse(Path("zarr.json"), bytes(damaged))


@pytest.mark.parametrize(
    "flags", [(False, False, True), (True, False), (None, None, None)], ids=str
)
def test_a_first_frame_that_is_no_key_is_refused(flags: tuple[bool, ...]) -> None:
    frames = tuple(replace(Frame(t, 32 * "d", 16 * "a", 1), is_key=f) for t, f in enumerate(flags))
    frames = frames[:2] if flags[0] else frames
    document = replace(EMPTY, frames=frames).document()
    if flags[0]:
        document["attributes"]["keys"] = [0, 2]  # beyond the store
        document["attributes"].pop("sha256")
        text = canonical_json(document["attributes"])
        document["attributes"]["sha256"] = commits.sha256_of(text)
    with pytest.raises(FormatError, match=r"keys: expected ascending frames"):
        Commit.parse(Path("zarr.json"), canonical_json(document))


def quiet_series(folder: Path, n: int, density: float, size: int = 5000) -> list[np.ndarray]:
    """bf16 checkpoints of which so many elements change by some ulps; their bits."""
    rng = np.random.default_rng(3)
    bits = (rng.standard_normal(size).astype(np.float32) * 0.02).view(np.uint32) >> 16
    bits = bits.astype(np.uint16)
    found = []
    for t in range(n):
        if t:
            bits = bits + (rng.random(size) < density) * rng.integers(1, 9, size, np.uint16)
        found.append(bits)
        values = bits.view(trajkit.arrays.DTYPES["bfloat16"].scalar)
        write_checkpoint(folder / f"checkpoint-{10 * t}", {"w": values})
    return found


@pytest.mark.parametrize("codec", ["sparse", "zstd"])
def test_a_store_of_keys_by_cost(tmp_path: Path, codec: str) -> None:
    """Every way that leads over frames: read, trajectory, restore, verify, fit, cut and append."""
    bits = quiet_series(tmp_path / "c", 40, 0.4)
    result = trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr", codec=codec)
    store = Store.open(tmp_path / "s.zarr")
    changed = [np.mean(a != b) for a, b in pairwise(bits)]
    deltas = [changed[t - 1] for t in range(1, 40) if t not in store.keys]
    assert len(store.keys) > 1  # a delta costs a seventh of a key
    assert result.density == pytest.approx(np.mean(deltas))
    info = describe_store(store)
    assert (info.density, info.keyframes, info.keys) == (result.density, None, len(store.keys))
    traj = trajkit.open(tmp_path / "s.zarr")
    for t, expected in enumerate(bits):
        assert same_bits(traj.read("w", 10 * t).view(np.uint16), expected)
    np.testing.assert_array_equal(
        traj.trajectory("w", (17,)), [b.view(traj.read("w", 0).dtype)[17] for b in bits]
    )
    assert trajkit.verify(tmp_path / "s.zarr").ok
    for first in (0, 30):
        fit = trajkit.fit(traj, from_step=first, name=f"f{first}")
        values = np.stack(bits)[first // 10 :].view(traj.read("w", 0).dtype).astype(np.float64)
        steps = np.arange(first, 400, 10.0)
        slope = ((steps - steps.mean()) @ values) / ((steps - steps.mean()) ** 2).sum()
        np.testing.assert_allclose(fit.slope("w"), slope, rtol=1e-4, atol=1e-12)
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr", replace_from=200)
    again = Store.open(tmp_path / "s.zarr")
    assert again.commit.frames == store.commit.frames
    with pytest.raises(InvalidInput, match="was made without --keyframes"):
        trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr", keyframes=3)


def test_a_store_of_a_fixed_k_goes_on_as_it_is(tmp_path: Path) -> None:
    """The control store in data/, made before keys had a cost: opened, appended to, read."""
    path = shutil.copytree(CONTROL, tmp_path / "s.zarr")
    before = Store.open(path)
    attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
    assert (attributes["version"], attributes["keyframes"]) == (1, 64)
    last = int(before.steps[-1])
    n = 64 - len(before.steps) + 2  # over the next key
    trajkit.restore(path, int(before.steps[3]), tmp_path / "out")
    for i in range(n):
        trajkit.ingest(f"{last + 1 + i}={tmp_path / 'out'}", path)
    after = Store.open(path)
    assert after.keys == [0, 64]
    attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
    assert (attributes["version"], attributes["keyframes"]) == (1, 64)
    assert "keys" not in attributes
    assert after.commit.density is None
    name = next(iter(after.tensors))
    traj = trajkit.open(path)
    expected = traj.read(name, int(before.steps[3]))
    for i in (0, n - 2, n - 1):
        assert same_bits(traj.read(name, last + 1 + i), expected)
    assert trajkit.verify(path).ok
