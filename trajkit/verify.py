"""Verify: every byte of a store against its checksums, every checkpoint against its digest.

With ``against``, checkpoints on disk are compared with the store: their tensors' bits by digest,
and their headers, index and side files with the source record. What agrees in all of it is given
back by ``restore`` byte for byte.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trajkit.checkpoint import open_checkpoint
from trajkit.codecs import Array
from trajkit.errors import FormatError, NotFound, StorageError, TrajkitError
from trajkit.kernels import api as kernels
from trajkit.layout import FlatVector, plan_workers
from trajkit.parallel import count_workers, map_in_order
from trajkit.progress import Advanced, Finished, Note, Progress, Started, silent
from trajkit.series import Found, find_series
from trajkit.source import FlatReader, SourceRecord, describe_source
from trajkit.store import Store, chunk_digest, frame_digest
from trajkit.units import (
    DEFAULT_MEMORY_BYTES,
    format_bytes,
    format_rate,
    format_seconds,
    parse_bytes,
)
from trajkit.writer import bytes_a_worker
from trajkit.zarrays import GROUP, ZArray, canonical_json, check_content


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
    bad = [*_check_metadata(opened), *_check_sources(opened), *_check_fits(opened)]
    budget = parse_bytes(memory)
    progress(Started("verify", opened.raw_bytes))
    frame_digests: list[Array] = []
    for vector in opened.vectors.values():
        bad += _check_vector(opened, vector, budget, progress, frame_digests)
    bad += _check_frame_digests(opened, frame_digests)
    spent = time.perf_counter() - started
    held = f"{len(opened.steps)} steps, {format_bytes(opened.raw_bytes)}"
    progress(Finished(f"{held} decoded at {format_rate(opened.raw_bytes, spent)}"))
    compared = _Compared()
    if against is not None:
        path_list = [against] if isinstance(against, str | Path) else list(against)
        series = find_series([Path(p) for p in path_list], Path(base) if base else None)
        for gone in series.incomplete:
            progress(Note(f"not compared: {gone.path}: {gone.reason}"))
        compared = _compare(opened, series.found, budget, progress)
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


def _check_metadata(store: Store) -> Iterator[Damage]:
    """Every zarr.json but the root (checked on opening) is byte for byte what trajkit writes."""
    for group in ("frames", "digests", "assets"):
        path = store.path / group / "zarr.json"
        yield from _expect(path, [GROUP])
    for array in (*store.frames.values(), *store.digests.values()):
        yield from _expect(array.path / "zarr.json", _legitimate_metadata(array))
    yield from _check_steps(store)


def _check_steps(store: Store) -> Iterator[Damage]:
    """The array ``steps``: as committed, or one step ahead where a killed writer left it so."""
    array = store.steps_array
    n = len(store.steps)
    documents = [canonical_json(array.metadata())]
    try:
        for s in range(len(list(array.shard_paths(0)))):
            array.check_shard(0, s)
        values = np.empty(array.n_chunks * array.chunk, np.int64)
        for k in range(array.n_chunks):
            array.read_chunk(0, k, values[k * array.chunk : (k + 1) * array.chunk])
        if not np.array_equal(values[:n], store.steps):
            yield Damage(f"{array.path}: differs from the committed steps")
        if n == len(values) or values[n] > store.steps[-1]:
            documents.append(canonical_json(array.metadata() | {"shape": [n + 1]}))
    except (FormatError, StorageError) as error:
        yield Damage(str(error))
    yield from _expect(array.path / "zarr.json", documents)


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
    yield from map(Damage, check_content(path, contents))


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
                except (FormatError, StorageError) as error:
                    bad.append(Damage(f"{error}; step {step}", step))
        try:
            expected[t] = store.digests[dtype].read_row(t)
        except (FormatError, StorageError) as error:
            bad.append(Damage(f"{error}; step {step}", step))
    frame_digests.append(expected)
    if not vector.n_chunks:
        return bad
    a_worker = 4 * vector.chunk * vector.dtype.itemsize
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
        except TrajkitError as error:
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


@dataclass(slots=True)
class _Compared:
    """What the comparison with checkpoints on disk came to."""

    steps: int = 0
    exact: int = 0
    converted: list[int] = field(default_factory=list)
    not_held: set[str] = field(default_factory=set)
    bad: list[Damage] = field(default_factory=list)


def _compare(store: Store, found: Sequence[Found], budget: int, progress: Progress) -> _Compared:
    """Checkpoints on disk against the store."""
    result = _Compared()
    vectors = store.vectors
    plan = plan_workers(
        "verify", count_workers(), bytes_a_worker(vectors, store.commit.cast), budget
    )
    progress(Started("compare", len(found) * sum(v.n_bytes for v in vectors.values())))
    clock = time.perf_counter()
    with ThreadPoolExecutor(plan.workers) as pool:
        for item in found:
            if item.step not in store.steps:
                text = f"{item.path}: step {item.step} is not in the store"
                result.bad.append(Damage(text, item.step))
                continue
            try:
                checkpoint = open_checkpoint(item.path, item.step)
                with FlatReader(checkpoint, vectors, store.commit.cast) as reader:
                    bad = list(_compare_checkpoint(store, reader, pool, plan.workers, progress))
                    converted = bool(reader.converted)
            except TrajkitError as error:
                result.bad.append(Damage(str(error), item.step))
                continue
            result.steps += 1
            result.bad += bad
            if item.path.is_dir():
                held = {f.name for f in checkpoint.files} | {checkpoint.index_name}
                others = {p.name for p in item.path.iterdir()} - held - set(checkpoint.side_files)
                result.not_held |= others
            if converted:
                result.converted.append(item.step)
            elif not bad:
                result.exact += 1
    seconds = time.perf_counter() - clock
    progress(Finished(f"{result.steps} checkpoints on disk in {format_seconds(seconds)}"))
    return result


def _compare_checkpoint(
    store: Store, reader: FlatReader, pool: Executor, workers: int, progress: Progress
) -> Iterator[Damage]:
    """What one checkpoint's files and the store do not agree in."""
    checkpoint = reader.checkpoint
    t = store.index_of(checkpoint.step)
    kept = SourceRecord.read(store.path, store.commit.frames[t].source)
    on_disk = describe_source(reader, lambda _, path: ("", _digest_file(path)))
    for line in kept.differences(on_disk):
        yield Damage(f"{checkpoint.root}: {line}; step {checkpoint.step}", checkpoint.step)
    reader.check_tied()
    for dtype, vector in store.vectors.items():
        digests = store.digests[dtype].read_row(t)

        def differs(
            k: int, dtype: str = dtype, vector: FlatVector = vector, digests: Array = digests
        ) -> bool:
            start, stop = vector.chunk_span(k)
            bits = np.empty(stop - start, vector.dtype.bits)
            reader.fill(dtype, start, stop, bits)
            return chunk_digest(bits) != int(digests[k])

        for k, bad in map_in_order(pool, differs, range(vector.n_chunks), 2 * workers):
            start, stop = vector.chunk_span(k)
            progress(Advanced((stop - start) * vector.dtype.itemsize))
            if bad:
                what = store.describe_chunk(dtype, t, k)
                text = f"{checkpoint.root}: differs from the store: {what}"
                yield Damage(text, checkpoint.step)
    reader.check_unchanged()


def _digest_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
