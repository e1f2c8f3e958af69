"""Ingest: append every complete checkpoint of a series that the store does not hold yet."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from trajkit.arrays import DTYPES
from trajkit.checkpoints.checkpoint import Checkpoint, HalfWritten, open_checkpoint
from trajkit.checkpoints.deltas import is_stream
from trajkit.checkpoints.layout import FlatVector
from trajkit.checkpoints.reader import FlatReader, lay_out_checkpoint
from trajkit.checkpoints.series import as_paths, find_series
from trajkit.checkpoints.trainers import Found
from trajkit.defaults import DEFAULT_CODEC, DEFAULT_MEMORY_BYTES, DEFAULT_STORE
from trajkit.errors import InvalidInput, Locked, Mismatch, NotFound, StorageError, TrajkitError
from trajkit.parallel import Plan, count_workers, plan_workers
from trajkit.progress import (
    Advanced,
    Finished,
    Note,
    Progress,
    Started,
    as_subscriber,
    shows_progress,
    silent,
)
from trajkit.store.account import IngestPlan, IngestResult
from trajkit.store.ingest_stream import ingest_stream
from trajkit.store.metrics import keep_metrics
from trajkit.store.options import check_options
from trajkit.store.place import check_place
from trajkit.store.release import Released, release_all
from trajkit.store.rewritten import Rewritten, keep_before
from trajkit.store.store import Store
from trajkit.store.tensors import Source, path_of
from trajkit.store.writer import StoreWriter, bytes_a_worker, check_cast
from trajkit.text import count, format_bytes, format_rate, parse_bytes


@shows_progress
def ingest(
    paths: str | Path | Sequence[str | Path],
    store: Source = DEFAULT_STORE,
    *,
    base: str | Path | None = None,
    codec: str | None = None,
    keyframes: int | None = None,
    dtype: str | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    watch: bool = False,
    poll_seconds: float = 5.0,
    replace_from: int | None = None,
    pattern: str | None = None,
    delete_ingested: bool = False,
    progress: Progress | bool = False,
) -> IngestResult:
    """Append the complete checkpoints found at ``paths`` to a store, which is made if missing.

    Every header of every checkpoint is read and compared before a byte is written, so that a
    damaged or foreign checkpoint leaves the store as it was. Running it again adds what is new.

    Args:
        paths: a folder of step folders, step folders, files, or ``STEP=PATH`` (see
            :func:`trajkit.checkpoints.series.find_series`); or a stream of weight deltas
            (:mod:`trajkit.checkpoints.deltas`).
        store: the store's folder, or the store or trajectory that is open.
        base: the model before training, appended as step 0.
        codec: ``zstd`` (default), ``lz4``, ``sparse``, ``pcodec`` or ``none``; fixed when the store
            is made.
        keyframes: K, a key frame every K checkpoints; without it, where the changes since the last one
            cost eight times as much as it did. Fixed when the store is made.
        dtype: convert floating-point tensors to this dtype (``bfloat16`` or ``float32``), rounding
            once to nearest even; recorded in the store.
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        watch: go on looking for new checkpoints until interrupted. A checkpoint is taken when it
            is complete and its files did not change between two looks; what is not there yet, not
            complete or locked is waited for.
        poll_seconds: how often to look, with ``watch``.
        replace_from: cut the store's steps from this training step on, in one commit, and append
            what is found of them: a run was resumed and wrote them again. Steps before it stay.
        pattern: a regular expression whose one group is the step, in place of the trainers' names:
            ``epoch_([0-9]+)`` (see :func:`trajkit.checkpoints.series.find_series`).
        delete_ingested: with ``watch``, delete a checkpoint's own files once the store was proved to
            give them back and a later checkpoint is complete (see :mod:`trajkit.store.release`).
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Raises:
        NotFound: no checkpoint at ``paths``.
        FormatError: a file is damaged. Mismatch: a checkpoint is of another model, or an ingested
            step was written again since and later ones would follow it.
        InvalidInput: a step earlier than the last committed one is not in the store, or
            ``replace_from`` would cut every step or has nothing to append.
        OverBudget: the budget is too small. Locked: another writer holds the store.
        StorageError: the disk refuses: full, read-only, gone; committed steps are intact.
    """
    started, progress = time.perf_counter(), as_subscriber(progress)
    check_options(codec, keyframes, dtype, poll_seconds)
    if watch and replace_from is not None:
        raise InvalidInput("replace_from and watch do not go together: replace first, then watch")
    if delete_ingested and not watch:
        raise InvalidInput("delete_ingested goes with watch: files are deleted as later steps come")
    path_list, base_path = as_paths(paths), None if base is None else Path(base)
    budget = parse_bytes(memory)
    if len(path_list) == 1 and is_stream(path_list[0]):
        if watch or base_path or dtype or pattern or replace_from is not None:
            raise InvalidInput(
                f"{path_list[0]}: a stream of deltas goes without watch, base, dtype, pattern and "
                "replace_from; ingest the base model first, as 0=PATH"
            )
        return ingest_stream(path_list[0], path_of(store), codec, keyframes, budget, progress)
    job = _Job(path_of(store), codec, keyframes, dtype, budget, progress, replace_from, pattern)
    job.deletes = delete_ingested
    interrupted = False
    try:
        if watch:
            job.watch(path_list, base_path, poll_seconds)
        else:
            found = job.look(path_list, base_path)
            job.run(found)
            job.keep_metrics(found)
    except KeyboardInterrupt:
        if not watch:
            raise
        interrupted = True
        progress(Note("interrupted: every committed step is safe"))
    return job.result(time.perf_counter() - started, interrupted)


def plan_ingest(
    paths: str | Path | Sequence[str | Path],
    store: Source = DEFAULT_STORE,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    replace_from: int | None = None,
    pattern: str | None = None,
) -> IngestPlan:
    """What :func:`ingest` would append, from the headers alone; raises what it would raise."""
    series = find_series(as_paths(paths), None if base is None else Path(base), pattern)
    job = _Job(path_of(store), None, None, dtype, parse_bytes(memory), silent, replace_from)
    committed = job.committed()
    held = keep_before(committed, replace_from, series.found)
    new = job.missing(held, series.found)
    job.check_rewritten(held, series.found, new)
    sizes, vectors = job.check(held, new)
    raw = sum(n for _, n in sizes)
    plan = job.plan(held, vectors)
    skipped = tuple(f.step for f in series.found if f not in new)
    cut = tuple(sorted(job.steps_of(committed) - job.steps_of(held)))
    return IngestPlan(tuple(f.step for f in new), skipped, raw, plan.n_bytes, plan.workers, cut)


class _Job:
    """One call of :func:`ingest`: the options, and what has been done so far."""

    def __init__(
        self,
        store_path: Path,
        codec: str | None,
        keyframes: int | None,
        cast: str | None,
        budget: int,
        progress: Progress,
        replace_from: int | None = None,
        pattern: str | None = None,
    ) -> None:
        self.pattern = pattern
        self.replace_from = replace_from
        self.cut: tuple[int, ...] = ()
        self.deletes = False
        self.released: list[Released] = []
        self._looked_at: set[int] = set()
        self.rewritten = Rewritten()
        self.store_path = store_path
        self.codec = codec
        self.keyframes = keyframes
        self.cast = cast
        self.budget = budget
        self.progress = progress
        self.ingested = 0
        self.skipped: set[int] = set()
        self.raw_bytes = 0
        self.busy_seconds = 0.0
        self.stages: dict[str, float] = {}
        self._said: set[str] = set()

    def look(self, paths: Sequence[Path], base: Path | None) -> tuple[Found, ...]:
        """The complete checkpoints; a note for each that is not."""
        series = find_series(paths, base, self.pattern)
        for gone in series.incomplete:
            self.note(f"passed over {gone.path}: {gone.reason}")
        return series.found

    def note(self, text: str) -> None:
        """Say something, once."""
        if text not in self._said:
            self._said.add(text)
            self.progress(Note(text))

    def watch(self, paths: Sequence[Path], base: Path | None, poll_seconds: float) -> None:
        """Append checkpoints as they become complete, until interrupted."""
        if base is not None and not base.exists():
            raise NotFound(f"{base}: no such file or folder for the base model")
        self.note(f"watching {', '.join(map(str, paths))}; interrupt to end")
        stamps: dict[Path, object] = {}
        while True:
            try:
                found = self.look(paths, base)
                later = self.later(found)
                before, stamps = stamps, {f.path: _stamp(f.path) for f in later}
                at_rest = [before.get(f.path) == stamps[f.path] for f in later] + [False]
                ready = later[: at_rest.index(False)]
                self.run(found, ready, patient=True)
                if ready:
                    self.keep_metrics(ready)
                if self.deletes and (store := self.committed()) is not None:
                    self.released += release_all(
                        store, found, self.budget, self.progress, self._looked_at
                    )
            except (HalfWritten, Locked, NotFound) as error:
                self.note(f"waiting: {error}")
            time.sleep(poll_seconds)

    def later(self, found: Sequence[Found]) -> list[Found]:
        """The checkpoints that the store lacks and can still take; a note for each other one."""
        store = self.committed()
        have = set() if store is None else set(store.steps.tolist())
        last = max(have, default=-1)
        for item in found:
            if item.step < last and item.step not in have:
                self.note(f"left out {item.path}: step {item.step} came after step {last} was in")
        return [f for f in found if f.step > last]

    def committed(self) -> Store | None:
        """The store as it is, or None when there is none yet."""
        try:
            return Store.open(self.store_path)
        except NotFound:
            check_place(self.store_path)
            return None

    @staticmethod
    def steps_of(store: Store | None) -> set[int]:
        """The steps that a store holds."""
        return set() if store is None else set(store.steps.tolist())

    def check_rewritten(
        self, store: Store | None, found: Sequence[Found], new: Sequence[Found], wait: bool = False
    ) -> bool:
        """Say which steps on disk differ from the store; whether any does.

        Raises:
            Mismatch: later steps are to follow them, which would splice two runs into one store.
        """
        line = None if store is None else self.rewritten.look(store, found)
        if line is not None and new and not wait:
            raise Mismatch(line)
        if line is not None:
            self.note(line)
        return line is not None

    def missing(self, store: Store | None, found: Sequence[Found]) -> list[Found]:
        """The checkpoints that the store lacks; raises when one would have to go in between."""
        if store is None or not len(store.steps):
            return list(found)
        have = set(store.steps.tolist())
        last = int(store.steps[-1])
        new = [f for f in found if f.step not in have]
        early = [f for f in new if f.step < last]
        if early:
            raise InvalidInput(
                f"{early[0].path}: step {early[0].step} is earlier than the last committed step "
                f"{last}, and frames are never rewritten; cut the store there with --replace-from "
                f"{early[0].step}, ingest all steps into a new --store, or name only the later ones"
            )
        return new

    def check(
        self, store: Store | None, found: Sequence[Found], patient: bool = False
    ) -> tuple[list[tuple[Found, int]], Mapping[str, FlatVector]]:
        """Read all headers and compare them with the store.

        Returns:
            (checkpoint, bytes of its tensors) for each, and the flat vectors: the store's, or those
            that the first checkpoint lays out. Where ``patient``, the first checkpoint that is not
            complete ends the list.
        """
        vectors: Mapping[str, FlatVector] = {} if store is None else store.vectors
        cast = self.cast if store is None else store.commit.cast
        sizes = []
        for item in found:
            try:
                checkpoint = open_checkpoint(item.path, item.step)
            except (HalfWritten, NotFound) as error:
                if not patient:
                    raise
                self.note(f"waiting: {error}")
                break
            if store is None and not vectors:
                vectors = lay_out_checkpoint(checkpoint, cast)
            with FlatReader(checkpoint, vectors, cast):
                sizes.append((item, sum(v.n_bytes for v in vectors.values())))
        return sizes, vectors

    def plan(self, store: Store | None, vectors: Mapping[str, FlatVector]) -> Plan:
        """Workers within the budget; raises :class:`OverBudget` where not one fits."""
        cast = self.cast if store is None else store.commit.cast
        return plan_workers("ingest", count_workers(), bytes_a_worker(vectors, cast), self.budget)

    def run(
        self, found: Sequence[Found], ready: Sequence[Found] | None = None, patient: bool = False
    ) -> None:
        """Append what is new among these checkpoints (or of those that are ``ready``)."""
        store = self.committed()
        if store is not None:
            check_cast(store, self.cast)
            self._check_fixed_options(store)
        store = keep_before(store, self.replace_from, found)
        new = self.missing(store, found) if ready is None else list(ready)
        if ready is None:
            self.skipped |= {f.step for f in found} - {f.step for f in new}
        elif store is not None and not self.ingested:
            self.skipped |= {f.step for f in found} & set(store.steps.tolist())
        if self.check_rewritten(store, found, new, patient) and patient:
            return
        sizes, vectors = self.check(store, new, patient)
        new = [f for f, _ in sizes]
        if not new:
            return
        workers = self.plan(store, vectors).workers
        clock = time.perf_counter()
        n_bytes = sum(n for _, n in sizes)
        self.progress(Started(f"ingest {count(len(new), 'checkpoint')}", n_bytes))
        with StoreWriter(self.store_path, workers) as writer:
            if self.replace_from is not None and writer.store is not None:
                self.cut = writer.cut(self.replace_from)
                self._note_cut({item.step for item in new})
            # another writer may have come between the look above and the lock
            held = set() if writer.store is None else set(writer.store.steps.tolist())
            pending = [f for f in new if f.step not in held]
            self._append_all(writer, pending, found)
        spent = time.perf_counter() - clock
        self.busy_seconds += spent
        for stage, seconds in writer.seconds.items():
            share = seconds if stage == "write" else seconds / workers
            self.stages[stage] = self.stages.get(stage, 0.0) + share
        self.progress(
            Finished(
                f"{count(len(pending), 'checkpoint')}, {format_bytes(n_bytes)} at "
                f"{format_rate(n_bytes, spent)}; pace set by: {self.bottleneck()}"
            )
        )

    def keep_metrics(self, found: Sequence[Found]) -> None:
        """Keep what the trainer logged beside these checkpoints."""
        store = self.committed()
        if store is not None:
            keep_metrics(store, [f.path for f in found], self.progress)

    def _append_all(
        self, writer: StoreWriter, pending: Sequence[Found], found: Sequence[Found]
    ) -> None:
        previous: FlatReader | None = None
        try:
            if writer.store is not None and len(writer.store.steps):
                previous = self._reader_of(int(writer.store.steps[-1]), found, writer.store)
            for item in pending:
                checkpoint = open_checkpoint(item.path, item.step)
                if writer.store is None:
                    writer.create(
                        checkpoint,
                        self.codec or DEFAULT_CODEC,
                        self.keyframes,
                        self.cast,
                    )
                    self._note_cast(checkpoint)
                layout = writer.layout()
                reader = FlatReader(checkpoint, layout.vectors, layout.commit.cast)
                try:
                    self._notes(reader)
                    writer.append(reader, previous, lambda n: self.progress(Advanced(n)))
                except BaseException:
                    reader.__exit__()
                    raise
                if previous is not None:
                    previous.__exit__()
                previous = reader
                self.ingested += 1
                self.raw_bytes += sum(v.n_bytes for v in layout.vectors.values())
        finally:
            if previous is not None:
                previous.__exit__()

    def _reader_of(self, step: int, found: Sequence[Found], store: Store) -> FlatReader | None:
        """The files of a committed step, where the series still has them and they still match."""
        for item in found:
            if item.step == step:
                try:
                    checkpoint = open_checkpoint(item.path, step)
                    return FlatReader(checkpoint, store.vectors, store.commit.cast)
                except TrajkitError:
                    return None  # changed since: the store itself has the bits
        return None

    def _notes(self, reader: FlatReader) -> None:
        step = reader.checkpoint.step
        if reader.checkpoint.prefix:
            self.note(f"stripped the prefix {reader.checkpoint.prefix!r} from the names")
        if reader.checkpoint.adapter:
            self.note(
                "an adapter: its own tensors are kept and fitted; a line in A and B is not a line "
                "in their product BA"
            )
        for alias, partner in reader.tied.items():
            self.note(f"step {step}: {alias} is tied to {partner}, kept once")
        for name in reader.absent:
            self.note(f"step {step}: {name} is absent, taken from the tensor it is tied to")

    def _note_cast(self, checkpoint: Checkpoint) -> None:
        floats = sorted({e.dtype for e in checkpoint.tensors.values() if DTYPES[e.dtype].is_float})
        if self.cast is not None:
            self.note(
                f"floating-point tensors ({', '.join(floats)} in step {checkpoint.step}) are kept "
                f"as {self.cast}, as --dtype says: restore will write {self.cast}"
            )

    def _note_cut(self, new: set[int]) -> None:
        if not self.cut:
            return
        gone = [step for step in self.cut if step not in new]
        lost = (
            f"; of these {', '.join(map(str, gone))} are not there to be appended" if gone else ""
        )
        steps = count(len(self.cut), "step")
        self.note(f"cut {steps} from the store, {self.cut[0]} to {self.cut[-1]}{lost}")

    def _check_fixed_options(self, store: Store) -> None:
        for option, asked, made in (
            ("codec", self.codec, store.commit.codec),
            ("keyframes", self.keyframes, store.commit.keyframes),
        ):
            if asked is not None and asked != made:
                how = f"without --{option}" if made is None else f"with --{option} {made}"
                raise InvalidInput(
                    f"{store.path}: was made {how}, which is fixed at creation; "
                    "leave the option out, or name another --store"
                )

    def bottleneck(self) -> str | None:
        """The stage with the most time in it, if there was any work."""
        return max(self.stages, key=self.stages.__getitem__) if self.stages else None

    def result(self, seconds: float, interrupted: bool) -> IngestResult:
        """The closing account."""
        store = self.committed()  # None when a watch was interrupted before the first checkpoint
        return IngestResult(
            store=str(self.store_path),
            steps=0 if store is None else len(store.steps),
            ingested=self.ingested,
            skipped=len(self.skipped),
            raw_bytes=0 if store is None else store.raw_bytes,
            stored_bytes=0 if store is None else store.stored_bytes,
            density=None if store is None else store.commit.density,
            seconds=seconds,
            bytes_per_second=self.raw_bytes / self.busy_seconds if self.busy_seconds else 0.0,
            bottleneck=self.bottleneck(),
            stage_seconds=dict(self.stages),
            interrupted=interrupted,
            cut=self.cut,
            rewritten=self.rewritten.steps,
            deleted=tuple(item.step for item in self.released),
            deleted_bytes=sum(item.n_bytes for item in self.released),
        )


def _stamp(path: Path) -> object:
    """What differs when a checkpoint's files have been written to; :class:`NotFound` when gone."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename}: removed while it was looked at") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
