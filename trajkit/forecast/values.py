"""The values of a step to come, chunk by chunk, for those who want no files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.forecast.chunks import plan_chunks
from trajkit.forecast.extrapolate import _Job
from trajkit.parallel import map_in_order
from trajkit.store.tensors import Source
from trajkit.units import parse_bytes


class _Sink:
    """Takes what a chunk's work writes, in place of a folder."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, Array]] = []

    def write(self, dtype: str, start: int, bits: Array) -> None:
        """Keep a copy: the caller's buffer is used again."""
        del dtype
        self.pieces.append((start, np.array(bits)))


class StepValues:
    """A step to come, evaluated when it is read."""

    def __init__(self, job: _Job, step: int, memory: str | int) -> None:
        self._job = job
        self._step = step
        self._workers, self._group = plan_chunks(job.store.vectors, parse_bytes(memory))
        self.estimator = job.estimator
        self.last = job.last
        """frame of the last checkpoint used"""

    def chunks(self, vector: FlatVector) -> Iterator[tuple[int, Array]]:
        """(first element, bits) of a vector's chunks in order, evaluated by all workers."""
        workers = self._workers.workers
        with self._job.chunks(self._group) as chunks, ThreadPoolExecutor(workers) as pool:

            def work(group: range) -> list[tuple[int, Array]]:
                sink: Any = _Sink()
                chunks.run(vector, group, [self._step], [sink])
                pieces: list[tuple[int, Array]] = sink.pieces
                return pieces

            for _, pieces in map_in_order(pool, work, chunks.groups(vector), 2 * workers):
                yield from pieces


def open_values(
    traj: Source, step: int, *, memory: str | int = DEFAULT_MEMORY_BYTES, **options: Any
) -> StepValues:
    """What :func:`trajkit.extrapolate` would write for one step, to be read instead.

    Args:
        traj: the run.
        step: the training step.
        memory: budget of what is evaluated at once.
        options: those of :func:`trajkit.extrapolate` from ``estimator`` to ``device``.

    Raises:
        NotFound, InvalidInput, Mismatch, OverBudget: as that does.
    """
    return StepValues(_Job(traj, **options), step, memory)
