"""Output targets: what trajkit wrote is replaced, nothing else is, by any of the verbs."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from store_series import contents, small_series

import trajkit
from trajkit.checkpoints import folder as folder_module
from trajkit.checkpoints.folder import FolderWriter
from trajkit.checkpoints.record import SourceRecord, source_path
from trajkit.checkpoints.target import Place, check_target
from trajkit.disk import canonical_json
from trajkit.errors import AlreadyExists
from trajkit.reports.report import report
from trajkit.store.output import is_restored
from trajkit.store.store import Store

SIGN = b'{"made_by": "trajkit extrapolate"}'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints 10 to 40 in ckpts/ and a fitted store s.zarr of them."""
    root = tmp_path_factory.mktemp("run")
    small_series(root / "ckpts", 4, config={"model_type": "x"})
    trajkit.ingest(root / "ckpts", root / "s.zarr")
    trajkit.fit(trajkit.open(root / "s.zarr"))
    return root


def write_extrapolated(store: Path, out: Path, force: bool) -> None:
    trajkit.extrapolate(trajkit.open(store), 50, out, force=force)


def write_restored(store: Path, out: Path, force: bool) -> None:
    trajkit.restore(trajkit.open(store), 20, out, force=force)


def write_report(store: Path, out: Path, force: bool) -> None:
    report(trajkit.open(store), out, force=force)


VERBS = [write_extrapolated, write_restored, write_report]
Write = Callable[[Path, Path, bool], None]


@pytest.mark.parametrize("first", VERBS)
@pytest.mark.parametrize("then", VERBS)
def test_force_replaces_what_trajkit_wrote(
    run: Path, tmp_path: Path, first: Write, then: Write
) -> None:
    out = tmp_path / "out"
    first(run / "s.zarr", out, False)
    before = contents(out)
    if first is write_report and then is write_report:
        then(run / "s.zarr", out, False)  # a report takes its own place
    else:
        with pytest.raises(AlreadyExists, match="replace it with --force"):
            then(run / "s.zarr", out, False)
        assert contents(out) == before
    then(run / "s.zarr", out, True)
    then(run / "s.zarr", tmp_path / "fresh", False)
    assert contents(out).keys() == contents(tmp_path / "fresh").keys()
    assert not list(tmp_path.glob(".*"))


def add_file(out: Path) -> str:
    (out / "results.json").write_text("{}")
    return "results.json"


def train_on(out: Path) -> str:
    """A training that went on in the folder: same names, same headers, other weights."""
    file = out / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    return ""


def add_link(out: Path) -> str:
    (out / "link").symlink_to("/etc/hostname")
    return "link"


@pytest.mark.parametrize("change", [add_file, train_on, add_link])
@pytest.mark.parametrize("first", VERBS)
def test_what_somebody_changed_is_kept(run: Path, tmp_path: Path, first: Write, change) -> None:
    out = tmp_path / "out"
    first(run / "s.zarr", out, False)
    if change is train_on and first is write_report:
        (out / "index.html").write_text("mine")
    else:
        change(out)
    before = contents(out)
    for then in VERBS:
        with pytest.raises(
            AlreadyExists, match=r"was added or changed|which trajkit did not write"
        ):
            then(run / "s.zarr", out, True)
    assert contents(out) == before


@pytest.mark.parametrize("verb", VERBS)
def test_sources_stores_devices_and_strangers_are_never_replaced(
    run: Path, tmp_path: Path, verb: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(run, tmp_path / "root", symlinks=True))
    (root / "thesis").mkdir()
    (root / "thesis" / "chapter.tex").write_text("x")
    (root / "file").write_text("x")
    (root / "link").symlink_to("thesis")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    (root / "here").mkdir()
    (root / "here" / "file").write_text("x")
    monkeypatch.chdir(root / "here")
    before = contents_but_pipes(root)
    for out, reason in [
        (root / "ckpts" / "checkpoint-20", "which trajkit did not write"),
        (root / "ckpts", "which trajkit did not write"),
        (root / "s.zarr", "is the store"),
        (root, "is the current folder or holds it"),
        (root / "s.zarr" / "frames" / "out", "lies in the store"),
        (root / "thesis", "holds chapter.tex, which trajkit did not write"),
        (root / "file", "is a file, not a folder"),
        (root / "link", "is a link to thesis"),
        (root / "dangling", "is a link to nowhere"),
        (root / "pipe", "is a device, pipe or socket"),
        (Path("/dev/null"), "is a device, pipe or socket"),
        (Path(), "is the current folder"),
        (Path(".."), "current folder"),
    ]:
        for force in (True, False):
            with pytest.raises(AlreadyExists, match=reason) as caught:
                verb(root / "s.zarr", out, force)
            assert "choose another -o" in str(caught.value)
            assert "\n" not in str(caught.value)
    monkeypatch.chdir("/")
    with pytest.raises(AlreadyExists, match="holds the store"):
        verb(root / "s.zarr", root, True)
    assert contents_but_pipes(root) == before


def contents_but_pipes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_demo_clears_its_own_folder_only(tmp_path: Path) -> None:
    import demo

    mine = tmp_path / "mine"
    (mine / "report").mkdir(parents=True)
    (mine / "report" / "thesis").write_text("x")
    with pytest.raises(
        SystemExit, match="holds report, not made by this demo; choose another --out"
    ):
        demo.make_folder(mine)
    assert contents(mine) == {"report/thesis": b"x"}
    out = tmp_path / "out"
    for _ in range(2):  # made, then cleared
        demo.make_folder(out)
        assert contents(out).keys() == {demo.MARKER}
        (out / "report").mkdir()
        (out / "report" / "index.html").touch()
    (out / "notes").touch()
    with pytest.raises(SystemExit, match="holds notes"):
        demo.make_folder(out)
    assert (out / "report" / "index.html").exists()


def test_a_restored_folder_is_told_from_its_source(run: Path, tmp_path: Path) -> None:
    """Equal in every byte; what differs is when they were written."""
    store = Store.open(run / "s.zarr")
    source, out = run / "ckpts" / "checkpoint-20", tmp_path / "out"
    trajkit.restore(store, 20, out)
    assert contents(out) == contents(source)
    assert is_restored(store, out)
    assert not is_restored(store, source)
    copy = Path(shutil.copytree(source, tmp_path / "copy"))  # times and all
    assert not is_restored(store, copy)
    without = Path(shutil.copytree(run / "s.zarr", tmp_path / "old.zarr"))
    old = Store.open(without)  # a store made before records had stamps: there is no telling
    frames = []
    for frame in old.commit.frames:
        name, content = replace(SourceRecord.read(without, frame.source), stamps={}).pack()
        source_path(without, name).write_bytes(content)
        frames.append(replace(frame, source=name))
    commit = replace(old.commit, frames=tuple(frames))
    (without / "zarr.json").write_bytes(canonical_json(commit.document()))
    assert not is_restored(Store.open(without), out)
    (out / "config.json").write_text("{}")
    assert not is_restored(store, out)


def test_a_converted_checkpoint_is_known_too(tmp_path: Path) -> None:
    small_series(tmp_path / "ckpts", 2)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", dtype="float32")
    store = Store.open(tmp_path / "s.zarr")
    trajkit.restore(store, 10, tmp_path / "out")
    assert is_restored(store, tmp_path / "out")
    assert not is_restored(store, tmp_path / "ckpts" / "checkpoint-10")


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("kind", ["nothing", "empty", "ours"])
def test_what_may_be_replaced_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(folder_module, "exchange", lambda a, b: False)
    out = tmp_path / "out"
    if kind != "nothing":
        out.mkdir()
    if kind == "ours":
        (out / "trajkit.json").write_bytes(SIGN)
    with FolderWriter(check_target(out, True), {}) as writer:
        writer.write_side_file("new", b"new")
        writer.commit()
    assert contents(tmp_path) == {"out/new": b"new"}
    assert not list(tmp_path.glob(".*"))


def test_what_changes_while_a_folder_is_written_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with FolderWriter(check_target(out), {}) as writer:
        writer.write_side_file("new", b"new")
        out.mkdir()
        (out / "mine").touch()
        with pytest.raises(AlreadyExists, match="came into being while this was written"):
            writer.commit()
    (out / "mine").rename(out / "trajkit.json")
    (out / "trajkit.json").write_bytes(SIGN)
    with FolderWriter(check_target(out, True), {}) as writer:
        writer.write_side_file("new", b"new")
        (out / "mine").touch()
        with pytest.raises(AlreadyExists, match="changed while this was written"):
            writer.commit()
    assert contents(tmp_path) == {"out/mine": b"", "out/trajkit.json": SIGN}


def test_a_link_in_the_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("kept")
    (tmp_path / ".out.trajkit-part").symlink_to("mine")
    with pytest.raises(OSError, match=r"out: "), FolderWriter(Place(tmp_path / "out"), {}):
        pass
    assert (tmp_path / "mine" / "kept").read_text() == "kept"
