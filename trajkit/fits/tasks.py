"""The fit of one flat vector, chunk by chunk.

A worker reads a chunk's codes over all frames, a lane decodes and sums them, the solution is
reduced to statistics a tensor and compressed; the caller's thread writes the results in order.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock, local
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector, TensorInfo
from trajkit.fits.arrays import SUMS, fit_arrays, sums_arrays
from trajkit.fits.devices import Lane, open_lane
from trajkit.fits.sums import KeptSums
from trajkit.fits.window import Window
from trajkit.kernels import api as kernels
from trajkit.kernels.flags import FLAG_BELOW_THRESHOLD
from trajkit.kernels.state import Solution, Stats, Sums, new_stats
from trajkit.parallel import Plan, map_in_order
from trajkit.progress import Advanced, Progress
from trajkit.store.array import ZArray
from trajkit.store.chunks import ChunkReader
from trajkit.store.rows import RowWriter
from trajkit.store.store import Store


@dataclass(frozen=True, slots=True)
class _Done:
    """One chunk's outcome: coded arrays by name, and the statistics of tensor parts."""

    coded: dict[str, bytes]
    scalars: dict[str, float]
    """of the sums, where they are kept"""
    parts: tuple[tuple[TensorInfo, Stats], ...]


class Pace:
    """Seconds a stage, summed over workers, to say which one sets the pace."""

    def __init__(self) -> None:
        self.seconds = {"read and decompress": 0.0, "fit": 0.0, "compress": 0.0, "write": 0.0}
        self._lock = Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count some time for a stage."""
        with self._lock:
            self.seconds[stage] += seconds

    def slowest(self) -> str:
        """The stage with the most time in it."""
        return max(self.seconds, key=self.seconds.__getitem__)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What is asked of every element, and where."""

    device: str
    """``cpu`` or ``cuda``"""
    threshold: float
    min_range: float
    min_distinct: int
    keep_sums: bool


class VectorJob:
    """The fit of one flat vector, chunk by chunk."""

    def __init__(
        self,
        store: Store,
        vector: FlatVector,
        window: Window,
        batch: int,
        options: FitOptions,
        prior: KeptSums | None,
        pace: Pace,
    ) -> None:
        self.store = store
        self.vector = vector
        self.dtype = vector.dtype.name
        self.window = window
        self.batch = batch
        self.options = options
        self.prior = prior
        self.first = window.first + (0 if prior is None else prior.n_frames)
        self.pace = pace
        self.steps = np.array(window.axis.steps, np.float64)
        self.digests: dict[str, str] = {}
        """of each array written, by its path in the fit's folder"""
        self.scalars: dict[str, float] = {}
        """of the sums written, the same for every chunk"""
        self._arrays: dict[str, ZArray] = {}
        self._reader = ChunkReader(store.frames[self.dtype])
        self._mine = local()

    def run(self, part: Path, plan: Plan, progress: Progress) -> Iterator[tuple[TensorInfo, Stats]]:
        """Fit all chunks and write the arrays; yields every tensor's statistics once complete."""
        arrays = fit_arrays(part, self.vector)
        if self.options.keep_sums:
            arrays |= sums_arrays(part, self.vector)
        frame_bytes = (self.window.stop - self.first) * self.vector.dtype.itemsize
        unfinished: dict[str, Stats] = {}
        self._arrays = arrays
        with ExitStack() as stack:
            writers = {n: stack.enter_context(RowWriter(a)) for n, a in arrays.items()}
            stack.enter_context(self._reader)
            pool = stack.enter_context(ThreadPoolExecutor(plan.workers))
            chunks = range(self.vector.n_chunks)
            for k, done in map_in_order(pool, self._fit_chunk, chunks, plan.workers + 1):
                clock = time.perf_counter()
                for name, coded in done.coded.items():
                    writers[name].append(coded)
                self.pace.add("write", time.perf_counter() - clock)
                self.scalars = done.scalars
                for info, part_stats in done.parts:
                    stats = part_stats
                    if info.name in unfinished:
                        stats = unfinished.pop(info.name) + stats
                    if stats.elements == info.size:
                        yield info, stats
                    else:
                        unfinished[info.name] = stats
                start, stop = self.vector.chunk_span(k)
                progress(Advanced((stop - start) * frame_bytes))
        for name, array in arrays.items():
            array.write_metadata()
            self.digests[array.path.relative_to(part).as_posix()] = writers[name].digest
        for info in self.vector.tensors:
            if not info.size:
                yield info, new_stats(self.options.threshold, self.window.axis.span)

    def _fit_chunk(self, k: int) -> _Done:
        start, stop = self.vector.chunk_span(k)
        solution, sums = self._solve(k, stop - start)
        clock = time.perf_counter()
        parts = tuple(
            (span.tensor, self._summarise(solution, span.at, span.at + span.stop - span.start))
            for span in self.vector.spans(start, stop)
        )
        middle = time.perf_counter()
        above = solution.rsq > np.float32(self.options.threshold)
        columns = {
            "slope": solution.slope,
            "mean": solution.mean,
            "rsq": solution.rsq,
            "last": solution.bits_last,
            "flags": solution.flags | ~above * np.uint8(FLAG_BELOW_THRESHOLD),
        }
        if sums is not None:
            columns |= {name: _column(sums, name) for name in SUMS}
        arrays = self._arrays
        coded = {name: arrays[name].codec.encode(self._padded(c)) for name, c in columns.items()}
        self.pace.add("fit", middle - clock)
        self.pace.add("compress", time.perf_counter() - middle)
        return _Done(coded, {} if sums is None else sums.scalars, parts)

    def _solve(self, k: int, n: int) -> tuple[Solution, Sums | None]:
        """The line of every element of chunk ``k``, and the sums where they are to be kept."""
        window, options, lane = self.window, self.options, self._lane()
        filters: dict[str, Any] = {"min_range": options.min_range, "few": options.min_distinct}
        in_one_go = window.n_frames <= self.batch and not options.keep_sums and self.prior is None
        if not in_one_go:
            kept = None if self.prior is None else self._read_sums(self.prior, k, n)
            lane.begin(n, window.axis.mean, window.axis.unit, kept)
        for begin in range(self.first, window.stop, self.batch):
            end = min(begin + self.batch, window.stop)
            clock = time.perf_counter()
            is_key_T = self._read_batch(lane.codes_TN, k, begin, end)
            middle = time.perf_counter()
            steps_T = self.steps[begin - window.first : end - window.first]
            if in_one_go:
                solution = lane.fit(n, is_key_T, steps_T, **filters)
            else:
                lane.accumulate(is_key_T, steps_T)
            self.pace.add("read and decompress", middle - clock)
            self.pace.add("fit", time.perf_counter() - middle)
        if not in_one_go:
            clock = time.perf_counter()
            solution = lane.solve(**filters)
            self.pace.add("fit", time.perf_counter() - clock)
        return solution, lane.sums() if options.keep_sums else None

    def _read_batch(self, codes_TN: Array, k: int, begin: int, end: int) -> Array:
        """Read the codes of frames [begin, end) and say which are keys; the window's first is."""
        is_key = np.array([self.store.is_key(t) for t in range(begin, end)])
        codes_TN = codes_TN[: end - begin]
        if begin == self.window.first and not is_key[0]:
            scratch = np.empty(self.vector.chunk, self.vector.dtype.bits)
            self.store.read_bits(self.dtype, begin, k, codes_TN[0], scratch)
            is_key[0] = True
            codes_TN, begin = codes_TN[1:], begin + 1
        self.store.read_code_rows(self._reader, range(begin, end), k, codes_TN)
        return is_key

    def _read_sums(self, prior: KeptSums, k: int, n: int) -> Sums:
        """The sums kept of chunk ``k``, and the scalars that they are about."""
        sums = kernels.new_sums(n, self.dtype, self.window.axis.mean, self.window.axis.unit)
        for name, value in prior.scalars[self.dtype].items():
            setattr(sums, name, value)
        arrays = sums_arrays(prior.path, self.vector)
        for name in SUMS:
            _column(sums, name)[:] = self._read_column(arrays[name], k, n)
        last = fit_arrays(prior.path, self.vector)["last"]
        sums.bits_last[:] = self._read_column(last, k, n)
        return sums

    def _read_column(self, array: ZArray, k: int, n: int) -> Array:
        chunk = np.empty(array.chunk, array.dtype)
        array.read_chunk(0, k, chunk)
        return chunk[:n]

    def _summarise(self, solution: Solution, start: int, stop: int) -> Stats:
        part = Solution(*(getattr(solution, f.name)[start:stop] for f in fields(Solution)))
        span = self.window.axis.span
        return kernels.summarise(part, self.options.threshold, span, self.dtype)

    def _lane(self) -> Lane:
        """The calling thread's lane, opened on its first chunk."""
        if not hasattr(self._mine, "lane"):
            device = self.options.device
            self._mine.lane = open_lane(device, self.batch, self.vector.chunk, self.dtype)
        lane: Lane = self._mine.lane
        return lane

    def _padded(self, values: Array) -> Array:
        if len(values) == self.vector.chunk:
            return np.ascontiguousarray(values)
        out = np.zeros(self.vector.chunk, values.dtype)
        out[: len(values)] = values
        return out


def _column(sums: Sums, name: str) -> Array:
    """One array [N] of the sums, by its name in the store."""
    slot = name.removeprefix("slot_")
    column: Array = sums.slots[int(slot)] if slot != name else getattr(sums, name)
    return column
