"""Delta streams: exported and ingested again bit for bit; what cannot be is refused."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_series import any_bits, contents, drift, pack, same_bits, small_series, write_checkpoint
from test_cli import run

import trajkit
from trajkit.errors import (
    AlreadyExists,
    FormatError,
    InvalidInput,
    Mismatch,
    OverBudget,
    TrajkitError,
)
from trajkit.reports.verify import verify
from trajkit.store.export import export_deltas

BF16 = np.dtype(ml_dtypes.bfloat16)


def check_same(a: Path, b: Path) -> None:
    one, two = trajkit.open(a), trajkit.open(b)
    assert one.steps.tolist() == two.steps.tolist()
    for step in one.steps.tolist():
        for name in one.store.tensors:
            assert same_bits(one.read(name, step), two.read(name, step)), (name, step)
    assert verify(b).bad == ()


@given(
    seed=st.integers(0, 1 << 30),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    share=st.sampled_from([0.0, 0.01, 0.2, 0.9]),
    anchor_every=st.integers(1, 5),
    split=st.integers(0, 7),
)
@settings(max_examples=15, deadline=None)
def test_a_store_comes_back_from_its_stream(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    steps: list[int],
    share: float,
    anchor_every: int,
    split: int,
) -> None:
    """Any bits, NaNs of every payload too; steps without a change; any split into two ingests."""
    root, rng = tmp_path_factory.mktemp("stream"), np.random.default_rng(seed)
    first = {
        "a": any_bits(rng, "bfloat16", (50, 7)),
        "b": any_bits(rng, "float32", (13,)),
        "c": any_bits(rng, "bfloat16", ()),
        "none": any_bits(rng, "bfloat16", (0, 3)),
    }
    at = np.cumsum(steps).tolist()
    for step, state in zip(at, drift(rng, first, len(at), share), strict=True):
        write_checkpoint(root / "ckpts" / f"checkpoint-{step}", state)
    trajkit.ingest(root / "ckpts", root / "s")
    result = export_deltas(root / "s", root / "stream", anchor_every=anchor_every)
    assert result.steps == len(at)
    files = sorted((root / "stream").rglob("*.safetensors"), key=lambda p: p.name)
    assert len(files) == len(at)
    later = files[max(split, 1) :]
    (root / "later").mkdir()
    for path in later:  # they come while it is ingested
        path.rename(root / "later" / path.name)
    trajkit.ingest(root / "stream", root / "again")
    for path in later:
        (root / "later" / path.name).rename(path)
    trajkit.ingest(root / "stream", root / "again")
    check_same(root / "s", root / "again")


def test_it_is_read_as_its_documentation_says(tmp_path: Path) -> None:
    """The receiver of the documentation, in numpy, over the exported files."""
    from safetensors import safe_open

    small_series(tmp_path / "ckpts", 7)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s")
    done = run(
        "export", "--deltas", "--store", "s", "-o", "out", "--anchor-every", "3", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    traj = trajkit.open(tmp_path / "s")
    state: dict[str, np.ndarray] = {}
    kinds = []
    for path in sorted((tmp_path / "out").rglob("*.safetensors"), key=lambda p: p.name):
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata()
            kinds.append(path.parent.name)
            assert int(meta["model_version"]) == int(path.stem.removeprefix("step_"))
            assert meta["sparse"] == str(path.parent.name == "deltas")
            if meta["sparse"] == "False":
                state = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
            else:
                for name in json.loads(meta["changed_params"]):
                    indices = file.get_tensor(f"{name}.indices")
                    assert indices.dtype == np.int32
                    flat = state[name].reshape(-1)
                    flat[indices.astype(np.int64)] = file.get_tensor(f"{name}.values")
        for name, array in state.items():
            assert same_bits(traj.read(name, int(meta["model_version"])), array)
    assert kinds == ["anchors", "deltas", "deltas"] * 2 + ["anchors"]


def write_stream(
    folder: Path, deltas: Mapping[int, Mapping[str, np.ndarray]], anchor: int = 1
) -> Path:
    """An anchor of two tensors, and deltas as given."""
    for name in ("anchors", "deltas"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    whole = {"w": np.arange(8).astype(BF16), "v": np.zeros(3, BF16)}
    (folder / "anchors" / f"step_{anchor:06d}.safetensors").write_bytes(pack(whole))
    for step, tensors in deltas.items():
        (folder / "deltas" / f"step_{step:06d}.safetensors").write_bytes(pack(tensors))
    return folder


def delta(
    *indices: int, dtype: type = np.int32, values: int | None = None
) -> dict[str, np.ndarray]:
    n = len(indices) if values is None else values
    return {"w.indices": np.array(indices, dtype), "w.values": np.ones(n, BF16)}


def test_a_trainers_stream_is_ingested_and_goes_on(tmp_path: Path) -> None:
    """Unsorted indices, values that did not change, nothing changed; config beside the anchors."""
    stream = write_stream(tmp_path / "r", {2: delta(5, 0), 3: delta(1)})
    (stream / "anchors" / "config.json").write_text('{"a": 1}')
    trajkit.ingest(stream, tmp_path / "s")
    empty = {"__empty_delta__": np.zeros(1, np.int32)}
    write_stream(
        stream, {4: empty, 5: {"v.indices": np.array([2], np.int32), "v.values": np.ones(1, BF16)}}
    )
    result = trajkit.ingest(stream, tmp_path / "s")
    assert (result.ingested, result.skipped) == (2, 3)
    traj = trajkit.open(tmp_path / "s")
    assert traj.steps.tolist() == [1, 2, 3, 4, 5]
    assert traj.read("w", 5).tolist() == [1, 1, 2, 3, 4, 1, 6, 7]
    assert traj.read("v", 4).tolist() == [0, 0, 0]
    assert traj.read("v", 5).tolist() == [0, 0, 1]
    trajkit.restore(tmp_path / "s", 5, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({2: delta(8)}, FormatError, "an index outside of the tensor's 8 elements"),
        ({2: delta(-1)}, FormatError, "outside"),
        ({2: delta(3, 3)}, FormatError, "given twice"),
        ({2: delta(3, 1, 3)}, FormatError, "given twice"),
        ({2: delta(1, dtype=np.int64)}, FormatError, "expected int32"),
        ({2: delta(1, 2, values=1)}, FormatError, "as many values"),
        ({2: {"w.indices": np.zeros(1, np.int32)}}, FormatError, "expected pairs"),
        ({2: {"w.values": np.zeros(1, BF16)}}, FormatError, "expected pairs"),
        ({2: {"w": np.zeros(8, BF16)}}, FormatError, "expected pairs"),
        (
            {2: {"w.indices": np.zeros(1, np.int32), "w.values": np.zeros(1, np.float32)}},
            Mismatch,
            "values are float32, the anchors' bfloat16",
        ),
        (
            {2: {"x.indices": np.zeros(1, np.int32), "x.values": np.zeros(1, BF16)}},
            Mismatch,
            "the anchors have no tensor",
        ),
        ({2: delta(1), 4: delta(1)}, FormatError, "a delta of step 3, and before it lies step 2"),
    ],
)
def test_what_cannot_be_is_one_line_and_steps_before_it_stay(
    tmp_path: Path, bad: dict[int, dict[str, np.ndarray]], error: type[TrajkitError], words: str
) -> None:
    stream = write_stream(tmp_path / "r", bad)
    with pytest.raises(error, match=words) as caught:
        trajkit.ingest(stream, tmp_path / "s")
    assert "\n" not in str(caught.value)
    if (tmp_path / "s").exists():
        assert trajkit.open(tmp_path / "s").steps.tolist() == [1]
        assert verify(tmp_path / "s").bad == ()
    shutil.rmtree(stream / "deltas")
    write_stream(stream, {2: delta(1), 3: delta(2)})
    trajkit.ingest(stream, tmp_path / "s")
    assert trajkit.open(tmp_path / "s").steps.tolist() == [1, 2, 3]


def test_a_stream_without_its_beginning_is_refused(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "r", {2: delta(1), 3: delta(2)}, anchor=1)
    trajkit.ingest(stream, tmp_path / "s")
    (stream / "anchors" / "step_000001.safetensors").unlink()
    with pytest.raises(FormatError, match="before it lies nothing"):
        trajkit.ingest(stream, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (stream / "deltas" / "step_000002.safetensors").write_bytes(b"cut")
    with pytest.raises(FormatError):
        trajkit.ingest(stream, tmp_path / "new")
    for name in ("anchors", "deltas"):
        shutil.rmtree(stream / name)
        (stream / name).mkdir()
    with pytest.raises(InvalidInput, match="no step_N"):
        trajkit.ingest(stream, tmp_path / "new")


def test_options_that_do_not_go_with_it_and_budgets(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "r", {2: delta(1)})
    with pytest.raises(InvalidInput, match="goes without watch"):
        trajkit.ingest(stream, tmp_path / "s", dtype="float32")
    with pytest.raises(OverBudget, match="held whole"):
        trajkit.ingest(stream, tmp_path / "s", memory="100")
    assert not (tmp_path / "s").exists()
    trajkit.ingest(stream, tmp_path / "s")
    with pytest.raises(OverBudget):
        export_deltas(tmp_path / "s", tmp_path / "out", memory="10")
    with pytest.raises(InvalidInput, match="1 or more"):
        export_deltas(tmp_path / "s", tmp_path / "out", anchor_every=0)
    (tmp_path / "out").mkdir()
    with pytest.raises(AlreadyExists):
        export_deltas(tmp_path / "s", tmp_path / "out")
    (tmp_path / "out").rmdir()
    frame = tmp_path / "s" / "frames" / "bfloat16" / "c" / "1" / "0"
    frame.write_bytes(frame.read_bytes()[:-3])
    with pytest.raises(FormatError):
        export_deltas(tmp_path / "s", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "s"]
