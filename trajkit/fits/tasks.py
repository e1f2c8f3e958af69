"""One chunk of a fit: a value that goes to any thread or process, and the function that does it.

A worker reads a chunk's codes over all frames, its device decodes and sums them, the solution is
reduced to statistics a tensor and coded. What it needs open it opens itself, once a thread
(:func:`_device_worker`) or once a process (:data:`trajkit.fits.source.SOURCES`).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from threading import local
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector, TensorInfo
from trajkit.fits.arrays import FIT_CODEC, SUMS, SUMS_CODEC, fit_arrays, sums_arrays
from trajkit.fits.devices import CpuWorker, DeviceWorker, open_worker
from trajkit.fits.sample import Codes, sample_movement
from trajkit.fits.source import SOURCES, CodeSource, SourceName
from trajkit.fits.sums import KeptSums
from trajkit.fits.window import Window
from trajkit.kernels import api as kernels
from trajkit.kernels.events import Events
from trajkit.kernels.flags import FLAG_BELOW_THRESHOLD
from trajkit.kernels.state import Solution, Stats, Sums
from trajkit.stats.movement import Movement
from trajkit.stats.rounding import count_changes
from trajkit.store.array import ZArray
from trajkit.store.audit import Audit


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What is asked of every element, and where."""

    device: str
    """``cpu`` or ``cuda``"""
    threshold: float
    min_range: float
    min_distinct: int
    keep_sums: bool
    distinct_in: str | None = None
    """the format in which distinct values are counted; None: the elements' own"""


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """One chunk of a fit: all that a worker is told, and nothing that it has to hold."""

    source: SourceName
    dtype: str
    """which flat vector"""
    k: int
    """which chunk of it"""
    window: Window
    batch: int
    """frames decoded at once"""
    options: FitOptions
    prior: KeptSums | None
    """sums of the window's beginning, to go on from"""

    @property
    def first(self) -> int:
        """The first frame that is read."""
        return self.window.first + (0 if self.prior is None else self.prior.n_frames)


@dataclass(slots=True)
class StageTimings:
    """Seconds a stage, summed over workers, to say which one sets the pace."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Count some time for a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def merge(self, other: "StageTimings") -> None:
        """Count another worker's."""
        for stage, seconds in other.seconds.items():
            self.add(stage, seconds)

    def slowest(self) -> str:
        """The stage with the most time in it; "nothing" where there is none.

        >>> timings = StageTimings({"read": 1.0, "fit": 2.0})
        >>> timings.slowest()
        'fit'
        """
        return max(self.seconds, key=self.seconds.__getitem__, default="nothing")


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What became of one chunk."""

    coded: Mapping[str, bytes]
    """its part of each of the fit's arrays, as it goes to the disk"""
    scalars: Mapping[str, float]
    """of the sums, where they are kept"""
    parts: tuple[tuple[TensorInfo, Stats, Movement], ...]
    """the statistics of the parts of tensors that lie in it, and how often their elements moved"""
    timings: StageTimings
    by_events: bool
    """whether it was fitted from its changes, not from its frames"""


def run_chunk(task: ChunkTask) -> ChunkResult:
    """Fit one chunk, in whatever thread or process this is.

    Raises:
        FormatError: a damaged chunk. Unsupported: the device does not fit such elements.
    """
    timings = StageTimings()
    with SOURCES.using(task.source) as source:
        vector = source.vectors[task.dtype]
        start, stop = vector.chunk_span(task.k)
        done = _solve_events(task, source, vector, timings)
        solution, sums, codes = done or _solve(task, source, vector, timings)
    clock = time.perf_counter()
    parts = []
    for span in vector.spans(start, stop):
        where = slice(span.at, span.at + span.stop - span.start)
        if codes is not None:
            moves = sample_movement(codes, where, task.dtype, span.tensor.size)
        else:
            assert sums is not None
            moves = Movement(count_changes(sums.changes[where], task.window.n_frames))
        parts.append((span.tensor, _summarise(task, solution, where.start, where.stop), moves))
    middle = time.perf_counter()
    above = solution.rsq > np.float32(task.options.threshold)
    columns = {
        "slope": solution.slope,
        "mean": solution.mean,
        "rsq": solution.rsq,
        "last": solution.bits_last,
        "flags": solution.flags | ~above * np.uint8(FLAG_BELOW_THRESHOLD),
        "drift_t": _as_half(solution.drift_t),
    }
    coded = {n: FIT_CODEC.encode(_padded(c, vector.chunk)) for n, c in columns.items()}
    kept = sums if task.options.keep_sums else None
    if kept is not None:
        columns = {name: _column(kept, name) for name in SUMS}
        coded |= {n: SUMS_CODEC.encode(_padded(c, vector.chunk)) for n, c in columns.items()}
    timings.add("fit", middle - clock)
    timings.add("compress", time.perf_counter() - middle)
    scalars = {} if kept is None else kept.scalars
    return ChunkResult(coded, scalars, tuple(parts), timings, done is not None)


Solved = tuple[Solution, Sums | None, Codes | Events | None]
"""the line of every element of a chunk; its sums, or all that it was solved from in one go"""


def _solve_events(
    task: ChunkTask, source: CodeSource, vector: FlatVector, timings: StageTimings
) -> Solved | None:
    """As :func:`_solve`, from the chunk's changes; None where its frames are cheaper."""
    window, options = task.window, task.options
    start, stop = vector.chunk_span(task.k)
    worker = _device_worker(options.device, task.batch, vector.chunk, task.dtype)
    if not isinstance(worker, CpuWorker):
        return None
    clock = time.perf_counter()
    frames, fresh = range(task.first, window.stop), task.prior is None
    events = source.read_events(task.dtype, frames, task.k, worker.codes_TN, fresh)
    if events is None:
        return None
    Audit(source, task.dtype, task.k, stop - start).take_events(task.first, events)
    middle = time.perf_counter()
    steps_T = np.array(window.axis.steps[task.first - window.first :], np.float64)
    filters: dict[str, Any] = {"min_range": options.min_range, "few": options.min_distinct}
    in_one_go = not options.keep_sums and fresh
    if in_one_go:
        filters["distinct_in"] = options.distinct_in
        solution = worker.fit_events(events, steps_T, **filters)
    else:
        _begin_sums(task, worker, vector, stop - start)
        worker.accumulate_events(events, steps_T)
        solution = worker.solve(**filters)
    timings.add("read and decompress", middle - clock)
    timings.add("fit", time.perf_counter() - middle)
    source.check_bits(task.dtype, window.stop - 1, task.k, np.asarray(solution.bits_last))
    return solution, None if in_one_go else worker.sums(), events if in_one_go else None


def _begin_sums(task: ChunkTask, worker: DeviceWorker, vector: FlatVector, n: int) -> None:
    """Start the chunk's sums, from those kept where the fit goes on."""
    kept = None if task.prior is None else _read_sums(task, task.prior, vector, n)
    axis = task.window.axis
    worker.begin(n, axis.mean, axis.unit, kept, distinct_in=task.options.distinct_in)


def _solve(
    task: ChunkTask, source: CodeSource, vector: FlatVector, timings: StageTimings
) -> Solved:
    """The line of every element of the chunk from its frames."""
    window, options = task.window, task.options
    start, stop = vector.chunk_span(task.k)
    n = stop - start
    worker = _device_worker(options.device, task.batch, vector.chunk, task.dtype)
    steps_T = np.array(window.axis.steps, np.float64)
    filters: dict[str, Any] = {"min_range": options.min_range, "few": options.min_distinct}
    in_one_go = window.n_frames <= task.batch and not options.keep_sums and task.prior is None
    if not in_one_go:
        _begin_sums(task, worker, vector, n)
    audit = Audit(source, task.dtype, task.k, n)
    for begin in range(task.first, window.stop, task.batch):
        end = min(begin + task.batch, window.stop)
        clock = time.perf_counter()
        is_key_T = _read_batch(task, source, worker.codes_TN, begin, end)
        audit.take(begin, is_key_T, worker.codes_TN[: end - begin])
        middle = time.perf_counter()
        batch_T = steps_T[begin - window.first : end - window.first]
        if in_one_go:
            solution = worker.fit(n, is_key_T, batch_T, distinct_in=options.distinct_in, **filters)
        else:
            worker.accumulate(is_key_T, batch_T)
        timings.add("read and decompress", middle - clock)
        timings.add("fit", time.perf_counter() - middle)
    if not in_one_go:
        clock = time.perf_counter()
        solution = worker.solve(**filters)
        timings.add("fit", time.perf_counter() - clock)
    source.check_bits(task.dtype, window.stop - 1, task.k, np.asarray(solution.bits_last))
    if in_one_go:
        return solution, None, Codes(worker.codes_TN[: window.n_frames], is_key_T)
    return solution, worker.sums(), None


def _read_batch(
    task: ChunkTask, source: CodeSource, codes_TN: Array, begin: int, end: int
) -> Array:
    """Read the codes of frames [begin, end) and say which are keys; the window's first is."""
    is_key = np.array([source.is_key(t) for t in range(begin, end)])
    codes_TN = codes_TN[: end - begin]
    if begin == task.window.first and not is_key[0]:
        source.read_bits(task.dtype, begin, task.k, codes_TN[0])
        is_key[0] = True
        codes_TN, begin = codes_TN[1:], begin + 1
    source.read_codes(task.dtype, range(begin, end), task.k, codes_TN)
    return is_key


def _read_sums(task: ChunkTask, prior: KeptSums, vector: FlatVector, n: int) -> Sums:
    """The sums kept of the chunk, and the scalars that they are about."""
    axis, distinct_in = task.window.axis, task.options.distinct_in
    sums = kernels.new_sums(n, task.dtype, axis.mean, axis.unit, distinct_in=distinct_in)
    for name, value in prior.scalars[task.dtype].items():
        setattr(sums, name, value)
    arrays = sums_arrays(prior.path, vector)
    for name in SUMS:
        _column(sums, name)[:] = _read_column(arrays[name], task.k, n)
    sums.bits_last[:] = _read_column(fit_arrays(prior.path, vector)["last"], task.k, n)
    return sums


def _read_column(array: ZArray, k: int, n: int) -> Array:
    chunk = np.empty(array.chunk, array.dtype)
    array.read_chunk(0, k, chunk)
    return chunk[:n]


def _summarise(task: ChunkTask, solution: Solution, start: int, stop: int) -> Stats:
    part = Solution(*(getattr(solution, f.name)[start:stop] for f in fields(Solution)))
    return kernels.summarise(part, task.options.threshold, task.window.axis.span, task.dtype)


_of_thread = local()


def _device_worker(device: str, batch: int, chunk: int, dtype: str) -> DeviceWorker:
    """The calling thread's own, opened on its first chunk of the kind."""
    key = device, batch, chunk, dtype
    if getattr(_of_thread, "key", None) != key:
        _of_thread.worker = None  # its memory goes before new memory is taken
        _of_thread.worker, _of_thread.key = open_worker(device, batch, chunk, dtype), key
    worker: DeviceWorker = _of_thread.worker
    return worker


def _as_half(values: Array) -> Array:
    """Float16; what is too large for it is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values).astype(np.float16)


def _padded(values: Array, chunk: int) -> Array:
    if len(values) == chunk:
        return np.ascontiguousarray(values)
    out = np.zeros(chunk, values.dtype)
    out[: len(values)] = values
    return out


def _column(sums: Sums, name: str) -> Array:
    """One array [N] of the sums, by its name in the store."""
    slot = name.removeprefix("slot_")
    column: Array = sums.slots[int(slot)] if slot != name else getattr(sums, name)
    return column
