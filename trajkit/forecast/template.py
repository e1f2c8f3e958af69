"""What a written checkpoint takes from another one: shard names, headers, index, side files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajkit.arrays import DTYPES
from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.config import parse_config
from trajkit.checkpoints.layout import FlatVector
from trajkit.checkpoints.reader import FlatReader
from trajkit.checkpoints.record import SourceRecord, describe_source
from trajkit.checkpoints.shards import PlannedFile, plan_files
from trajkit.disk import read_file
from trajkit.errors import FormatError, Mismatch
from trajkit.store.store import Store
from trajkit.store.tensors import check_absent
from trajkit.text import shown


@dataclass(frozen=True, slots=True)
class Template:
    """A checkpoint folder without its tensors' bits."""

    files: tuple[PlannedFile, ...]
    index: tuple[str, bytes] | None
    """(name, content) of the shard index, if there is one"""
    side_files: Mapping[str, tuple[Path, str | None]]
    """config, tokenizer and the like: name -> (file, its sha256 if that is known)"""
    tied: Mapping[str, str]
    """names that the files have for tensors of the store a second time"""
    like: str | None = None
    """the folder it was taken from, when not from the store"""

    def read_side_file(self, name: str) -> bytes:
        """The content of one side file.

        Raises:
            FormatError: the store's copy is missing or damaged.
        """
        path, sha = self.side_files[name]
        try:
            content = read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FormatError(f"{shown(path)}: missing; it was there when this began") from None
        if sha is not None and hashlib.sha256(content).hexdigest() != sha:
            raise FormatError(f"{path}: damaged: its digest does not match the source record")
        return content

    def read_json(self, name: str) -> dict[str, Any]:
        """A side file such as config.json; empty where there is none.

        Raises:
            InvalidInput: it is not a JSON object.
        """
        if name not in self.side_files:
            return {}
        path = self.side_files[name][0]
        return parse_config(self.read_side_file(name), shown(path))


def template_of_step(store: Store, t: int) -> Template:
    """The files of frame ``t`` as they were ingested; headers say the store's dtypes."""
    record = SourceRecord.read(store.path, store.commit.frames[t].source)
    check_absent(store, t, record)
    assets = {n: (store.path / "assets" / f, sha) for n, (f, sha) in record.assets.items()}
    return _template(record, store.vectors, assets, store.commit.cast)


def template_like(folder: Path, store: Store, t: int) -> Template:
    """The files of another checkpoint folder of the same model.

    Args:
        folder: anything :func:`trajkit.checkpoints.checkpoint.open_checkpoint` takes.
        store: whose tensors it must hold, by name, shape and dtype.
        t: a frame of the store; tensors that the folder leaves out must be left out there too.

    Raises:
        Mismatch: it is not a checkpoint of the same model and dtypes.
    """
    checkpoint = open_checkpoint(folder)
    for name, entry in checkpoint.tensors.items():
        info = store.tensors.get(name)
        if info is not None and info.dtype != entry.dtype:
            raise Mismatch(
                f"{folder}: tensor {name!r} is {entry.dtype}, in the store {info.dtype}; a layout "
                "is taken from a folder of the same dtypes (ingest --dtype makes a store of others)"
            )
    with FlatReader(checkpoint, store.vectors) as reader:
        record = describe_source(reader, lambda name, path: (str(path), ""))
    own = SourceRecord.read(store.path, store.commit.frames[t].source)
    missing = sorted(set(record.absent) - set(own.absent))
    if missing:
        raise Mismatch(
            f"{folder}: has no tensor {missing[0]!r}, since its config ties it to the embedding; "
            "the run's own checkpoints have one"
        )
    side_files = {n: (p, None) for n, p in checkpoint.side_files.items()}
    return _template(record, store.vectors, side_files, like=str(folder))


def _template(
    record: SourceRecord,
    vectors: Mapping[str, FlatVector],
    side_files: Mapping[str, tuple[Path, str | None]],
    cast: str | None = None,
    like: str | None = None,
) -> Template:
    files = plan_files(record, vectors, cast)
    index = None
    if record.index is not None:
        name, text = record.index
        rewritten = [f.header.decode() for f in files] != [header for _, header in record.files]
        index = (name, (_correct_size(text, files) if rewritten else text).encode())
    return Template(files, index, side_files, record.tied, like)


def _correct_size(index: str, files: tuple[PlannedFile, ...]) -> str:
    """The index with ``total_size`` as the tensors' new dtypes have it."""
    document = json.loads(index)
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and "total_size" in metadata:
        metadata["total_size"] = sum(f.n_bytes - 8 - len(f.header) for f in files)
    return json.dumps(document, indent=2) + "\n"


def float_dtypes(vectors: Mapping[str, FlatVector]) -> tuple[str, ...]:
    """The dtypes, of those that occur, in which a value can move."""
    return tuple(d for d in vectors if DTYPES[d].is_float)
