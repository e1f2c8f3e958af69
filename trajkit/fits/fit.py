"""Fit: a least-squares line through every element of every floating-point tensor, in one pass.

:mod:`trajkit.fits.vector` does the work; here the window is chosen, the memory planned, an earlier
fit found that can be continued, and the result committed.
"""

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import trajkit
from trajkit.checkpoints.layout import FlatVector
from trajkit.defaults import DEFAULT_FIT, DEFAULT_MEMORY_BYTES, DEFAULT_THRESHOLD
from trajkit.errors import FormatError, InvalidInput, Unsupported
from trajkit.fits.commit import commit_fit, new_arrays
from trajkit.fits.devices import choose_device
from trajkit.fits.kept import Fit, check_fit_name, fit_names, read_fit
from trajkit.fits.paper import (
    DISTINCT_IN,
    MIN_DISTINCT,
    MIN_RANGE,
    describe_kept,
    is_weight,
)
from trajkit.fits.plan import FitPlan, array_bytes, check_room, free_bytes, plan_vector
from trajkit.fits.record import FitFindings, FitRecord, FitRequest
from trajkit.fits.source import StoreName
from trajkit.fits.sums import KEEP_SUMS_FRAMES, find_prior
from trajkit.fits.table import pack_table, tensor_row
from trajkit.fits.tasks import FitOptions, StageTimings
from trajkit.fits.vector import VectorFit
from trajkit.fits.walks import FitWalks
from trajkit.fits.window import Window, check_unchanged, choose_window, window_digest
from trajkit.kernels.state import SUMS_VERSION, new_stats
from trajkit.parallel import Plan
from trajkit.progress import Finished, Note, Progress, Started, as_subscriber, shows_progress
from trajkit.store.events import has_events
from trajkit.store.lock import ResultsLock
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store
from trajkit.text import format_bytes, format_rate, parse_bytes


@shows_progress
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
    progress: Progress | bool = False,
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
        keep_sums: keep the sums (69 bytes an element of bf16, before compression), so that a later
            fit can go on from them; by default in windows of 256 checkpoints or more.
        paper: apply the filters of arXiv 2601.04537 in place of the two above, and keep its
            statistics in the record (:mod:`trajkit.fits.paper`).
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: fewer than two checkpoints in the window, or a threshold outside [0, 1].
        Mismatch: the store holds other checkpoints by now than when it was opened.
        OverBudget: the budget is too small. Locked: another writer holds the store.
        FormatError: a damaged chunk; the fit that was there stays.
    """
    prepared = _prepare(
        traj,
        rsq_threshold,
        from_step=from_step,
        to_step=to_step,
        name=name,
        device=device,
        min_range=min_range,
        min_distinct=min_distinct,
        keep_sums=keep_sums,
        paper=paper,
        memory=memory,
    )
    store, window, options = prepared.store, prepared.window, prepared.options
    started, progress = time.perf_counter(), as_subscriber(progress)
    rows: list[dict[str, Any]] = []
    total = weights = new_stats(rsq_threshold, window.axis.span)
    timings = StageTimings()
    with ResultsLock(store.path):
        check_unchanged(store, window)
        check_room(store, array_bytes(store, prepared.floats, False)[0])
        replaced = describe_replaced(store, name)
        if replaced is not None:
            progress(Note(f"replaces {replaced}"))
        tell = as_subscriber(progress)
        prior = find_prior(store, name, window, paper, lambda text: tell(Note(text)))
        frames_read = window.n_frames - (0 if prior is None else prior.n_frames)
        raw_bytes = frames_read * sum(v.n_bytes for v in prepared.floats)
        what = f"fit {window.n_frames} checkpoints on {options.device}"
        if prior is not None:
            what += f" ({frames_read} new)"
        progress(Started(what, raw_bytes))
        with new_arrays(store, name) as folder:
            walks = FitWalks(window.axis.steps, rsq_threshold)
            digests: dict[str, str] = {}
            sums: dict[str, dict[str, float]] = {}
            paths: set[str] = set()
            for vector in prepared.floats:
                plan, batch = prepared.plans[vector.dtype.name]
                source = StoreName.of(store, window, plan)
                job = VectorFit(source, vector, window, batch, options, prior)
                for info, stats, moves in job.run(folder, plan.workers, progress):
                    rows.append(tensor_row(info, stats) | walks.add(info, stats, moves))
                    total = total + stats
                    if is_weight(info.name):
                        weights = weights + stats
                digests |= job.digests
                timings.merge(job.timings)
                paths |= job.paths
                sums[vector.dtype.name] = job.scalars
            asked = FitRequest(
                name=name,
                steps=window.axis.steps,
                frames_digest=window_digest(store, window),
                dtypes=tuple(v.dtype.name for v in prepared.floats),
                rsq_threshold=rsq_threshold,
                min_range=options.min_range,
                min_distinct=options.min_distinct,
                device=options.device,
            )
            found = FitFindings(
                stats={
                    k: v.tolist() if hasattr(v, "tolist") else v for k, v in asdict(total).items()
                },
                null=walks.summary(),
                null_rsq=walks.rsq(),
                modules=walks.modules(),
                versions={"trajkit": trajkit.__version__, "python": platform.python_version()},
                seconds=time.perf_counter() - started,
                table_sha256="",
                sums=sums if options.keep_sums else None,
                sums_version=SUMS_VERSION if options.keep_sums else None,
                frames_read=frames_read,
                digests=digests,
                path="mixed" if len(paths) > 1 else "".join(paths) or None,
                paper=asdict(describe_kept(weights)) if paper else None,
            )
            table = pack_table(rows)
            result = commit_fit(store, folder, FitRecord(asked, found), table)
    seconds = time.perf_counter() - started
    progress(
        Finished(
            f"{total.elements:,} elements x {window.n_frames} checkpoints, "
            f"{format_bytes(raw_bytes)} at {format_rate(raw_bytes, seconds)}; "
            f"pace set by: {timings.slowest()}"
        )
    )
    return result


def plan_fit(traj: Source, rsq_threshold: float = DEFAULT_THRESHOLD, **options: Any) -> FitPlan:
    """What :func:`fit` would read, write and hold; raises as it would before it starts.

    ``options`` are those of :func:`fit`, but for ``progress``.
    """
    prepared = _prepare(traj, rsq_threshold, **options)
    store, window, floats = prepared.store, prepared.window, prepared.floats
    name: str = options.get("name", DEFAULT_FIT)
    prior = find_prior(
        store, name, window, prepared.options.distinct_in is not None, lambda text: None
    )
    frames_read = window.n_frames - (0 if prior is None else prior.n_frames)
    largest = max(
        (plan for plan, _ in prepared.plans.values()), key=lambda p: p.n_bytes, default=None
    )
    return FitPlan(
        name=name,
        replaces=describe_replaced(store, name),
        device=prepared.options.device,
        checkpoints=window.n_frames,
        from_step=window.axis.steps[0],
        to_step=window.axis.steps[-1],
        frames_read=frames_read,
        elements=sum(v.size for v in floats),
        n_bytes_read=frames_read * sum(v.n_bytes for v in floats),
        n_bytes_written=sum(array_bytes(store, floats, prepared.options.keep_sums)),
        free_bytes=free_bytes(store),
        workers=0 if largest is None else largest.workers,
        memory_bytes=0 if largest is None else largest.n_bytes,
    )


def describe_replaced(store: Store, name: str) -> str | None:
    """What is in the place of a fit of that name; None where there is nothing."""
    if name not in fit_names(store):
        return None
    try:
        record = read_fit(store, name).record
    except (FormatError, Unsupported):
        return f"the fit {name!r}, which cannot be read"
    steps = record.steps
    return f"the fit {name!r} of {len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A fit that can begin: its arguments checked, its window chosen, its memory planned."""

    store: Store
    window: Window
    floats: tuple[FlatVector, ...]
    """the flat vectors that are fitted"""
    plans: Mapping[str, tuple[Plan, int]]
    """workers and frames a batch, by dtype"""
    options: FitOptions


def _prepare(
    traj: Source,
    rsq_threshold: float,
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
) -> _Prepared:
    """The arguments of :func:`fit`, checked before anything is read or written."""
    store = as_store(traj)
    check_fit_name(name)
    if paper:
        min_range, min_distinct = MIN_RANGE, MIN_DISTINCT
    window = choose_window(store, from_step, to_step)
    if not 0 <= rsq_threshold <= 1:
        raise InvalidInput(f"rsq_threshold must lie in [0, 1], not {rsq_threshold}")
    if keep_sums is None:
        again = has_events(store) and choose_device(device) == "cpu"  # cheaper than sums are
        keep_sums = window.n_frames >= KEEP_SUMS_FRAMES and not again
    budget = parse_bytes(memory)
    options = FitOptions(
        choose_device(device), float(rsq_threshold), min_range, min_distinct, keep_sums,
        distinct_in=DISTINCT_IN if paper else None,
    )  # fmt: skip
    floats = tuple(v for v in store.vectors.values() if v.dtype.is_float)
    plans = {v.dtype.name: plan_vector(v, window.n_frames, budget, keep_sums) for v in floats}
    return _Prepared(store, window, floats, plans, options)
