"""Where a folder may be written: what trajkit itself wrote may be replaced, and nothing else.

Every folder that trajkit writes carries a sign: ``trajkit.json`` (an extrapolated checkpoint) or
``summary.json`` (a report) says in ``made_by`` who made it, and all its files carry the time of that
sign, so that a file which somebody added or changed since shows. A restored checkpoint has to equal
its source in every byte and carries none: whoever holds the store says whether the store can give
such a folder back (``is_held``).
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trajkit.checkpoints.header import read_small
from trajkit.disk import disk_errors
from trajkit.errors import AlreadyExists, StorageError, TrajkitError
from trajkit.text import shown

SIGNS = {"trajkit.json": "checkpoint", "summary.json": "report"}
"""files that say in ``made_by`` that trajkit wrote the folder, and what the folder then is"""

Stamps = tuple[tuple[str, int, int], ...]
"""(relative name, bytes, time of the last change in ns) of everything in a folder"""


@dataclass(frozen=True, slots=True)
class Place:
    """A place that was checked: a folder may be written there."""

    out: Path
    replaces: Stamps | None = None
    """what lies there and is to be replaced; None where nothing does"""


def check_target(
    out: Path,
    force: bool = False,
    *,
    store: Path | None = None,
    is_held: Callable[[Path], bool] = lambda folder: False,
    over: str | None = None,
) -> Place:
    """Check that writing a folder to `out` loses nothing that trajkit did not write.

    Args:
        out: the folder to be written.
        force: replace what trajkit wrote there.
        store: the store's folder; neither it, nor a folder in it or above it, is written to.
        is_held: whether a folder without a sign is a restored checkpoint that can be given back.
        over: a kind of :data:`SIGNS` that is replaced without `force`.

    Raises:
        AlreadyExists: something else lies there; the message names it.
    """
    _check_path(out, store)
    with disk_errors(out):
        if not os.path.lexists(out):
            return Place(out)
        if (kind := _check_folder(out)) == "empty":
            return Place(out)
        if kind is None and is_held(out):
            kind = "checkpoint"
        if kind is None:
            raise AlreadyExists(f"{shown(out)}: {_describe_strangers(out)}; choose another -o")
        if not (force or kind == over):
            raise AlreadyExists(
                f"{shown(out)}: exists already; replace it with --force or choose another -o"
            )
        return Place(out, stamp_folder(out))


def _check_path(out: Path, store: Path | None) -> None:
    """Refuse the current folder and the store, what holds them, and what lies in the store."""
    try:
        place, here = Path(os.path.realpath(out)), Path.cwd()
        home = None if store is None else Path(os.path.realpath(store))
    except (OSError, ValueError) as error:
        raise StorageError(f"{shown(out)}: cannot be written to: {error}") from None
    if place in (here, *here.parents):
        raise AlreadyExists(f"{shown(out)}: is the current folder or holds it; choose another -o")
    if home is not None and (place in (home, *home.parents) or home in place.parents):
        how = "is" if place == home else "holds" if place in home.parents else "lies in"
        raise AlreadyExists(f"{shown(out)}: {how} the store {shown(store)}; choose another -o")


def _check_folder(out: Path) -> str | None:
    """Say what lies at `out`: ``empty``, a kind of :data:`SIGNS`, or None; refuses no folder."""
    mode = out.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise AlreadyExists(
            f"{shown(out)}: is a link to {shown(out.readlink())}; name that place itself, or "
            "choose another -o"
        )
    if not stat.S_ISDIR(mode):
        what = "a file" if stat.S_ISREG(mode) else "a device, pipe or socket"
        raise AlreadyExists(f"{shown(out)}: is {what}, not a folder; choose another -o")
    return find_sign(out) if os.listdir(out) else "empty"  # noqa: PTH208 - names alone


def find_sign(folder: Path) -> str | None:
    """The kind of :data:`SIGNS` that a folder is, if trajkit wrote every file in it."""
    for name, kind in SIGNS.items():
        try:
            document = json.loads(read_small(folder, name))
            written = (folder / name).lstat().st_mtime_ns
        except (TrajkitError, OSError, ValueError, RecursionError):
            continue
        maker = document.get("made_by") if isinstance(document, dict) else None
        if isinstance(maker, str) and maker.startswith("trajkit"):
            return None if any(_find_changed(folder, written)) else kind
    return None


def _find_changed(folder: Path, written: int) -> Iterator[str]:
    """Names of what does not carry the time at which trajkit finished the folder."""
    for name, status in _walk(folder):
        if not stat.S_ISREG(status.st_mode) or status.st_mtime_ns != written:
            yield name


def _describe_strangers(out: Path) -> str:
    """Say what lies in a folder that will not be replaced."""
    names = sorted(entry.name for entry in os.scandir(out))
    for name in SIGNS:
        if name in names:
            try:
                changed = sorted(_find_changed(out, (out / name).lstat().st_mtime_ns))
            except OSError:
                changed = []
            if changed:
                return f"{shown(changed[0])} in it was added or changed since it was written"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"holds {shown(names[0])}{more}, which trajkit did not write"


def _walk(folder: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """(relative name, status) of everything in a folder but its folders; links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{below}{entry.name}/")
        else:
            yield below + entry.name, entry.stat(follow_symlinks=False)


def stamp_folder(folder: Path) -> Stamps:
    """What shows that anything in a folder has changed."""
    return tuple((name, s.st_size, s.st_mtime_ns) for name, s in _walk(folder))
