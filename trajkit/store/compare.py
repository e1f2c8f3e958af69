"""Checkpoints on disk compared with what the store holds of them."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.layout import FlatVector
from trajkit.checkpoints.reader import FlatReader
from trajkit.checkpoints.record import SourceRecord, describe_source
from trajkit.checkpoints.trainers import Found
from trajkit.disk import read_file
from trajkit.errors import StorageError, TrajkitError
from trajkit.parallel import count_workers, map_in_order, plan_workers
from trajkit.progress import Advanced, Finished, Progress, Started
from trajkit.store.check import Damage
from trajkit.store.commit import chunk_digest
from trajkit.store.store import Store
from trajkit.store.writer import bytes_a_worker
from trajkit.text import format_seconds


@dataclass(slots=True)
class Compared:
    """What the comparison with checkpoints on disk came to."""

    steps: int = 0
    exact: int = 0
    converted: list[int] = field(default_factory=list)
    held: list[Path] = field(default_factory=list)
    """files that restoring gives back byte for byte"""
    bad: list[Damage] = field(default_factory=list)


def compare(store: Store, found: Sequence[Found], budget: int, progress: Progress) -> Compared:
    """Checkpoints on disk against the store."""
    result = Compared()
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
            if bad:
                continue
            result.held += checkpoint.side_files.values()
            if converted:
                result.converted.append(item.step)
                continue
            result.exact += 1
            result.held += (file.path for file in checkpoint.files)
            if checkpoint.index_name is not None:
                result.held.append(checkpoint.root / checkpoint.index_name)
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
        digests = store.chunk_digests(t)[dtype]

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
        return hashlib.sha256(read_file(path)).hexdigest()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(f"{path}: {error.strerror}") from error
