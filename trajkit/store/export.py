"""Export: a store's steps written as a stream of weight deltas, for whoever reads such streams."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.deltas import ANCHORS, DELTAS, EMPTY, INDICES, VALUES
from trajkit.checkpoints.layout import TensorInfo
from trajkit.checkpoints.shards import make_header
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.disk import created, disk_errors, sync_directory, write_all
from trajkit.errors import AlreadyExists, InvalidInput, OverBudget, Unsupported
from trajkit.progress import Advanced, Finished, Progress, Started, as_subscriber, shows_progress
from trajkit.store.store import Store
from trajkit.store.stream_source import State
from trajkit.store.tensors import Source, as_store
from trajkit.text import count, format_bytes, parse_bytes

ANCHOR_EVERY = 10
"""TRL's own"""
_INDEX_BYTES = 4


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written."""

    path: str
    steps: int
    anchors: int
    n_bytes: int
    raw_bytes: int
    """of the same checkpoints, whole"""


@shows_progress
def export_deltas(
    traj: Source,
    out: str | Path,
    *,
    anchor_every: int = ANCHOR_EVERY,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress | bool = False,
) -> ExportResult:
    """Write every step of a store as the anchors and deltas of :mod:`trajkit.checkpoints.deltas`.

    Args:
        traj: the run.
        out: the folder to write; whole, or not there.
        anchor_every: an anchor every so many steps, the first among them; where so much changed that
            a delta would be larger than an anchor, there is an anchor too.
        memory: budget; two checkpoints and a chunk have to fit.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Raises:
        AlreadyExists: something lies at ``out``. Unsupported: a tensor has 2^31 elements or more.
        OverBudget: see above. FormatError: the store is damaged; nothing is left at ``out``.
    """
    store, out, progress = as_store(traj), Path(out), as_subscriber(progress)
    _check(store, out, anchor_every, parse_bytes(memory))
    part = out.with_name(f".{out.name}.trajkit-part")
    with disk_errors(out):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)  # of an export that was killed
        for name in (ANCHORS, DELTAS):
            (part / name).mkdir(parents=True)
    progress(Started(f"export {count(len(store.steps), 'step')}", store.raw_bytes))
    try:
        anchors = n_bytes = 0
        state = State(store.vectors)
        for t, step in enumerate(store.steps.tolist()):
            places = _advance(store, t, state)
            dense = _delta_bytes(store, places) >= _whole_bytes(store)
            if is_anchor := t % anchor_every == 0 or dense:
                path, content = part / ANCHORS, _anchor(store, state, step)
            else:
                before = int(store.steps[t - 1])
                path, content = part / DELTAS, _delta(store, state, places, step, before)
            n_bytes += _write(path / f"step_{step:06d}.safetensors", *content)
            anchors += is_anchor
            progress(Advanced(_whole_bytes(store)))
        with disk_errors(out):
            for folder in (part / ANCHORS, part / DELTAS, part):
                sync_directory(folder)
            part.rename(out)
            sync_directory(out.absolute().parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    progress(Finished(f"{count(anchors, 'anchor')}, {format_bytes(n_bytes)}"))
    return ExportResult(str(out), len(store.steps), anchors, n_bytes, store.raw_bytes)


def _check(store: Store, out: Path, anchor_every: int, budget: int) -> None:
    if anchor_every < 1:
        raise InvalidInput(f"an anchor every 1 or more steps, not {anchor_every}")
    if os.path.lexists(out):
        raise AlreadyExists(f"{out}: exists already; choose another -o")
    for info in store.tensors.values():
        if info.size >= 1 << 31:
            raise Unsupported(
                f"tensor {info.name!r} has {info.size} elements, too many for int32 indices"
            )
    chunk = max((v.chunk * v.dtype.itemsize for v in store.vectors.values()), default=0)
    needed = 2 * _whole_bytes(store) + 4 * chunk
    if needed > budget:
        raise OverBudget(
            f"export needs {format_bytes(needed)} of memory (a checkpoint is held whole) and the "
            f"budget is {format_bytes(budget)}: raise --memory"
        )


def _whole_bytes(store: Store) -> int:
    return sum(v.n_bytes for v in store.vectors.values())


def _delta_bytes(store: Store, places: dict[str, Array]) -> int:
    return sum((_INDEX_BYTES + DTYPES[d].itemsize) * len(p) for d, p in places.items())


def _advance(store: Store, t: int, state: State) -> dict[str, Array]:
    """Bring the state to frame ``t``: the elements of each dtype's vector that changed, int64 [n]."""
    changed = {}
    for dtype, vector in store.vectors.items():
        found = []
        bits, scratch = np.empty((2, vector.chunk), vector.dtype.bits)
        for k in range(vector.n_chunks):
            start, stop = vector.chunk_span(k)
            store.read_bits(dtype, t, k, bits, scratch)
            before = state.bits[dtype][start:stop]
            if t:
                found.append(start + np.flatnonzero(before != bits[: stop - start]))
            before[:] = bits[: stop - start]
        changed[dtype] = np.concatenate([np.empty(0, np.int64), *found])
    return changed


Content = tuple[str, Iterable[Array]]


def _anchor(store: Store, state: State, step: int) -> Content:
    """A file of every tensor: its header, and the arrays behind it."""
    infos = sorted(store.tensors.values(), key=lambda info: -DTYPES[info.dtype].itemsize)
    header = make_header(
        [(info.name, info) for info in infos],
        {"format": "pt", "sparse": "False", "model_version": str(step), "sparsity": "0.0"},
    )
    return header, (state.bits[info.dtype][info.offset : info.stop] for info in infos)


def _delta(store: Store, state: State, places: dict[str, Array], step: int, before: int) -> Content:
    """A file of what changed: its header, and the arrays behind it."""
    tensors: list[tuple[TensorInfo, Array]] = []
    names: list[str] = []
    for info in store.tensors.values():
        a, b = np.searchsorted(places[info.dtype], [info.offset, info.stop]).tolist()
        if a == b:
            continue
        at = places[info.dtype][a:b]
        indices, values = (at - info.offset).astype(np.int32), state.bits[info.dtype][at]
        names.append(info.name)
        tensors.append((TensorInfo(info.name + INDICES, "int32", (b - a,), 0), indices))
        tensors.append((TensorInfo(info.name + VALUES, info.dtype, (b - a,), 0), values))
    if not tensors:
        tensors.append((TensorInfo(EMPTY, "int32", (1,), 0), np.zeros(1, np.int32)))
    tensors.sort(key=lambda pair: -DTYPES[pair[0].dtype].itemsize)
    changed = sum(len(p) for p in places.values())
    total = sum(v.size for v in store.vectors.values())
    metadata = {
        "format": "pt",
        "sparse": "True",
        "model_version": str(step),
        "prev_model_version": str(before),
        "sparsity": f"{1 - changed / total:.6f}",
        "changed_params": json.dumps(names),
    }
    header = make_header([(info.name, info) for info, _ in tensors], metadata)
    return header, (array for _, array in tensors)


def _write(path: Path, header: str, arrays: Iterable[Array]) -> int:
    """Write a safetensors file, on disk when this returns; its bytes."""
    raw = header.encode()
    parts: Sequence[bytes] = (len(raw).to_bytes(8, "little"), raw)
    with disk_errors(path), created(path) as fd:
        at = 0
        for part in parts:
            write_all(fd, part, at)
            at += len(part)
        for array in arrays:
            write_all(fd, np.ascontiguousarray(array).view(np.uint8).data, at)
            at += array.nbytes
        os.fsync(fd)
    return at
