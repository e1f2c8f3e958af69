"""ingest --watch --delete-ingested: nothing goes that the store was not proved to give back."""

import shutil
import time
from pathlib import Path

import pytest
from store_series import contents, small_series
from test_cli import run

import trajkit
from trajkit.errors import InvalidInput
from trajkit.progress import Event, Note
from trajkit.store import release as release_module


def watch(ckpts: Path, store: Path, looks: int = 5, **options: object) -> tuple[object, list[str]]:
    """Watch for some looks, then interrupt: the result, and all notes."""
    notes: list[str] = []
    left = [looks]

    def hear(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    def sleep(seconds: float) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        result = trajkit.ingest(
            ckpts, store, watch=True, delete_ingested=True, progress=hear, **options
        )  # type: ignore[arg-type]
    return result, notes


def make_run(folder: Path, steps: int = 4) -> dict[str, bytes]:
    for path in small_series(folder, steps, config={"a": 1}):
        (path / "optimizer.pt").write_bytes(b"state of " + path.name.encode())
    return contents(folder)


def check_nothing_lost(ckpts: Path, store: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Every file that was there is there, or is given back by the store."""
    left = contents(ckpts)
    assert all(whole[name] == content for name, content in left.items())
    for step in trajkit.open(store).steps.tolist():
        out = tmp_path / "out"
        trajkit.restore(store, step, out)
        left |= {f"checkpoint-{step}/{n}": c for n, c in contents(out).items()}
        shutil.rmtree(out)
    assert left == whole


def test_all_but_the_last_go_once_they_are_proved(tmp_path: Path) -> None:
    ckpts, store = tmp_path / "ckpts", tmp_path / "s.zarr"
    whole = make_run(ckpts)
    (ckpts / "checkpoint-20" / "optimizer.pt").unlink()
    del whole["checkpoint-20/optimizer.pt"]
    result, notes = watch(ckpts, store)
    left = contents(ckpts)
    assert sorted(left) == [
        "checkpoint-10/optimizer.pt",
        "checkpoint-30/optimizer.pt",
        "checkpoint-40/config.json",
        "checkpoint-40/model.safetensors",
        "checkpoint-40/optimizer.pt",
    ]
    assert not (ckpts / "checkpoint-20").exists()
    assert result.deleted == (10, 20, 30)  # type: ignore[attr-defined]
    assert any("deleted 2 files of step 10" in note for note in notes)
    check_nothing_lost(ckpts, store, whole, tmp_path)


def test_side_files_beside_step_files_stay(tmp_path: Path) -> None:
    made = small_series(tmp_path / "made", 3, config={"a": 1})
    ckpts = tmp_path / "ckpts"
    ckpts.mkdir()
    for path in made:
        step = path.name.removeprefix("checkpoint-")
        shutil.copy(path / "model.safetensors", ckpts / f"step_{step}.safetensors")
    shutil.copy(made[0] / "config.json", ckpts / "config.json")
    watch(ckpts, tmp_path / "s.zarr")
    assert sorted(contents(ckpts)) == ["config.json", "step_30.safetensors"]


def test_what_is_not_proved_stays(tmp_path: Path) -> None:
    ckpts, store = tmp_path / "ckpts", tmp_path / "s.zarr"
    whole = make_run(ckpts)
    trajkit.ingest(ckpts, store)
    frame = store / "frames" / "bfloat16" / "c" / "1" / "0"
    damaged = bytearray(frame.read_bytes())
    damaged[10] ^= 1
    frame.write_bytes(damaged)
    shutil.move(ckpts / "checkpoint-10" / "config.json", tmp_path / "config.json")
    (ckpts / "checkpoint-10" / "config.json").symlink_to(tmp_path / "config.json")
    _, notes = watch(ckpts, store)
    assert contents(ckpts) == whole, "damage at 20 stands before 30; a link leaves its folder at 10"
    assert sum(note.startswith("kept ") for note in notes) == 3


def test_a_converted_store_deletes_nothing(tmp_path: Path) -> None:
    ckpts, store = tmp_path / "ckpts", tmp_path / "s.zarr"
    whole = make_run(ckpts, 3)
    watch(ckpts, store, dtype="bfloat16")
    assert contents(ckpts) == whole


def test_a_file_changed_while_it_was_compared_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpts, store = tmp_path / "ckpts", tmp_path / "s.zarr"
    make_run(ckpts, 2)
    check = release_module.check_decodes
    target = ckpts / "checkpoint-10" / "model.safetensors"

    def change(*args: object) -> None:
        check(*args)  # type: ignore[arg-type]
        target.write_bytes(b"written again")

    monkeypatch.setattr(release_module, "check_decodes", change)
    watch(ckpts, store)
    assert target.read_bytes() == b"written again"


@pytest.mark.parametrize("kill", range(1, 5))
def test_a_kill_between_files_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    ckpts, store = tmp_path / "ckpts", tmp_path / "s.zarr"
    whole = make_run(ckpts, 3)
    unlink, left = Path.unlink, [kill]

    class Killed(BaseException):
        pass

    def die(self: Path, *args: object, **kwargs: object) -> None:
        if ckpts in self.parents:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
        unlink(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(Killed):
        watch(ckpts, store)
    monkeypatch.undo()
    check_nothing_lost(ckpts, store, whole, tmp_path)
    if kill > 2:  # step 10 is done
        watch(ckpts, store)
        assert not (ckpts / "checkpoint-20" / "model.safetensors").exists()
    check_nothing_lost(ckpts, store, whole, tmp_path)


def test_it_is_asked_for_together_with_watch(tmp_path: Path) -> None:
    small_series(tmp_path / "ckpts", 2)
    with pytest.raises(InvalidInput, match="goes with watch"):
        trajkit.ingest(tmp_path / "ckpts", tmp_path / "s", delete_ingested=True)
    done = run("ingest", "ckpts", "--delete-ingested", cwd=tmp_path)
    assert done.returncode == 2
    assert len(list((tmp_path / "ckpts").rglob("*.safetensors"))) == 2
