"""Steps whose files on disk are no longer what was ingested of them.

A run that is resumed from an earlier step writes later steps again. Frames are never rewritten in
silence, so this says which steps differ: by size and time of their files, which the source record
keeps; where those differ, by the headers; where these agree, by the bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.layout import FlatVector
from trajkit.checkpoints.reader import FlatReader
from trajkit.checkpoints.record import SourceRecord, stamp_file, stamp_files
from trajkit.checkpoints.target import stamp_folder
from trajkit.checkpoints.trainers import Found
from trajkit.errors import FormatError, InvalidInput, Mismatch, TrajkitError
from trajkit.store.commit import chunk_digest
from trajkit.store.store import Store
from trajkit.text import shown

CHUNKS_LOOKED_AT = 64
"""chunks of each dtype whose bits are compared, spread evenly: a step of training changes them all"""


class Rewritten:
    """The steps found to be written again, remembered over many looks at the same folders."""

    def __init__(self) -> None:
        self._seen: dict[int, object] = {}
        self._differ: dict[int, Path] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that differ."""
        return tuple(sorted(self._differ))

    def look(self, store: Store, found: Sequence[Found]) -> str | None:
        """Compare what changed since the last look: a line about all that differ, if any does."""
        stamps = {item.step: (item.path, _stamp(item.path)) for item in found}
        fresh = [item for item in found if self._seen.get(item.step) != stamps[item.step]]
        for item in fresh:
            self._differ.pop(item.step, None)
        self._differ |= {item.step: item.path for item in find_rewritten(store, fresh)}
        self._seen |= stamps
        if not self._differ:
            return None
        first, last = self.steps[0], self.steps[-1]
        more = f" (and {len(self.steps) - 1} more, up to {last})" if last > first else ""
        return (
            f"{shown(self._differ[first])}: step {first}{more} was written again since it was "
            f"ingested, by a resumed run perhaps; take it anew with --replace-from {first}, or "
            "keep what the store holds: name only later steps, or another --store"
        )


def _stamp(path: Path) -> object:
    """What shows that a checkpoint's files changed; links are not followed."""
    try:
        return stamp_folder(path) if path.is_dir() else stamp_file(path)
    except (TrajkitError, OSError):
        return None


def keep_before(store: Store | None, step: int | None, found: Sequence[Found]) -> Store | None:
    """The store as it will be once its steps from ``step`` on are cut (``--replace-from``).

    Raises:
        InvalidInput: nothing found would take their place, or nothing of the store would be left.
    """
    if step is None:
        return store
    if not any(item.step >= step for item in found):
        raise InvalidInput(
            f"--replace-from {step}: the last checkpoint found is step {found[-1].step}, so "
            "nothing would take the place of what is cut; name the folder of the resumed run"
        )
    if store is None or not len(store.steps) or step > store.steps[-1]:
        return store
    if step <= store.steps[0]:
        raise InvalidInput(
            f"--replace-from {step}: {store.path} begins with step {store.steps[0]}, so nothing "
            "of it would be left; ingest the run into another --store"
        )
    frames = tuple(f for f in store.commit.frames if f.step < step)
    return store.grown(replace(store.commit, frames=frames))


def find_rewritten(store: Store, found: Sequence[Found]) -> Iterator[Found]:
    """The checkpoints, of those found, that differ from what the store holds of their steps.

    What cannot be read now is passed over: it may be in the middle of being written. A store made
    before records kept times is compared by headers alone.
    """
    frames = {frame.step: t for t, frame in enumerate(store.commit.frames)}
    for item in found:
        if item.step not in frames:
            continue
        record = SourceRecord.read(store.path, store.commit.frames[frames[item.step]].source)
        if not _is_untouched(item.path, record) and _differs(store, item, record):
            yield item


def _is_untouched(path: Path, record: SourceRecord) -> bool:
    """Whether all files have the size and the time that they had when they were ingested."""
    root = path if path.is_dir() else path.parent
    try:
        return bool(record.stamps) and all(
            stamp_file(root / name) == stamp for name, stamp in record.stamps.items()
        )
    except TrajkitError:
        return False


def _differs(store: Store, item: Found, record: SourceRecord) -> bool:
    try:
        checkpoint = open_checkpoint(item.path, item.step)
        if record.stamps and stamp_files(checkpoint) == record.stamps:
            return False
        headers = tuple((file.name, file.header.decode()) for file in checkpoint.files)
        if headers != record.files:
            return True
        if not record.stamps:
            return False
        with FlatReader(checkpoint, store.vectors, store.commit.cast) as reader:
            return any(_differs_in(store, reader, vector) for vector in store.vectors.values())
    except (FormatError, Mismatch) as error:
        return isinstance(error, Mismatch)
    except TrajkitError:
        return False


def _differs_in(store: Store, reader: FlatReader, vector: FlatVector) -> bool:
    """Whether any of the chunks looked at has other bits than the store has."""
    dtype = vector.dtype.name
    digests = store.digests[dtype].read_row(store.index_of(reader.checkpoint.step))
    n = min(vector.n_chunks, CHUNKS_LOOKED_AT)
    for k in np.unique(np.linspace(0, vector.n_chunks - 1, n).astype(np.int64)).tolist():
        start, stop = vector.chunk_span(k)
        bits = np.empty(stop - start, vector.dtype.bits)
        reader.fill(dtype, start, stop, bits)
        if chunk_digest(bits) != int(digests[k]):
            return True
    return False
