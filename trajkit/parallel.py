"""Workers and memory: how many, an ordered map with a bounded queue, plans within a budget."""

import os
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import local
from typing import Any, TypeVar

import numpy as np

from trajkit.arrays import Array
from trajkit.errors import OverBudget
from trajkit.text import format_bytes

_SPARE_FILES = 32
"""files that a process may open beside a command's plan: libraries, pipes, a log"""
_FILES_A_WORKER = 4
"""below so many files each, fewer workers are planned"""
_MOST_FILES = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much a command will hold in memory at once, decided before it starts."""

    workers: int
    """chunks in work at the same time"""
    bytes_a_worker: int
    fixed_bytes: int = 0
    files: int = _MOST_FILES
    """files that the workers may have open together"""

    @property
    def n_bytes(self) -> int:
        """The plan's peak, above the interpreter and its libraries."""
        return self.workers * self.bytes_a_worker + self.fixed_bytes


def plan_workers(
    what: str,
    workers: int,
    bytes_a_worker: int,
    budget_bytes: int,
    fixed_bytes: int = 0,
    fixed_files: int = 0,
) -> Plan:
    """As many workers as the budget holds and the system's limit of open files, at least one.

    Raises:
        OverBudget: not even one fits into the memory, or into the files that may be open; the
            message says what would.
    """
    fitting = (budget_bytes - fixed_bytes) // max(bytes_a_worker, 1)
    if fitting < 1:
        raise OverBudget(
            f"{what} needs at least {format_bytes(fixed_bytes + bytes_a_worker)} of memory and the "
            f"budget is {format_bytes(budget_bytes)}: raise --memory"
        )
    files = count_free_files() - fixed_files
    if files < _FILES_A_WORKER:
        raise OverBudget(
            f"{what} needs to open {_FILES_A_WORKER - files} files more than the system lets this "
            "process: raise the limit with 'ulimit -n'"
        )
    return Plan(min(workers, fitting, files // _FILES_A_WORKER), bytes_a_worker, fixed_bytes, files)


def plan_batch(
    what: str,
    workers: int,
    batch: int,
    smallest: int,
    bytes_a_worker: Callable[[int], int],
    budget_bytes: int,
    fixed_files: int = 0,
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
            plan = plan_workers(
                what, workers, bytes_a_worker(batch), budget_bytes, fixed_files=fixed_files
            )
        except OverBudget:
            if batch <= smallest:
                raise
        else:
            if batch <= smallest or plan.workers >= min(workers, plan.files // _FILES_A_WORKER):
                return plan, batch
        batch = max(batch // 2, smallest)


T = TypeVar("T")
R = TypeVar("R")


def count_workers() -> int:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_free_files() -> int:
    """Files that this process may still open: its limit, less what is open, less a few."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _MOST_FILES
    listing = next((p for p in (Path("/proc/self/fd"), Path("/dev/fd")) if p.is_dir()), None)
    held = 0 if listing is None else sum(1 for _ in listing.iterdir())
    return max(min(limit, _MOST_FILES) - held - _SPARE_FILES, 0)


class Scratch(local):
    """A thread's own memory, kept from chunk to chunk: new memory costs page faults.

    >>> scratch = Scratch()
    >>> scratch.array("codes", (2, 3), np.dtype("uint16")).shape
    (2, 3)
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, name: str, shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of any content, which lasts until the thread asks for that name again."""
        n_bytes = prod((shape,) if isinstance(shape, int) else shape) * dtype.itemsize
        if name not in self._buffers or self._buffers[name].nbytes < n_bytes:
            self._buffers[name] = np.empty(n_bytes, np.uint8)
        return self._buffers[name][:n_bytes].view(dtype).reshape(shape)


class InlineExecutor(Executor):
    """Does the work in the thread that submits it: no thread of its own, nothing to wait for.

    >>> InlineExecutor().submit(pow, 2, 5).result()
    32
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Run it now."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


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
