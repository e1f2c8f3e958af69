"""Appending checkpoints to a store: one writer, and one atomic replace that makes each one true.

Order of an append: the frame's chunks and their digests, the arrays' metadata, the source record
and the run's side files, all on disk; then the root attributes, by one rename. A crash before the
rename leaves the store as it was, plus files that readers ignore and the next writer removes.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock, local
from typing import Self

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.checkpoint import Checkpoint
from trajkit.checkpoints.layout import CHUNK_ELEMENTS, FlatVector
from trajkit.checkpoints.reader import lay_out_checkpoint
from trajkit.checkpoints.record import source_path
from trajkit.disk import (
    canonical_json,
    disk_errors,
    read_file,
    refuse_links,
    replace_file,
    sync_directory,
)
from trajkit.errors import (
    FormatError,
    InvalidInput,
    Mismatch,
    NotFound,
    TrajkitError,
)
from trajkit.kernels import api as kernels
from trajkit.parallel import InlineExecutor, map_in_order
from trajkit.store.commit import (
    Commit,
    Frame,
    add_frame,
    chunk_digest,
    frame_digest,
    table_document,
)
from trajkit.store.documents import GROUP
from trajkit.store.frame_source import FrameSource
from trajkit.store.heal import heal, refuse_linked_folders
from trajkit.store.lock import StoreLock
from trajkit.store.place import check_place, clear_place, mark_place, unmark_place
from trajkit.store.rows import RowWriter, write_row
from trajkit.store.store import MOST_BEHIND, Store


def bytes_a_worker(vectors: Mapping[str, FlatVector], cast: str | None) -> int:
    """Memory of one chunk in work, if it does not compress at all.

    Three buffers (bits, previous bits, codes); the coded chunk without and with its checksum, and
    two more that wait to be written; what a conversion holds besides, 8-byte elements at worst.
    """
    buffers = [(7 * v.dtype.itemsize + (32 if cast else 0)) * v.chunk for v in vectors.values()]
    return max(buffers, default=0)


class StoreWriter:
    """The one writer of a store; use it in a ``with`` block.

    Args:
        path: the store's folder, made where it is missing.
        workers: threads that code chunks; 0 leaves all work to the thread that appends.
        lazy: let the arrays' own metadata, which other readers of Zarr need, follow the commits by
            up to ``MOST_BEHIND`` steps; leaving the block brings it up to date.

    Raises:
        Locked: another process writes to the store.
        AlreadyExists: the path is a folder that is not a trajkit store, or a file.
        StorageError: the disk refuses: full, read-only.
    """

    def __init__(self, path: Path, workers: int, lazy: bool = False) -> None:
        self.path = path
        self.workers = workers
        self.lazy = lazy
        self.store: Store | None = None
        """the store as last committed; None until there is a first commit"""
        self.seconds = {"read": 0.0, "code": 0.0, "compress": 0.0, "write": 0.0}
        """time spent a stage, summed over workers (``write``: by the one that writes)"""
        self._lock = StoreLock(path)
        self._pool: Executor = InlineExecutor()
        if workers:
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="trajkit")
        self._buffers = local()
        self._seconds_lock = Lock()
        self._made = False

    def __enter__(self) -> Self:
        check_place(self.path)
        with disk_errors(self.path):
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock.__enter__()
        try:
            try:
                self.store = Store.open(self.path)
            except NotFound:
                self.store = None
                check_place(self.path)  # again, now that nobody else can make a store here
                mark_place(self.path)
            else:
                refuse_linked_folders(self.store)
                with disk_errors(self.path):
                    heal(self.store)
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self.lazy and self.store is not None:
            with suppress(TrajkitError):  # the next writer does it
                self._write_metadata(self.store)
        if not self._root.exists():  # nothing was committed: leave no trace
            with suppress(TrajkitError):
                clear_place(self.path)
                unmark_place(self.path)
        self._lock.__exit__()
        if self._made:
            with suppress(OSError):
                self.path.rmdir()  # only if it is empty

    @property
    def _root(self) -> Path:
        """The file whose replacement is the commit."""
        return self.path / "zarr.json"

    def create(
        self,
        checkpoint: Checkpoint,
        codec: str,
        keyframes: int | None,
        cast: str | None,
        chunk: int = CHUNK_ELEMENTS,
    ) -> None:
        """Lay out a new store for this checkpoint's tensors; it exists with the first commit."""
        self.lay_out(lay_out_checkpoint(checkpoint, cast, chunk), codec, keyframes, cast)

    def lay_out(
        self,
        vectors: Mapping[str, FlatVector],
        codec: str,
        keyframes: int | None,
        cast: str | None,
    ) -> None:
        """Lay out a new store of these flat vectors; it exists with the first commit.

        Without ``keyframes`` its keys are by cost.
        """
        table = canonical_json(table_document(vectors))
        commit = Commit(
            codec=codec,
            keyframes=keyframes,
            chunk=max((v.chunk for v in vectors.values()), default=1),
            sizes={d: v.size for d, v in vectors.items()},
            tensors_sha256=hashlib.sha256(table).hexdigest(),
            cast=cast,
            frames=(),
        )
        clear_place(self.path)
        for group in ("tensors", "frames", "digests", "assets"):
            refuse_links(self.path, self.path / group)
            with disk_errors(self.path):
                (self.path / group).mkdir(exist_ok=True)
            content = table if group == "tensors" else GROUP
            replace_file(self.path / group / "zarr.json", content)
        self.store = None
        self._empty = Store(self.path, commit, vectors)

    def layout(self) -> Store:
        """The store to append to: the committed one, or the empty one just laid out."""
        return self.store if self.store is not None else self._empty

    def append(
        self,
        source: FrameSource,
        previous: FrameSource | None,
        advanced: Callable[[int], None] = lambda n_bytes: None,
    ) -> Frame:
        """Write one checkpoint as the next frame and commit it.

        Args:
            source: the checkpoint: its files, or a copy in memory.
            previous: the last committed checkpoint, where it is still at hand; each chunk read
                from it is checked against its digest, and a chunk that does not match
                is decoded from the store instead.
            advanced: called with the raw bytes of each chunk done.

        Raises:
            InvalidInput: the step is not later than the last committed one.
            HalfWritten: the files changed while they were read. Mismatch: see :meth:`check_tied`.
            StorageError: the disk refuses; the store is as it was.
        """
        store = self.layout()
        t = len(store.commit.frames)
        step = source.step
        if t and step <= store.commit.frames[-1].step:
            raise InvalidInput(
                f"{source.label}: step {step} is not later than the last committed step "
                f"{store.commit.frames[-1].step}, and frames are never rewritten"
            )
        source.check_tied()
        stored, changed = 0, 0
        digests: dict[str, Array] = {}
        for dtype in store.vectors:
            n_bytes, moved, digests[dtype] = self._write_frame(
                store, dtype, t, source, previous, advanced
            )
            stored, changed = stored + n_bytes, changed + moved
        source.check_unchanged()
        name, record = source.describe(self._keep_asset)
        if not source_path(self.path, name).exists():
            replace_file(source_path(self.path, name), record)
        frame = Frame(step, frame_digest(list(digests.values())), name, stored)
        if store.commit.keyframes is None:
            is_key = store.is_key(t)
            frame = replace(frame, is_key=is_key, changed=None if is_key else changed)
        self._commit(store.grown(add_frame(store.commit, frame)))
        self.layout().keep_digests(t, digests)  # the next step's difference asks for them
        return frame

    def cut(self, step: int) -> tuple[int, ...]:
        """Take back every frame from training step ``step`` on, by one commit: the steps cut.

        The frames before it are as they were; what was fitted over a frame cut is no longer of the
        frames that the store holds, which every reader of a fit compares.
        """
        store = self.layout()
        frames = tuple(f for f in store.commit.frames if f.step < step)
        gone = tuple(f.step for f in store.commit.frames if f.step >= step)
        if gone:
            self.store = store.grown(replace(store.commit, frames=frames))
            replace_file(self._root, canonical_json(self.store.commit.document()))
            with disk_errors(self.path):
                heal(self.store)
        return gone

    def commit_frame(self, frame: Frame) -> None:
        """Commit the next frame, whose rows and source record are on disk."""
        store = self.layout()
        self._commit(store.grown(add_frame(store.commit, frame)))

    def _commit(self, store: Store) -> None:
        """Make the next state of the store true; the last replace is the commit."""
        if not self.lazy or len(store.commit.frames) % MOST_BEHIND == 1:
            self._write_metadata(store)
        for array in (*store.frames.values(), *store.digests.values()):
            if (array.path / "c").exists():
                sync_directory(array.path / "c")
        replace_file(self._root, canonical_json(store.commit.document()))
        if self.store is None:
            unmark_place(self.path)
        self.store = store

    def _write_metadata(self, store: Store) -> None:
        """Tell other readers of Zarr how many steps there are: the arrays' metadata, and ``steps``."""
        for array in (*store.frames.values(), *store.digests.values()):
            array.write_metadata()
        write_row(store.steps_array, store.steps)
        store.steps_array.write_metadata()

    def _write_frame(
        self,
        store: Store,
        dtype: str,
        t: int,
        source: FrameSource,
        previous: FrameSource | None,
        advanced: Callable[[int], None],
    ) -> tuple[int, int, Array]:
        """Code, compress and write one vector's frame.

        Returns:
            Bytes on disk, codes that are not zero, and the chunks' digests, uint64 [chunks].
        """
        vector = store.vectors[dtype]
        digests = np.zeros(vector.n_chunks, np.uint64)
        committed = None
        if not store.is_key(t) and previous is not None:
            committed = store.chunk_digests(t - 1)[dtype]

        def encode(k: int) -> tuple[bytes, int]:
            return self._encode_chunk(store, dtype, t, k, source, previous, committed, digests)

        changed = 0

        with RowWriter(store.frames[dtype], t) as frame:
            chunks = range(vector.n_chunks)
            for k, (coded, moved) in map_in_order(self._pool, encode, chunks, 2 * self.workers):
                changed += moved
                clock = time.perf_counter()
                frame.append(coded)
                self.seconds["write"] += time.perf_counter() - clock
                start, stop = vector.chunk_span(k)
                advanced((stop - start) * vector.dtype.itemsize)
        with RowWriter(store.digests[dtype], t) as row:
            if vector.n_chunks:
                row.append(store.digests[dtype].codec.encode(digests))
        return frame.n_bytes + row.n_bytes, changed, digests

    def _encode_chunk(
        self,
        store: Store,
        dtype: str,
        t: int,
        k: int,
        source: FrameSource,
        previous: FrameSource | None,
        committed: Array | None,
        digests: Array,
    ) -> tuple[bytes, int]:
        """One worker's job: read a chunk and its predecessor, difference, compress.

        Returns:
            The coded bytes, and how many codes are not zero.
        """
        vector = store.vectors[dtype]
        start, stop = vector.chunk_span(k)
        n = stop - start
        clocks = [time.perf_counter()]
        bits, before, scratch = self._chunk_buffers(vector)
        bits[n:] = 0
        source.fill(dtype, start, stop, bits[:n])
        digests[k] = chunk_digest(bits[:n])
        if store.is_key(t):
            clocks.append(time.perf_counter())
            codes = bits
        else:
            self._fill_previous(store, dtype, t, k, previous, committed, before, scratch)
            clocks.append(time.perf_counter())
            kernels.encode_frame(bits, before, scratch)
            codes = scratch
        clocks.append(time.perf_counter())
        coded = store.codec.encode(codes)
        clocks.append(time.perf_counter())
        with self._seconds_lock:
            for stage, spent in zip(("read", "code", "compress"), np.diff(clocks), strict=True):
                self.seconds[stage] += float(spent)
        return coded, int(np.count_nonzero(codes))

    def _fill_previous(
        self,
        store: Store,
        dtype: str,
        t: int,
        k: int,
        previous: FrameSource | None,
        committed: Array | None,
        out: Array,
        scratch: Array,
    ) -> None:
        """The bits of chunk ``k`` of the frame before: from its own files if they still agree."""
        vector = store.vectors[dtype]
        start, stop = vector.chunk_span(k)
        n = stop - start
        if previous is not None and committed is not None:
            try:
                previous.fill(dtype, start, stop, out[:n])
            except TrajkitError:
                pass  # its files are gone or changed: the store has the bits
            else:
                if chunk_digest(out[:n]) == committed[k]:
                    out[n:] = 0
                    return
        store.read_bits(dtype, t - 1, k, out, scratch)

    def _chunk_buffers(self, vector: FlatVector) -> tuple[Array, Array, Array]:
        """Three chunk-sized buffers of the calling thread; one memory for all dtypes."""
        n_bytes = vector.chunk * vector.dtype.itemsize
        memory = getattr(self._buffers, "memory", None)
        if memory is None or memory.shape[1] < n_bytes:
            width = -(-n_bytes // 64) * 64  # each buffer aligned, whatever vector came first
            self._buffers.memory = memory = np.empty((3, width), np.uint8)
        bits, before, scratch = memory[:, :n_bytes].view(vector.dtype.bits)
        return bits, before, scratch

    def _keep_asset(self, name: str, content: bytes) -> tuple[str, str]:
        """Put a side file into ``assets/`` unless it is there: (file name there, sha256)."""
        sha = hashlib.sha256(content).hexdigest()
        for kept in (name, f"{sha[:12]}-{name}"):
            target = self.path / "assets" / kept
            if not target.exists():
                replace_file(target, content)
                return kept, sha
            if read_file(target) == content:
                return kept, sha
        raise FormatError(f"{target}: damaged: its digest does not match its name")


def check_cast(store: Store, cast: str | None) -> None:
    """Raise :class:`Mismatch` when a store was made with another ``--dtype`` than now asked for."""
    made = store.commit.cast
    if cast is not None and cast != made:
        how = f"with --dtype {made}" if made else "without --dtype"
        raise Mismatch(f"{store.path}: was made {how}, not {cast}; name another with --store")
