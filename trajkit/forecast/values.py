"""The values of a step to come, chunk by chunk, for those who want no files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.forecast.cap import cap_jumps
from trajkit.forecast.chunks import ChunkTask, Evaluator, Kept, make_tasks, plan_chunks
from trajkit.forecast.combine import weigh
from trajkit.forecast.evaluation import Evaluation, resolve
from trajkit.forecast.request import Request
from trajkit.parallel import map_in_order
from trajkit.progress import silent
from trajkit.store.tensors import Source
from trajkit.text import parse_bytes


class StepValues:
    """A step to come, evaluated when it is read."""

    def __init__(
        self,
        evaluation: Evaluation,
        step: int,
        memory: str | int,
        max_norm: float | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._kept = kept
        budget = parse_bytes(memory)
        combined = int(evaluation.rule.estimator.combines)
        self._workers, self._group = plan_chunks(
            evaluation.store.vectors, budget, combined=combined, measured=max_norm is not None
        )
        evaluation = weigh(evaluation, (step,), budget, silent)
        self._evaluation, _ = cap_jumps(
            evaluation, (step,), max_norm, self._workers.workers, self._group, silent
        )
        self._step = step
        self.estimator = evaluation.rule.estimator
        self.last = evaluation.rule.last
        """frame of the last checkpoint used"""

    def chunks(self, vector: FlatVector) -> Iterator[tuple[int, Array]]:
        """(first element, bits) of a vector's chunks in order, evaluated by all workers."""
        workers = self._workers.workers
        tasks = make_tasks(self._evaluation.rule, vector, self._group, (self._step,))
        with (
            Evaluator.of(self._evaluation, self._kept) as evaluator,
            ThreadPoolExecutor(workers) as pool,
        ):

            def work(task: ChunkTask) -> list[tuple[int, Array]]:
                pieces: list[tuple[int, Array]] = []
                evaluator.run(task, lambda _, start, bits: pieces.append((start, bits.copy())))
                return pieces

            for _, pieces in map_in_order(pool, work, tasks, 2 * workers):
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
    request = Request.make(traj, step, **options)
    return StepValues(resolve(request), step, memory, request.max_norm)
