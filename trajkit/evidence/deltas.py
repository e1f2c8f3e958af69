"""One streaming pass: inner products of all checkpoints' deltas from the first, over every element.

    Δ_t = y_t - y_1        G_st = Δ_s · Δ_t

They say along which few directions a run has moved (:mod:`trajkit.stats.combinations`). Deltas are
float32 (float64 for float64), products of 256 elements by BLAS, their sums float64, in one order
whatever the budget and the number of workers. Elements that were NaN or Inf anywhere in the window
count as not moving, and those of float64 that move by more than 1e140.

Axis letters: T checkpoints, C elements a chunk, S elements of a chunk in work at once.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.errors import InvalidInput
from trajkit.evidence.gram import LARGEST_CHANGE, inner_products
from trajkit.kernels import api as kernels
from trajkit.parallel import Plan, count_workers, map_in_order, plan_batch
from trajkit.progress import Advanced, Finished, Progress, Started
from trajkit.store.chunks import ChunkReader
from trajkit.store.store import Store
from trajkit.store.walk import walk_bytes, walk_frames
from trajkit.text import format_bytes

MOST_CHECKPOINTS = 1024
"""the matrix is T x T, and is taken apart whole"""
_PART = 8192
"""elements whose products are added up at once"""


def plan_deltas(vector: FlatVector, n_frames: int, budget: int) -> tuple[Plan, int]:
    """Workers, and elements in work at once: fewer elements (more passes) first, then fewer workers.

    Raises:
        InvalidInput: more than 1,024 checkpoints. OverBudget: one worker with the fewest elements
            does not fit.
    """
    if n_frames > MOST_CHECKPOINTS:
        raise InvalidInput(
            f"rank-k looks at {MOST_CHECKPOINTS:,} checkpoints or fewer, not {n_frames:,}: choose a "
            "later from_step"
        )
    work = 8 if vector.dtype.itemsize == 8 else 4

    def bytes_a_worker(parts: int) -> int:
        products = _PART // 256 * n_frames**2 * work + 3 * 8 * n_frames**2
        return walk_bytes(vector) + (n_frames + 4) * parts * _PART * work + products

    parts = max(-(-vector.chunk // _PART), 1)
    plan, parts = plan_batch("rank-k", count_workers(), parts, 1, bytes_a_worker, budget)
    return plan, parts * _PART


def measure_deltas(store: Store, frames: range, budget: int, progress: Progress) -> Array:
    """G of all floating-point elements over some checkpoints, float64 [T, T].

    Args:
        store: the run.
        frames: the window, frame indices.
        budget: bytes of memory.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: more than 1,024 checkpoints. OverBudget: the budget is too small.
        FormatError: a damaged chunk.
    """
    floats = [v for v in store.vectors.values() if v.dtype.is_float and v.size]
    plans = [plan_deltas(vector, len(frames), budget) for vector in floats]
    total_TT = np.zeros((len(frames), len(frames)))
    n_bytes = len(frames) * sum(v.n_bytes for v in floats)
    progress(Started(f"directions of {len(frames)} checkpoints", n_bytes))
    for vector, (plan, at_once) in zip(floats, plans, strict=True):
        with (
            ChunkReader(store.frames[vector.dtype.name]) as reader,
            ThreadPoolExecutor(plan.workers) as pool,
        ):

            def work(
                k: int, vector: FlatVector = vector, at_once: int = at_once,
                reader: ChunkReader = reader,
            ) -> Array:  # fmt: skip
                return _measure_chunk(store, reader, vector, frames, k, at_once)

            for k, gram_TT in map_in_order(pool, work, range(vector.n_chunks), plan.workers + 1):
                total_TT += gram_TT
                start, stop = vector.chunk_span(k)
                progress(Advanced((stop - start) * vector.dtype.itemsize * len(frames)))
    progress(Finished(f"{format_bytes(n_bytes)} read"))
    return total_TT


def _measure_chunk(
    store: Store, reader: ChunkReader, vector: FlatVector, frames: range, k: int, at_once: int
) -> Array:
    """G of one chunk, float64 [T, T]; it is decoded once for every ``at_once`` of its elements."""
    start, stop = vector.chunk_span(k)
    wide = np.float64 if vector.dtype.itemsize == 8 else np.float32
    gram_TT = np.zeros((len(frames), len(frames)))
    deltas_TS = np.empty((len(frames), min(at_once, stop - start)), wide)
    for lo in range(0, stop - start, at_once):
        hi = min(lo + at_once, stop - start)
        first = np.empty(0, wide)
        for t, bits in walk_frames(store, reader, vector, frames, k):
            with np.errstate(invalid="ignore", over="ignore"):
                values = kernels.values_of(bits[lo:hi].copy(), vector.dtype.name).astype(wide)
                if t == frames.start:
                    first = values
                np.subtract(values, first, out=deltas_TS[t - frames.start, : hi - lo])
        for at in range(0, hi - lo, _PART):
            part_TN = deltas_TS[:, at : min(at + _PART, hi - lo)]
            sound_N = np.isfinite(part_TN).all(axis=0)
            if wide is np.float64:
                sound_N &= (np.abs(part_TN) < LARGEST_CHANGE).all(axis=0)
            part_TN[:, ~sound_N] = 0
            gram_TT += inner_products(part_TN)
    return gram_TT
