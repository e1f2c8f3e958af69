"""Where a verb may write a folder: what the target itself shows, and what this store gives back."""

import hashlib
from pathlib import Path

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trajkit.checkpoints.reader import FlatReader
from trajkit.checkpoints.record import SourceRecord, stamp_files
from trajkit.checkpoints.shards import plan_files
from trajkit.checkpoints.target import Place, check_target, stamp_folder
from trajkit.errors import TrajkitError
from trajkit.store.commit import chunk_digest, frame_digest
from trajkit.store.store import Store


def check_output(store: Store, out: Path, force: bool = False, *, over: str | None = None) -> Place:
    """Check that a folder may be written to ``out``; see :func:`check_target`.

    With ``force`` a folder that :mod:`trajkit.store.restore` wrote is replaced too, if the store
    can still give it back byte for byte; the folder that a step was ingested from never is.

    Raises:
        AlreadyExists: something that trajkit did not write lies there, or the store does.
    """
    return check_target(
        out, force, store=store.path, is_held=lambda folder: is_restored(store, folder), over=over
    )


def is_restored(store: Store, folder: Path) -> bool:
    """Whether a folder is what ``restore`` writes for some step, and not that step's own source.

    Reads the folder whole, a chunk at a time.
    """
    try:
        checkpoint = open_checkpoint(folder)
        with FlatReader(checkpoint, store.vectors) as reader:
            digest = _digest_tensors(store, reader)
        frames = [f for f in store.commit.frames if f.digest == digest]
        return any(_is_copy(store, f.source, checkpoint) for f in frames)
    except (TrajkitError, OSError, ValueError):
        return False


def _digest_tensors(store: Store, reader: FlatReader) -> str:
    """The digest that a frame of these tensors has."""
    digests = []
    for dtype, vector in store.vectors.items():
        row: Array = np.zeros(vector.n_chunks, np.uint64)
        for k in range(vector.n_chunks):
            start, stop = vector.chunk_span(k)
            bits = np.empty(stop - start, vector.dtype.bits)
            reader.fill(dtype, start, stop, bits)
            row[k] = chunk_digest(bits)
        digests.append(row)
    reader.check_tied()
    reader.check_unchanged()
    return frame_digest(digests)


def _is_copy(store: Store, source: str, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's files are those of a record, all of them, written at another time."""
    record = SourceRecord.read(store.path, source)
    now = stamp_files(checkpoint)
    if not record.stamps or any(now.get(name) == was for name, was in record.stamps.items()):
        return False  # the source itself, or no way to tell it from a copy
    index = {} if record.index is None else {record.index[0]: record.index[1].encode()}
    planned = {
        file.name: file.header for file in plan_files(record, store.vectors, store.commit.cast)
    }
    names = {name for name, _, _ in stamp_folder(checkpoint.root)}
    return (
        names == planned.keys() | index.keys() | record.assets.keys()
        and planned == {file.name: file.header for file in checkpoint.files}
        and all((checkpoint.root / name).read_bytes() == text for name, text in index.items())
        and all(
            hashlib.sha256((checkpoint.root / name).read_bytes()).hexdigest() == sha
            for name, (_, sha) in record.assets.items()
        )
    )
