"""Writing a checkpoint folder: safetensors shards in a given layout, whole or not at all.

The files' headers are written first and the tensors' bytes go to their places in any order, from
many threads. Everything lies in a folder beside the target until :meth:`FolderWriter.commit`
renames it into place, so that a folder under its own name is complete.
"""

import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trajkit.codecs import Array
from trajkit.dtypes import DTYPES
from trajkit.errors import AlreadyExists, Mismatch
from trajkit.layout import FlatVector, TensorInfo, tensors_of
from trajkit.source import SourceRecord
from trajkit.zarrays import disk_errors, sync_directory


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


class FolderWriter:
    """A checkpoint folder in the making; use it in a ``with`` block and ``commit`` at its end.

    Raises:
        AlreadyExists: the target is there and ``force`` was not given.
    """

    def __init__(
        self,
        out: Path,
        vectors: Mapping[str, FlatVector],
        *,
        force: bool = False,
        part: Path | None = None,
    ) -> None:
        check_target(out, force)
        self.out = out
        self.part = part or out.with_name(f".{out.name}.part")
        self.force = force
        self._vectors = vectors
        self._fds: list[int] = []
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._subfolders: list[FolderWriter] = []

    def __enter__(self) -> Self:
        with disk_errors(self.out):
            if self.part.exists():
                shutil.rmtree(self.part)  # left by a run that was killed
            self.part.mkdir(parents=True)
        return self

    def subfolder(self, name: str) -> "FolderWriter":
        """A writer for a folder within this one, which is committed with it."""
        inner = FolderWriter(self.out / name, self._vectors, part=self.part / name)
        self._subfolders.append(inner)
        return inner.__enter__()

    def add_files(self, files: Sequence[PlannedFile]) -> None:
        """Create the safetensors files at their full size, headers written, tensors all zero."""
        with disk_errors(self.out):
            for file in files:
                path = self.part / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                self._fds.append(fd)
                os.truncate(fd, file.n_bytes)
                _write_all(fd, struct.pack("<Q", len(file.header)) + file.header, 0)
                for tensor, offset in file.places:
                    self._places.setdefault(tensor, []).append((len(self._fds) - 1, offset))

    def write(self, dtype: str, start: int, bits: Array) -> None:
        """Put bits [start, start + len(bits)) of a flat vector where the files have them."""
        itemsize = bits.itemsize
        with disk_errors(self.out):
            for span in self._vectors[dtype].spans(start, start + len(bits)):
                part = bits[span.at : span.at + span.stop - span.start]
                for file, offset in self._places.get(span.tensor.name, ()):
                    _write_all(
                        self._fds[file], part.view("u1").data, offset + span.start * itemsize
                    )

    def write_side_file(self, name: str, content: bytes) -> None:
        """Write a file that belongs beside the shards, such as config.json."""
        with disk_errors(self.out):
            path = self.part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def commit(self) -> None:
        """Bring everything to the disk and the folder into its place."""
        with disk_errors(self.out):
            for folder in (*self._subfolders, self):
                for fd in folder._fds:
                    os.fsync(fd)
                folder._close()
                sync_directory(folder.part)
            if self.force and self.out.exists():
                old = self.out.with_name(f".{self.out.name}.old")
                if old.exists():
                    _remove(old)
                self.out.rename(old)
                self.part.rename(self.out)
                _remove(old)
            else:
                self.part.rename(self.out)
            sync_directory(self.out.parent)

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for folder in (*self._subfolders, self):
            folder._close()
        if self.part.exists():
            shutil.rmtree(self.part, ignore_errors=True)


def check_target(out: Path, force: bool) -> None:
    """Raise :class:`AlreadyExists` when writing a folder to ``out`` would replace something."""
    if out.exists() and not force:
        if out.is_dir() and not any(out.iterdir()):
            return  # an empty folder holds nothing to lose; rename replaces it
        raise AlreadyExists(f"{out}: exists already; replace it with --force or choose another -o")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write_all(fd: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view.nbytes:
        n = os.pwrite(fd, view, offset)
        view = view[n:]
        offset += n
