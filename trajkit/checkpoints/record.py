"""What is kept of a checkpoint's files, so that they can be given back byte for byte."""

import gzip
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from trajkit.checkpoints.checkpoint import Checkpoint
from trajkit.checkpoints.parse import Node, parse_json, unzip
from trajkit.disk import canonical_json, is_inner, read_file
from trajkit.errors import FormatError, NotFound, StorageError, Unsupported
from trajkit.text import quoted, shown

if TYPE_CHECKING:
    from trajkit.checkpoints.reader import FlatReader

SOURCE_DIGITS = 16
"""of the sha256 that names a record"""
MAX_RECORD_BYTES = 256 << 20
"""of a record's document, unpacked: the headers and the index of a million tensors"""


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
        if len(document) > MAX_RECORD_BYTES:
            raise Unsupported(
                f"headers and index of a checkpoint take {len(document)} bytes, more than the "
                f"{MAX_RECORD_BYTES} that are kept"
            )
        content = gzip.compress(document, mtime=0)
        return _id_of(content), content

    @classmethod
    def read(cls, store_path: Path, source: str) -> Self:
        """The record ``source`` of a store; raises :class:`FormatError` when it is damaged."""
        path = source_path(store_path, source)
        try:
            content = read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FormatError(f"{shown(path)}: missing from the store") from None
        if _id_of(content) != source:
            raise FormatError(f"{shown(path)}: damaged: its digest does not match its name")
        document = unzip(content, shown(path), MAX_RECORD_BYTES)
        record = cls._parse(parse_json(document, shown(path)))
        try:
            record.check_names()
        except FormatError as error:
            raise FormatError(f"{shown(path)}: refused: {error}") from None
        return record

    @classmethod
    def _parse(cls, raw: Node) -> Self:
        """The record in its document, every field of its type."""
        pairs = [pair.items(2) for pair in raw["files"].items()]
        index = None if (found := raw.get("index")) is None else found.items(2)
        assets = {name: node.items(2) for name, node in raw["assets"].entries()}
        prefix, stamps = raw["prefix"].content(), raw.get("stamps")
        return cls(
            files=tuple((name.content(), header.content()) for name, header in pairs),
            index=None if index is None else (index[0].content(), index[1].content()),
            prefix=prefix if not prefix else raw["prefix"].text(),
            tied={name: node.text() for name, node in raw["tied"].entries()},
            absent=tuple(node.text() for node in raw["absent"].items()),
            assets={name: (file.content(), sha.digest(64)) for name, (file, sha) in assets.items()},
            stamps={} if stamps is None else dict(map(_parse_stamp, stamps.entries())),
        )

    def check_names(self) -> None:
        """Check that restoring this record writes each file once, and inside its folder.

        Raises:
            FormatError: a name leaves its folder, or two files would lie in one place.
        """
        index = () if self.index is None else (self.index[0],)
        written = (*(name for name, _ in self.files), *index, *self.assets)
        for name in (*written, *(file for file, _ in self.assets.values())):
            if not is_inner(name):
                raise FormatError(f"the file name {quoted(name)} leaves its folder")
        places = set(written)
        for name in written:
            above = {str(p) for p in PurePosixPath(name).parents}
            if len(places) < len(written) or above & places:
                raise FormatError(f"two files would lie at {quoted(name)}, or one in the other")

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


def _parse_stamp(entry: tuple[str, Node]) -> tuple[str, tuple[int, int]]:
    size, time = entry[1].items(2)
    return entry[0], (size.whole(), time.whole(-(1 << 63)))


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


def _id_of(content: bytes) -> str:
    """The name of a record: the beginning of its bytes' sha256."""
    return hashlib.sha256(content).hexdigest()[:SOURCE_DIGITS]
