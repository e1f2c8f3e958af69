"""Writing a checkpoint folder: safetensors shards in a given layout, whole or not at all.

The tensors' bytes go to their places in any order, from many threads. Everything lies in a folder
``.NAME.part`` beside the target until :meth:`FolderWriter.commit` renames it into place, so that a
folder under its own name is complete. The part does not look complete either: the first 8 bytes of
each safetensors file, the length of its header, stay zero until all else is on the disk, and no
reader takes such a file.

Measured (1 GB, 512 KiB a write, two threads): pwrite into sparse files and one fsync at the end
0.68 s; allocated first with posix_fallocate 0.66; write-back begun with every write 0.40, since the
disk then works while the rest is computed; cp followed by sync 0.69. A thread keeps the file open
that it writes to: opening and closing it give the interpreter's lock away twice more a write, and
taking it back is what two threads lose most time with.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any, Self

import numpy as np

from trajkit.checkpoint import open_checkpoint
from trajkit.codecs import Array
from trajkit.dtypes import DTYPES
from trajkit.errors import AlreadyExists, FormatError, Locked, Mismatch
from trajkit.layout import FlatVector, TensorInfo, tensors_of
from trajkit.source import SourceRecord
from trajkit.zarrays import WriteBack, disk_errors, sync_directory


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One safetensors file to write."""

    name: str
    header: bytes
    """JSON, padded; without the 8 length bytes"""
    n_bytes: int
    """size of the whole file"""
    places: tuple[tuple[str, int], ...]
    """(tensor of the store, absolute byte offset) for every tensor in the file"""


def plan_files(record: SourceRecord, vectors: Mapping[str, FlatVector]) -> tuple[PlannedFile, ...]:
    """The files of a source layout, byte for byte as they were where dtypes are unchanged.

    Where the store holds a tensor in another dtype than the source did (``--dtype``), the header is
    written anew with the same tensors in the same order.
    """
    table = tensors_of(vectors)
    return tuple(_plan_file(name, header, record, table) for name, header in record.files)


def _plan_file(
    name: str, header: str, record: SourceRecord, table: Mapping[str, TensorInfo]
) -> PlannedFile:
    entries: dict[str, Any] = json.loads(header)
    metadata = entries.pop("__metadata__", None)
    ordered = sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"]))
    kept: list[tuple[str, TensorInfo]] = []
    for stored_name, _ in ordered:
        canonical = stored_name.removeprefix(record.prefix)
        canonical = record.tied.get(canonical, canonical)
        if canonical not in table:
            raise Mismatch(f"{name}: tensor {stored_name!r} of the layout is not in the store")
        kept.append((stored_name, table[canonical]))
    if any(DTYPES[i.dtype].code != entries[n]["dtype"] for n, i in kept):
        header = _make_header(kept, metadata)
        entries = json.loads(header)
    raw = header.encode()
    start = 8 + len(raw)
    places = tuple((info.name, start + entries[n]["data_offsets"][0]) for n, info in kept)
    end = max((entries[n]["data_offsets"][1] for n, _ in kept), default=0)
    return PlannedFile(name, raw, start + end, places)


def _make_header(kept: Sequence[tuple[str, TensorInfo]], metadata: Any) -> str:
    document: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for stored_name, info in kept:
        dtype = DTYPES[info.dtype]
        end = at + info.size * dtype.itemsize
        document[stored_name] = {
            "dtype": dtype.code,
            "shape": list(info.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Disjoint ranges of a flat vector that lie in one piece in a file, ascending; int64 each."""

    starts: Array
    stops: Array
    files: Array
    offsets: Array
    """byte offset of the range's first element in its file"""


class FolderWriter:
    """A folder in the making; use it in a ``with`` block and ``commit`` at its end.

    Raises:
        AlreadyExists: the target is there and ``force`` was not given.
        Locked: another process is writing the same target.
    """

    def __init__(
        self, out: Path, vectors: Mapping[str, FlatVector], *, force: bool = False
    ) -> None:
        check_target(out, force)
        self.out = out
        whole = Path(os.path.abspath(out))  # noqa: PTH100 - links are kept; '.' and '..' are not
        self.part = whole.with_name(f".{whole.name}.part")
        self.force = force
        self._vectors = vectors
        self._files: list[PlannedFile] = []
        self._runs: dict[str, list[_Runs]] = {}
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
            fd = os.open(self.part, os.O_RDONLY | os.O_DIRECTORY)
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
                path = self.part / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                try:
                    os.truncate(fd, file.n_bytes)
                    _write_all(fd, file.header, 8)
                finally:
                    os.close(fd)
        self._files = list(files)
        self._runs = {d: _find_runs(v, self._files) for d, v in self._vectors.items()}

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
            writing = WriteBack(os.open(self.part / self._files[file].name, os.O_WRONLY))
            self._open[thread] = file, writing
        _write_all(writing.fd, piece, offset)
        writing.wrote(offset, len(piece))

    def _close_files(self) -> None:
        """Close what the writing threads have open; they have ended, or will write no more."""
        while self._open:
            os.close(self._open.popitem()[1][1].fd)

    def write_side_file(self, name: str, content: bytes) -> None:
        """Write a file that belongs beside the shards, such as config.json."""
        with disk_errors(self.out):
            path = self.part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def finish(self) -> None:
        """Bring everything to the disk; from here on the part folder is a complete one."""
        if self._finished:
            return
        with disk_errors(self.out):
            self._close_files()
            below = sorted(self.part.rglob("*"))
            for path in below:
                if path.is_file():
                    _sync_file(path)
            for file in self._files:
                fd = os.open(self.part / file.name, os.O_WRONLY)
                try:
                    _write_all(fd, struct.pack("<Q", len(file.header)), 0)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            for folder in (*(p for p in below if p.is_dir()), self.part):
                sync_directory(folder)
        self._finished = True

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
            if self.force and os.path.lexists(self.out):
                self._replace()
            else:
                self.part.rename(self.out)
            sync_directory(self.part.parent)
        self._made = []

    def _replace(self) -> None:
        """Put the finished folder in the place of what is there, which is then removed."""
        if _exchange(self.part, self.out):
            remove_path(self.part)
            return
        old = self.part.with_suffix(".old")
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


def _find_runs(vector: FlatVector, files: Sequence[PlannedFile]) -> list[_Runs]:
    """Where a vector's elements go: disjoint runs, and more of them for tensors written twice."""
    places: dict[str, list[tuple[int, int]]] = {}
    for i, file in enumerate(files):
        for tensor, offset in file.places:
            places.setdefault(tensor, []).append((i, offset))
    layers: list[list[list[int]]] = []
    itemsize = vector.dtype.itemsize
    for info in vector.tensors:
        for depth, (i, offset) in enumerate(places.get(info.name, ())):
            if not info.size:
                continue
            if depth == len(layers):
                layers.append([])
            rows = layers[depth]
            if rows:
                begin, end, before, at = rows[-1]
                if (end, before, at + (end - begin) * itemsize) == (info.offset, i, offset):
                    rows[-1][1] = info.stop
                    continue
            rows.append([info.offset, info.stop, i, offset])
    return [_Runs(*np.array(rows, np.int64).T.copy()) for rows in layers]


def check_target(out: Path, force: bool) -> None:
    """Raise :class:`AlreadyExists` when writing a folder to ``out`` would replace something.

    With ``force`` it is refused all the same to replace a folder that one stands in.
    """
    if not os.path.lexists(out):
        return
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return  # an empty folder holds nothing to lose; rename replaces it
    if not force:
        raise AlreadyExists(f"{out}: exists already; replace it with --force or choose another -o")
    here = Path.cwd()
    if out.resolve() in (here, *here.parents):
        raise AlreadyExists(f"{out}: is the current folder or holds it; choose another -o")


def remove_path(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _exchange(a: Path, b: Path) -> bool:
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


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view.nbytes:
        n = os.pwrite(fd, view, offset)
        view = view[n:]
        offset += n
