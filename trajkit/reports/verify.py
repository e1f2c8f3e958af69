"""Verify: every byte of a store against its checksums, every checkpoint against its digest.

With ``against``, checkpoints on disk are compared with the store: their tensors' bits by digest,
and their headers, index and side files with the source record. What agrees in all of it is given
back by ``restore`` byte for byte. Everything else in the folders is counted: it would be lost.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trajkit.arrays import Array
from trajkit.checkpoints.leftovers import Leftovers, count_files, list_leftovers
from trajkit.checkpoints.series import Series, as_paths, find_series
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.errors import NotFound, TrajkitError
from trajkit.evidence.kept import check_backtest
from trajkit.evidence.movement import check_evidence
from trajkit.outputs.guide.kept import check_searches
from trajkit.progress import Finished, Note, Progress, Started, as_subscriber, shows_progress
from trajkit.store.check import (
    Damage,
    check_frame_digests,
    check_metadata,
    check_sources,
    check_vector,
)
from trajkit.store.compare import Compared, compare
from trajkit.store.metrics import check_kept_metrics
from trajkit.store.store import Store
from trajkit.store.tensors import Source, path_of
from trajkit.text import format_bytes, format_rate, parse_bytes


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The outcome of :func:`verify`."""

    ok: bool
    bad: tuple[Damage, ...]
    steps: int
    """committed steps checked"""
    compared: int
    """checkpoints on disk that were compared with the store (``against``)"""
    exact: int
    """of these, the ones that ``restore`` gives back byte for byte"""
    converted: tuple[int, ...]
    """training steps whose tensors are in the store in another dtype than on disk (``--dtype``)"""
    not_held: tuple[str, ...]
    """names of the files there that the store does not give back, such as optimizer.pt; relative
    to their step's folder, each once"""
    n_bytes: int
    """raw bytes decoded"""
    seconds: float
    held_files: int = 0
    """files on disk that the store gives back byte for byte (``against``)"""
    held_bytes: int = 0
    lost_files: int = 0
    """all other files in the folders given and in the steps' folders: lost if these are deleted"""
    lost_bytes: int = 0


@shows_progress
def verify(
    store: Source,
    *,
    against: Sequence[str | Path] | str | Path | None = None,
    base: str | Path | None = None,
    pattern: str | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress | bool = False,
) -> VerifyResult:
    """Check a store whole: metadata, chunks, digests, side files, and all that was made of them.

    That is fits, outputs, the backtest, the evidence and the metrics.

    Args:
        store: the run: a store's path, a store, or a trajectory.
        against: checkpoints that the store must hold; each complete one is compared. Where the
            store was made with ``--dtype``, what their tensors convert to is compared, and the step
            is listed in ``converted``: restoring does not give that file back.
        base: as in ingest, for ``against``.
        pattern: as in ingest, for ``against``.
        memory: budget, above the interpreter and its libraries.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Raises:
        NotFound: there is no store at all, or no checkpoint at ``against``. Damage is returned,
            not raised.
    """
    started, progress = time.perf_counter(), as_subscriber(progress)
    try:
        opened = Store.open(path_of(store))
    except NotFound:
        raise
    except TrajkitError as error:
        damage = (Damage(str(error)),)
        return VerifyResult(False, damage, 0, 0, 0, (), (), 0, time.perf_counter() - started)
    bad = [*check_metadata(opened), *check_sources(opened), *_check_fits(opened)]
    for check in (check_backtest, check_evidence, check_kept_metrics, check_searches):
        bad += [Damage(line) for line in check(opened)]
    bad += _check_outputs(opened)
    budget = parse_bytes(memory)
    progress(Started("verify", opened.raw_bytes))
    frame_digests: list[Array] = []
    for vector in opened.vectors.values():
        bad += check_vector(opened, vector, budget, progress, frame_digests)
    bad += check_frame_digests(opened, frame_digests)
    spent = time.perf_counter() - started
    held = f"{len(opened.steps)} steps, {format_bytes(opened.raw_bytes)}"
    progress(Finished(f"{held} decoded at {format_rate(opened.raw_bytes, spent)}"))
    compared, others = Compared(), Leftovers(0, 0, ())
    if against is not None:
        paths = as_paths(against)
        series = find_series(paths, None if base is None else Path(base), pattern)
        for gone in series.incomplete:
            progress(Note(f"not compared: {gone.path}: {gone.reason}"))
        compared = compare(opened, series.found, budget, progress)
        bad += compared.bad
        others = _list_others(paths, series, compared.held)
    held_files, held_bytes = count_files(compared.held)
    return VerifyResult(
        ok=not bad,
        bad=tuple(bad),
        steps=len(opened.steps),
        compared=compared.steps,
        exact=compared.exact,
        converted=tuple(compared.converted),
        not_held=others.names,
        n_bytes=opened.raw_bytes,
        seconds=time.perf_counter() - started,
        held_files=held_files,
        held_bytes=held_bytes,
        lost_files=others.files,
        lost_bytes=others.n_bytes,
    )


def _list_others(paths: Sequence[Path], series: Series, held: Sequence[Path]) -> Leftovers:
    """What lies in the folders given, and in all of the steps' own, that is not held."""
    steps = [found.folder for found in series.found if found.folder is not None]
    places = [*paths, *(f.path for f in series.found), *(f.path for f in series.incomplete)]
    return list_leftovers(places, steps, held)


def _check_outputs(store: Store) -> Iterator[Damage]:
    from trajkit.outputs.check import check_outputs

    for line in check_outputs(store):
        yield Damage(line)


def _check_fits(store: Store) -> Iterator[Damage]:
    from trajkit.fits.check import check_fits

    for line in check_fits(store):
        yield Damage(line)
