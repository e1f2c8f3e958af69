"""Convert: a store written anew with another codec, bit for bit, beside the one it comes from.

Codes are codes whatever compresses them, so a frame is read and coded again without its past, but
where a key becomes a delta or the other way round. Every chunk is decoded and compared before it is
written; what was made of the checkpoints (fits, outputs) is copied once all of them have been verified.
"""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.disk import disk_errors, read_file, replace_file, sync_directory
from trajkit.errors import AlreadyExists, FormatError, InvalidInput
from trajkit.kernels import api as kernels
from trajkit.parallel import count_workers, map_in_order, plan_workers
from trajkit.progress import Advanced, Finished, Progress, Started, as_subscriber, shows_progress
from trajkit.store.check import check_frame_digests, check_vector
from trajkit.store.codecs import codec_by_name
from trajkit.store.commit import Frame
from trajkit.store.rows import RowWriter
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store
from trajkit.store.writer import StoreWriter
from trajkit.text import format_bytes, format_rate, parse_bytes

_WRITTEN = {"tensors", "frames", "digests", "assets", "steps", "zarr.json"}
"""what a writer lays out; all else in a store was made of its checkpoints"""


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What was written."""

    store: str
    """the new store"""
    codec: str
    steps: int
    """checkpoints in it"""
    converted: int
    """of these by this call: fewer where one before it was interrupted"""
    raw_bytes: int
    stored_bytes: int
    stored_bytes_before: int
    """of the store that it comes from"""
    seconds: float


@shows_progress
def convert(
    traj: Source,
    codec: str,
    out: str | Path | None = None,
    *,
    keyframes: int | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress | bool = False,
) -> ConvertResult:
    """Write a store's checkpoints anew with another codec; the store itself stays as it is.

    A call that was interrupted goes on where it ended. Fits and outputs come along, as they are.

    Args:
        traj: the run: a store's path, a store, or a trajectory.
        codec: as in :func:`trajkit.ingest`.
        out: the new store's folder; by default beside the store: ``run-sparse.zarr`` of ``run.zarr``.
        keyframes: K, a key every K checkpoints; without it, keys by cost.
        memory: budget, above the interpreter and its libraries.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Raises:
        AlreadyExists: ``out`` is something else than the beginning of this store in that codec.
        FormatError: the store is damaged. InvalidInput: a codec or K that no store can have.
    """
    started, progress = time.perf_counter(), as_subscriber(progress)
    store = as_store(traj)
    codec_by_name(codec)
    if keyframes is not None and keyframes < 1:
        raise InvalidInput(f"keyframes must be 1 or more, not {keyframes}")
    place = store.path.with_name(f"{store.path.stem}-{codec}.zarr") if out is None else Path(out)
    a_worker = max((8 * v.chunk * v.dtype.itemsize for v in store.vectors.values()), default=0)
    budget = parse_bytes(memory)
    plan = plan_workers("convert", count_workers(), a_worker, budget)
    with StoreWriter(place, plan.workers) as writer:
        if writer.store is None:
            writer.lay_out(store.vectors, codec, keyframes, store.commit.cast)
        _check_beginning(store, writer.layout(), codec, keyframes)
        begun = len(writer.layout().steps)
        todo = len(store.steps) - begun
        frame_bytes = sum(v.n_bytes for v in store.vectors.values())
        progress(Started(f"convert {todo} checkpoints to {codec}", todo * frame_bytes))
        _copy_assets(store, place)
        with ThreadPoolExecutor(plan.workers) as pool:
            for t in range(begun, len(store.steps)):
                writer.commit_frame(_recode_frame(store, writer.layout(), t, pool, plan.workers))
                progress(Advanced(frame_bytes))
        new = writer.layout()
        _verify(new, budget)
        _copy_rest(store.path, place)
    seconds = time.perf_counter() - started
    rate = format_rate(todo * frame_bytes, seconds)
    progress(Finished(f"{format_bytes(new.stored_bytes)}, verified, at {rate}"))
    return ConvertResult(
        store=str(place),
        codec=codec,
        steps=len(new.steps),
        converted=todo,
        raw_bytes=new.raw_bytes,
        stored_bytes=new.stored_bytes,
        stored_bytes_before=store.stored_bytes,
        seconds=seconds,
    )


def _check_beginning(store: Store, new: Store, codec: str, keyframes: int | None) -> None:
    """Raise :class:`AlreadyExists` unless ``new`` holds the first of the same checkpoints, so coded."""
    done = [(f.step, f.digest) for f in new.commit.frames]
    same = done == [(f.step, f.digest) for f in store.commit.frames[: len(done)]]
    same &= new.commit.tensors_sha256 == store.commit.tensors_sha256
    same &= (new.commit.cast, new.commit.chunk) == (store.commit.cast, store.commit.chunk)
    if not same or (new.commit.codec, new.commit.keyframes) != (codec, keyframes):
        raise AlreadyExists(
            f"{new.path}: a store of other checkpoints, codec or keys than {store.path} is to "
            "become; name another place with --out"
        )


def _recode_frame(
    store: Store, new: Store, t: int, pool: ThreadPoolExecutor, workers: int
) -> Frame:
    """Write frame ``t`` of every vector with the new codec; what the commit says of it."""
    old, is_key = store.commit.frames[t], new.is_key(t)
    stored = changed = 0
    digests = store.chunk_digests(t)
    for dtype, vector in store.vectors.items():
        work = _recoder(store, new, vector, t)
        with RowWriter(new.frames[dtype], t) as writer:
            for _, (coded, moved) in map_in_order(pool, work, range(vector.n_chunks), 2 * workers):
                writer.append(coded)
                changed += moved
        with RowWriter(new.digests[dtype], t) as row:
            if vector.n_chunks:
                row.append(new.digests[dtype].codec.encode(digests[dtype]))
        stored += writer.n_bytes + row.n_bytes
    frame = replace(old, stored_bytes=stored, is_key=None, changed=None)
    if new.commit.keyframes is None:
        frame = replace(frame, is_key=is_key, changed=None if is_key else changed)
    return frame


def _recoder(
    store: Store, new: Store, vector: FlatVector, t: int
) -> Callable[[int], tuple[bytes, int]]:
    """A function of a chunk's number: its bytes in the new codec, and the codes that are not zero."""
    dtype = vector.dtype.name

    def recode(k: int) -> tuple[bytes, int]:
        codes, spare = (np.empty(vector.chunk, vector.dtype.bits) for _ in range(2))
        if store.is_key(t) == new.is_key(t):
            store.read_codes(dtype, t, k, codes)
        elif new.is_key(t):
            store.read_bits(dtype, t, k, codes, spare)
        else:
            before: Array = np.empty_like(codes)
            store.read_bits(dtype, t - 1, k, before, spare)
            store.read_codes(dtype, t, k, codes)
            kernels.encode_frame(codes, before, codes)
        coded = new.codec.encode(codes)
        new.codec.decode(coded, spare)
        if not np.array_equal(codes, spare):
            raise FormatError(
                f"{new.path}: a chunk did not come back from {new.commit.codec}: "
                f"{store.describe_chunk(dtype, t, k)}"
            )
        return coded, int(np.count_nonzero(codes))

    return recode


def _verify(new: Store, budget: int) -> None:
    """Raise :class:`FormatError` unless every chunk of every checkpoint decodes to its digest."""
    digests: list[Array] = []
    bad = [
        damage
        for vector in new.vectors.values()
        for damage in check_vector(new, vector, budget, lambda event: None, digests)
    ]
    bad += check_frame_digests(new, digests)
    if bad:
        raise FormatError(f"{bad[0].what}; the store that it comes from may be damaged: run verify")


def _copy_assets(store: Store, place: Path) -> None:
    """Copy source records and side files that are not there yet."""
    for path in sorted((store.path / "assets").iterdir()):
        target = place / "assets" / path.name
        if path.is_file() and not path.is_symlink() and not target.exists():
            replace_file(target, read_file(path))


def _copy_rest(path: Path, place: Path) -> None:
    """Copy what was made of the checkpoints, each thing whole or not at all; links are left out."""
    for found in sorted(path.iterdir()):
        target, part = place / found.name, place / f"{found.name}.part"
        if found.name in _WRITTEN or found.name.startswith(".") or found.is_symlink():
            continue
        if target.exists():
            continue
        with disk_errors(target):
            if found.is_dir():
                if part.is_dir() and not part.is_symlink():
                    shutil.rmtree(part)  # of a call that was killed
                shutil.copytree(found, part, ignore=_links)
                part.replace(target)
            else:
                replace_file(target, found.read_bytes())
    sync_directory(place)


def _links(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if (Path(folder) / name).is_symlink()}
