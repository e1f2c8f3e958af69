"""What a fit will read, write and hold, decided before it starts."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trajkit.checkpoints.layout import FlatVector
from trajkit.errors import StorageError
from trajkit.fits.arrays import ARRAYS, SUMS, fit_arrays, sums_arrays
from trajkit.parallel import Plan, count_workers, plan_batch
from trajkit.store.store import Store
from trajkit.text import format_bytes

BATCH_FRAMES = 128
"""frames of a chunk decoded into memory at once, where the budget allows"""
_SMALLEST_BATCH = 8
_SCRATCH_ROWS = 3
"""rows that reading needs: coded bytes, bit planes, and the bits of a frame that is checked"""
_STATE_BYTES = 208
"""sums, solution and coded results of one element while a chunk is in work or waits"""
_SUMS_BYTES = 72
"""what of these the sums are"""
_RESULTS = 3
"""coded results a worker, at most: being made, waiting, being written"""


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What a fit will do, as ``--dry-run`` prints it."""

    name: str
    replaces: str | None
    """what is known of the fit that is in its place"""
    device: str
    checkpoints: int
    """T, in the window"""
    from_step: int
    to_step: int
    frames_read: int
    """checkpoints to read: all, or those since the sums that are kept"""
    elements: int
    n_bytes_read: int
    """raw bytes of the elements in them"""
    n_bytes_written: int
    """of arrays; sums, where they are kept, become smaller by compression"""
    free_bytes: int
    """on the store's disk"""
    workers: int
    memory_bytes: int


def plan_vector(
    vector: FlatVector, n_frames: int, budget: int, keep_sums: bool = False
) -> tuple[Plan, int]:
    """Workers and frames a batch within the budget: fewer frames first, then fewer workers.

    Raises:
        OverBudget: one worker with the smallest batch does not fit.
    """
    state_bytes = _STATE_BYTES
    if keep_sums:
        sums = sum(a.dtype.itemsize for a in sums_arrays(Path(), vector).values())
        state_bytes += sums * (1 + _RESULTS) - _SUMS_BYTES

    def bytes_a_worker(batch: int) -> int:
        rows = batch + _SCRATCH_ROWS
        return vector.chunk * (rows * vector.dtype.itemsize + state_bytes)

    largest, smallest = (min(n_frames, n) for n in (BATCH_FRAMES, _SMALLEST_BATCH))
    fixed_files = len(ARRAYS) + len(SUMS)
    return plan_batch(
        "fit", count_workers(), largest, smallest, bytes_a_worker, budget, fixed_files
    )


def array_bytes(store: Store, vectors: Iterable[FlatVector], keep_sums: bool) -> tuple[int, int]:
    """Bytes of a fit's arrays, which are stored plain, and of its sums before compression."""
    plain = sums = 0
    for vector in vectors:
        arrays = fit_arrays(store.path, vector).values()
        plain += sum(a.n_chunks * a.chunk * a.dtype.itemsize for a in arrays)
        if keep_sums:
            arrays = sums_arrays(store.path, vector).values()
            sums += sum(a.size * a.dtype.itemsize for a in arrays)
    return plain, sums


def free_bytes(store: Store) -> int:
    """Bytes that are free on the store's disk."""
    return shutil.disk_usage(store.path).free


def check_room(store: Store, needed: int) -> None:
    """Raise :class:`StorageError` where a fit's arrays cannot all go to the store's disk."""
    free = free_bytes(store)
    if needed > free:
        raise StorageError(
            f"{store.path}: the fit takes {format_bytes(needed)}, and {format_bytes(free)} are free "
            "on its disk; make room, or remove a fit with 'trajkit drop'"
        )
