"""A fit's place in the store: whole or absent, its own numbers or none, and only ours removed."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from series_on_disk import write_values

import trajkit
import trajkit.fits.fit as fit_module
from trajkit.disk import canonical_json
from trajkit.errors import AlreadyExists, InvalidInput, Mismatch, NotFound, StorageError
from trajkit.fits.commit import drop_fit
from trajkit.fits.fit import plan_fit
from trajkit.fits.kept import fit_names
from trajkit.fits.record import _digest
from trajkit.forecast import chunks as chunks_module
from trajkit.progress import Advanced, Event
from trajkit.reports.info import describe_store
from trajkit.store.documents import GROUP, group_document
from trajkit.store.store import Store

KILLS = 30
STEPS = list(range(0, 80, 10))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Eight checkpoints of 300 elements, and a fit of the first four."""
    rng = np.random.default_rng(0)
    values_TN = np.cumsum(rng.normal(0, 1e-3, (8, 300)), axis=0) + 0.1
    trajkit.ingest(write_values(tmp_path / "ckpts", STEPS, values_TN), tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr", to_step=30)
    return tmp_path / "s.zarr"


def as_once_kept(store: Path, name: str = "default") -> None:
    """Bring a fit into the form of the first trajkit: arrays beside the record, no such field."""
    home = store / "fits" / name
    with_parquet(store, name)
    fit = trajkit.open(store).fits[name]
    for path in list(fit.folder.iterdir()):
        if path.name != "zarr.json":
            path.rename(home / path.name)
    (fit.folder / "zarr.json").unlink()
    fit.folder.rmdir()
    rewrite(home, lambda a: [a.pop("arrays"), a.pop("sums_version")])


def with_parquet(store: Path, name: str = "default") -> Path:
    """Keep the table of a fit as parquet, as trajkit once did; the file."""
    fit = trajkit.open(store).fits[name]
    earlier = fit.folder / "tensors.parquet"
    fit.summary().write_parquet(earlier)
    (fit.folder / "tensors.json.gz").unlink()
    digest = hashlib.sha256(earlier.read_bytes()).hexdigest()
    rewrite(fit.path, lambda attributes: attributes.update(table_sha256=digest))
    return earlier


def rewrite(home: Path, change: Callable[[dict], object]) -> None:
    """Change a record's attributes and make its digest right again."""
    attributes = json.loads((home / "zarr.json").read_bytes())["attributes"]
    change(attributes)
    attributes.pop("sha256", None)
    attributes["sha256"] = _digest(attributes)
    (home / "zarr.json").write_bytes(canonical_json(group_document(attributes)))


KILLER = """
import os, random, signal, shutil, sys, time
sys.path.insert(0, sys.argv[3])
from trajkit.fits.fit import fit
store, kills = sys.argv[1], int(sys.argv[2])
shutil.copytree(store, store + ".warm")
fit(store + ".warm")  # imports, compiled kernels
started = time.perf_counter()
fit(store + ".warm")
whole = time.perf_counter() - started
rng = random.Random(1)
for i in range(kills):
    shutil.copytree(store, f"{store}.{i}")
    begun, go = os.pipe()
    child = os.fork()  # no thread is running here
    if child == 0:
        os.write(go, b".")
        fit(f"{store}.{i}")
        os._exit(0)
    os.read(begun, 1)
    time.sleep(rng.uniform(0, 1.1 * whole))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_sigkill_leaves_the_old_fit_or_the_new(store: Path) -> None:
    """A kill between two renames once lost both; the next fit then removed what was left."""
    (store / "fits" / "default" / "notes.txt").write_text("mine")
    old = trajkit.open(store).fits["default"].slope("w")
    here = str(Path(__file__).resolve().parent.parent)
    subprocess.run([sys.executable, "-c", KILLER, store, str(KILLS), here], check=True)
    new = trajkit.open(f"{store}.warm").fits["default"].slope("w")
    outcomes = []
    for i in range(KILLS):
        killed = Path(f"{store}.{i}")
        fit = trajkit.open(killed).fits["default"]
        assert trajkit.verify(killed).ok
        renewed = len(fit.steps) == 8
        np.testing.assert_array_equal(fit.slope("w"), new if renewed else old)
        folders = list((killed / "fits" / "default").glob("arrays-*"))
        outcomes.append((renewed, len(folders)))
        trajkit.fit(killed)
        left = {p.name for p in (killed / "fits" / "default").iterdir()}
        kept = trajkit.open(killed).fits["default"].folder.name
        assert left == {"zarr.json", "notes.txt", kept}
    assert len(set(outcomes)) > 1, f"the kills were not spread: {outcomes}"


@pytest.mark.parametrize("once", [False, True], ids=["today's form", "the first form"])
def test_an_error_at_every_touch_of_the_disk(
    store: Path, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    """The n-th fsync, rename, mkdir or removal fails, for every n: the old fit, or the new."""
    if once:
        as_once_kept(store)
    countdown = [0]

    def failing(touch: Callable[..., object]) -> Callable[..., object]:
        def touch_or_fail(*arguments: object, **options: object) -> object:
            countdown[0] -= 1
            if countdown[0] == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return touch(*arguments, **options)

        return touch_or_fail

    n, seen = 0, set()
    while True:
        n += 1
        copy = Path(shutil.copytree(store, store.with_name(f"{n}.zarr")))
        countdown[0] = n
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync))
            patch.setattr(os, "rmdir", failing(os.rmdir))
            for name in ("replace", "mkdir", "unlink"):
                patch.setattr(Path, name, failing(getattr(Path, name)))
            try:
                trajkit.fit(copy)
            except StorageError as error:
                seen.add(str(error).partition(": ")[2])
            else:
                if countdown[0] > 0:
                    break
        fit = trajkit.open(copy).fits["default"]
        assert trajkit.verify(copy).ok, f"touch {n}"
        if len(fit.steps) == 4 and not once:
            assert sorted(p.name for p in fit.path.iterdir()) == [fit.folder.name, "zarr.json"]
        assert len(trajkit.fit(copy).steps) == 8
        shutil.rmtree(copy)
    assert n > 25
    assert len(seen) == 1


def test_a_full_disk_keeps_no_partial_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        values_TN = np.outer(np.arange(4.0), np.ones(150_000))
        trajkit.ingest(write_values(tmp_path / "big", [0, 1, 2, 3], values_TN), disk / "s.zarr")
        before = sorted(disk.rglob("*"))
        with pytest.raises(StorageError, match=r"the fit takes 2.55 MB, and .* are free"):
            trajkit.fit(disk / "s.zarr")
        monkeypatch.setattr(fit_module, "check_room", lambda store, needed: None)
        with pytest.raises(StorageError, match="No space left on device"):
            trajkit.fit(disk / "s.zarr")
        assert [p for p in sorted(disk.rglob("*")) if p.is_file()] == [
            p for p in sorted({*before, disk / "s.zarr/fits/zarr.json"}) if p.is_file()
        ]
        assert trajkit.open(disk / "s.zarr").fits == {}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("once", [False, True])
def test_an_open_fit_never_returns_anothers_numbers(store: Path, once: bool) -> None:
    if once:
        as_once_kept(store)
    opened = trajkit.open(store).fits["default"]
    before = opened.slope("w")
    trajkit.fit(store)
    for read in (lambda: opened.slope("w"), opened.summary):
        with pytest.raises(Mismatch, match="replaced or dropped since it was opened; open it ag"):
            read()
    now = trajkit.open(store).fits["default"]
    assert (now.slope("w") != before).any()
    assert trajkit.verify(store).ok


def test_a_table_that_an_earlier_trajkit_kept_as_parquet_reads_as_it_did(store: Path) -> None:
    fit = trajkit.open(store).fits["default"]
    rows = fit.rows()
    earlier = with_parquet(store)
    once = trajkit.open(store).fits["default"]
    assert once.rows() == rows
    assert trajkit.verify(store).ok
    trajkit.fit(store)
    assert not earlier.exists()
    assert len(trajkit.open(store).fits["default"].rows()) == len(rows)


def test_a_fit_of_the_first_form_reads_as_it_did(store: Path) -> None:
    fit = trajkit.open(store).fits["default"]
    before = [fit.slope("w"), fit.rsq("w"), fit.summary(), fit.describe()]
    del before[3]["result_bytes"]
    as_once_kept(store)
    once = trajkit.open(store).fits["default"]
    assert once.folder == once.path
    after = [once.slope("w"), once.rsq("w"), once.summary(), once.describe()]
    del after[3]["result_bytes"]  # parquet is not as large as JSON
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2].equals(after[2])
    assert before[3] == after[3]
    assert trajkit.verify(store).ok
    trajkit.fit(store)
    assert {p.name for p in once.path.iterdir()} == {
        "zarr.json",
        trajkit.open(store).fits["default"].folder.name,
    }


def test_an_extrapolation_never_mixes_two_fits(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = chunks_module.Evaluator.run

    def replace_and_run(self: chunks_module.Evaluator, *arguments: object) -> object:
        trajkit.fit(store)
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(chunks_module.Evaluator, "run", replace_and_run)
    with pytest.raises(Mismatch, match="replaced or dropped since it was opened"):
        trajkit.extrapolate(store, 100, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_fit_breaks_nothing(store: Path) -> None:
    fits = store / "fits"
    (fits / "notes.txt").write_text("mine")
    (fits / "notes.d").mkdir()
    (fits / "plots").mkdir()
    (fits / "plots" / "a.png").write_text("mine")
    (fits / "group").mkdir()
    (fits / "group" / "zarr.json").write_bytes(GROUP)
    (fits / "a b").symlink_to(fits / "default")
    (fits / "link").symlink_to(fits / "default")
    assert fit_names(Store.open(store)) == ["default"]
    assert list(trajkit.open(store).fits) == ["default"]
    assert trajkit.verify(store).ok
    assert list(describe_store(Store.open(store)).fits) == ["default"]
    trajkit.fit(store)
    for name in ("group", "link", "notes.txt"):
        with pytest.raises(AlreadyExists, match=name):
            trajkit.fit(store, name=name)
        with pytest.raises(NotFound):
            drop_fit(Store.open(store), name)
    trajkit.fit(store, name="plots")
    drop_fit(Store.open(store), "plots")
    assert (fits / "plots" / "a.png").read_text() == "mine"
    assert [p.name for p in (fits / "plots").iterdir()] == ["a.png"]


def test_a_damaged_fit_is_told_and_the_others_go_on(store: Path) -> None:
    trajkit.fit(store, name="good")
    record = store / "fits" / "default" / "zarr.json"
    content = record.read_bytes()
    record.write_bytes(content.replace(b'"device": "cpu"', b'"device": "cpv"'))
    with pytest.warns(UserWarning, match="damaged; run trajkit fit again"):
        assert list(trajkit.open(store).fits) == ["good"]
    info = describe_store(Store.open(store))
    assert list(info.fits) == ["good"]
    assert len(info.unreadable_fits) == 1
    assert len(trajkit.verify(store).bad) == 1
    trajkit.fit(store)
    assert trajkit.verify(store).ok


def test_dropping_takes_the_fit_and_only_that(store: Path) -> None:
    trajkit.fit(store, name="other")
    opened = trajkit.open(store).fits["default"]
    held = describe_store(Store.open(store)).fit_bytes["default"]
    assert held == sum(p.stat().st_size for p in opened.path.rglob("*") if p.is_file())
    assert drop_fit(Store.open(store), "default") == held
    assert not opened.path.exists()
    assert list(trajkit.open(store).fits) == ["other"]
    assert trajkit.verify(store).ok
    with pytest.raises(NotFound, match="no fit 'default' \\(there are: other\\)"):
        drop_fit(Store.open(store), "default")
    with pytest.raises(Mismatch, match="dropped"):
        opened.mean("w")


@pytest.mark.parametrize("name", ["zarr.json", "x" * 300, "", "..", "a/b", "a\n", "CON", "\udcff"])
def test_names_that_no_fit_can_have(store: Path, name: str) -> None:
    for verb in (trajkit.fit, lambda path, name: drop_fit(Store.open(path), name)):
        with pytest.raises(InvalidInput, match="not a fit name") as caught:
            verb(store, name=name)
        assert len(str(caught.value)) < 200
    trajkit.fit(store, name="x" * 100)
    assert set(trajkit.open(store).fits) == {"default", "x" * 100}


def test_an_interrupted_first_fit_leaves_nothing(store: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trajkit.fit(store, name="never", progress=stop)
    assert not (store / "fits" / "never").exists()


def test_the_plan_says_what_the_fit_will_do(store: Path) -> None:
    before = sorted(store.rglob("*"))
    plan = plan_fit(store, keep_sums=True, name="x")
    assert (plan.replaces, plan.checkpoints, plan.frames_read) == (None, 8, 8)
    assert sorted(store.rglob("*")) == before
    fit = trajkit.fit(store, keep_sums=True, name="x")
    written = sum(p.stat().st_size for p in fit.folder.rglob("c/*"))
    assert written <= plan.n_bytes_written + 2000  # sums are compressed; indexes come on top
    assert plan.n_bytes_read == 8 * 300 * 2
    again = plan_fit(store, name="x")
    assert again.replaces == "the fit 'x' of 8 checkpoints, steps 0 to 70"
    assert again.frames_read == 0
    assert again.n_bytes_written == 300 * 17
    with pytest.raises(InvalidInput, match="the window has 1"):
        plan_fit(store, from_step=70)


def test_steps_beyond_float64_are_one_line(tmp_path: Path) -> None:
    values_TN = np.outer(np.arange(3.0), np.ones(4))
    write_values(tmp_path / "c", [5, 6, 2**53 + 2], values_TN)
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    with pytest.raises(InvalidInput, match="step 9007199254740994 is beyond 2\\^53"):
        trajkit.fit(tmp_path / "s.zarr")
    assert len(trajkit.fit(tmp_path / "s.zarr", to_step=6).steps) == 2


@pytest.mark.parametrize("memory", ["9" * 24, "9" * 400, "1" * 24 + "TiB"])
def test_more_memory_than_there_is_is_one_line(store: Path, memory: str) -> None:
    with pytest.raises(InvalidInput, match="is more memory than there is") as caught:
        trajkit.fit(store, memory=memory)
    assert len(str(caught.value)) < 150
