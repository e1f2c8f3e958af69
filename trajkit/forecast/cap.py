"""A cap on how far a checkpoint may lie from the last one: jumps beyond it are scaled down.

    r = |ŷ - y| / |y|

y is the last checkpoint used and ŷ what the estimator says, gate and rules applied, before it is
rounded into the tensors' own dtypes; both norms are over all floating-point elements of the model,
those left out that are not finite in both. Where r is above the cap, every element goes the part
cap / r of its way. Rounding comes after, so that of a narrow format the written distance may be
another: moves of less than half a unit are rounded away, others up to a whole one.

Sums are float64, chunk by chunk in order, so that memory and workers change no bit.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from trajkit.arrays import Array
from trajkit.errors import InvalidInput
from trajkit.forecast.chunks import ChunkTask, Evaluator, make_tasks
from trajkit.forecast.evaluation import Evaluation
from trajkit.parallel import map_in_order
from trajkit.progress import Advanced, Finished, Progress, Started


def cap_jumps(
    evaluation: Evaluation,
    steps: Sequence[int],
    max_norm: float | None,
    workers: int,
    group: int,
    progress: Progress,
) -> tuple[Evaluation, tuple[float | None, ...]]:
    """The evaluation with its jumps scaled down to the cap, and r of every target before that.

    Args:
        evaluation: what is evaluated.
        steps: targets.
        max_norm: the cap; None for none: nothing is measured, every r is None.
        workers: threads.
        group: chunks a task.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: r is not a number: the last checkpoint is zero, or squares leave float64.
    """
    if max_norm is None:
        return evaluation, (None,) * len(steps)
    squares = _sum_squares(evaluation, tuple(steps), workers, group, progress)
    last, jumps = float(squares[0]), squares[1:]
    if not np.isfinite(squares).all() or (last == 0 and jumps.any()):
        raise InvalidInput(
            f"max_norm: a jump of norm {float(np.sqrt(jumps.max())):g} from a checkpoint of norm "
            f"{last**0.5:g} has no relative size"
        )
    norms = tuple(float(np.sqrt(j / last)) if j else 0.0 for j in jumps)
    scales = tuple(
        (step, max_norm / r) for step, r in zip(steps, norms, strict=True) if r > max_norm
    )
    return replace(evaluation, rule=replace(evaluation.rule, scales=scales)), norms


def _sum_squares(
    evaluation: Evaluation, steps: tuple[int, ...], workers: int, group: int, progress: Progress
) -> Array:
    """|y|², and |ŷ - y|² of every target, float64 [1 + S]."""
    total = np.zeros(1 + len(steps))
    floats = [v for v in evaluation.store.vectors.values() if v.dtype.is_float and v.size]
    progress(Started("size of the jump", sum(v.n_bytes for v in floats)))
    with Evaluator.of(evaluation) as evaluator, ThreadPoolExecutor(workers) as pool:

        def work(task: ChunkTask) -> list[Array]:
            return evaluator.measure(task)

        for vector in floats:
            tasks = make_tasks(evaluation.rule, vector, group, steps)
            for task, found in map_in_order(pool, work, tasks, 2 * workers):
                for of_chunk in found:
                    total += of_chunk
                start, stop = (vector.chunk_span(task.chunks[i])[i] for i in (0, -1))
                progress(Advanced((stop - start) * vector.dtype.itemsize))
    progress(Finished("measured"))
    return total
