"""Verify: every byte of a store against its checksums, every checkpoint against its digest."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trajkit.checkpoint import open_checkpoint
from trajkit.codecs import Array
from trajkit.errors import FormatError, NotFound, TrajkitError
from trajkit.kernels import api as kernels
from trajkit.layout import FlatVector, plan_workers
from trajkit.parallel import count_workers, map_in_order
from trajkit.progress import Advanced, Finished, Progress, Started, silent
from trajkit.series import find_series
from trajkit.source import FlatReader, SourceRecord
from trajkit.store import Store, chunk_digest, frame_digest
from trajkit.units import DEFAULT_MEMORY_BYTES, format_bytes, format_rate, parse_bytes
from trajkit.writer import GROUP
from trajkit.zarrays import ZArray, canonical_json


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was written."""

    what: str
    """one line: the file, what is wrong, and the step and tensors hit where there are any"""
    step: int | None = None


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The outcome of :func:`verify`."""

    ok: bool
    bad: tuple[Damage, ...]
    steps: int
    """committed steps checked"""
    compared: int
    """checkpoints compared with the store, bit for bit (``against``)"""
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
        against: checkpoints that the store must hold bit for bit; each complete one is compared.
        base: as in ingest, for ``against``.
        memory: budget, above the interpreter and its libraries.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        NotFound: there is no store at all. Damage is returned, not raised.
    """
    started = time.perf_counter()
    try:
        opened = Store.open(store)
    except NotFound:
        raise
    except TrajkitError as error:
        damage = (Damage(str(error)),)
        return VerifyResult(False, damage, 0, 0, 0, time.perf_counter() - started)
    bad = [*_check_metadata(opened), *_check_sources(opened), *_check_fits(opened)]
    budget = parse_bytes(memory)
    progress(Started("verify", opened.raw_bytes))
    frame_digests: list[Array] = []
    for vector in opened.vectors.values():
        bad += _check_vector(opened, vector, budget, progress, frame_digests)
    bad += _check_frame_digests(opened, frame_digests)
    compared = 0
    if against is not None:
        path_list = [against] if isinstance(against, str | Path) else list(against)
        compared, differing = _compare(
            opened, [Path(p) for p in path_list], Path(base) if base else None
        )
        bad += differing
    seconds = time.perf_counter() - started
    progress(
        Finished(
            f"{len(opened.steps)} steps, {format_bytes(opened.raw_bytes)} decoded at "
            f"{format_rate(opened.raw_bytes, seconds)}"
        )
    )
    return VerifyResult(not bad, tuple(bad), len(opened.steps), compared, opened.raw_bytes, seconds)


def _check_metadata(store: Store) -> Iterator[Damage]:
    """Every zarr.json but the root (checked on opening) is byte for byte what trajkit writes."""
    for group in ("frames", "digests", "assets"):
        path = store.path / group / "zarr.json"
        yield from _expect(path, [canonical_json(GROUP)])
    for array in (*store.frames.values(), *store.digests.values()):
        yield from _expect(array.path / "zarr.json", _legitimate_metadata(array))
    steps = store.steps_array
    yield from _expect(steps.path / "zarr.json", [canonical_json(steps.metadata())])
    try:
        for s in range(len(list(steps.shard_paths(0)))):
            steps.check_shard(0, s)
        if not np.array_equal(steps.read_row(), store.steps):
            yield Damage(f"{steps.path}: differs from the committed steps")
    except FormatError as error:
        yield Damage(str(error))


def _legitimate_metadata(array: ZArray) -> list[bytes]:
    """The array's metadata as committed, or one row ahead where a killed writer left that row."""
    documents = [canonical_json(array.metadata())]
    assert array.rows is not None
    if array.row_path(array.rows).exists():
        ahead = array.metadata()
        ahead["shape"][0] += 1
        documents.append(canonical_json(ahead))
    return documents


def _expect(path: Path, contents: list[bytes]) -> Iterator[Damage]:
    try:
        if path.read_bytes() not in contents:
            yield Damage(f"{path}: damaged: not what trajkit wrote")
    except OSError as error:
        yield Damage(f"{path}: {error.strerror}")


def _check_sources(store: Store) -> Iterator[Damage]:
    """Source records and side files against their digests."""
    files: dict[str, str] = {}
    for source in dict.fromkeys(f.source for f in store.commit.frames):
        try:
            files |= dict(SourceRecord.read(store.path, source).assets.values())
        except (TrajkitError, OSError, ValueError) as error:
            yield Damage(str(error))
    for file, sha in files.items():
        path = store.path / "assets" / file
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha:
                yield Damage(f"{path}: damaged: its digest does not match the source record")
        except OSError as error:
            yield Damage(f"{path}: {error.strerror}")


def _check_fits(store: Store) -> Iterator[Damage]:
    from trajkit.fits import check_fits

    for line in check_fits(store):
        yield Damage(line)


def _check_vector(
    store: Store,
    vector: FlatVector,
    budget: int,
    progress: Progress,
    frame_digests: list[Array],
) -> list[Damage]:
    """Every chunk of every frame of one vector: its checksum, then the digest of its bits."""
    dtype = vector.dtype.name
    n_frames = len(store.steps)
    bad: list[Damage] = []
    expected = np.zeros((n_frames, vector.n_chunks), np.uint64)
    for t, step in enumerate(store.steps.tolist()):
        for array in (store.frames[dtype], store.digests[dtype]):
            for s in range(len(list(array.shard_paths(t)))):
                try:
                    array.check_shard(t, s)
                except FormatError as error:
                    bad.append(Damage(f"{error}; step {step}", step))
        try:
            expected[t] = store.digests[dtype].read_row(t)
        except FormatError as error:
            bad.append(Damage(f"{error}; step {step}", step))
    frame_digests.append(expected)
    if not vector.n_chunks:
        return bad
    a_worker = 3 * vector.chunk * vector.dtype.itemsize
    plan = plan_workers("verify", count_workers(), a_worker, budget, expected.nbytes)

    def check(k: int) -> list[Damage]:
        return _check_chunk(store, vector, k, expected[:, k])

    with ThreadPoolExecutor(plan.workers) as pool:
        for k, found in map_in_order(pool, check, range(vector.n_chunks), 2 * plan.workers):
            start, stop = vector.chunk_span(k)
            progress(Advanced((stop - start) * vector.dtype.itemsize * n_frames))
            bad += found
    return bad


def _check_chunk(store: Store, vector: FlatVector, k: int, expected: Array) -> list[Damage]:
    """One chunk through all frames; after a damaged delta the chain resumes at the next key."""
    dtype = vector.dtype.name
    start, stop = vector.chunk_span(k)
    bits = np.empty(vector.chunk, vector.dtype.bits)
    codes = np.empty_like(bits)
    bad = []
    broken = False
    for t, step in enumerate(store.steps.tolist()):
        broken = broken and not store.is_key(t)
        try:
            store.read_codes(dtype, t, k, codes)
        except (FormatError, TrajkitError) as error:
            bad.append(Damage(str(error), step))
            broken = True
            continue
        if broken:
            continue
        if store.is_key(t):
            bits[:] = codes
        else:
            kernels.decode_frame(codes, bits, bits)
        if chunk_digest(bits[: stop - start]) != expected[t]:
            what = store.describe_chunk(dtype, t, k)
            bad.append(
                Damage(f"{store.path}: decoded bits do not match their digest: {what}", step)
            )
    return bad


def _check_frame_digests(store: Store, frame_digests: list[Array]) -> Iterator[Damage]:
    for t, frame in enumerate(store.commit.frames):
        if frame_digest([d[t] for d in frame_digests]) != frame.digest:
            text = f"{store.path}: step {frame.step}: chunk digests do not match the commit"
            yield Damage(text, frame.step)


def _compare(store: Store, paths: Sequence[Path], base: Path | None) -> tuple[int, list[Damage]]:
    """Checkpoints on disk against the store, by the digests of their chunks."""
    bad: list[Damage] = []
    compared = 0
    for found in find_series(paths, base).found:
        if found.step not in store.steps:
            bad.append(Damage(f"{found.path}: step {found.step} is not in the store", found.step))
            continue
        try:
            bad += _compare_checkpoint(store, found.path, found.step)
            compared += 1
        except TrajkitError as error:
            bad.append(Damage(str(error), found.step))
    return compared, bad


def _compare_checkpoint(store: Store, path: Path, step: int) -> Iterator[Damage]:
    t = store.index_of(step)
    checkpoint = open_checkpoint(path, step)
    with FlatReader(checkpoint, store.vectors, store.commit.cast) as reader:
        reader.check_tied()
        for dtype, vector in store.vectors.items():
            digests = store.digests[dtype].read_row(t)
            for k in range(vector.n_chunks):
                start, stop = vector.chunk_span(k)
                bits = np.empty(stop - start, vector.dtype.bits)
                reader.fill(dtype, start, stop, bits)
                if chunk_digest(bits) != digests[k]:
                    what = store.describe_chunk(dtype, t, k)
                    yield Damage(f"{path}: differs from the store: {what}", step)
