"""The lock of a store's one writer, and of whoever keeps what was made of the frames.

They are two, so that a run that is being recorded can be fitted: committed frames never change.
"""

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from trajkit.disk import disk_errors
from trajkit.errors import FormatError, Locked, StorageError
from trajkit.text import printable


class StoreLock:
    """The one writer's lock: an flock on ``.lock``, which names the holder."""

    NAME = ".lock"

    def __init__(self, store_path: Path) -> None:
        self.path = store_path / self.NAME
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        while True:
            with disk_errors(self.path):
                file = self._open()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = printable(" ".join(file.read(200).split())) or "another process"
                file.close()
                raise Locked(
                    f"{self.path.parent}: {holder} is writing to this store; wait until it is done"
                ) from None
            except OSError as error:
                file.close()
                raise StorageError(
                    f"{self.path}: cannot be locked here ({error.strerror}), and without a lock "
                    "two writers could meet; keep the store on a file system that has flock"
                ) from error
            try:
                if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                    break
            except FileNotFoundError:
                pass  # the holder before us removed the file between our open and our lock
            file.close()
        self._file = file
        with suppress(OSError):  # a full disk: the lock holds all the same, only without a name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        return self

    def _open(self) -> IO[str]:
        """The lock file, made if it is missing; no link of any kind is followed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise FormatError(f"{self.path}: is a symbolic link, not a lock; remove it") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(fd)
            raise FormatError(f"{self.path}: expected a file with this one name; remove it")
        return os.fdopen(fd, "r+", errors="replace")

    def __exit__(self, *exc: object) -> None:
        assert self._file is not None
        try:
            with suppress(OSError):  # turned read-only meanwhile: a file without a lock is free
                self.path.unlink(missing_ok=True)
        finally:
            with suppress(OSError):
                self._file.close()


class ResultsLock(StoreLock):
    """The lock of fits, backtests and evidence; frames may be appended meanwhile."""

    NAME = ".results.lock"
