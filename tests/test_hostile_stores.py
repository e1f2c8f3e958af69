"""Stores that somebody else made or meddled with: nothing outside is written, one line is said."""

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_series import contents, drift, small_series, write_checkpoint

import trajkit
from trajkit.checkpoints.parse import unzip
from trajkit.checkpoints.record import SourceRecord, source_path
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, Mismatch, StorageError, TrajkitError
from trajkit.reports.info import describe_store
from trajkit.store.check import check_metadata, check_sources
from trajkit.store.commit import table_document
from trajkit.store.store import Store
from trajkit.store.writer import StoreWriter
from trajkit.text import printable


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of four checkpoints, 10 to 40, of bf16 and fp32."""
    small_series(tmp_path / "ckpts", 4, config={"architectures": ["XForCausalLM"]})
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def commit_again(store: Path, **changes: Any) -> None:
    """Write the root with some fields of the commit replaced, its digest right."""
    commit = replace(Store.open(store).commit, **changes)
    (store / "zarr.json").write_bytes(canonical_json(commit.document()))


def put_record(store: Path, change: Callable[[SourceRecord], SourceRecord]) -> None:
    """Give the last checkpoint another source record, every digest right."""
    commit = Store.open(store).commit
    record = SourceRecord.read(store, commit.frames[-1].source)
    source, content = change(record).pack()
    source_path(store, source).write_bytes(content)
    last = replace(commit.frames[-1], source=source)
    commit_again(store, frames=(*commit.frames[:-1], last))


def line_of(command: Callable[[], object]) -> str | None:
    """What a command says when it refuses; None when it does not."""
    try:
        command()
    except TrajkitError as error:
        return str(error)
    return None


# --- links are not followed when something is written


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("lock", [".lock", ".results.lock"])
def test_a_lock_that_is_a_link_leaves_the_file_alone(store: Path, lock: str, link: Any) -> None:
    mine = store.parent / "mine.txt"
    mine.write_text("mine")
    link(mine, store / lock)

    def write() -> None:
        if lock == ".results.lock":
            trajkit.fit(str(store))
        with StoreWriter(store, 1):
            pass

    with pytest.raises(FormatError, match=r"\.lock: .*remove it"):
        write()
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_parts_that_are_links_leave_the_file_alone(store: Path, link: Any) -> None:
    mine = store.parent / "mine.txt"
    mine.write_text("mine")
    for part in ("zarr.json.part", "frames/bfloat16/zarr.json.part", "steps/c/0.part"):
        link(mine, store / part)
    row = store / "frames" / "bfloat16" / "c" / "4"
    row.mkdir()
    link(mine, row / "0.part")
    small_series(store.parent / "ckpts", 5, config={})
    trajkit.ingest(store.parent / "ckpts", store)
    assert mine.read_text() == "mine"
    assert trajkit.verify(store).ok


@pytest.mark.parametrize("folder", ["frames/bfloat16/c", "frames", "digests", "assets", "steps"])
def test_a_folder_that_is_a_link_is_not_written_to(store: Path, folder: str) -> None:
    """A writer heals what lies beyond the commit: in somebody else's folder it would delete."""
    elsewhere = store.parent / "elsewhere"
    shutil.move(store / folder, elsewhere)
    (elsewhere / "4").mkdir()
    (elsewhere / "4" / "thesis").write_text("mine")
    (elsewhere / "download.part").write_text("mine")
    (store / folder).symlink_to(elsewhere)
    before = contents(elsewhere)
    small_series(store.parent / "ckpts", 5, config={})
    with pytest.raises(FormatError, match="is a symbolic link, and trajkit writes through none"):
        trajkit.ingest(store.parent / "ckpts", store)
    assert contents(elsewhere) == before


def test_fits_that_are_a_link_are_not_written_to(store: Path) -> None:
    elsewhere = store.parent / "elsewhere"
    elsewhere.mkdir()
    (store / "fits").symlink_to(elsewhere)
    with pytest.raises(TrajkitError, match="fits: expected a folder that trajkit made"):
        trajkit.fit(str(store))
    assert not any(elsewhere.iterdir())


def test_a_store_that_is_itself_named_by_a_link_is_fine(store: Path) -> None:
    link = store.parent / "link"
    link.symlink_to(store)
    small_series(store.parent / "ckpts", 5, config={})
    trajkit.ingest(store.parent / "ckpts", link)
    trajkit.fit(str(link))
    assert trajkit.verify(link).ok


# --- only regular files are opened


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "ring"])
@pytest.mark.parametrize(
    "file",
    [
        *("zarr.json", "tensors/zarr.json", "source", "assets/config.json", "frames/zarr.json"),
        *("frames/bfloat16/c/3/0", "digests/bfloat16/c/3/0", "steps/c/0"),
    ],
)
def test_what_is_no_file_is_not_waited_for(store: Path, file: str, kind: str) -> None:
    """With a pipe in its place a reader would wait for ever, with /dev/zero read for ever."""
    source = Store.open(store).commit.frames[-1].source
    path = source_path(store, source) if file == "source" else store / file
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "ring":
            path.symlink_to(path)
    bad = trajkit.verify(store).bad
    assert bad
    assert all(damage.what.isprintable() for damage in bad)
    if file in ("zarr.json", "tensors/zarr.json"):
        with pytest.raises(TrajkitError):
            Store.open(store)
        return
    for command in (
        lambda: trajkit.restore(str(store), 40, store.parent / "out"),
        lambda: trajkit.fit(str(store)),
    ):
        said = line_of(command)
        assert said is None or said.isprintable()


def test_a_gzip_bomb_is_not_unpacked(store: Path) -> None:
    bomb = gzip.compress(bytes(1 << 24))
    with pytest.raises(FormatError, match="unpacks to more than the 65536 bytes allowed"):
        unzip(bomb, "here", 1 << 16)
    for bad in (b"", b"x", bomb[:-4], bomb + b"x"):
        with pytest.raises(FormatError, match="gzip"):
            unzip(bad, "here", 1 << 25)
    assert unzip(gzip.compress(b"abc"), "here", 3) == b"abc"


# --- a source record must add up


def header_of(record: SourceRecord) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.files[0][1])
    return found


def with_header(record: SourceRecord, header: dict[str, Any]) -> SourceRecord:
    return replace(record, files=((record.files[0][0], json.dumps(header)),))


def leave_out(record: SourceRecord) -> SourceRecord:
    header = header_of(record)
    header.pop("model.head.weight")  # the last of the file
    return with_header(record, header)


def leave_out_as_absent(record: SourceRecord) -> SourceRecord:
    return replace(leave_out(record), absent=("model.head.weight",))


def overlap(record: SourceRecord) -> SourceRecord:
    header = header_of(record)
    begin, end = header["model.norm.weight"]["data_offsets"]
    header["model.norm.weight"]["data_offsets"] = [begin - 8, end - 8]
    return with_header(record, header)


def reshape(record: SourceRecord) -> SourceRecord:
    header = header_of(record)
    header["model.embed_tokens.weight"]["shape"].reverse()
    return with_header(record, header)


def retype(record: SourceRecord) -> SourceRecord:
    header = header_of(record)
    header["model.embed_tokens.weight"]["dtype"] = "F16"
    return with_header(record, header)


def rename(record: SourceRecord) -> SourceRecord:
    header = header_of(record)
    return with_header(record, {n.replace("norm", "form"): e for n, e in header.items()})


def asset_over_weights(record: SourceRecord) -> SourceRecord:
    return replace(record, assets={record.files[0][0]: record.assets["config.json"]})


def asset_in_a_file(record: SourceRecord) -> SourceRecord:
    return replace(
        record, assets={"config.json/x": (*record.assets["config.json"],)} | record.assets
    )


def file_twice(record: SourceRecord) -> SourceRecord:
    return replace(record, files=record.files * 2)


def twice_in_two_files(record: SourceRecord) -> SourceRecord:
    return replace(record, files=(*record.files, ("b.safetensors", record.files[0][1])))


def one_for_another(record: SourceRecord) -> SourceRecord:
    return replace(record, tied={"model.norm.weight": "model.head.weight"})


def index_of_others(record: SourceRecord) -> SourceRecord:
    return replace(record, index=("model.safetensors.index.json", '{"weight_map": {"a": "b"}}'))


def another_prefix(record: SourceRecord) -> SourceRecord:
    return replace(record, prefix="model.no")


@pytest.mark.parametrize(
    "lie",
    [
        *(leave_out, leave_out_as_absent, overlap, reshape, retype, rename, asset_over_weights),
        *(asset_in_a_file, file_twice, twice_in_two_files, one_for_another, index_of_others),
        another_prefix,
    ],
    ids=lambda lie: lie.__name__,
)
def test_a_record_that_lies_restores_nothing(store: Path, lie: Any) -> None:
    put_record(store, lie)
    for command in (
        lambda: trajkit.restore(str(store), 40, store.parent / "out"),
        lambda: trajkit.extrapolate(str(store), 60, store.parent / "out", estimator="two-point"),
    ):
        with pytest.raises((FormatError, Mismatch)) as refusal:
            command()
        assert str(refusal.value).isprintable()
        assert not (store.parent / "out").exists()
    assert not trajkit.verify(store).ok


def test_a_tensor_left_out_as_tied_must_be_what_its_partner_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 6, 4)).astype(np.float32)
    first = {"model.embed_tokens.weight": values[0], "lm_head.weight": values[1]}
    write_checkpoint(tmp_path / "ckpts" / "checkpoint-1", first)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")

    def leave_out_head(record: SourceRecord) -> SourceRecord:
        header = header_of(record)
        header.pop("lm_head.weight")
        return replace(with_header(record, header), absent=("lm_head.weight",))

    put_record(tmp_path / "s.zarr", leave_out_head)
    with pytest.raises(Mismatch, match=r"which is not what 'model\.embed_tokens\.weight' is"):
        trajkit.restore(str(tmp_path / "s.zarr"), 1, tmp_path / "out")


# --- a frame in another's place


@pytest.mark.parametrize("places", [(1, 2), (2, 1), (1, 3), (0, 3)])
@pytest.mark.parametrize("swap", [False, True])
def test_a_frame_in_anothers_place_is_refused(store: Path, places: Any, swap: bool) -> None:
    """Two delta frames that change places leave the last checkpoint's bits as they were."""
    a, b = (store / "frames" / "bfloat16" / "c" / str(t) for t in places)
    if swap:
        a.rename(store / "aside")
        b.rename(a)
        (store / "aside").rename(b)
    else:
        shutil.rmtree(b)
        shutil.copytree(a, b)
    traj = trajkit.open(store)
    name = "model.head.weight"
    refused = pytest.raises(FormatError, match=r"the bits do not match their digest: step .*head")
    with refused:
        for step in traj.steps.tolist():
            traj.read(name, step)
    with refused:
        traj.trajectory(name, (3,))
    with refused:
        trajkit.fit(traj)
    assert not (store / "fits" / "default").exists()


def test_two_point_refuses_a_frame_in_anothers_place(store: Path) -> None:
    rows = store / "frames" / "bfloat16" / "c"
    shutil.rmtree(rows / "3")
    shutil.copytree(rows / "2", rows / "3")
    with pytest.raises(FormatError, match="the bits do not match their digest: step 40"):
        trajkit.extrapolate(str(store), 60, store.parent / "out", estimator="two-point")
    assert not (store.parent / "out").exists()


def test_frames_and_digests_of_another_step_are_refused(store: Path) -> None:
    """A frame together with its digests: the commit's own digest tells."""
    for array in ("frames", "digests"):
        rows = store / array / "bfloat16" / "c"
        shutil.rmtree(rows / "3")
        shutil.copytree(rows / "0", rows / "3")
    with pytest.raises(FormatError, match="step 40: chunk digests do not match the commit"):
        trajkit.open(store).read("model.head.weight", 40)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_fit_in_batches_and_over_key_frames_checks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    rng = np.random.default_rng(1)
    series = drift(rng, {"w": rng.standard_normal(50).astype(np.float32)}, 9)
    for i, state in enumerate(series):
        write_checkpoint(tmp_path / "ckpts" / f"checkpoint-{i + 1}", state)
    store = tmp_path / "s.zarr"
    trajkit.ingest(tmp_path / "ckpts", store, keyframes=4)
    monkeypatch.setattr("trajkit.fits.plan.BATCH_FRAMES", batch)
    monkeypatch.setattr("trajkit.fits.plan._SMALLEST_BATCH", batch)
    trajkit.fit(str(store))
    trajkit.fit(str(store), from_step=3)  # begins at a delta
    rows = store / "frames" / "float32" / "c"
    shutil.rmtree(rows / "2")
    shutil.copytree(rows / "1", rows / "2")  # before the second key: the end does not show it
    with pytest.raises(FormatError, match="the bits do not match their digest: step 3"):
        trajkit.fit(str(store))


# --- sizes and types


def test_sizes_that_the_disk_does_not_hold_take_no_memory(store: Path) -> None:
    """A table and a commit that agree on 10^12 chunks, over files of a few kilobytes."""
    opened = Store.open(store)
    bf16 = opened.vectors["bfloat16"]
    huge = 10**12 * 1000
    last = replace(bf16.tensors[-1], shape=(huge,))
    bf16.tensors = (*bf16.tensors[:-1], last)
    table = canonical_json(table_document(opened.vectors))
    (store / "tensors" / "zarr.json").write_bytes(table)
    sizes = {"bfloat16": last.stop, "float32": 17}
    digest = hashlib.sha256(table).hexdigest()
    commit_again_at = replace(opened.commit, sizes=sizes, tensors_sha256=digest, chunk=1000)
    (store / "zarr.json").write_bytes(canonical_json(commit_again_at.document()))
    assert describe_store(Store.open(store)).elements == sizes
    found = trajkit.verify(store)
    assert not found.ok
    assert len(found.bad) < 1000
    traj = trajkit.open(store)
    for command in (
        lambda: traj.read(last.name, 40),
        lambda: trajkit.restore(traj, 40, store.parent / "out"),
        lambda: trajkit.fit(traj),
    ):
        with pytest.raises(TrajkitError):
            command()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("chunk", v) for v in (1.5, "4", True, None, 0, 2**70, [1])],
        *[
            ("steps", v)
            for v in ([10, 20, 30, 2**70], [10, 20, 30, 40.0], [10, 20], "1234", [-1] * 4)
        ],
        *[("sizes", v) for v in ({"a": 1}, [["bfloat16"]], [["x", 1]], [[1, "x"]], [["int8", 0]])],
        *[("sources", v) for v in (["../../x"] * 4, [7] * 4, [None] * 4, ["\x1b[2J"] * 4)],
        *[("keyframes", v) for v in (0, 1.0, -5, "64")],
        *[("cast", v) for v in (5, "int8", [], "x")],
        *[("codec", v) for v in (5, ["zstd"], "zip\x1b[2J")],
        *[("version", v) for v in ("1", None, [1])],
    ],
)
def test_a_root_of_wrong_types_is_one_line(store: Path, field: str, value: Any) -> None:
    document = json.loads((store / "zarr.json").read_bytes())
    attributes = document["attributes"]
    attributes[field] = value
    attributes.pop("sha256")
    attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
    (store / "zarr.json").write_bytes(canonical_json(document))
    with pytest.raises(FormatError, match=r"json: .*(expected|not add up|no tensor)") as told:
        Store.open(store)
    assert str(told.value).isprintable()


def test_escapes_in_names_do_not_reach_the_terminal(store: Path) -> None:
    opened = Store.open(store)
    bf16 = opened.vectors["bfloat16"]
    bf16.tensors = (*bf16.tensors[:-1], replace(bf16.tensors[-1], name="a\x1b[2Jb"))
    table = canonical_json(table_document(opened.vectors))
    (store / "tensors" / "zarr.json").write_bytes(table)
    commit_again_at = replace(opened.commit, tensors_sha256=hashlib.sha256(table).hexdigest())
    (store / "zarr.json").write_bytes(canonical_json(commit_again_at.document()))
    with pytest.raises(FormatError, match="expected printable characters") as told:
        Store.open(store)
    assert str(told.value).isprintable()
    assert printable("a\x1b[2J\udcff") == "a\\x1b[2J\\udcff"


@pytest.mark.parametrize("content", [b'{"architectures": 5}', b'{"a":' * 5000 + b"1" + b"}" * 5000])
def test_a_config_of_any_content_is_no_traceback(tmp_path: Path, content: bytes) -> None:
    for folder in small_series(tmp_path / "ckpts", 2):
        (folder / "config.json").write_bytes(content)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    store = str(tmp_path / "s.zarr")
    said = line_of(lambda: trajkit.extrapolate(store, 40, tmp_path / "out", estimator="expo"))
    assert said is None or "not a readable JSON file" in said


@pytest.mark.parametrize("name", [b"tokenizer\xff.json", b"model\xff.safetensors"])
def test_file_names_that_no_record_can_hold_are_refused(tmp_path: Path, name: bytes) -> None:
    (folder,) = small_series(tmp_path / "ckpts", 1)
    place = os.path.join(os.fsencode(folder), name)  # noqa: PTH118 - bytes
    if name.startswith(b"model"):
        os.rename(folder / "model.safetensors", place)  # noqa: PTH104
    else:
        with open(place, "wb") as file:  # noqa: PTH123
            file.write(b"{}")
    with pytest.raises(FormatError, match="cannot be kept: expected printable UTF-8") as told:
        trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert str(told.value).isprintable()
    assert not (tmp_path / "s.zarr").exists()


# --- a writer beside a reader


def test_verify_while_checkpoints_are_appended(store: Path) -> None:
    """What was opened before two more commits is as sound as what is committed now."""
    before = Store.open(store)
    small_series(store.parent / "ckpts", 6, config={"architectures": ["XForCausalLM"]})
    trajkit.ingest(store.parent / "ckpts", store)
    assert check_metadata(before) == []
    assert list(check_sources(before)) == []


def test_info_while_a_writer_renames(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was listed and is gone when looked at counts nothing."""
    gone = store / "zarr.json.part"
    listed = [*store.rglob("*"), gone]
    monkeypatch.setattr(Path, "rglob", lambda *_: iter(listed))
    assert Store.open(store).stored_bytes > 0


# --- a container with little room


def test_every_command_runs_in_a_gibibyte_of_addresses(store: Path) -> None:
    """What glibc reserves for each thread would be most of it, and OpenBLAS aborts without."""
    out = str(store.parent / "out")
    for command in (
        ["info", "--store", str(store)],
        ["verify", "--store", str(store)],
        ["fit", "--store", str(store)],
        ["restore", "--store", str(store), "--step", "40", "-o", out + "1"],
        ["extrapolate", "--store", str(store), "--steps", "60", "-o", out + "2"],
        ["report", "--store", str(store), "-o", out + "3"],
    ):
        code = (
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
            "from trajkit.cli.main import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-500:]}"


# --- the page


def test_the_pages_policy_names_its_own_style_and_script(store: Path, tmp_path: Path) -> None:
    trajkit.fit(str(store))
    page = Path(trajkit.report(str(store), tmp_path / "report").path).read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")


def test_a_disk_that_refuses_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", refuse)
    with pytest.raises(StorageError, match=r"zarr\.json: Input/output error"):
        Store.open(store)
