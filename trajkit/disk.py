"""Files whole or not at all, durable names, and the system's refusals as one line."""

import ctypes
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from trajkit.errors import FormatError, StorageError, TrajkitError
from trajkit.text import shown

MAX_DOCUMENT_BYTES = 100_000_000
"""bytes of a file that is read whole, such as a ``zarr.json``"""
MAX_FILE_NAME_BYTES = 255
"""of one part of a path, on every common file system"""


def canonical_json(document: Any) -> bytes:
    """The one spelling of a JSON document that trajkit writes, so that any changed byte shows.

    It is that of ``json.dumps(indent=1, sort_keys=True, ensure_ascii=False)``, which indents in
    Python. A commit has four columns of an entry a step: lists of numbers or texts go through the
    compiled encoder here.
    """
    return (_spell(document, "\n") + "\n").encode()


def _spell(node: Any, line: str) -> str:
    """A part of a document; ``line`` ends a line and indents the next as deep as the part is."""
    inner = line + " "
    if isinstance(node, dict) and node and all(type(key) is str for key in node):
        items = [f"{_scalar(key)}: {_spell(node[key], inner)}" for key in sorted(node)]
        return f"{{{inner}{f',{inner}'.join(items)}{line}}}"
    if isinstance(node, list | tuple) and node:
        if not _FLAT.issuperset(map(type, node)):
            return f"[{inner}{f',{inner}'.join([_spell(item, inner) for item in node])}{line}]"
        text = json.dumps(node, ensure_ascii=False, separators=(f",{inner}", ": "))
        return f"[{inner}{text[1:-1]}{line}]"
    if isinstance(node, dict):
        text = json.dumps(node, indent=1, sort_keys=True, ensure_ascii=False)
        return text.replace("\n", line)
    return _scalar(node)


_scalar = json.JSONEncoder(ensure_ascii=False).encode
_FLAT = {str, int, float, bool, type(None)}


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside it, to the disk, then renamed into place."""
    part = path.with_name(path.name + ".part")
    with disk_errors(path), created(part) as fd:
        write_all(fd, content, 0)
        os.fsync(fd)
    with disk_errors(path):
        part.replace(path)
        sync_directory(path.parent)


@contextmanager
def created(path: Path) -> Iterator[int]:
    """A descriptor of a new, empty file to write to; whatever had its name is only unlinked.

    A link there is not followed, be it symbolic or hard: what it leads to stays as it is.
    """
    fd = create_file(path)
    try:
        yield fd
    finally:
        os.close(fd)


def create_file(path: Path) -> int:
    """A descriptor of a new, empty file, as in :func:`created`; for the caller to close."""
    if os.path.lexists(path):
        path.unlink()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def open_file(path: str | Path) -> int:
    """A descriptor of a regular file to read from; for the caller to close.

    Raises:
        FormatError: it is something else. A pipe would make us wait, a device never ends.
        OSError: the system's reason why it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL, or a character that no path can have
        raise FormatError(f"{shown(path)}: not the name of a file: {error}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or the like"
        raise FormatError(f"{shown(path)}: expected a file, found {found}")
    return fd


def read_file(path: Path, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """A regular file of bounded size, whole.

    Raises:
        FormatError: it is no regular file, or larger.
        FileNotFoundError, NotADirectoryError: it is not there.
        StorageError: the disk refused to read it.
    """
    try:
        fd = open_file(path)
        try:
            size = os.fstat(fd).st_size
            if size > max_bytes:
                raise FormatError(f"{shown(path)}: {size} bytes, more than the {max_bytes} allowed")
            parts = []
            while size and (part := os.read(fd, size)):
                parts.append(part)
                size -= len(part)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error
    return b"".join(parts)


def is_inner(name: str) -> bool:
    r"""Whether a relative name can only lie in the folder it is put into.

    >>> [is_inner(n) for n in ("a/b.json", "//a", "a/../b", "a//b", "a\n", "\udcff", "")]
    [True, False, False, False, False, False, False]
    """
    parts = name.split("/")
    return name.isprintable() and all(
        part not in ("", ".", "..") and len(part.encode()) <= MAX_FILE_NAME_BYTES for part in parts
    )


def refuse_links(root: Path, *folders: Path) -> None:
    """Raise where a folder below ``root`` that is to be written into is a symbolic link.

    Raises:
        FormatError: one is; what it leads to is somebody else's.
    """
    for folder in folders:
        while folder != root and root in folder.parents:
            if folder.is_symlink():
                raise FormatError(
                    f"{shown(folder)}: is a symbolic link, and trajkit writes through none in its "
                    "own folders; put the folder itself in its place"
                )
            folder = folder.parent


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
