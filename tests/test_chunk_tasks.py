"""The fit's seams: tasks that go to any process, sources that are no store, files within a limit."""

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from series_on_disk import write_values

import trajkit
from trajkit.checkpoints.layout import FlatVector, lay_out
from trajkit.errors import Mismatch, OverBudget
from trajkit.fits.arrays import fit_arrays
from trajkit.fits.plan import plan_vector
from trajkit.fits.source import OpenOnce, StoreName
from trajkit.fits.tasks import ChunkTask, FitOptions, run_chunk
from trajkit.fits.vector import VectorFit
from trajkit.fits.window import Window, choose_window
from trajkit.kernels import api as kernels
from trajkit.parallel import plan_workers
from trajkit.progress import silent
from trajkit.stats.axis import StepAxis
from trajkit.store.store import Store
from trajkit.store.writer import StoreWriter

OPTIONS = FitOptions("cpu", 0.7, 0.0, 4, True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Twelve checkpoints of 1,000 elements in chunks of 256."""
    monkeypatch.setattr(StoreWriter.create, "__defaults__", (256,))
    rng = np.random.default_rng(0)
    values_TN = np.cumsum(rng.normal(0, 1e-3, (12, 1000)), axis=0)
    write_values(tmp_path / "c", list(range(12)), values_TN)
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr", keyframes=5)
    return Store.open(tmp_path / "s.zarr")


def tasks_of(store: Store, batch: int = 4) -> list[ChunkTask]:
    vector = store.vectors["bfloat16"]
    window = choose_window(store, 2, None)  # begins between two key frames
    plan, _ = plan_vector(vector, window.n_frames, 2**30)
    name = StoreName.of(store, window, plan)
    return list(VectorFit(name, vector, window, batch, OPTIONS, None).tasks())


def test_a_chunk_task_goes_to_another_process_and_gives_the_same_bits(store: Store) -> None:
    tasks = tasks_of(store)
    assert len(tasks) == 4
    assert all(pickle.loads(pickle.dumps(task)) == task for task in tasks)
    here = [run_chunk(task) for task in tasks]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        there = list(pool.map(run_chunk, tasks))
    for a, b in zip(here, there, strict=True):
        assert a.coded == b.coded
        assert a.scalars == b.scalars
        assert [info for info, *_ in a.parts] == [info for info, *_ in b.parts]
        for (_, *x), (_, *y) in zip(a.parts, b.parts, strict=True):
            assert pickle.dumps(x) == pickle.dumps(y)


def test_a_task_refuses_a_store_made_anew(store: Store, tmp_path: Path) -> None:
    task = tasks_of(store)[0]
    other = replace(task, source=replace(task.source, frames_digest="0" * 32))
    with pytest.raises(Mismatch, match="replaced meanwhile"):
        run_chunk(other)


@dataclass(frozen=True)
class InMemory:
    """A source that is no store: float32 series made up by a seed, every frame a key frame."""

    seed: int

    def open(self) -> "MadeUp":
        return MadeUp(self.seed)


class MadeUp:
    def __init__(self, seed: int) -> None:
        self._vectors = lay_out([("logp", "float32", (500,))], chunk=128)
        rng = np.random.default_rng(seed)
        self.values_TN = np.cumsum(rng.normal(0, 1, (9, 512)), axis=0).astype(np.float32)
        self.closed = False

    @property
    def vectors(self) -> Mapping[str, FlatVector]:
        return self._vectors

    def is_key(self, t: int) -> bool:
        return True

    def read_codes(self, dtype: str, frames: range, k: int, out_TN: np.ndarray) -> None:
        codes_TN = self.values_TN.view(np.uint32)
        out_TN[:] = codes_TN[frames.start : frames.stop, 128 * k : 128 * (k + 1)]

    def read_events(self, *_: object) -> None:
        return None

    def read_bits(self, dtype: str, t: int, k: int, out: np.ndarray) -> None:
        raise AssertionError("every frame is a key frame")

    def check_bits(self, dtype: str, t: int, k: int, bits: np.ndarray) -> None:
        stop = min(128 * (k + 1), 500)
        assert np.array_equal(bits, self.values_TN.view(np.uint32)[t, 128 * k : stop])

    def close(self) -> None:
        self.closed = True


def test_a_source_that_is_no_store_is_fitted_by_the_same_code(tmp_path: Path) -> None:
    source = MadeUp(3)
    window = Window(0, 9, StepAxis.of(list(range(0, 90, 10))))
    vector = source.vectors["float32"]
    options = replace(OPTIONS, keep_sums=False)
    job = VectorFit(InMemory(3), vector, window, 9, options, None)
    done = list(job.run(tmp_path, 2, silent))
    assert [(info.name, stats.elements) for info, stats, _ in done] == [("logp", 500)]
    expected = kernels.fit_frames(
        np.ascontiguousarray(source.values_TN.view(np.uint32)[:, :500]),
        np.ones(9, bool),
        np.array(window.axis.steps, np.float64),
        "float32",
    )
    arrays = fit_arrays(tmp_path, vector)
    # chunks of 128 end elsewhere in the kernel's tiles: float32 sums in another order
    np.testing.assert_allclose(arrays["slope"].read_row(), expected.slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(arrays["rsq"].read_row(), expected.rsq, atol=1e-5)
    np.testing.assert_array_equal(arrays["last"].read_row(), expected.bits_last)


class Thing:
    def __init__(self, key: int) -> None:
        self.key = key
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def test_what_is_in_use_is_never_closed() -> None:
    once = OpenOnce(Thing)
    barrier = Barrier(2, timeout=30)

    def work(key: int) -> bool:
        with once.using(key) as thing:
            barrier.wait()
            if key == 0:
                once.close()
            barrier.wait()
            closed = thing.closed
        return not closed

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, (0, 1))) == [True, True]
    with once.using(1) as kept, once.using(2), once.using(3):
        pass
    once.close()
    assert kept.closed
    with once.using(2) as again:
        assert not again.closed


LIMITED = """
import resource, sys
limit, store = int(sys.argv[1]), sys.argv[2]
import numba, numpy, polars, google_crc32c, trajkit.kernels.cpu.launch
import trajkit.fits.plan as plan, trajkit.parallel as parallel
from trajkit.fits.fit import fit
plan.count_workers = lambda: 8
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
fit(store, keep_sums=True)
fit(store, name="low", memory="64MiB")
"""


def test_many_checkpoints_on_eight_workers_stay_within_the_limit_of_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,290 files were opened at once for more than 256 checkpoints; 1,024 are allowed mostly."""
    n_frames, n = 300, 4000
    monkeypatch.setattr(StoreWriter.create, "__defaults__", (256,))
    rng = np.random.default_rng(1)
    values_TN = np.cumsum(rng.normal(0, 1e-3, (n_frames, n)), axis=0)
    write_values(tmp_path / "c", list(range(n_frames)), values_TN)
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    subprocess.run([sys.executable, "-c", LIMITED, "120", tmp_path / "s.zarr"], check=True)
    fits = trajkit.open(tmp_path / "s.zarr").fits
    np.testing.assert_allclose(
        fits["low"].slope("w"), fits["default"].slope("w"), rtol=1e-3, atol=1e-9
    )
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "40", tmp_path / "s.zarr"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OverBudget: fit needs to open" in done.stderr
    assert "raise the limit with 'ulimit -n'" in done.stderr


def test_fewer_files_make_fewer_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajkit.parallel.count_free_files", lambda: 30)
    assert plan_workers("x", 8, 1, 100).workers == 7
    assert plan_workers("x", 8, 1, 100, fixed_files=19).workers == 2
    assert plan_workers("x", 8, 1, 100, fixed_files=19).files == 11
    with pytest.raises(OverBudget, match="needs to open 3 files more"):
        plan_workers("x", 8, 1, 100, fixed_files=29)
