"""Restore: an ingested checkpoint written back, bit for bit."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trajkit.checkpoints.folder import FolderWriter
from trajkit.checkpoints.layout import FlatVector
from trajkit.checkpoints.record import SourceRecord
from trajkit.checkpoints.shards import plan_files
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.disk import read_file
from trajkit.errors import FormatError
from trajkit.parallel import count_workers, map_in_order, plan_workers
from trajkit.progress import Advanced, Finished, Progress, Started, as_subscriber, shows_progress
from trajkit.store.output import check_output
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store, check_absent
from trajkit.text import format_bytes, format_rate, parse_bytes


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was written."""

    path: str
    step: int
    files: int
    n_bytes: int
    dtypes: tuple[str, ...]
    """dtypes of the tensors as written"""
    converted: bool
    """whether the source had tensors in other dtypes (``--dtype``): then not its own bytes"""
    seconds: float


@shows_progress
def restore(
    traj: Source,
    step: int,
    out: str | Path,
    *,
    force: bool = False,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress | bool = False,
) -> RestoreResult:
    """Write the checkpoint of a step to a folder, with its own files' names and bytes.

    safetensors files, index, and the run's config and tokenizer files come back as they were
    ingested; where the store was made with ``--dtype``, tensors come in that dtype, in files of the
    same names with headers that say so.

    Raises:
        NotFound: the step is not in the store. AlreadyExists: ``out`` is there already; with
            ``force``, it is something that trajkit did not write.
        FormatError: the store is damaged there; nothing is left at ``out``.
    """
    started, progress = time.perf_counter(), as_subscriber(progress)
    store = as_store(traj)
    t = store.index_of(step)
    out = Path(out)
    place = check_output(store, out, force)
    record = SourceRecord.read(store.path, store.commit.frames[t].source)
    n_bytes = sum(v.n_bytes for v in store.vectors.values())
    a_worker = max((4 * v.chunk * v.dtype.itemsize for v in store.vectors.values()), default=0)
    plan = plan_workers("restore", count_workers(), a_worker, parse_bytes(memory))
    progress(Started(f"restore step {step}", n_bytes))
    files = plan_files(record, store.vectors, store.commit.cast)
    check_absent(store, t, record)
    with (
        FolderWriter(place, store.vectors) as writer,
        ThreadPoolExecutor(plan.workers) as pool,
    ):
        writer.add_files(files)
        for name, content in side_files(store, record).items():
            writer.write_side_file(name, content)
        if record.index is not None:
            writer.write_side_file(record.index[0], record.index[1].encode())
        for vector in store.vectors.values():

            def work(k: int, vector: FlatVector = vector) -> int:
                return _restore_chunk(store, vector, t, k, writer)

            for _, done in map_in_order(pool, work, range(vector.n_chunks), 2 * plan.workers):
                progress(Advanced(done))
        writer.commit()
    seconds = time.perf_counter() - started
    progress(Finished(f"{format_bytes(n_bytes)} at {format_rate(n_bytes, seconds)}"))
    return RestoreResult(
        path=str(out),
        step=step,
        files=len(files),
        n_bytes=n_bytes,
        dtypes=tuple(store.vectors),
        converted=[f.header.decode() for f in files] != [header for _, header in record.files],
        seconds=seconds,
    )


def side_files(store: Store, record: SourceRecord) -> dict[str, bytes]:
    """The run's config and tokenizer files of a checkpoint, by name, digests checked."""
    contents = {}
    for name, (file, sha) in record.assets.items():
        path = store.path / "assets" / file
        try:
            contents[name] = read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FormatError(f"{path}: missing from the store") from None
        if hashlib.sha256(contents[name]).hexdigest() != sha:
            raise FormatError(f"{path}: damaged: its digest does not match the source record")
    return contents


def _restore_chunk(store: Store, vector: FlatVector, t: int, k: int, writer: FolderWriter) -> int:
    dtype = vector.dtype.name
    start, stop = vector.chunk_span(k)
    bits = np.empty(vector.chunk, vector.dtype.bits)
    store.read_bits(dtype, t, k, bits, np.empty_like(bits))
    bits = bits[: stop - start]
    writer.write(dtype, start, bits)
    return bits.nbytes
