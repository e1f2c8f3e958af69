"""Crashes: whatever instant a writer dies at, what was committed is whole, and it goes on."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize
from store_series import any_bits, contents, drift, same_bits, small_series, write_checkpoint

import trajkit
from trajkit.checkpoints.header import HalfWritten
from trajkit.errors import Locked, NotFound, StorageError, TrajkitError
from trajkit.reports.verify import verify
from trajkit.store import writer as writer_module
from trajkit.store.lock import StoreLock
from trajkit.store.store import Store

KILLS = 50
STEPS = 12


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses nothing the kernel has."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="trajkit-test-") as folder:
        yield Path(folder)


def check_committed(store: Path, series: list[dict[str, np.ndarray]]) -> int:
    """Every committed step is bit-exact, and every byte verifies: the number of steps."""
    if not (store / "zarr.json").exists():
        return 0
    traj = trajkit.open(store)
    for i, step in enumerate(traj.steps.tolist()):
        assert step == 10 * (i + 1)
        for name, array in series[i].items():
            assert same_bits(traj.read(name, step), array)
    assert verify(store).bad == ()
    return len(traj.steps)


KILLER = """
import json, os, pathlib, random, signal, sys, time
sys.path.insert(0, sys.argv[4])
from trajkit.store.ingest import ingest
ckpts, store, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
ingest(ckpts, store + ".warm", memory="64MiB")  # imports, compiled kernels
started = time.perf_counter()
ingest(ckpts, store + ".timed", memory="64MiB")
whole = time.perf_counter() - started
rng = random.Random(4)

def committed(path):
    root = pathlib.Path(path, "zarr.json")
    return len(json.loads(root.read_bytes())["attributes"]["steps"]) if root.exists() else 0

for i in range(kills):
    child = os.fork()  # no thread is running here
    if child == 0:
        ingest(ckpts, f"{store}.{i}", memory="64MiB")
        os._exit(0)
    until = rng.randrange(12)  # a random step, and a random instant of the one after it
    while committed(f"{store}.{i}") < until:
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 1.2 * whole / 12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_sigkill_at_random_instants(fast_path: Path) -> None:
    """Fifty writers, each killed somewhere; each store is whole, and running again completes it."""
    tmp_path = fast_path
    rng = np.random.default_rng(0)
    first = {
        "a": any_bits(rng, "bfloat16", (300, 40)),
        "b": any_bits(rng, "float32", (500,)),
    }
    series = drift(rng, first, STEPS)
    for i, state in enumerate(series):
        write_checkpoint(tmp_path / "ckpts" / f"checkpoint-{10 * (i + 1)}", state, config={"i": i})
    store = tmp_path / "s.zarr"
    here = str(Path(__file__).resolve().parent.parent)
    subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path / "ckpts", store, str(KILLS), here], check=True
    )
    reached = []
    for i in range(KILLS):
        killed = tmp_path / f"s.zarr.{i}"
        reached.append(check_committed(killed, series))
        trajkit.ingest(tmp_path / "ckpts", killed)
        assert check_committed(killed, series) == STEPS
        if reached[-1] < STEPS:  # killed after the last commit there is nothing to go on with
            assert not list(killed.rglob("*.part"))
            assert not (killed / ".lock").exists()
            continued = killed
    assert len(set(reached)) > 3, f"the kills were not spread: {sorted(reached)}"
    whole = contents(tmp_path / "s.zarr.timed")
    assert contents(continued) == whole, "a store that was continued is the store written at once"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_at_every_touch_of_the_disk(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The n-th fsync, rename or mkdir fails, for every n; committed steps stay whole."""
    tmp_path = fast_path
    small_series(tmp_path / "ckpts", 3, config={})
    series = [
        {n: read_tensor(tmp_path, i, n) for n in ("model.norm.weight", "model.head.weight")}
        for i in range(3)
    ]
    store = tmp_path / "s.zarr"
    countdown = [0]

    def touch() -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device") if error is OSError else error

    fsync, replace, mkdir = os.fsync, Path.replace, Path.mkdir

    def failing_fsync(fd: int) -> None:
        touch()
        fsync(fd)

    def failing_replace(self: Path, target: Path) -> Path:
        touch()
        return replace(self, target)

    def failing_mkdir(self: Path, *args: object, **kwargs: object) -> None:
        touch()
        mkdir(self, *args, **kwargs)  # type: ignore[arg-type]

    seen = set()
    for n in range(1, 400):
        countdown[0] = n
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing_fsync)
            patch.setattr(Path, "replace", failing_replace)
            patch.setattr(Path, "mkdir", failing_mkdir)
            try:
                trajkit.ingest(tmp_path / "ckpts", store)
            except (StorageError, KeyboardInterrupt) as caught:
                seen.add(str(caught).partition(": ")[2])
            else:
                break
        check_committed(store, series)
        if n % 7 == 0 and store.exists():  # otherwise the next call continues from here
            shutil.rmtree(store)
    else:
        pytest.fail("it never ended")
    assert n > 30
    assert len(seen) == 1
    assert "No space left on device; what was" in seen.pop() or error is KeyboardInterrupt
    assert check_committed(store, series) == 3


def test_a_writer_that_dies_while_it_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writer dies too, at every touch of the disk: nothing looks damaged."""
    folders = small_series(tmp_path / "ckpts", 3)
    base = tmp_path / "base.zarr"
    trajkit.ingest(folders[:2], base)
    with monkeypatch.context() as patch:  # all of the third step but its commit
        replace_file = writer_module.replace_file

        def die_at_the_commit(path: Path, content: bytes) -> None:
            if path == base / "zarr.json":
                raise KeyboardInterrupt
            replace_file(path, content)

        patch.setattr(writer_module, "replace_file", die_at_the_commit)
        with pytest.raises(KeyboardInterrupt):
            trajkit.ingest(folders, base)
    assert (base / "frames" / "bfloat16" / "c" / "2").exists()
    for n in range(1, 31):  # 26 touches to clear up, then the append begins
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
            with pytest.raises(KeyboardInterrupt):
                trajkit.ingest(folders, store)
        assert verify(store).bad == (), f"killed at touch {n}"
        trajkit.ingest(folders, store)
        assert len(trajkit.open(store).steps) == 3
    assert verify(store, against=tmp_path / "ckpts").exact == 3


def read_tensor(tmp_path: Path, i: int, name: str) -> np.ndarray:
    """A tensor of the i-th checkpoint of the series, by safetensors' own reader."""
    content = (tmp_path / "ckpts" / f"checkpoint-{10 * (i + 1)}" / "model.safetensors").read_bytes()
    entry = dict(deserialize(content))[name]
    scalar = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}[entry["dtype"]]
    return np.frombuffer(entry["data"], scalar).reshape(entry["shape"])


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """On a real file system of 400 kB: ingest fills it, fails cleanly, and continues later."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        small_series(tmp_path / "ckpts", 30, elements=20_000)
        with pytest.raises(StorageError, match="No space left on device; what was committed is"):
            trajkit.ingest(tmp_path / "ckpts", disk / "s.zarr")
        held = len(Store.open(disk / "s.zarr").steps)
        assert 0 < held < 30
        assert verify(disk / "s.zarr", against=tmp_path / "ckpts").compared == held
        with pytest.raises(StorageError, match="No space left on device"):
            trajkit.ingest(tmp_path / "ckpts", disk / "s.zarr")
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        trajkit.ingest(tmp_path / "ckpts", disk / "s.zarr")
        result = verify(disk / "s.zarr", against=tmp_path / "ckpts")
        assert (result.bad, result.exact) == ((), 30)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        small_series(tmp_path / "ckpts", 31, elements=20_000)
        with pytest.raises(StorageError, match="Read-only file system"):
            trajkit.ingest(tmp_path / "ckpts", disk / "s.zarr")
        with pytest.raises(StorageError, match="Read-only file system"):
            trajkit.ingest(tmp_path / "ckpts", disk / "new.zarr")
        assert verify(disk / "s.zarr").ok, "reading needs no write"
        assert len(trajkit.open(disk / "s.zarr").steps) == 30
        trajkit.restore(trajkit.open(disk / "s.zarr"), 30, tmp_path / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_removed_in_mid_ingest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = small_series(tmp_path / "ckpts", 5)
    appended = writer_module.StoreWriter.append

    def append_and_remove(self: writer_module.StoreWriter, *args: object) -> object:
        frame = appended(self, *args)  # type: ignore[arg-type]
        if frame.step == 20:
            (folders[2] / "model.safetensors").unlink()
        return frame

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.StoreWriter, "append", append_and_remove)
        with pytest.raises(NotFound, match="checkpoint-30: no weights"):
            trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert trajkit.open(tmp_path / "s.zarr").steps.tolist() == [10, 20]
    result = trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert result.steps == 4
    assert verify(tmp_path / "s.zarr", against=tmp_path / "ckpts").ok


def test_a_checkpoint_written_to_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = small_series(tmp_path / "ckpts", 2)
    write_frame = writer_module.StoreWriter._write_frame
    file = folders[1] / "model.safetensors"

    def write_and_change(self: writer_module.StoreWriter, *args: object) -> object:
        done = write_frame(self, *args)  # type: ignore[arg-type]
        if args[2] == 1:
            with file.open("r+b") as stream:
                stream.seek(-1, os.SEEK_END)
                stream.write(b"\x55")
            os.utime(file, ns=(1, 1))
        return done

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.StoreWriter, "_write_frame", write_and_change)
        with pytest.raises(
            HalfWritten, match=r"model.safetensors: changed while it was being read"
        ):
            trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert trajkit.open(tmp_path / "s.zarr").steps.tolist() == [10]
    assert trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr").steps == 2
    assert verify(tmp_path / "s.zarr", against=tmp_path / "ckpts").ok


INGEST = (
    "import sys; from trajkit.store.ingest import ingest; print(ingest(sys.argv[1], sys.argv[2]))"
)


def test_two_writers_at_once(tmp_path: Path) -> None:
    """While one holds the lock, another fails and says who; when it is let go, it works."""
    small_series(tmp_path / "ckpts", 3)
    store = tmp_path / "s.zarr"
    trajkit.ingest(tmp_path / "ckpts" / "checkpoint-10", store)
    command = [sys.executable, "-c", INGEST, str(tmp_path / "ckpts"), str(store)]
    with StoreLock(store):
        other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert f"process {os.getpid()} on " in other.stderr
    assert "is writing to this store; wait until it is done" in other.stderr
    assert len(Store.open(store).steps) == 1
    subprocess.run(command, capture_output=True, check=True)
    assert len(Store.open(store).steps) == 3
    assert not (store / ".lock").exists()


def test_a_race_of_writers_ends_with_every_step(tmp_path: Path) -> None:
    """Four writers started together: each wins or says who did; the store is as one wrote it."""
    folders = small_series(tmp_path / "ckpts", 8)
    assert len(folders) == 8
    store = tmp_path / "s.zarr"
    command = [sys.executable, "-c", INGEST, str(tmp_path / "ckpts"), str(store)]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = [(racer.communicate()[1], racer.returncode) for racer in racers]
    assert any(code == 0 for _, code in ends)
    for text, code in ends:
        assert code == 0 or "Locked" in text, text
    assert verify(store, against=tmp_path / "ckpts").exact == 8


def test_a_lock_file_left_by_a_killed_writer_is_free(tmp_path: Path) -> None:
    small_series(tmp_path / "ckpts", 1)
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / ".lock").write_text("process 1 on elsewhere")
    assert trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr").steps == 1


def test_a_lock_without_a_name_still_locks(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Locked, match="another process is writing"), StoreLock(tmp_path):
            pass


def test_nothing_is_left_where_nothing_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_series(tmp_path / "ckpts", 1)

    def fail(*args: object) -> None:
        raise TrajkitError("stop")

    monkeypatch.setattr(writer_module.StoreWriter, "_write_frame", fail)
    with pytest.raises(TrajkitError, match="stop"):
        trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()
