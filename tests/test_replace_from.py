"""A resumed run that writes steps again: said, refused to be spliced, and replaced by one cut."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_series import any_bits, contents, drift, same_bits, small_series, write_checkpoint
from test_ingest import Notes

import trajkit
from trajkit.checkpoints.record import SourceRecord, source_path
from trajkit.disk import canonical_json
from trajkit.errors import InvalidInput, Mismatch, StorageError
from trajkit.reports.info import describe_store
from trajkit.reports.verify import verify
from trajkit.store import writer as writer_module
from trajkit.store.ingest import plan_ingest
from trajkit.store.store import Store

State = dict[str, np.ndarray]


def write_run(folder: Path, states: list[State], steps: list[int]) -> None:
    for step, state in zip(steps, states, strict=True):
        write_checkpoint(folder / f"checkpoint-{step}", state, config={"step": step})


@pytest.fixture
def runs(tmp_path: Path) -> tuple[list[State], list[State]]:
    """Steps 10 to 50 ingested; then the run was resumed at 20 and wrote 30 to 60 again."""
    rng = np.random.default_rng(0)
    first = {"a": any_bits(rng, "bfloat16", (60, 10)), "b": any_bits(rng, "float32", (7,))}
    old = drift(rng, first, 5)
    write_run(tmp_path / "ckpts", old, [10, 20, 30, 40, 50])
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", keyframes=2)
    new = old[:2] + drift(rng, old[1], 5)[1:]
    write_run(tmp_path / "ckpts", new[2:], [30, 40, 50, 60])
    return old, new


def check(store: Path, states: list[State]) -> None:
    traj = trajkit.open(store)
    assert traj.steps.tolist() == [10 * (i + 1) for i in range(len(states))]
    for step, state in zip(traj.steps.tolist(), states, strict=True):
        for name, array in state.items():
            assert same_bits(traj.read(name, step), array), (step, name)
    assert verify(store).bad == ()


def test_two_runs_are_not_spliced(tmp_path: Path, runs: tuple[list[State], list[State]]) -> None:
    old, new = runs
    store, ckpts = tmp_path / "s.zarr", tmp_path / "ckpts"
    before = contents(store)
    for verb in (trajkit.ingest, plan_ingest):
        with pytest.raises(
            Mismatch, match=r"step 30 .and 2 more, up to 50. was written again"
        ) as e:
            verb(ckpts, store)
        assert "--replace-from 30" in str(e.value)
        assert "\n" not in str(e.value)
    assert contents(store) == before
    check(store, old)
    plan = plan_ingest(ckpts, store, replace_from=30)
    assert (plan.cut, plan.steps) == ((30, 40, 50), (30, 40, 50, 60))
    assert contents(store) == before
    notes = Notes()
    result = trajkit.ingest(ckpts, store, replace_from=30, progress=notes)
    assert (result.cut, result.ingested, result.skipped) == ((30, 40, 50), 4, 2)
    assert "cut 3 steps from the store, 30 to 50" in str(notes)
    check(store, new)
    assert verify(store, against=ckpts).exact == 6
    again = trajkit.ingest(ckpts, store)
    assert (again.ingested, again.rewritten) == (0, ())


def test_nothing_new_is_only_said(tmp_path: Path, runs: tuple[list[State], list[State]]) -> None:
    notes = Notes()
    shutil.rmtree(tmp_path / "ckpts" / "checkpoint-60")
    result = trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", progress=notes)
    assert (result.ingested, result.rewritten) == (0, (30, 40, 50))
    assert "was written again" in str(notes)
    only = trajkit.ingest(tmp_path / "ckpts" / "checkpoint-20", tmp_path / "s.zarr")
    assert only.rewritten == ()


def test_a_touched_or_copied_series_is_the_same(tmp_path: Path) -> None:
    """Times differ, bits do not; and a config written again is no other step."""
    folders = small_series(tmp_path / "ckpts", 3, config={"a": 1})
    store = tmp_path / "s.zarr"
    trajkit.ingest(folders[:2], store)
    for path in (tmp_path / "ckpts").rglob("*.safetensors"):
        os.utime(path, ns=(1, 1))
    (folders[0] / "config.json").write_text('{"a": 2}')
    result = trajkit.ingest(tmp_path / "ckpts", store)
    assert (result.ingested, result.rewritten) == (1, ())


def test_stores_without_stamps_are_compared_by_headers(tmp_path: Path) -> None:
    folders = small_series(tmp_path / "ckpts", 3)
    path = tmp_path / "s.zarr"
    trajkit.ingest(folders[:2], path)
    store = Store.open(path)
    frames = []
    for frame in store.commit.frames:
        name, content = replace(SourceRecord.read(path, frame.source), stamps={}).pack()
        source_path(path, name).write_bytes(content)
        frames.append(replace(frame, source=name))
    commit = replace(store.commit, frames=tuple(frames))
    (path / "zarr.json").write_bytes(canonical_json(commit.document()))
    assert trajkit.ingest(folders[:2], path).rewritten == ()
    shutil.rmtree(folders[1])
    write_checkpoint(folders[1], {"other": np.zeros(3, np.float32)})
    assert trajkit.ingest(folders[:2], path).rewritten == (20,)


def test_what_may_not_be_cut(tmp_path: Path, runs: tuple[list[State], list[State]]) -> None:
    old, _ = runs
    store, ckpts = tmp_path / "s.zarr", tmp_path / "ckpts"
    with pytest.raises(InvalidInput, match="the last checkpoint found is step 60"):
        trajkit.ingest(ckpts, store, replace_from=70)
    with pytest.raises(InvalidInput, match=r"begins with step 10.*another --store"):
        trajkit.ingest(ckpts, store, replace_from=10)
    with pytest.raises(InvalidInput, match="do not go together"):
        trajkit.ingest(ckpts, store, replace_from=30, watch=True)
    write_checkpoint(ckpts / "checkpoint-60", {"other": np.zeros(3, np.float32)})
    with pytest.raises(Mismatch, match="tensor"):  # all headers are read before the cut
        trajkit.ingest(ckpts, store, replace_from=30)
    check(store, old)


def test_a_fit_of_cut_frames_is_stale(
    tmp_path: Path, runs: tuple[list[State], list[State]]
) -> None:
    store = tmp_path / "s.zarr"
    trajkit.fit(trajkit.open(store))
    trajkit.fit(trajkit.open(store), name="early", to_step=20)
    trajkit.ingest(tmp_path / "ckpts", store, replace_from=30)
    traj = trajkit.open(store)
    with pytest.raises(Mismatch, match="of other checkpoints than the store holds now"):
        trajkit.extrapolate(traj, 70, tmp_path / "out")
    with pytest.raises(Mismatch, match="run trajkit fit again"):
        trajkit.report(store, tmp_path / "page")
    assert not (tmp_path / "page").exists()
    assert describe_store(Store.open(store)).stale_fits == ["default"]
    trajkit.extrapolate(traj, 70, tmp_path / "out", fit="early")
    trajkit.fit(traj)
    trajkit.extrapolate(traj, 70, tmp_path / "out2")


def test_a_step_in_between_names_the_way(tmp_path: Path) -> None:
    folders = small_series(tmp_path / "ckpts", 3)
    store = tmp_path / "s.zarr"
    trajkit.ingest([folders[0], folders[2]], store)
    with pytest.raises(InvalidInput, match="--replace-from 20"):
        trajkit.ingest(tmp_path / "ckpts", store)
    assert trajkit.ingest(tmp_path / "ckpts", store, replace_from=20).steps == 3
    assert verify(store, against=tmp_path / "ckpts").exact == 3


def test_a_kill_at_every_touch_of_a_replacement(
    tmp_path: Path, runs: tuple[list[State], list[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old steps, or the first ones and some of the new: intact at every instant, and it goes on."""
    old, new = runs
    base, ckpts = tmp_path / "s.zarr", tmp_path / "ckpts"
    seen = set()
    for n in range(1, 400, 3):
        store = Path(shutil.copytree(base, tmp_path / f"{n}.zarr"))
        left = [n]

        def dying(touch: Callable[..., object], left: list[int] = left) -> Callable[..., object]:
            def touch_or_die(*args: object, **kwargs: object) -> object:
                left[0] -= 1
                if left[0] <= 0:
                    raise KeyboardInterrupt
                return touch(*args, **kwargs)

            return touch_or_die

        with monkeypatch.context() as patch:
            for name in ("fsync", "rmdir", "unlink"):
                patch.setattr(os, name, dying(getattr(os, name)))
            patch.setattr(Path, "replace", dying(Path.replace))
            try:
                trajkit.ingest(ckpts, store, replace_from=30)
            except KeyboardInterrupt:
                done = False
            else:
                done = True
        held = trajkit.open(store).steps.tolist()
        first = trajkit.open(store).read("a", 30) if 30 in held else None
        is_old = first is not None and same_bits(first, old[2]["a"])
        check(store, old if is_old else new[: len(held)])
        seen.add((is_old, len(held)))
        trajkit.ingest(ckpts, store, replace_from=30)
        check(store, new)
        shutil.rmtree(store)
        if done:
            break
    assert done, "it never ended"
    assert {(True, 5), (False, 2), (False, 3), (False, 6)} <= seen


def test_a_full_disk_after_the_cut_goes_on(
    tmp_path: Path, runs: tuple[list[State], list[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, new = runs
    store, ckpts = tmp_path / "s.zarr", tmp_path / "ckpts"

    def full(*args: object) -> None:
        raise StorageError("No space left on device")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(writer_module.StoreWriter, "_write_frame", full)
            with pytest.raises(StorageError):
                trajkit.ingest(ckpts, store, replace_from=30)
        check(store, new[:2])
    trajkit.ingest(ckpts, store, replace_from=30)
    check(store, new)
