"""Files whole or not at all, durable names, and the system's refusals as one line."""

import ctypes
import errno
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from trajkit.errors import StorageError, TrajkitError


def canonical_json(document: Any) -> bytes:
    """The one spelling of a JSON document that trajkit writes, so that any changed byte shows."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside it, to the disk, then renamed into place."""
    part = path.with_name(path.name + ".part")
    with disk_errors(path), part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with disk_errors(path):
        part.replace(path)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with disk_errors(path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class disk_errors:  # noqa: N801 - used as a context manager, reads as a phrase
    """Turn the operating system's errors into one line that names the path."""

    path: Path

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, TrajkitError):
            reason = error.strerror or str(error)
            raise StorageError(
                f"{self.path}: {reason}; what was committed is intact, and the same command "
                "continues once the cause is gone"
            ) from error


WRITE_BACK_BYTES = 1 << 22
"""so much written to a file is sent on to the disk"""


@dataclass(slots=True)
class WriteBack:
    """A file being written: lets the disk begin before the end, so that fsync finds little left."""

    fd: int
    start: int = 0
    stop: int = 0
    n_bytes: int = 0

    def wrote(self, offset: int, n_bytes: int) -> None:
        """Count a write; begin to write back once there is enough."""
        self.start = min(self.start, offset) if self.n_bytes else offset
        self.stop = max(self.stop, offset + n_bytes)
        self.n_bytes += n_bytes
        if self.n_bytes >= WRITE_BACK_BYTES and hasattr(os, "posix_fadvise"):
            # Linux begins to write dirty pages back when told that they are not needed
            os.posix_fadvise(self.fd, self.start, self.stop - self.start, os.POSIX_FADV_DONTNEED)
            self.n_bytes = 0


def remove_path(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step; False where the system or its disk cannot.

    Raises:
        OSError: it can, and refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(a), os.fsencode(b)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        failed = libc.renameat2(here, names[0], here, names[1], swap)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, 2)  # RENAME_SWAP
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(b))


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of the content at an offset, however often the system takes less."""
    view = memoryview(content)
    while view.nbytes:
        n = os.pwrite(fd, view, offset)
        view = view[n:]
        offset += n
