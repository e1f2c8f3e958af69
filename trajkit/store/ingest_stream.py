"""Ingest of a delta stream: what a trainer sends to its rollout engine, kept as checkpoints."""

import time
from pathlib import Path

from trajkit.checkpoints.deltas import StreamFile, find_stream, open_anchor, read_delta
from trajkit.checkpoints.reader import FlatReader
from trajkit.defaults import DEFAULT_CODEC
from trajkit.disk import disk_errors, read_file
from trajkit.errors import FormatError, OverBudget
from trajkit.progress import Finished, Note, Progress, Started
from trajkit.store.account import IngestResult
from trajkit.store.description import Description
from trajkit.store.store import Store
from trajkit.store.stream_source import State, StreamStep
from trajkit.store.writer import StoreWriter, bytes_a_worker
from trajkit.text import count, format_bytes


def ingest_stream(
    folder: Path,
    store_path: Path,
    codec: str | None,
    keyframes: int | None,
    budget: int,
    progress: Progress,
) -> IngestResult:
    """Append the steps of a stream that a store does not hold yet; see :func:`trajkit.ingest`.

    Every restored step is one ``model.safetensors`` with the anchors' tensors and the side files
    that lie beside the anchors, or that the store's last step has.

    Raises:
        FormatError: a gap, or a delta that cannot be (:mod:`trajkit.checkpoints.deltas`).
        Mismatch: an anchor or a delta is of another model. OverBudget: the budget does not hold
            one checkpoint and its largest delta.
    """
    started = time.perf_counter()
    files = find_stream(folder)
    progress(Started(f"ingest {count(len(files), 'step')} of a stream", 0))
    done = 0
    with StoreWriter(store_path, 0) as writer:
        held = -1 if writer.store is None else int(max(writer.store.steps, default=-1))
        pending = [file for file in files if file.step > held]
        if pending:
            done = _append_all(writer, pending, codec, keyframes, budget)
        store = writer.layout()
    for file in files[: len(files) - len(pending)]:
        if file.step not in store.steps:
            progress(
                Note(f"left out {file.path}: step {file.step} is earlier than the last, {held}")
            )
    seconds = time.perf_counter() - started
    raw = done * sum(v.n_bytes for v in store.vectors.values())
    progress(Finished(f"{count(done, 'step')}, {format_bytes(raw)}"))
    return IngestResult(
        store=str(store_path),
        steps=len(store.steps),
        ingested=done,
        skipped=len(files) - len(pending),
        raw_bytes=store.raw_bytes,
        stored_bytes=store.stored_bytes,
        seconds=seconds,
        bytes_per_second=raw / seconds,
        bottleneck=None,
    )


def _append_all(
    writer: StoreWriter,
    pending: list[StreamFile],
    codec: str | None,
    keyframes: int | None,
    budget: int,
) -> int:
    """Append the steps of a stream one after another; how many."""
    first = pending[0]
    if writer.store is None:
        anchor = open_anchor(first)
        writer.create(anchor, codec or DEFAULT_CODEC, keyframes, None)
    layout = writer.layout()
    _check_memory(layout, pending, budget)
    state, prefix = State(layout.vectors), ""
    if not first.is_anchor:
        _begin_with_store(state, layout, first)
    description: Description | None = None
    previous: StreamStep | None = None
    for file in pending:
        if file.is_anchor:
            checkpoint = open_anchor(file)
            prefix, state = checkpoint.prefix, State(layout.vectors)
            with FlatReader(checkpoint, layout.vectors, layout.commit.cast) as reader:
                reader.check_tied()
                state.read_anchor(reader)
            side_files = {}
            for name, path in checkpoint.side_files.items():
                with disk_errors(path):
                    side_files[name] = read_file(path)
            description = Description(writer.layout(), {}, side_files)
            changes = {}
        else:
            changes = read_delta(file.path, file.step, layout.tensors, prefix)
        if description is None:
            description = Description(layout, {}, {})
        step = StreamStep(file.step, state, changes, description)
        writer.append(step, previous)
        step.apply()
        previous = StreamStep(file.step, state, {}, description)
    return len(pending)


def _begin_with_store(state: State, store: Store, first: StreamFile) -> None:
    """The state that the first new delta changes, from the store."""
    if first.previous not in store.steps or first.previous != store.steps[-1]:
        raise FormatError(
            f"{first.path}: a delta of step {first.previous}, and the store ends with "
            f"{store.steps[-1]}; the stream has a gap there"
        )
    state.read_store(store, len(store.steps) - 1)


def _check_memory(store: Store, pending: list[StreamFile], budget: int) -> None:
    """Raise :class:`OverBudget` where two anchors, or one and a delta, and a chunk do not fit."""
    whole = sum(v.n_bytes for v in store.vectors.values())
    delta = max((f.path.stat().st_size for f in pending if not f.is_anchor), default=0)
    needed = whole + max(4 * delta, whole) + bytes_a_worker(store.vectors, None)
    if needed > budget:
        raise OverBudget(
            f"a delta stream needs {format_bytes(needed)} of memory (a checkpoint is held whole) and "
            f"the budget is {format_bytes(budget)}: raise --memory"
        )
