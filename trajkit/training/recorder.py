"""Every step of a run into its store while it trains, without checkpoint folders.

    with trajkit.Recorder("trajkit.zarr", tokenizer=tokenizer) as recorder:
        for step in range(1, 1001):
            ...                                   # an optimizer step
            recorder.record(step, model, metrics={"reward": reward})

``record`` copies the tensors to host memory and returns; a thread codes and commits them. Copies are
held of the step before (the difference needs its bits), of the one being written, and of ``waiting``
more; where all of them are taken, ``record`` waits. An error of that thread is raised, as one line,
by the next ``record`` or ``close``.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Self

from trajkit.arrays import DTYPES
from trajkit.checkpoints.layout import FlatVector, lay_out, tensors_of
from trajkit.defaults import DEFAULT_CODEC, DEFAULT_STORE
from trajkit.errors import InvalidInput, Mismatch, TrajkitError, needing, warn
from trajkit.store.commit import chunk_digest
from trajkit.store.description import Description
from trajkit.store.metrics import fold_journal, journal_metrics
from trajkit.store.options import check_options
from trajkit.store.store import Store
from trajkit.store.tensors import Source, path_of
from trajkit.store.writer import StoreWriter, bytes_a_worker
from trajkit.training.side_files import collect_side_files

with needing("recording a model needs", "models"):
    from torch import Tensor

    from trajkit.training.host_copy import HostCopy
    from trajkit.training.tensors import distinct, dtype_of, match, named_tensors


class Recorder:
    """Appends a live model's steps to a store; use it in a ``with`` block, or ``close`` it.

    Args:
        store: the store's folder, made where it is missing; one that ingest made goes on.
        every: record steps that are multiples of this; others return at once.
        dtype: floating-point tensors are kept in this dtype, rounded once to nearest even; None
            keeps each as it is.
        waiting: steps that may wait while one is written.
        codec: as in :func:`trajkit.ingest`; fixed when the store is made.
        keyframes: likewise.
        config: a transformers config, a dict or a folder; default: the model's own.
        tokenizer: whatever has ``save_pretrained``, or a folder.
        replace_from: the run was resumed and takes the store's steps from this one on anew: they
            are cut, in one commit, when the first of them is recorded.
        workers: threads that code chunks; 0, all work in one thread beside the training.

    Raises:
        Locked: another process writes to the store. AlreadyExists: the folder is something else.
        InvalidInput: an option that no store can have.

    Notes:
        Memory: ``waiting`` + 2 copies of a checkpoint in the store's dtypes, on the host (pinned
        where the model is on a CUDA device), and 7 chunks of 2^18 elements a worker; see
        ``memory_bytes``. On the device one tensor is held a second time while it is rounded.
        A kill loses the steps in flight and no committed one; the store is as after a killed ingest.
    """

    def __init__(
        self,
        store: Source = DEFAULT_STORE,
        every: int = 1,
        dtype: str | None = "bfloat16",
        *,
        waiting: int = 1,
        codec: str | None = None,
        keyframes: int | None = None,
        config: Any = None,
        tokenizer: Any = None,
        replace_from: int | None = None,
        workers: int = 0,
    ) -> None:
        check_options(codec, keyframes, dtype)
        if every < 1 or waiting < 0 or workers < 0:
            raise InvalidInput(f"every {every} is from 1 on, waiting {waiting} and workers from 0")
        self.path, self.every, self.dtype = path_of(store), every, dtype
        self.recorded = 0
        """steps committed by this recorder"""
        self.skipped: list[int] = []
        """steps that the store had already, with the same bits"""
        self.seconds = {"record": 0.0, "write": 0.0}
        """processor time in the training's thread, and in the one beside it"""
        self.cut: tuple[int, ...] = ()
        """steps cut from the store (``replace_from``)"""
        self._codec, self._keyframes = codec or DEFAULT_CODEC, keyframes
        self._config, self._tokenizer, self._replace_from = config, tokenizer, replace_from
        self._slots, self._made = waiting + 2, 0
        self._free: SimpleQueue[HostCopy] = SimpleQueue()
        self._previous: HostCopy | None = None
        self._error: BaseException | None = None
        self._rows: deque[dict[str, Any]] = deque()
        self._vectors: Mapping[str, FlatVector] = {}
        self._description: Description | None = None
        self._futures: deque[Future[None]] = deque()
        self._writer = StoreWriter(self.path, workers, lazy=True)
        self._writer.__enter__()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "trajkit-recorder")
        committed = self._writer.store
        self.last = (
            -1 if committed is None or not len(committed.steps) else int(committed.steps[-1])
        )
        """the last step that is in the store or on its way there; -1 before the first"""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        try:
            self.close()
        except TrajkitError as late:
            if error is None:
                raise
            error.add_note(f"recording failed as well: {late}")

    @property
    def memory_bytes(self) -> int:
        """Host memory that the copies and the coding may take, once the first step has come."""
        one = sum(v.n_bytes for v in self._vectors.values())
        return self._slots * one + max(self._writer.workers, 1) * bytes_a_worker(
            self._vectors, None
        )

    def record(self, step: int, model: Any, *, metrics: Mapping[str, Any] | None = None) -> bool:
        """Take the model as it is now as a training step of the run.

        Args:
            step: training step, later than the last.
            model: a torch module, or a state dict.
            metrics: numbers of this step, kept whether or not the step is.

        Returns:
            Whether it is on its way into the store; False where ``every`` leaves it out, or the
            store has it already, bit for bit.

        Raises:
            InvalidInput: a step earlier than the last that is not in the store; the recorder is
                closed. Mismatch: the model's tensors are not the store's, or the store has other
                bits for this step. Unsupported: parameters in parts; see
                :func:`trajkit.training.tensors.named_tensors`.
            StorageError, Locked, ...: what befell an earlier step in the background.
        """
        if step < 0:
            raise InvalidInput(f"a training step is 0 or more, not {step}")
        if metrics:
            self.log(step, metrics)
        self._check()
        if step % self.every:
            return False
        with self._counted("record"):
            return self._take(step, model)

    def _take(self, step: int, model: Any) -> bool:
        """Copy a step and hand it on; see :meth:`record`."""
        tensors = named_tensors(model)
        if not self._vectors:
            self._begin(step, tensors, model)
        tensors = self._check_layout(tensors, step)
        if self._replace_from is not None and step >= self._replace_from:
            self._cut()
        copy = self._take_slot(any(tensor.is_cuda for tensor in tensors.values()))
        try:
            copy.take(step, tensors)
        except BaseException:
            self._free.put(copy)
            raise
        if step <= self.last:
            return self._compare(copy)
        self.last = step
        self._submit(self._write, copy)
        return True

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep numbers of a step, recorded or not: what is no finite number is left out."""
        self._check()
        row: dict[str, Any] = {"step": int(step)}
        for name, value in metrics.items():
            try:
                number = float(value)
            except (TypeError, ValueError):
                continue
            if math.isfinite(number):
                row[str(name)] = number
        if len(row) > 1:
            self._rows.append(row)
            self._submit(self._write_rows)

    def flush(self) -> None:
        """Wait until everything taken so far is committed; raises what befell it."""
        while self._futures:
            self._futures.popleft().result()
        self._check()

    def close(self) -> None:
        """Finish what is in flight and let the store go; raises what befell it, once."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        pool.submit(self._run, self._finish)
        pool.shutdown()
        self._writer.__exit__()
        self._raise_error()

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        """Count the calling thread's processor time."""
        clock = time.thread_time()
        try:
            yield
        finally:
            self.seconds[what] += time.thread_time() - clock

    def _check(self) -> None:
        if self._error is not None:
            self.close()
        if self._pool is None:
            raise InvalidInput(f"{self.path}: the recorder is closed")

    def _raise_error(self) -> None:
        """Raise what befell the background thread."""
        error, self._error = self._error, None
        if error is None:
            return
        if isinstance(error, TrajkitError):
            raise error
        raise InvalidInput(f"{self.path}: recording failed: {error!r}") from error

    def _submit(self, work: Any, *arguments: Any) -> None:
        assert self._pool is not None
        while self._futures and self._futures[0].done():
            self._futures.popleft()
        self._futures.append(self._pool.submit(self._run, work, *arguments))

    def _run(self, work: Any, *arguments: Any) -> None:
        """Do work in the background, its time counted."""
        with self._counted("write"):
            work(*arguments)

    def _take_slot(self, pinned: bool) -> HostCopy:
        """A copy's memory that nobody reads; waits for one where all are taken."""
        if self._free.empty() and self._made < self._slots:
            assert self._description is not None
            self._made += 1
            return HostCopy(self._vectors, self._description, pinned)
        copy = self._free.get()
        self._check()
        return copy

    def _begin(self, step: int, tensors: Mapping[str, Tensor], model: Any) -> None:
        """Lay out the store by the first model that comes, or take the layout that it has."""
        store = self._writer.store
        if store is None:
            vectors = lay_out(
                (name, self._stored_dtype(tensor), tuple(tensor.shape))
                for name, tensor in distinct(tensors).items()
            )
            converts = any(dtype_of(t) != self._stored_dtype(t) for t in tensors.values())
            cast = self.dtype if converts else None
            self._writer.lay_out(vectors, self._codec, self._keyframes, cast)
        layout = self._writer.layout()
        held = self._check_layout(tensors, step, tensors_of(layout.vectors))
        floats = {d: v.size for d, v in layout.vectors.items() if v.dtype.is_float}
        main = max(floats, key=lambda d: floats[d], default="float32")
        files = collect_side_files(model, self._config, self._tokenizer, main)
        dtypes = {name: dtype_of(tensor) for name, tensor in held.items()}
        self._description = Description(layout, dtypes, files)
        if not self._description.has_config:
            warn("no config.json is kept: no library loads a restored step; pass config=")
        self._vectors = layout.vectors

    def _stored_dtype(self, tensor: Tensor) -> str:
        own = dtype_of(tensor)
        return self.dtype if self.dtype and DTYPES[own].is_float else own

    def _check_layout(
        self, tensors: Mapping[str, Tensor], step: int, table: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """The store's tensors among a model's; raises :class:`Mismatch` where they differ."""
        table = tensors_of(self._vectors) if table is None else table
        label = f"{self.path}: step {step}"
        found = match(tensors, table, label)
        for name, tensor in found.items():
            info, dtype = table[name], self._stored_dtype(tensor)
            if (tuple(tensor.shape), dtype) != (info.shape, info.dtype):
                raise Mismatch(
                    f"{label}: tensor {name!r} is {dtype} {list(tensor.shape)}, in the store "
                    f"{info.dtype} {list(info.shape)}; the recorder's dtype is {self.dtype}"
                )
        return found

    def _cut(self) -> None:
        """Take back the store's steps from ``replace_from`` on, before the first new one comes."""
        step, self._replace_from = self._replace_from, None
        self.flush()
        store = self._writer.store
        assert step is not None
        if store is None or not len(store.steps) or step > store.steps[-1]:
            return
        if step <= store.steps[0]:
            raise InvalidInput(
                f"{self.path}: replace_from {step} would cut every step, the store begins with "
                f"{store.steps[0]}; record into another store"
            )
        self.cut = self._writer.cut(step)
        if self._previous is not None:
            self._free.put(self._previous)
            self._previous = None
        self.last = int(self._writer.layout().steps[-1])

    def _compare(self, copy: HostCopy) -> bool:
        """A step that is not later than the last: passed over where the store has its bits."""
        self.flush()
        self._free.put(copy)
        store = self._writer.store
        assert store is not None
        if copy.step not in store.steps:
            raise InvalidInput(
                f"{self.path}: step {copy.step} is earlier than the last, {self.last}, and is not "
                f"in the store; a resumed run takes them anew with replace_from={copy.step}"
            )
        if not holds(store, copy):
            raise Mismatch(
                f"{self.path}: step {copy.step} is in the store with other bits; a resumed run "
                f"takes it anew with replace_from={copy.step}, another run needs another store"
            )
        self.skipped.append(copy.step)
        return False

    def _write(self, copy: HostCopy) -> None:
        """Code and commit a step (in the background)."""
        free: HostCopy | None = copy
        if self._error is None:
            try:
                self._writer.append(copy, self._previous)
            except BaseException as error:
                self._error = error
            else:
                self.recorded += 1
                free, self._previous = self._previous, copy
        if free is not None:
            self._free.put(free)
        self._write_rows()

    def _write_rows(self) -> None:
        """Put the numbers logged so far into the store, once it has a commit (in the background)."""
        if self._writer.store is None or self._error is not None or not self._rows:
            return
        try:
            rows = [self._rows.popleft() for _ in range(len(self._rows))]
            journal_metrics(self.path, rows)
        except BaseException as error:
            self._error = error

    def _finish(self) -> None:
        """The last work of the background thread."""
        self._write_rows()
        try:
            if self._writer.store is not None and self._error is None:
                fold_journal(self._writer.store)
        except BaseException as error:
            self._error = error


def holds(store: Store, copy: HostCopy) -> bool:
    """Whether a committed step of the store has just these bits."""
    digests = store.chunk_digests(store.index_of(copy.step))
    return all(
        chunk_digest(copy.bits(dtype, *vector.chunk_span(k))) == int(digests[dtype][k])
        for dtype, vector in store.vectors.items()
        for k in range(vector.n_chunks)
    )
