"""Writing a checkpoint folder: safetensors shards in a given layout, whole or not at all.

The tensors' bytes go to their places in any order, from many threads. Everything lies in a folder
``.NAME.trajkit-part`` beside the target until :meth:`FolderWriter.commit` renames it into place, so
that a folder under its own name is complete. The part does not look complete either: the first 8
bytes of each safetensors file, the length of its header, stay zero until all else is on the disk,
and no reader takes such a file. What a folder may be written over, :mod:`trajkit.checkpoints.target`
says.

Measured (1 GB, 512 KiB a write, two threads): pwrite into sparse files and one fsync at the end
0.68 s; allocated first with posix_fallocate 0.66; write-back begun with every write 0.40, since the
disk then works while the rest is computed; cp followed by sync 0.69. A thread keeps the file open
that it writes to: opening and closing it give the interpreter's lock away twice more a write, and
taking it back is what two threads lose most time with.
"""

import fcntl
import os
import shutil
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Self

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.layout import FlatVector
from trajkit.checkpoints.shards import PlannedFile, Runs, find_runs
from trajkit.checkpoints.target import Place, Stamps, stamp_folder
from trajkit.disk import (
    WriteBack,
    disk_errors,
    exchange,
    is_inner,
    remove_path,
    sync_directory,
    sync_file,
    write_all,
)
from trajkit.errors import AlreadyExists, FormatError, Locked
from trajkit.remote.source import LocalFile, read_bytes
from trajkit.text import quoted

COPY_BYTES = 1 << 22
"""of a side file copied at a time"""


class FolderWriter:
    """A folder in the making; use it in a ``with`` block and ``commit`` at its end.

    Args:
        place: where :func:`trajkit.checkpoints.target.check_target` allows it.
        vectors: the flat vectors that are written, by dtype.

    Raises:
        Locked: another process is writing the same target.
        AlreadyExists: what lies at the target changed while this was written.
    """

    def __init__(self, place: Place, vectors: Mapping[str, FlatVector]) -> None:
        self.place = place
        self.out = place.out
        whole = Path(os.path.abspath(self.out))  # noqa: PTH100 - links are kept; '..' is not
        self.part = whole.with_name(f".{whole.name}.trajkit-part")
        self._vectors = vectors
        self._files: list[PlannedFile] = []
        self._runs: dict[str, list[Runs]] = {}
        self._lock = -1
        self._made: list[Path] = []
        self._open: dict[int, tuple[int, WriteBack]] = {}
        self._finished = False

    def __enter__(self) -> Self:
        with disk_errors(self.out):
            self._made = [p for p in self.part.parents if not p.exists()]
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._take()
            for left in self.part.iterdir():  # by a run that was killed
                remove_path(left)
        return self

    def _take(self) -> int:
        """The part folder, ours alone until we close it or die."""
        while True:
            self.part.mkdir(exist_ok=True)
            fd = os.open(self.part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise Locked(f"{self.out}: another process is writing it; wait for it") from None
            with suppress(FileNotFoundError):
                if os.fstat(fd).st_ino == self.part.stat().st_ino:
                    return fd
            os.close(fd)  # renamed or removed between our opening and our locking it

    def add_files(self, files: Sequence[PlannedFile]) -> None:
        """Create the safetensors files, once: full size, header but for its length, no data."""
        with disk_errors(self.out):
            for file in files:
                fd = self._create(file.name)
                try:
                    os.truncate(fd, file.n_bytes)
                    write_all(fd, file.header, 8)
                finally:
                    os.close(fd)
        self._files = list(files)
        self._runs = {d: find_runs(v, self._files) for d, v in self._vectors.items()}

    def write(self, dtype: str, start: int, bits: Array) -> None:
        """Put bits [start, start + len(bits)) of a flat vector where the files have them."""
        itemsize = bits.itemsize
        stop = start + len(bits)
        raw = bits.view(np.uint8).data
        with disk_errors(self.out):
            for runs in self._runs.get(dtype, ()):
                begin = int(np.searchsorted(runs.stops, start, side="right"))
                end = int(np.searchsorted(runs.starts, stop, side="left"))
                for i in range(begin, end):
                    run_start = int(runs.starts[i])
                    lo, hi = max(start, run_start), min(stop, int(runs.stops[i]))
                    piece = raw[(lo - start) * itemsize : (hi - start) * itemsize]
                    offset = int(runs.offsets[i]) + (lo - run_start) * itemsize
                    self._write_piece(int(runs.files[i]), piece, offset)

    def _write_piece(self, file: int, piece: memoryview, offset: int) -> None:
        thread = get_ident()
        was, writing = self._open.get(thread, (-1, None))
        if writing is None or was != file:
            if writing is not None:
                os.close(self._open.pop(thread)[1].fd)
            path = self.part / self._files[file].name
            writing = WriteBack(os.open(path, os.O_WRONLY | os.O_NOFOLLOW))
            self._open[thread] = file, writing
        write_all(writing.fd, piece, offset)
        writing.wrote(offset, len(piece))

    def _close_files(self) -> None:
        """Close what the writing threads have open; they have ended, or will write no more."""
        while self._open:
            os.close(self._open.popitem()[1][1].fd)

    def write_side_file(self, name: str, content: bytes) -> None:
        """Write a file that belongs beside the shards, such as config.json."""
        with disk_errors(self.out):
            fd = self._create(name)
            try:
                write_all(fd, content, 0)
            finally:
                os.close(fd)

    def copy_side_file(self, name: str, source: Path) -> None:
        """Copy a file that belongs beside the shards, whatever its size; a copy, never a link."""
        with disk_errors(source):
            given = LocalFile.open(source)
        with given, disk_errors(self.out):
            fd = self._create(name)
            try:
                at = 0
                while part := read_bytes(given, at, COPY_BYTES):
                    write_all(fd, part, at)
                    at += len(part)
            finally:
                os.close(fd)

    def _create(self, name: str) -> int:
        """A descriptor of a new file in the part folder: nowhere else, and there once."""
        if not is_inner(name):
            raise FormatError(f"{self.out}: the file name {quoted(name)} leaves the folder")
        path = self.part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)

    def finish(self) -> None:
        """Bring everything to the disk; from here on the part folder is a complete one."""
        if self._finished:
            return
        with disk_errors(self.out):
            self._close_files()
            below = sorted(self.part.rglob("*"))
            for path in below:
                if path.is_file():
                    sync_file(path)
            for file in self._files:
                fd = os.open(self.part / file.name, os.O_WRONLY)
                try:
                    write_all(fd, struct.pack("<Q", len(file.header)), 0)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            self._date(path for path in below if path.is_file())
            for folder in (*(p for p in below if p.is_dir()), self.part):
                sync_directory(folder)
        self._finished = True

    def _date(self, files: Iterable[Path]) -> None:
        """Give all files one time: one that is added or changed later has another."""
        now = time.time_ns()
        for path in files:
            os.utime(path, ns=(now, now))

    def check(self) -> None:
        """Read the finished headers back from the disk and compare them with what was planned.

        Raises:
            FormatError: they are not as written, or do not fit the index or one another.
        """
        checkpoint = open_checkpoint(self.part)
        found = {f.name: (f.header, f.size) for f in checkpoint.files}
        planned = {f.name: (f.header, f.n_bytes) for f in self._files}
        for name in sorted(found.keys() | planned.keys()):
            if found.get(name) != planned.get(name):
                raise FormatError(
                    f"{self.out}: {name}: its header on disk is not the one that was written"
                )

    def commit(self) -> None:
        """Finish, and rename the folder into its place; at no instant is that place half filled."""
        self.finish()
        with disk_errors(self.out):
            if self.place.replaces is None:
                self._rename()
            else:
                self._replace(self.place.replaces)
            sync_directory(self.part.parent)
        self._made = []

    def _rename(self) -> None:
        """Put the finished folder where nothing is."""
        try:
            self.part.rename(self.out)  # an empty folder is replaced, anything else is not
        except OSError as error:
            if not os.path.lexists(self.out):
                raise
            raise AlreadyExists(
                f"{self.out}: came into being while this was written; nothing of it is replaced"
            ) from error

    def _replace(self, seen: Stamps) -> None:
        """Put the finished folder in the place of what was seen there, which is then removed."""
        if not os.path.lexists(self.out):
            self._rename()
            return
        if self.out.is_symlink() or not self.out.is_dir() or stamp_folder(self.out) != seen:
            raise AlreadyExists(
                f"{self.out}: changed while this was written; nothing of it is replaced"
            )
        if exchange(self.part, self.out):
            remove_path(self.part)
            return
        old = self.part.with_suffix(".trajkit-old")
        if os.path.lexists(old):
            remove_path(old)
        self.out.rename(old)
        self.part.rename(self.out)
        remove_path(old)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._close_files()
        if self._lock < 0:
            return
        with suppress(OSError):
            if os.fstat(self._lock).st_ino == self.part.stat().st_ino:
                shutil.rmtree(self.part, ignore_errors=True)
        os.close(self._lock)
        for folder in self._made:
            with suppress(OSError):  # no longer empty: another writer's by now
                folder.rmdir()
