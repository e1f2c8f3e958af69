"""Fit: a least-squares line through every element of every floating-point tensor, in one pass.

:mod:`trajkit.fit_chunks` does the work; here the window is chosen, the memory planned, an earlier
fit found that can be continued, and the result committed.
"""

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import xxhash

import trajkit
from trajkit.design import StepAxis, null_above, null_median
from trajkit.errors import FormatError, InvalidInput, NotFound
from trajkit.fit_chunks import FitOptions, Pace, VectorJob, Window
from trajkit.fits import (
    DEFAULT_FIT,
    Fit,
    FitRecord,
    check_fit_name,
    commit_fit,
    prepare_fit,
    read_fit,
)
from trajkit.kernels import api as kernels
from trajkit.kernels.sums import Sums, new_stats, take_steps
from trajkit.lanes import choose_device
from trajkit.layout import FlatVector, Plan, plan_batch
from trajkit.paper import MIN_DISTINCT, MIN_RANGE, describe_kept, is_weight
from trajkit.parallel import count_workers
from trajkit.progress import Finished, Progress, Started, silent
from trajkit.store import Store
from trajkit.summary import make_table, pack_table, tensor_row
from trajkit.trajectory import Trajectory
from trajkit.units import DEFAULT_MEMORY_BYTES, format_bytes, format_rate, parse_bytes
from trajkit.writer import StoreLock

DEFAULT_THRESHOLD = 0.7
BATCH_FRAMES = 128
"""frames of a chunk decoded into memory at once, where the budget allows"""
_SMALLEST_BATCH = 8
_SCRATCH_ROWS = 2
"""rows that reading needs: coded bytes, and bit planes"""
KEEP_SUMS_FRAMES = 256
"""windows of so many checkpoints keep their sums: below, reading the frames again costs less"""
_STATE_BYTES = 192
"""sums, solution and coded results of one element while a chunk is in work or waits"""


def fit(
    traj: Trajectory,
    rsq_threshold: float = DEFAULT_THRESHOLD,
    *,
    from_step: int | None = None,
    to_step: int | None = None,
    name: str = DEFAULT_FIT,
    device: str = "auto",
    min_range: float = 0.0,
    min_distinct: int = MIN_DISTINCT,
    keep_sums: bool | None = None,
    paper: bool = False,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress = silent,
) -> Fit:
    """Fit a line over the training steps to every element, and keep the fit in the store.

    Where the fit that is replaced kept its sums, and its window is the beginning of this one, only
    the checkpoints since are read; the result is that of one pass in batches.

    Args:
        traj: the trajectory.
        rsq_threshold: R² above which an element counts as linear and is extrapolated.
        from_step: first training step of the window (default: the first in the store).
        to_step: last training step of the window (default: the last in the store).
        name: the fit's name in the store; a fit of that name is replaced.
        device: ``auto``, ``cpu`` or ``cuda``.
        min_range: elements whose max - min is at most this are counted apart (0: none).
        min_distinct: elements with fewer distinct values are counted apart.
        keep_sums: keep the sums (61 bytes an element of bf16, before compression), so that a later
            fit can go on from them; by default in windows of 256 checkpoints or more.
        paper: apply the filters of arXiv 2601.04537 in place of the two above, and keep its
            statistics in the record (:mod:`trajkit.paper`).
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: fewer than two checkpoints in the window, or a threshold outside [0, 1].
        OverBudget: the budget is too small. Locked: another writer holds the store.
        FormatError: a damaged chunk; the fit that was there stays.
    """
    store = traj.store
    check_fit_name(name)
    if paper:
        min_range, min_distinct = MIN_RANGE, MIN_DISTINCT
    window = choose_window(store, from_step, to_step)
    if not 0 <= rsq_threshold <= 1:
        raise InvalidInput(f"rsq_threshold must lie in [0, 1], not {rsq_threshold}")
    budget = parse_bytes(memory)
    backend = choose_device(device)
    started = time.perf_counter()
    floats = [v for v in store.vectors.values() if v.dtype.is_float]
    plans = {v.dtype.name: plan_fit(v, window.n_frames, budget) for v in floats}
    if keep_sums is None:
        keep_sums = window.n_frames >= KEEP_SUMS_FRAMES
    prior = find_prior(store, name, window)
    done_frames = 0 if prior is None else len(prior.record.steps)
    frames_read = window.n_frames - done_frames
    raw_bytes = frames_read * sum(v.n_bytes for v in floats)
    what = f"fit {window.n_frames} checkpoints on {backend}"
    if prior is not None:
        what += f" ({frames_read} new)"
    progress(Started(what, raw_bytes))
    rows: list[dict[str, Any]] = []
    total = weights = new_stats(rsq_threshold, window.axis.span)
    pace = Pace()
    with StoreLock(store.path):
        part = prepare_fit(store, name)
        digests: dict[str, str] = {}
        for vector in floats:
            plan, batch = plans[vector.dtype.name]
            options = FitOptions(backend, rsq_threshold, min_range, min_distinct, keep_sums)
            job = VectorJob(store, vector, window, batch, options, prior, pace)
            for info, stats in job.run(part, plan, progress):
                rows.append(tensor_row(info, stats))
                total = total + stats
                if is_weight(info.name):
                    weights = weights + stats
            digests |= job.digests
        seconds = time.perf_counter() - started
        record = FitRecord(
            name=name,
            steps=window.axis.steps,
            rsq_threshold=rsq_threshold,
            min_range=min_range,
            min_distinct=min_distinct,
            device=backend,
            frames_digest=window_digest(store, window),
            versions={"trajkit": trajkit.__version__, "python": platform.python_version()},
            stats={k: v.tolist() if hasattr(v, "tolist") else v for k, v in asdict(total).items()},
            null={
                "median_rsq": null_median(window.axis.steps),
                "above_threshold": null_above(window.axis.steps, rsq_threshold),
            },
            seconds=seconds,
            table_sha256="",
            dtypes=tuple(v.dtype.name for v in floats),
            sums=sums_scalars(window) if keep_sums else None,
            frames_read=frames_read,
            digests=digests,
            paper=asdict(describe_kept(weights)) if paper else None,
        )
        result = commit_fit(store, part, record, pack_table(make_table(rows)))
    seconds = time.perf_counter() - started
    progress(
        Finished(
            f"{total.elements:,} elements x {window.n_frames} checkpoints, "
            f"{format_bytes(raw_bytes)} at {format_rate(raw_bytes, seconds)}; "
            f"pace set by: {pace.slowest()}"
        )
    )
    return result


def choose_window(store: Store, from_step: int | None, to_step: int | None) -> Window:
    """The committed frames with ``from_step`` <= step <= ``to_step``."""
    steps = store.steps
    inside = np.ones(len(steps), bool)
    if from_step is not None:
        inside &= steps >= from_step
    if to_step is not None:
        inside &= steps <= to_step
    chosen = np.flatnonzero(inside)
    if len(chosen) < 2:
        held = f"{steps[0]} to {steps[-1]}" if len(steps) else "none"
        raise InvalidInput(
            f"{store.path}: a line needs 2 checkpoints or more, the window has {len(chosen)} "
            f"(steps in the store: {held}); ingest more, or widen --from-step and --to-step"
        )
    first, stop = int(chosen[0]), int(chosen[-1]) + 1
    return Window(first, stop, StepAxis.of(steps[first:stop]))


def plan_fit(vector: FlatVector, n_frames: int, budget: int) -> tuple[Plan, int]:
    """Workers and frames a batch within the budget: fewer frames first, then fewer workers.

    Raises:
        OverBudget: one worker with the smallest batch does not fit.
    """

    def bytes_a_worker(batch: int) -> int:
        rows = batch + _SCRATCH_ROWS
        return vector.chunk * (rows * vector.dtype.itemsize + _STATE_BYTES)

    largest, smallest = (min(n_frames, n) for n in (BATCH_FRAMES, _SMALLEST_BATCH))
    return plan_batch("fit", count_workers(), largest, smallest, bytes_a_worker, budget)


def window_digest(store: Store, window: Window) -> str:
    """xxh3-128 over the frames' digests: which bits a fit is of."""
    frames = store.commit.frames[window.first : window.stop]
    return xxhash.xxh3_128_hexdigest("".join(f.digest for f in frames).encode())


def find_prior(store: Store, name: str, window: Window) -> Fit | None:
    """The fit of that name, where it can be continued: sums kept, and of the window's beginning."""
    try:
        prior = read_fit(store, name)
    except (NotFound, FormatError):
        return None
    steps = prior.record.steps
    if prior.record.sums is None or len(steps) > window.n_frames:
        return None
    begun = replace(window, stop=window.first + len(steps))
    if steps != window.axis.steps[: len(steps)]:
        return None
    return prior if prior.record.frames_digest == window_digest(store, begun) else None


def sums_scalars(window: Window) -> dict[str, float]:
    """The scalars of the sums over a whole window."""
    return _scalars_of(_counted_sums(window.axis.steps, window.axis.mean, window.axis.unit))


_SCALARS = ("count", "x_ref", "x_unit", "x_first", "x_last", "s_u", "s_uu", "s_du2")


def _scalars_of(sums: Sums) -> dict[str, float]:
    return {name: getattr(sums, name) for name in _SCALARS}


def _counted_sums(steps: Sequence[int], x_ref: float, x_unit: float) -> Sums:
    """Sums of no elements that have counted these steps: their scalars are those of the window."""
    sums = kernels.new_sums(0, "float32", x_ref, x_unit)
    take_steps(sums, np.asarray(steps, np.float64))
    return sums
