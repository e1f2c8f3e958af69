"""The fit of one flat vector: a task a chunk, and what comes back written in order."""

import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from trajkit.checkpoints.layout import FlatVector, TensorInfo
from trajkit.fits.arrays import fit_arrays, sums_arrays
from trajkit.fits.source import SOURCES, SourceName
from trajkit.fits.sums import KeptSums
from trajkit.fits.tasks import ChunkTask, FitOptions, StageTimings, run_chunk
from trajkit.fits.window import Window
from trajkit.kernels.state import Stats, new_stats
from trajkit.parallel import map_in_order
from trajkit.progress import Advanced, Progress
from trajkit.stats.movement import Movement, no_movement
from trajkit.store.rows import RowWriter


class VectorFit:
    """The fit of one flat vector of a source."""

    def __init__(
        self,
        source: SourceName,
        vector: FlatVector,
        window: Window,
        batch: int,
        options: FitOptions,
        prior: KeptSums | None,
    ) -> None:
        self.source = source
        self.vector = vector
        self.window = window
        self.batch = batch
        self.options = options
        self.prior = prior
        self.timings = StageTimings()
        self.digests: dict[str, str] = {}
        """of each array written, by its path in the folder"""
        self.scalars: dict[str, float] = {}
        """of the sums written, the same for every chunk"""
        self.paths: set[str] = set()
        """``events`` and ``dense``: what chunks were fitted from"""

    def tasks(self) -> Iterator[ChunkTask]:
        """A task for every chunk."""
        dtype = self.vector.dtype.name
        for k in range(self.vector.n_chunks):
            yield ChunkTask(
                self.source, dtype, k, self.window, self.batch, self.options, self.prior
            )

    def run(
        self, folder: Path, workers: int, progress: Progress
    ) -> Iterator[tuple[TensorInfo, Stats, Movement]]:
        """Fit all chunks and write the arrays; yields every tensor's statistics once complete."""
        arrays = fit_arrays(folder, self.vector)
        if self.options.keep_sums:
            arrays |= sums_arrays(folder, self.vector)
        unfinished: dict[str, tuple[Stats, Movement]] = {}
        with ExitStack() as stack:
            stack.callback(SOURCES.close)
            writers = {n: stack.enter_context(RowWriter(a)) for n, a in arrays.items()}
            pool: Executor = stack.enter_context(ThreadPoolExecutor(workers))
            for task, done in map_in_order(pool, run_chunk, self.tasks(), workers + 1):
                clock = time.perf_counter()
                for name, coded in done.coded.items():
                    writers[name].append(coded)
                self.timings.add("write", time.perf_counter() - clock)
                self.timings.merge(done.timings)
                self.scalars = dict(done.scalars)
                self.paths.add("events" if done.by_events else "dense")
                for info, part_stats, part_moves in done.parts:
                    stats, moves = part_stats, part_moves
                    if info.name in unfinished:
                        stats_before, moves_before = unfinished.pop(info.name)
                        stats, moves = stats_before + stats, moves_before + moves
                    if stats.elements == info.size:
                        yield info, stats, moves
                    else:
                        unfinished[info.name] = stats, moves
                start, stop = self.vector.chunk_span(task.k)
                n_frames = self.window.stop - task.first
                progress(Advanced((stop - start) * n_frames * self.vector.dtype.itemsize))
        for name, array in arrays.items():
            array.write_metadata()
            self.digests[array.path.relative_to(folder).as_posix()] = writers[name].digest
        for info in self.vector.tensors:
            if not info.size:
                stats = new_stats(self.options.threshold, self.window.axis.span)
                yield info, stats, no_movement(self.window.n_frames)
