"""What is kept of a checkpoint's files, so that they can be given back byte for byte."""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from trajkit.checkpoints.checkpoint import Checkpoint
from trajkit.checkpoints.reader import FlatReader
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, NotFound, StorageError


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What is kept of one checkpoint's files beside their tensors' bits."""

    files: tuple[tuple[str, str], ...]
    """(relative name, raw safetensors header) in order"""
    index: tuple[str, str] | None
    """(name, text) of the shard index, if there is one"""
    prefix: str = ""
    """wrapper prefix that every tensor's name in the files carries before its name in the store"""
    tied: Mapping[str, str] = field(default_factory=dict)
    """tensors that the files hold a second time, under another name: that name -> name in store"""
    absent: tuple[str, ...] = ()
    """tensors of the store that this checkpoint's files leave out because they are tied"""
    assets: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """side files: name -> (file under ``assets/``, sha256)"""
    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """files as they were when they were read: name -> (bytes, time of the last change in ns);
    empty in the records of stores made before it was kept"""

    def pack(self) -> tuple[str, bytes]:
        """The record's id and its bytes on disk (gzip, reproducible)."""
        document = canonical_json(
            {
                "files": self.files,
                "index": self.index,
                "prefix": self.prefix,
                "tied": dict(self.tied),
                "absent": self.absent,
                "assets": dict(self.assets),
                "stamps": dict(self.stamps),
            }
        )
        content = gzip.compress(document, mtime=0)
        return hashlib.sha256(content).hexdigest()[:16], content

    @classmethod
    def read(cls, store_path: Path, source: str) -> Self:
        """The record ``source`` of a store; raises :class:`FormatError` when it is damaged."""
        path = source_path(store_path, source)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise FormatError(f"{path}: missing from the store") from None
        if hashlib.sha256(content).hexdigest()[:16] != source:
            raise FormatError(f"{path}: damaged: its digest does not match its name")
        raw: dict[str, Any] = json.loads(gzip.decompress(content))
        record = cls(
            files=tuple((name, header) for name, header in raw["files"]),
            index=tuple(raw["index"]) if raw["index"] else None,
            prefix=raw["prefix"],
            tied=raw["tied"],
            absent=tuple(raw["absent"]),
            assets={name: (file, sha) for name, (file, sha) in raw["assets"].items()},
            stamps={name: (size, time) for name, (size, time) in raw.get("stamps", {}).items()},
        )
        index = () if record.index is None else (record.index[0],)
        kept = (file for file, _ in record.assets.values())
        for file in (*(name for name, _ in record.files), *index, *record.assets, *kept):
            parts = PurePosixPath(file).parts
            if not parts or parts[0] == "/" or ".." in parts or "\0" in file:
                raise FormatError(f"{path}: refused: the file name {file!r} leaves its folder")
        return record

    def differences(self, other: Self) -> Iterator[str]:
        """What restoring this record would write differently than ``other``, a line each."""
        mine, theirs = dict(self.files), dict(other.files)
        if self.index is not None:
            mine[self.index[0]] = self.index[1]
        if other.index is not None:
            theirs[other.index[0]] = other.index[1]
        mine |= {name: sha for name, (_, sha) in self.assets.items()}
        theirs |= {name: sha for name, (_, sha) in other.assets.items()}
        for name in sorted(mine.keys() | theirs.keys()):
            if name not in theirs:
                yield f"{name} is in the store, not on disk"
            elif name not in mine:
                yield f"{name} is on disk, not in the store"
            elif mine[name] != theirs[name]:
                part = "header" if name in dict(self.files) else "content"
                yield f"{name}: its {part} differs from the store's"


def describe_source(
    reader: "FlatReader", keep: Callable[[str, Path], tuple[str, str]]
) -> SourceRecord:
    """The record of a checkpoint's files.

    Args:
        reader: the checkpoint.
        keep: gives (file under ``assets/``, sha256) of a side file's name and path.
    """
    checkpoint = reader.checkpoint
    index = None
    if checkpoint.index is not None and checkpoint.index_name is not None:
        index = (checkpoint.index_name, checkpoint.index.decode())
    return SourceRecord(
        files=tuple((f.name, f.header.decode()) for f in checkpoint.files),
        index=index,
        prefix=checkpoint.prefix,
        tied=reader.tied,
        absent=reader.absent,
        assets={n: keep(n, p) for n, p in sorted(checkpoint.side_files.items())},
        stamps=stamp_files(checkpoint) | reader.stamps(),
    )


def stamp_files(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """What shows that a checkpoint's files were written to: name -> (bytes, ns of the change).

    Raises:
        NotFound: one is gone. StorageError: one cannot be looked at.
    """
    paths = {file.name: file.path for file in checkpoint.files} | dict(checkpoint.side_files)
    if checkpoint.index_name is not None:
        paths[checkpoint.index_name] = checkpoint.root / checkpoint.index_name
    return {name: stamp_file(path) for name, path in sorted(paths.items())}


def stamp_file(path: Path) -> tuple[int, int]:
    """(bytes, ns of the last change) of one file; raises as :func:`stamp_files`."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise NotFound(f"{path}: removed while it was looked at; run again") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns


def source_path(store_path: Path, source: str) -> Path:
    """Where a source record lies."""
    return store_path / "assets" / f"source-{source}.json.gz"
