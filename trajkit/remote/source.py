"""A byte source: something of a known size that is read in ranges, and the local file that is one.

Checkpoints and arrays are read through this seam alone, so that an object store enters by one class
of this shape. What has a descriptor says so: compiled code then reads it without Python in between
(:mod:`trajkit.kernels.cpu.read`).
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from trajkit.disk import open_file
from trajkit.errors import StorageError


class ByteSource(Protocol):
    """The contract; an instance may be read from many threads at once.

    ``size`` and ``mark`` look anew at each call, since files change; ``fd`` stays what it is.
    """

    @property
    def size(self) -> int:
        """Bytes in it now."""

    @property
    def fd(self) -> int | None:
        """A descriptor of a regular file with these bytes, to ``pread`` from; None if there is none."""

    def mark(self) -> tuple[int, int]:
        """(bytes, ns of the last change): another pair once the bytes have been written to."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer (writable, of bytes) from a place on; how many bytes were there.

        Fewer than the buffer holds only where the source ends.

        Raises:
            StorageError: it cannot be read; the message has the source's name.
        """

    def close(self) -> None:
        """Give back what it holds; nothing is read afterwards."""


class LocalFile:
    """A regular file of this machine.

    Args:
        fd: a descriptor open for reading, which is closed with the source.
        name: what messages call the file.
    """

    __slots__ = ("fd", "name")

    def __init__(self, fd: int, name: str = "the file") -> None:
        self.fd = fd
        self.name = name

    @classmethod
    def open(cls, path: str | Path, name: str | None = None) -> Self:
        """Open a path; raises as :func:`trajkit.disk.open_file`."""
        return cls(open_file(path), str(path) if name is None else name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes in it now."""
        return os.fstat(self.fd).st_size

    def mark(self) -> tuple[int, int]:
        """(bytes, ns of the last change)."""
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer, going on after short reads and signals (PEP 475)."""
        done = 0
        while done < len(buffer):
            try:
                n = os.preadv(self.fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise StorageError(f"{self.name}: cannot be read: {error.strerror}") from error
            if n == 0:
                break
            done += n
        return done

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def read_bytes(source: ByteSource, offset: int, n_bytes: int) -> bytes:
    """Bytes [offset, offset + n_bytes) of a source, fewer where it ends; raises as ``read_into``."""
    content = bytearray(n_bytes)
    return bytes(memoryview(content)[: source.read_into(offset, memoryview(content))])
