"""A run's own metrics, kept in its store beside the checkpoints.

metrics/zarr.json      a Zarr group; its attributes: curves by name, with their own sha256
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from trajkit.checkpoints.metrics import LARGEST_BYTES, Metrics, read_trainer_state
from trajkit.disk import canonical_json, disk_errors, replace_file
from trajkit.errors import FormatError
from trajkit.progress import Note, Progress
from trajkit.store.documents import group_document
from trajkit.store.lock import StoreLock
from trajkit.store.store import Store

FORMAT = "trajkit-metrics"


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
                _write(store.path / "metrics", metrics)
        return


def _write(folder: Path, metrics: Metrics) -> None:
    attributes = {
        "format": FORMAT,
        "version": 1,
        "curves": {n: [list(p) for p in c] for n, c in metrics.curves.items()},
    }
    attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        replace_file(folder / "zarr.json", canonical_json(group_document(attributes)))


def read_kept_metrics(store: Store) -> Metrics | None:
    """The metrics in a store; None where there are none, or none that can be read."""
    path = store.path / "metrics" / "zarr.json"
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 4 * LARGEST_BYTES:
            return None
        attributes = json.loads(path.read_bytes())["attributes"]
        digest = attributes.pop("sha256")
        if hashlib.sha256(canonical_json(attributes)).hexdigest() != digest:
            return None
        rows = ({"step": s, n: v} for n, c in attributes["curves"].items() for s, v in c)
        return Metrics.of_rows(rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
