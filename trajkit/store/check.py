"""Every byte of a store against its checksums, every checkpoint against its digest."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.checkpoints.record import SourceRecord
from trajkit.checkpoints.shards import plan_files
from trajkit.disk import canonical_json, read_file
from trajkit.errors import FormatError, StorageError, TrajkitError
from trajkit.kernels import api as kernels
from trajkit.parallel import count_workers, map_in_order, plan_workers
from trajkit.progress import Advanced, Progress
from trajkit.store.array import ZArray
from trajkit.store.commit import chunk_digest, frame_digest
from trajkit.store.documents import GROUP, check_content
from trajkit.store.store import MOST_BEHIND, Store

MISSING_SHARDS_SHOWN = 16
"""of one row of an array"""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was written."""

    what: str
    """one line: the file, what is wrong, and the step and tensors hit where there are any"""
    step: int | None = None


LOOKS = 20
"""how often metadata is looked at again because a writer has committed meanwhile"""


def check_metadata(store: Store) -> list[Damage]:
    """Every zarr.json but the root (checked on opening) is byte for byte what trajkit writes.

    It is what the commit of this moment says, which may be a later one than ``store`` is of: a
    writer may be appending.
    """
    now = store
    for _ in range(LOOKS):
        now = Store.open(store.path)
        bad = list(_check_metadata(now))
        if not bad or Store.open(store.path).commit == now.commit:
            break
    n = len(store.steps)
    if now.commit.frames[:n] != store.commit.frames:
        bad.append(Damage(f"{store.path}: was replaced while it was verified; run it again"))
    return bad


def _check_metadata(store: Store) -> Iterator[Damage]:
    for group in ("frames", "digests", "assets"):
        path = store.path / group / "zarr.json"
        yield from _expect(path, [GROUP])
    for array in (*store.frames.values(), *store.digests.values()):
        yield from _expect(array.path / "zarr.json", _legitimate_metadata(array))
    yield from _check_steps(store)


def _check_steps(store: Store) -> Iterator[Damage]:
    """The array ``steps``: as committed, behind a recorder, or ahead where a killed writer left it."""
    array = store.steps_array
    n = len(store.steps)
    documents = [canonical_json(array.metadata())]
    try:
        for s in range(len(list(array.shard_paths(0)))):
            array.check_shard(0, s)
        values = np.empty(array.n_chunks * array.chunk, np.int64)
        for k in range(array.n_chunks):
            array.read_chunk(0, k, values[k * array.chunk : (k + 1) * array.chunk])
        lags = range(n, max(n - MOST_BEHIND, 0), -1)
        have = next((m for m in lags if np.array_equal(values[:m], store.steps[:m])), None)
        if have is None and n:
            yield Damage(f"{array.path}: differs from the committed steps")
        documents += [canonical_json(array.metadata() | {"shape": [m]}) for m in lags]
        n = n if have is None else have
        ahead = n
        while ahead < len(values) and values[ahead] > (values[ahead - 1] if ahead else -1):
            ahead += 1  # an append adds one step before its commit, a cut leaves all it took back
        shapes = {n + 1} if n == len(values) else set(range(n + 1, ahead + 1))
        documents += [canonical_json(array.metadata() | {"shape": [m]}) for m in sorted(shapes)]
    except (FormatError, StorageError) as error:
        yield Damage(str(error))
    yield from _expect(array.path / "zarr.json", documents)


def _legitimate_metadata(array: ZArray) -> list[bytes]:
    """The array's metadata as committed, behind a recorder, or ahead by what a killed writer left."""
    assert array.rows is not None
    documents = []
    for rows in range(array.rows, max(array.rows - MOST_BEHIND, 0), -1):
        behind = array.metadata()
        behind["shape"][0] = rows
        documents.append(canonical_json(behind))
    documents = documents or [canonical_json(array.metadata())]
    row = array.rows
    while array.row_path(row).exists():  # one of an append, all of those that a cut took back
        row += 1
        ahead = array.metadata()
        ahead["shape"][0] = row
        documents.append(canonical_json(ahead))
    return documents


def _expect(path: Path, contents: list[bytes]) -> Iterator[Damage]:
    yield from map(Damage, check_content(path, contents))


def check_sources(store: Store) -> Iterator[Damage]:
    """Source records and side files against their digests."""
    files: dict[str, str] = {}
    for source in dict.fromkeys(f.source for f in store.commit.frames):
        try:
            record = SourceRecord.read(store.path, source)
            plan_files(record, store.vectors, store.commit.cast)
            files |= dict(record.assets.values())
        except TrajkitError as error:
            yield Damage(str(error))
    for file, sha in files.items():
        path = store.path / "assets" / file
        try:
            if hashlib.sha256(read_file(path)).hexdigest() != sha:
                yield Damage(f"{path}: damaged: its digest does not match the source record")
        except (FileNotFoundError, NotADirectoryError):
            yield Damage(f"{path}: missing from the store")
        except (FormatError, StorageError) as error:
            yield Damage(str(error))


def check_vector(
    store: Store,
    vector: FlatVector,
    budget: int,
    progress: Progress,
    frame_digests: list[Array],
) -> list[Damage]:
    """Every chunk of every frame of one vector: its checksum, then the digest of its bits."""
    dtype = vector.dtype.name
    n_frames = len(store.steps)
    bad, rows = _check_shards(store, dtype)
    if n_frames and not any(row is not None for row in rows):
        frame_digests.append(np.zeros((n_frames, 0), np.uint64))
        return bad  # nothing on the disk says that there are so many chunks
    expected = np.zeros((n_frames, vector.n_chunks), np.uint64)
    for t, row in enumerate(rows):
        if row is not None:
            expected[t] = row
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


def _check_shards(store: Store, dtype: str) -> tuple[list[Damage], list[Array | None]]:
    """The shard files of one vector, and its rows of digests: None for one that cannot be read."""
    bad: list[Damage] = []
    rows: list[Array | None] = []
    for t, step in enumerate(store.steps.tolist()):
        for array in (store.frames[dtype], store.digests[dtype]):
            missing = 0
            for s, path in enumerate(array.shard_paths(t)):
                try:
                    array.check_shard(t, s)
                except (FormatError, StorageError) as error:
                    bad.append(Damage(f"{error}; step {step}", step))
                    missing += not path.exists()
                if missing > MISSING_SHARDS_SHOWN:  # a row is gone, or its size is crafted
                    bad.append(Damage(f"{path.parent}: more are missing; step {step}", step))
                    break
        try:
            rows.append(store.digests[dtype].read_row(t))
        except (FormatError, StorageError) as error:
            bad.append(Damage(f"{error}; step {step}", step))
            rows.append(None)
    return bad, rows


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


def check_frame_digests(store: Store, frame_digests: list[Array]) -> Iterator[Damage]:
    """Every checkpoint's digest in the commit against those of its chunks."""
    for t, frame in enumerate(store.commit.frames):
        if frame_digest([d[t] for d in frame_digests]) != frame.digest:
            text = f"{store.path}: step {frame.step}: chunk digests do not match the commit"
            yield Damage(text, frame.step)
