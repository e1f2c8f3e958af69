"""Verify: every byte of a store against its checksums, every checkpoint against its digest.

With ``against``, checkpoints on disk are compared with the store: their tensors' bits by digest,
and their headers, index and side files with the source record. What agrees in all of it is given
back by ``restore`` byte for byte.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trajkit.arrays import Array
from trajkit.checkpoints.series import find_series
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.errors import NotFound, TrajkitError
from trajkit.evidence.kept import check_backtest
from trajkit.progress import Finished, Note, Progress, Started, silent
from trajkit.store.check import (
    Damage,
    check_frame_digests,
    check_metadata,
    check_sources,
    check_vector,
)
from trajkit.store.compare import Compared, compare
from trajkit.store.store import Store
from trajkit.units import format_bytes, format_rate, parse_bytes


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
    """names of files in the compared folders that ingest does not keep, such as optimizer.pt"""
    n_bytes: int
    """raw bytes decoded"""
    seconds: float


def verify(
    store: str | Path,
    *,
    against: Sequence[str | Path] | str | Path | None = None,
    base: str | Path | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress = silent,
) -> VerifyResult:
    """Check a store whole: metadata, chunks, digests, side files and fits.

    Args:
        store: the store's folder.
        against: checkpoints that the store must hold; each complete one is compared. Where the
            store was made with ``--dtype``, what their tensors convert to is compared, and the step
            is listed in ``converted``: restoring does not give that file back.
        base: as in ingest, for ``against``.
        memory: budget, above the interpreter and its libraries.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        NotFound: there is no store at all, or no checkpoint at ``against``. Damage is returned,
            not raised.
    """
    started = time.perf_counter()
    try:
        opened = Store.open(store)
    except NotFound:
        raise
    except TrajkitError as error:
        damage = (Damage(str(error)),)
        return VerifyResult(False, damage, 0, 0, 0, (), (), 0, time.perf_counter() - started)
    bad = [*check_metadata(opened), *check_sources(opened), *_check_fits(opened)]
    bad += [Damage(line) for line in check_backtest(opened)]
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
    compared = Compared()
    if against is not None:
        path_list = [against] if isinstance(against, str | Path) else list(against)
        series = find_series([Path(p) for p in path_list], Path(base) if base else None)
        for gone in series.incomplete:
            progress(Note(f"not compared: {gone.path}: {gone.reason}"))
        compared = compare(opened, series.found, budget, progress)
        bad += compared.bad
    return VerifyResult(
        ok=not bad,
        bad=tuple(bad),
        steps=len(opened.steps),
        compared=compared.steps,
        exact=compared.exact,
        converted=tuple(compared.converted),
        not_held=tuple(sorted(compared.not_held)),
        n_bytes=opened.raw_bytes,
        seconds=time.perf_counter() - started,
    )


def _check_outputs(store: Store) -> Iterator[Damage]:
    from trajkit.outputs.check import check_outputs

    for line in check_outputs(store):
        yield Damage(line)


def _check_fits(store: Store) -> Iterator[Damage]:
    from trajkit.fits.check import check_fits

    for line in check_fits(store):
        yield Damage(line)
