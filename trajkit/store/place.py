"""The folder that a store is made in: nothing in it is removed but what trajkit itself left there.

Before anything else a first writer puts a marker into the folder, and takes it away after the first
commit. What a killed first writer left is known by the marker; without it, and without a root, a
folder that is not empty is somebody's, perhaps a store whose zarr.json got lost, and is refused.
"""

import os
import shutil
from pathlib import Path

from trajkit.disk import disk_errors, sync_directory
from trajkit.errors import AlreadyExists, FormatError
from trajkit.text import format_bytes, shown

MARKER = ".trajkit-unfinished"
MARKER_TEXT = b"trajkit is making a store here; until its first commit nothing in it counts\n"
_PARTS = ("tensors", "frames", "digests", "assets", "steps")
_OURS = {*_PARTS, "zarr.json.part", MARKER, ".lock"}


def check_place(path: Path) -> None:
    """Check that a store lies at ``path`` or may be made there.

    Raises:
        AlreadyExists: something else lies there; the message names it.
        FormatError: a store that lost its zarr.json lies there.
    """
    with disk_errors(path):
        if not os.path.lexists(path):
            return
        if not path.is_dir():
            raise AlreadyExists(
                f"{shown(path)}: a file, not a store; name another place with --store"
            )
        if os.path.lexists(path / "zarr.json"):
            return
        names = {entry.name for entry in path.iterdir()}
        if names <= {".lock"} and _is_lock(path / ".lock"):
            return
        marked = _is_marked(path)
        strangers = sorted(names - (_OURS if marked else set()))
        if not marked and {"tensors", "frames", "digests"} <= names:
            raise FormatError(
                f"{shown(path)}: a store without its zarr.json, which says what its frames are "
                f"({format_bytes(_count_bytes(path / 'frames'))} of them lie there); put zarr.json "
                "back from a copy, or move the folder away, or name another place with --store"
            )
        if strangers:
            raise AlreadyExists(
                f"{shown(path)}: not a trajkit store (it holds {shown(repr(strangers[0]))}); name "
                "a new folder with --store"
            )


def mark_place(path: Path) -> None:
    """Put the marker into a folder that :func:`check_place` passed, before anything else."""
    if _is_marked(path):
        return
    with disk_errors(path):
        fd = os.open(path / MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.write(fd, MARKER_TEXT)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(path)


def unmark_place(path: Path) -> None:
    """Take the marker away: there is a commit."""
    with disk_errors(path):
        (path / MARKER).unlink(missing_ok=True)


def clear_place(path: Path) -> None:
    """Remove what a first writer that did not reach its commit left in a marked folder."""
    if not _is_marked(path):
        return
    with disk_errors(path):
        for name in _PARTS:
            if (path / name).is_dir() and not (path / name).is_symlink():
                shutil.rmtree(path / name)
        (path / "zarr.json.part").unlink(missing_ok=True)


def _is_marked(path: Path) -> bool:
    """Whether the marker is there; an empty one was begun by a writer that was killed."""
    return (path / MARKER).is_file() and not (path / MARKER).is_symlink()


def _is_lock(path: Path) -> bool:
    """Whether there is no lock file, or one that a writer left."""
    try:
        with path.open("rb") as file:
            return file.read(8) in (b"", b"process ")
    except FileNotFoundError:
        return True


def _count_bytes(folder: Path) -> int:
    return sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file())
