"""Fit: a least-squares line through every element of every floating-point tensor, in one pass.

Each chunk of a flat vector goes its way alone: its codes are read and decompressed over all frames,
a kernel decodes and sums them (DESIGN.md has the algebra), the solution is reduced to statistics a
tensor and compressed. Workers take chunks; one thread writes the results in order.
"""

import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock, local
from typing import Any

import numpy as np
import xxhash

import trajkit
from trajkit.codecs import Array
from trajkit.design import StepAxis, null_above, null_median
from trajkit.errors import InvalidInput, NotFound, OverBudget
from trajkit.fits import (
    ARRAYS,
    DEFAULT_FIT,
    FIT_CODEC,
    Fit,
    FitRecord,
    check_fit_name,
    commit_fit,
    fit_arrays,
    prepare_fit,
)
from trajkit.kernels import api as kernels
from trajkit.kernels.sums import Solution, Stats, new_stats
from trajkit.layout import FlatVector, Plan, TensorInfo, plan_workers
from trajkit.parallel import count_workers, map_in_order
from trajkit.progress import Advanced, Finished, Progress, Started, silent
from trajkit.store import Store
from trajkit.summary import make_table, pack_table, tensor_row
from trajkit.trajectory import Trajectory
from trajkit.units import DEFAULT_MEMORY_BYTES, format_bytes, format_rate, parse_bytes
from trajkit.writer import StoreLock
from trajkit.zarrays import RowWriter

DEFAULT_THRESHOLD = 0.7
DEFAULT_MIN_DISTINCT = 4
BATCH_FRAMES = 128
"""frames of a chunk decoded into memory at once, where the budget allows"""
_SMALLEST_BATCH = 8
_STATE_BYTES = 96
"""sums and solution of one element while a chunk is in work"""


@dataclass(frozen=True, slots=True)
class Window:
    """The frames a fit uses."""

    first: int
    """frame index"""
    stop: int
    """frame index after the last"""
    axis: StepAxis

    @property
    def n_frames(self) -> int:
        """T."""
        return self.stop - self.first


@dataclass(frozen=True, slots=True)
class _Done:
    """One chunk's outcome: coded arrays in the order of ARRAYS, and statistics of tensor parts."""

    coded: tuple[bytes, ...]
    parts: tuple[tuple[TensorInfo, Stats], ...]


def fit(
    traj: Trajectory,
    rsq_threshold: float = DEFAULT_THRESHOLD,
    *,
    from_step: int | None = None,
    to_step: int | None = None,
    name: str = DEFAULT_FIT,
    device: str = "auto",
    min_range: float = 0.0,
    min_distinct: int = DEFAULT_MIN_DISTINCT,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress = silent,
) -> Fit:
    """Fit a line over the training steps to every element, and keep the fit in the store.

    Args:
        traj: the trajectory.
        rsq_threshold: R² above which an element counts as linear and is extrapolated.
        from_step: first training step of the window (default: the first in the store).
        to_step: last training step of the window (default: the last in the store).
        name: the fit's name in the store; a fit of that name is replaced.
        device: ``auto``, ``cpu`` or ``cuda``.
        min_range: elements whose max - min is at most this are counted apart (0: none).
        min_distinct: elements with fewer distinct values are counted apart.
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: fewer than two checkpoints in the window, or a threshold outside [0, 1].
        OverBudget: the budget is too small. Locked: another writer holds the store.
        FormatError: a damaged chunk; the fit that was there stays.
    """
    store = traj.store
    check_fit_name(name)
    window = choose_window(store, from_step, to_step)
    if not 0 <= rsq_threshold <= 1:
        raise InvalidInput(f"rsq_threshold must lie in [0, 1], not {rsq_threshold}")
    budget = parse_bytes(memory)
    backend = choose_device(device)
    started = time.perf_counter()
    floats = [v for v in store.vectors.values() if v.dtype.is_float]
    plans = {v.dtype.name: plan_fit(v, window.n_frames, budget) for v in floats}
    raw_bytes = window.n_frames * sum(v.n_bytes for v in floats)
    progress(Started(f"fit {window.n_frames} checkpoints on {backend}", raw_bytes))
    rows: list[dict[str, Any]] = []
    total = new_stats(rsq_threshold, window.axis.span)
    pace = _Pace()
    with StoreLock(store.path):
        part = prepare_fit(store, name)
        for vector in floats:
            plan, batch = plans[vector.dtype.name]
            job = _VectorJob(
                store, vector, window, batch, rsq_threshold, min_range, min_distinct, pace
            )
            for info, stats in job.run(part, plan, progress):
                rows.append(tensor_row(info, stats))
                total = total + stats
        seconds = time.perf_counter() - started
        record = FitRecord(
            name=name,
            steps=window.axis.steps,
            rsq_threshold=rsq_threshold,
            min_range=min_range,
            min_distinct=min_distinct,
            device=backend,
            frames_digest=window_digest(store, window),
            versions={"trajkit": trajkit.__version__, "python": platform.python_version()},
            stats={k: v.tolist() if hasattr(v, "tolist") else v for k, v in asdict(total).items()},
            null={
                "median_rsq": null_median(window.axis.steps),
                "above_threshold": null_above(window.axis.steps, rsq_threshold),
            },
            seconds=seconds,
            table_sha256="",
            dtypes=tuple(v.dtype.name for v in floats),
        )
        result = commit_fit(store, part, record, pack_table(make_table(rows)))
    seconds = time.perf_counter() - started
    progress(
        Finished(
            f"{total.elements:,} elements x {window.n_frames} checkpoints, "
            f"{format_bytes(raw_bytes)} at {format_rate(raw_bytes, seconds)}; "
            f"pace set by: {pace.slowest()}"
        )
    )
    return result


def choose_window(store: Store, from_step: int | None, to_step: int | None) -> Window:
    """The committed frames with ``from_step`` <= step <= ``to_step``."""
    steps = store.steps
    inside = np.ones(len(steps), bool)
    if from_step is not None:
        inside &= steps >= from_step
    if to_step is not None:
        inside &= steps <= to_step
    chosen = np.flatnonzero(inside)
    if len(chosen) < 2:
        held = f"{steps[0]} to {steps[-1]}" if len(steps) else "none"
        raise InvalidInput(
            f"{store.path}: a line needs 2 checkpoints or more, the window has {len(chosen)} "
            f"(steps in the store: {held}); ingest more, or widen --from-step and --to-step"
        )
    first, stop = int(chosen[0]), int(chosen[-1]) + 1
    return Window(first, stop, StepAxis.of(steps[first:stop]))


def choose_device(device: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes a CUDA device where there is one.

    Raises:
        InvalidInput: ``cuda`` was asked for and cannot be had, or an unknown name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidInput(f"unknown device {device!r}: choose auto, cpu or cuda")
    if device == "cuda":
        raise InvalidInput("--device cuda: the GPU pipeline is not there yet; use --device cpu")
    return "cpu"


def plan_fit(vector: FlatVector, n_frames: int, budget: int) -> tuple[Plan, int]:
    """Workers and frames a batch within the budget: fewer frames first, then fewer workers.

    Raises:
        OverBudget: one worker with the smallest batch does not fit.
    """
    batch = min(n_frames, BATCH_FRAMES)
    while True:
        a_worker = vector.chunk * (batch * vector.dtype.itemsize + _STATE_BYTES)
        try:
            plan = plan_workers("fit", count_workers(), a_worker, budget)
        except OverBudget:
            if batch <= _SMALLEST_BATCH:
                raise
        else:
            if plan.workers == count_workers() or batch <= _SMALLEST_BATCH:
                return plan, batch
        batch = max(batch // 2, min(_SMALLEST_BATCH, n_frames))


def window_digest(store: Store, window: Window) -> str:
    """xxh3-128 over the frames' digests: which bits a fit is of."""
    frames = store.commit.frames[window.first : window.stop]
    return xxhash.xxh3_128_hexdigest("".join(f.digest for f in frames).encode())


class _Pace:
    """Seconds a stage, summed over workers."""

    def __init__(self) -> None:
        self.seconds = {"read and decompress": 0.0, "fit": 0.0, "compress": 0.0, "write": 0.0}
        self._lock = Lock()

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] += seconds

    def slowest(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)


class _VectorJob:
    """The fit of one flat vector, chunk by chunk."""

    def __init__(
        self,
        store: Store,
        vector: FlatVector,
        window: Window,
        batch: int,
        threshold: float,
        min_range: float,
        min_distinct: int,
        pace: _Pace,
    ) -> None:
        self.store = store
        self.vector = vector
        self.dtype = vector.dtype.name
        self.window = window
        self.batch = batch
        self.threshold = threshold
        self.min_range = min_range
        self.min_distinct = min_distinct
        self.pace = pace
        self.steps = np.array(window.axis.steps, np.float64)
        self._mine = local()

    def run(self, part: Path, plan: Plan, progress: Progress) -> Iterator[tuple[TensorInfo, Stats]]:
        """Fit all chunks and write the arrays; yields every tensor's statistics once complete."""
        arrays = fit_arrays(part, self.vector)
        chunk_bytes = self.window.n_frames * self.vector.dtype.itemsize
        unfinished: dict[str, Stats] = {}
        seen = 0
        with ExitStack() as stack:
            writers = [stack.enter_context(RowWriter(arrays[name])) for name in ARRAYS]
            pool = stack.enter_context(ThreadPoolExecutor(plan.workers))
            chunks = range(self.vector.n_chunks)
            for k, done in map_in_order(pool, self._fit_chunk, chunks, plan.workers + 1):
                clock = time.perf_counter()
                for writer, coded in zip(writers, done.coded, strict=True):
                    writer.append(coded)
                self.pace.add("write", time.perf_counter() - clock)
                for info, stats in done.parts:
                    if info.name in unfinished:
                        stats = unfinished.pop(info.name) + stats
                    if stats.elements == info.size:
                        seen += 1
                        yield info, stats
                    else:
                        unfinished[info.name] = stats
                start, stop = self.vector.chunk_span(k)
                progress(Advanced((stop - start) * chunk_bytes))
        for array in arrays.values():
            array.write_metadata()
        for info in self.vector.tensors:
            if not info.size:
                yield info, new_stats(self.threshold, self.window.axis.span)

    def _fit_chunk(self, k: int) -> _Done:
        start, stop = self.vector.chunk_span(k)
        n = stop - start
        solution = self._solve(k, n)
        clock = time.perf_counter()
        parts = tuple(
            (span.tensor, self._summarise(solution, span.at, span.at + span.stop - span.start))
            for span in self.vector.spans(start, stop)
        )
        middle = time.perf_counter()
        columns = {
            "slope": solution.slope,
            "mean": solution.mean,
            "rsq": solution.rsq,
            "last": solution.bits_last,
            "flags": solution.flags,
        }
        coded = tuple(FIT_CODEC.encode(self._padded(columns[name])) for name in ARRAYS)
        self.pace.add("fit", middle - clock)
        self.pace.add("compress", time.perf_counter() - middle)
        return _Done(coded, parts)

    def _solve(self, k: int, n: int) -> Solution:
        """The line of every element of chunk ``k``."""
        sums = None
        window = self.window
        codes = self._code_buffer()
        is_key = np.zeros(len(codes), bool)
        for begin in range(window.first, window.stop, self.batch):
            end = min(begin + self.batch, window.stop)
            clock = time.perf_counter()
            for row, t in enumerate(range(begin, end)):
                if t == window.first and not self.store.is_key(t):
                    scratch = np.empty(self.vector.chunk, self.vector.dtype.bits)
                    self.store.read_bits(self.dtype, t, k, codes[row], scratch)
                    is_key[row] = True
                else:
                    self.store.read_codes(self.dtype, t, k, codes[row])
                    is_key[row] = self.store.is_key(t)
            middle = time.perf_counter()
            batch, keys = codes[: end - begin, :n], is_key[: end - begin]
            steps = self.steps[begin - window.first : end - window.first]
            if window.n_frames <= self.batch:
                solution = kernels.fit_frames(
                    batch, keys, steps, self.dtype, min_range=self.min_range, few=self.min_distinct
                )
            else:
                if sums is None:
                    sums = kernels.new_sums(n, self.dtype, window.axis.mean, window.axis.unit)
                kernels.accumulate_frames(batch, keys, steps, sums)
            self.pace.add("read and decompress", middle - clock)
            self.pace.add("fit", time.perf_counter() - middle)
        if sums is not None:
            solution = kernels.solve(sums, min_range=self.min_range, few=self.min_distinct)
        return solution

    def _summarise(self, solution: Solution, start: int, stop: int) -> Stats:
        part = Solution(
            *(
                getattr(solution, f)[start:stop]
                for f in ("slope", "mean", "rsq", "flags", "dw", "drift_t", "bits_last")
            )
        )
        return kernels.summarise(part, self.threshold, self.window.axis.span, self.dtype)

    def _code_buffer(self) -> Array:
        """The calling thread's codes, unsigned [batch, C]."""
        if not hasattr(self._mine, "codes"):
            shape = (self.batch, self.vector.chunk)
            self._mine.codes = np.empty(shape, self.vector.dtype.bits)
        return self._mine.codes  # type: ignore[no-any-return]  # thread-local attributes are untyped

    def _padded(self, values: Array) -> Array:
        if len(values) == self.vector.chunk:
            return np.ascontiguousarray(values)
        out = np.zeros(self.vector.chunk, values.dtype)
        out[: len(values)] = values
        return out


__all__ = ["NotFound", "choose_device", "choose_window", "fit", "plan_fit"]
