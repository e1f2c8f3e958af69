"""Workers and memory: how many, an ordered map with a bounded queue, plans within a budget."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeVar

from trajkit.errors import OverBudget
from trajkit.units import format_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """How much a command will hold in memory at once, decided before it starts."""

    workers: int
    """chunks in work at the same time"""
    bytes_a_worker: int
    fixed_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        """The plan's peak, above the interpreter and its libraries."""
        return self.workers * self.bytes_a_worker + self.fixed_bytes


def plan_workers(
    what: str, workers: int, bytes_a_worker: int, budget_bytes: int, fixed_bytes: int = 0
) -> Plan:
    """As many workers as the budget holds, at least one.

    Raises:
        OverBudget: not even one fits; the message says what would.
    """
    fitting = (budget_bytes - fixed_bytes) // max(bytes_a_worker, 1)
    if fitting < 1:
        raise OverBudget(
            f"{what} needs at least {format_bytes(fixed_bytes + bytes_a_worker)} of memory and the "
            f"budget is {format_bytes(budget_bytes)}: raise --memory"
        )
    return Plan(min(workers, fitting), bytes_a_worker, fixed_bytes)


def plan_batch(
    what: str,
    workers: int,
    batch: int,
    smallest: int,
    bytes_a_worker: Callable[[int], int],
    budget_bytes: int,
) -> tuple[Plan, int]:
    """Workers, and how much each takes at once: smaller batches first, then fewer workers.

    ``batch`` is halved, down to ``smallest``, until all workers fit.

    Raises:
        OverBudget: one worker with the smallest batch does not fit.

    >>> plan, batch = plan_batch("x", 2, 8, 1, lambda n: 10 * n, 50)
    >>> plan.workers, batch
    (2, 2)
    """
    while True:
        try:
            plan = plan_workers(what, workers, bytes_a_worker(batch), budget_bytes)
        except OverBudget:
            if batch <= smallest:
                raise
        else:
            if plan.workers == workers or batch <= smallest:
                return plan, batch
        batch = max(batch // 2, smallest)


T = TypeVar("T")
R = TypeVar("R")


def count_workers() -> int:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_order(
    pool: Executor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[tuple[T, R]]:
    """Pairs (item, result) in the items' order, with at most ``ahead`` results in work or waiting.

    Unlike ``Executor.map`` it takes items as it goes, so that memory stays bounded; when the caller
    stops or a result raises, what has not begun is cancelled.
    """
    queue: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            queue.append((item, pool.submit(work, item)))
            if len(queue) >= ahead:
                first, future = queue.popleft()
                yield first, future.result()
        while queue:
            first, future = queue.popleft()
            yield first, future.result()
    finally:
        for _, future in queue:
            future.cancel()
        for _, future in queue:
            if not future.cancelled():
                future.exception()  # wait: a worker may still be using its buffers
