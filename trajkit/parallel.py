"""How many workers to use, and an ordered parallel map with a bounded queue."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

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
