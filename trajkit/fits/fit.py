"""Fit: a least-squares line through every element of every floating-point tensor, in one pass.

:mod:`trajkit.fits.tasks` does the work; here the window is chosen, the memory planned, an earlier
fit found that can be continued, and the result committed.
"""

import platform
import time
from dataclasses import asdict
from typing import Any

import trajkit
from trajkit.defaults import DEFAULT_FIT, DEFAULT_MEMORY_BYTES, DEFAULT_THRESHOLD
from trajkit.errors import InvalidInput
from trajkit.fits.commit import commit_fit, new_arrays
from trajkit.fits.devices import choose_device
from trajkit.fits.kept import Fit, check_fit_name
from trajkit.fits.paper import MIN_DISTINCT, MIN_RANGE, describe_kept, is_weight
from trajkit.fits.plan import plan_fit
from trajkit.fits.record import FitFindings, FitRecord, FitRequest
from trajkit.fits.sums import KEEP_SUMS_FRAMES, find_prior
from trajkit.fits.table import make_table, pack_table, tensor_row
from trajkit.fits.tasks import FitOptions, Pace, VectorJob
from trajkit.fits.window import check_unchanged, choose_window, window_digest
from trajkit.kernels.state import SUMS_VERSION, new_stats
from trajkit.progress import Finished, Note, Progress, Started, silent
from trajkit.stats.nulls import null_above, null_median
from trajkit.store.lock import StoreLock
from trajkit.store.tensors import Source, as_store
from trajkit.units import format_bytes, format_rate, parse_bytes


def fit(
    traj: Source,
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
            statistics in the record (:mod:`trajkit.fits.paper`).
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: fewer than two checkpoints in the window, or a threshold outside [0, 1].
        Mismatch: the store holds other checkpoints by now than when it was opened.
        OverBudget: the budget is too small. Locked: another writer holds the store.
        FormatError: a damaged chunk; the fit that was there stays.
    """
    store = as_store(traj)
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
    rows: list[dict[str, Any]] = []
    total = weights = new_stats(rsq_threshold, window.axis.span)
    pace = Pace()
    with StoreLock(store.path):
        check_unchanged(store, window)
        prior = find_prior(store, name, window, lambda text: progress(Note(text)))
        frames_read = window.n_frames - (0 if prior is None else prior.n_frames)
        raw_bytes = frames_read * sum(v.n_bytes for v in floats)
        what = f"fit {window.n_frames} checkpoints on {backend}"
        if prior is not None:
            what += f" ({frames_read} new)"
        progress(Started(what, raw_bytes))
        with new_arrays(store, name) as folder:
            digests: dict[str, str] = {}
            sums: dict[str, dict[str, float]] = {}
            for vector in floats:
                plan, batch = plans[vector.dtype.name]
                options = FitOptions(backend, rsq_threshold, min_range, min_distinct, keep_sums)
                job = VectorJob(store, vector, window, batch, options, prior, pace)
                for info, stats in job.run(folder, plan, progress):
                    rows.append(tensor_row(info, stats))
                    total = total + stats
                    if is_weight(info.name):
                        weights = weights + stats
                digests |= job.digests
                sums[vector.dtype.name] = job.scalars
            asked = FitRequest(
                name=name,
                steps=window.axis.steps,
                frames_digest=window_digest(store, window),
                dtypes=tuple(v.dtype.name for v in floats),
                rsq_threshold=rsq_threshold,
                min_range=min_range,
                min_distinct=min_distinct,
                device=backend,
            )
            found = FitFindings(
                stats={
                    k: v.tolist() if hasattr(v, "tolist") else v for k, v in asdict(total).items()
                },
                null={
                    "median_rsq": null_median(window.axis.steps),
                    "above_threshold": null_above(window.axis.steps, rsq_threshold),
                },
                versions={"trajkit": trajkit.__version__, "python": platform.python_version()},
                seconds=time.perf_counter() - started,
                table_sha256="",
                sums=sums if keep_sums else None,
                sums_version=SUMS_VERSION if keep_sums else None,
                frames_read=frames_read,
                digests=digests,
                paper=asdict(describe_kept(weights)) if paper else None,
            )
            table = pack_table(make_table(rows))
            result = commit_fit(store, folder, FitRecord(asked, found), table)
    seconds = time.perf_counter() - started
    progress(
        Finished(
            f"{total.elements:,} elements x {window.n_frames} checkpoints, "
            f"{format_bytes(raw_bytes)} at {format_rate(raw_bytes, seconds)}; "
            f"pace set by: {pace.slowest()}"
        )
    )
    return result
