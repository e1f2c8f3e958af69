"""Files of ingested checkpoints given back to the disk, once the store was proved to hold them.

A file is deleted only where all of this holds:

- its step is committed, and was decoded from the store just now and found to be the file's bits,
  chunk by chunk, headers and side files byte for byte (a store made with ``--dtype`` holds other bits);
- a later complete checkpoint lies on disk: the last one is what the trainer may still write or resume
  from, and stays;
- it is one of the checkpoint's own files: weights, index, config, tokenizer. What lies beside them
  (optimizer, trainer state) stays, links stay, the base model and folders without a number stay;
- it did not change since it was compared.

A kill between two files leaves some of a step's files, all of which the store gives back.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trajkit.checkpoints.record import stamp_file
from trajkit.checkpoints.trainers import Found
from trajkit.errors import FormatError, TrajkitError
from trajkit.progress import Note, Progress, silent
from trajkit.store.compare import compare
from trajkit.store.store import Store
from trajkit.text import count, format_bytes, shown

KEPT_LAYOUTS = ("base", "unnumbered")
"""what is no numbered step of a run"""


@dataclass(frozen=True, slots=True)
class Released:
    """What was deleted of one step."""

    step: int
    files: int
    n_bytes: int


def list_releasable(store: Store, found: Sequence[Found]) -> list[Found]:
    """The checkpoints whose files may be deleted once they are proved: all in the store but the last."""
    steps = set(store.steps.tolist())
    last = max((item.step for item in found), default=0)
    return [
        item
        for item in found
        if item.step in steps
        and item.step < last
        and item.layout not in KEPT_LAYOUTS
        and not any(p.is_symlink() for p in (item.path, item.folder) if p is not None)
    ]


def release(store: Store, item: Found, budget: int, progress: Progress) -> Released | None:
    """Delete the files of one checkpoint that the store was proved to hold; None where it was not.

    Raises:
        FormatError: the store is damaged there; nothing is deleted.
    """
    stamps = _stamp(_files_below(item))
    compared = compare(store, [item], budget, silent)
    if compared.bad or compared.exact != 1:
        why = compared.bad[0].what if compared.bad else "the store holds it in another dtype"
        progress(Note(f"kept {shown(item.path)}: {why}"))
        return None
    check_decodes(store, item.step)
    files = n_bytes = 0
    for path in sorted(compared.held, key=_weights_first):
        if item.folder is None and not path.name.endswith((".safetensors", ".index.json")):
            continue  # beside step files lie the side files of all steps
        if path.is_symlink() or stamps.get(path) is None or stamps[path] != _stamp([path])[path]:
            continue
        size = path.stat().st_size
        with suppress(FileNotFoundError):  # the trainer tidies up as well
            path.unlink()
            files, n_bytes = files + 1, n_bytes + size
    _remove_empty(item)
    what = f"deleted {count(files, 'file')} of step {item.step}, {format_bytes(n_bytes)}"
    progress(Note(f"{what}: the store gives them back"))
    return Released(item.step, files, n_bytes)


def check_decodes(store: Store, step: int) -> None:
    """Decode a whole step from the store and hold it against its digests.

    Raises:
        FormatError: it does not come out as it went in.
    """
    t = store.index_of(step)
    for dtype, vector in store.vectors.items():
        bits = np.empty((2, vector.chunk), vector.dtype.bits)
        for k in range(vector.n_chunks):
            store.read_bits(dtype, t, k, *bits)


def _files_below(item: Found) -> list[Path]:
    """The regular files of a step, wherever they lie in its folder."""
    if item.folder is None:
        root = item.path if item.path.is_dir() else item.path.parent
        return [path for path in root.iterdir() if path.is_file()]
    return [Path(folder, name) for folder, _, names in os.walk(item.folder) for name in names]


def _stamp(paths: Iterable[Path]) -> dict[Path, tuple[int, int] | None]:
    found: dict[Path, tuple[int, int] | None] = {}
    for path in paths:
        try:
            found[path] = stamp_file(path)
        except TrajkitError:
            found[path] = None
    return found


def _weights_first(path: Path) -> tuple[bool, str]:
    """What takes room goes first: a step that a kill leaves in parts is not compared again."""
    return path.suffix != ".safetensors", str(path)


def _remove_empty(item: Found) -> None:
    """Remove the step's own folders where nothing is left in them."""
    if item.folder is None:
        return
    for folder, _, _ in os.walk(item.folder, topdown=False):
        with suppress(OSError):  # something lies in it
            Path(folder).rmdir()


def release_all(
    store: Store, found: Sequence[Found], budget: int, progress: Progress, seen: set[int]
) -> list[Released]:
    """Delete what may be deleted of these checkpoints; steps that were kept are not tried again."""
    released = []
    for item in list_releasable(store, found):
        if item.step in seen:
            continue
        seen.add(item.step)
        try:
            done = release(store, item, budget, progress)
        except FormatError as error:
            progress(Note(f"kept {shown(item.path)}: {error}"))
            continue
        if done is not None:
            released.append(done)
    return released
