"""A run's own metrics, kept in its store beside the checkpoints.

metrics/zarr.json      a Zarr group; its attributes: curves by name, with their own sha256
metrics/journal        what was logged since, a line a step: crc32 in hex, a space, a JSON object with
                       ``step``; a line that was cut short or damaged is passed over
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trajkit.checkpoints.metrics import LARGEST_BYTES, Metrics, read_trainer_state
from trajkit.disk import disk_errors, read_file, refuse_links, write_all
from trajkit.errors import FormatError, InvalidInput, StorageError, TrajkitError
from trajkit.progress import Note, Progress
from trajkit.store.lock import StoreLock
from trajkit.store.signed import read_signed, signed_document, write_signed
from trajkit.store.store import Store

FORMAT = "trajkit-metrics"
VERSION = 1
FOLDER = "metrics"
MOST_JOURNAL_BYTES = 1 << 22
"""of the journal, before it is taken into the curves"""


def keep_metrics(store: Store, folders: Iterable[Path], progress: Progress) -> None:
    """Keep what the trainer logged, from the last of these checkpoints that has its state.

    A log that is not readable is passed over with a note: it is no reason to lose a checkpoint.
    """
    for folder in reversed(list(folders)):
        try:
            found = read_trainer_state(folder)
        except (FormatError, OSError) as error:
            progress(Note(f"no metrics taken: {error}"))
            continue
        if found is None or not found.curves:
            continue
        held = read_kept_metrics(store)
        metrics = found if held is None else held.merged(found)
        if metrics != held:
            with StoreLock(store.path):
                _write(store, metrics)
        return


def _write(store: Store, metrics: Metrics) -> None:
    curves = {n: [list(p) for p in c] for n, c in metrics.curves.items()}
    write_signed(store.path, FOLDER, signed_document(FORMAT, VERSION, {"curves": curves}))
    with disk_errors(store.path / FOLDER):
        (store.path / FOLDER / "journal").unlink(missing_ok=True)  # its rows are among the curves


def journal_metrics(store_path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put what was logged of some steps into a store that has a commit.

    For the one writer of the store. No kill of it loses a line; the disk is not waited for, and
    losing power may cost the last ones.

    Raises:
        StorageError: the disk refuses.
    """
    text = b"".join(map(_spell_line, rows))
    path = store_path / "metrics" / "journal"
    refuse_links(store_path, path.parent)
    with disk_errors(path):
        path.parent.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o666)
        try:
            size = os.fstat(fd).st_size
            whole = b"\n" + text if size else text  # a killed writer may have left half a line
            write_all(fd, whole, size)
        finally:
            os.close(fd)
    if size + len(whole) > MOST_JOURNAL_BYTES:
        fold_journal(Store.open(store_path))


def fold_journal(store: Store) -> None:
    """Take the journal into the curves; for the one writer of the store."""
    later = _read_later(store)
    if later.curves:
        kept = _read_curves(store)
        _write(store, later if kept is None else kept.merged(later))


def _spell_line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(row), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read_later(store: Store) -> Metrics:
    """The curves of the journal; none where it cannot be read."""
    try:
        return Metrics.of_rows(_read_journal(store.path / "metrics" / "journal"))
    except (TrajkitError, OSError):
        return Metrics({})


def _read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the journal's whole lines."""
    if path.is_symlink() or not path.is_file():
        return
    for line in read_file(path, 4 * MOST_JOURNAL_BYTES).split(b"\n"):
        row = _parse_line(line)
        if row is not None:
            yield row


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line of the journal; None of any other."""
    crc, _, text = line.partition(b" ")
    try:
        if int(crc, 16) == zlib.crc32(text) and isinstance(row := json.loads(text), dict):
            return row
    except (ValueError, RecursionError):
        pass
    return None


def read_kept_metrics(store: Store) -> Metrics | None:
    """The metrics in a store; None where there are none, or none that can be read."""
    kept, later = _read_curves(store), _read_later(store)
    if not later.curves:
        return kept
    return later if kept is None else kept.merged(later)


def _read_curves(store: Store) -> Metrics | None:
    """The curves in ``zarr.json``; None where there are none, or none that can be read."""
    try:
        return _read_record(store)
    except (FormatError, InvalidInput, StorageError):
        return None


def _read_record(store: Store) -> Metrics | None:
    """The curves in ``zarr.json``; raises :class:`FormatError` where they are damaged."""
    record = read_signed(store.path / FOLDER, FORMAT, VERSION, 4 * LARGEST_BYTES)
    if record is None:
        return None
    rows = []
    for name, curve in record["curves"].entries():
        for point in curve.items():
            step, value = point.items(2)
            rows.append({"step": step.whole(), name: value.number()})
    return Metrics.of_rows(rows)


def check_kept_metrics(store: Store) -> Iterator[str]:
    """One line for each part of a store's metrics that is not as it was written; none of none."""
    folder = store.path / FOLDER
    if not os.path.lexists(folder):
        return
    journal = folder / "journal"
    try:
        if _read_record(store) is None and not os.path.lexists(journal):
            yield f"{folder / 'zarr.json'}: missing"
    except (FormatError, InvalidInput, StorageError) as error:
        yield f"{error}; ingest the run's checkpoints again to have them anew"
    if os.path.lexists(journal):
        try:
            lines = read_file(journal, 4 * MOST_JOURNAL_BYTES).split(b"\n")
        except (FormatError, StorageError, OSError) as error:
            yield str(error)
            return
        # a line without its end was cut short by a kill, which is no damage
        damaged = sum(line.endswith(b"}") and _parse_line(line) is None for line in lines)
        if damaged:
            yield f"{journal}: damaged: {damaged} of {len(lines)} lines are not what was written"
