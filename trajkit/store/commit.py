"""The commit: everything that one atomic replace of the root ``zarr.json`` makes true."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import FlatVector, TensorInfo, tensors_of
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, StorageError, Unsupported
from trajkit.store.codecs import CODECS
from trajkit.store.documents import group_document

FORMAT = "trajkit"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Frame:
    """What the commit records of one checkpoint."""

    step: int
    digest: str
    """xxh3-128, hex, over the digests of its chunks' raw bits, vector after vector"""
    source: str
    """the description of the files it came from: ``assets/source-<this>.json.gz``"""
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The root attributes: everything that one atomic replace makes true."""

    codec: str
    keyframes: int
    chunk: int
    sizes: Mapping[str, int]
    """N of each vector, by dtype, in the order of the tensor table"""
    tensors_sha256: str
    cast: str | None
    """the dtype that floating-point tensors were converted to on ingest, if they were"""
    frames: tuple[Frame, ...]

    def document(self) -> dict[str, Any]:
        """The root ``zarr.json``, its own digest included."""
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "codec": self.codec,
            "keyframes": self.keyframes,
            "chunk": self.chunk,
            "sizes": [[dtype, size] for dtype, size in self.sizes.items()],
            "tensors_sha256": self.tensors_sha256,
            "cast": self.cast,
            "steps": [f.step for f in self.frames],
            "digests": [f.digest for f in self.frames],
            "sources": [f.source for f in self.frames],
            "stored_bytes": [f.stored_bytes for f in self.frames],
        }
        attributes["sha256"] = sha256_of(canonical_json(attributes))
        return group_document(attributes)

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Self:
        """The commit in a root ``zarr.json``; raises when a byte of it is not as it was written."""
        try:
            document = json.loads(content)
            attributes = document["attributes"]
            if attributes.get("format") != FORMAT:
                raise FormatError(f"{path}: a Zarr group, but not a trajkit store")
            if attributes["version"] != VERSION:
                raise Unsupported(
                    f"{path}: store format version {attributes['version']}; this trajkit reads "
                    f"version {VERSION}"
                )
            columns = (attributes[c] for c in ("steps", "digests", "sources", "stored_bytes"))
            commit = cls(
                codec=attributes["codec"],
                keyframes=attributes["keyframes"],
                chunk=attributes["chunk"],
                sizes=dict(attributes["sizes"]),
                tensors_sha256=attributes["tensors_sha256"],
                cast=attributes["cast"],
                frames=tuple(Frame(*row) for row in zip(*columns, strict=True)),
            )
            intact = canonical_json(commit.document()) == content
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FormatError | Unsupported):
                raise
            raise FormatError(f"{path}: not a readable store: {error!r}") from error
        if not intact:
            raise FormatError(f"{path}: damaged: its digest does not match its content")
        steps = [f.step for f in commit.frames]
        ascending = all(a < b for a, b in pairwise(steps))
        if min(commit.keyframes, commit.chunk) < 1 or commit.codec not in CODECS or not ascending:
            raise FormatError(
                f"{path}: not what a store can be: codec {commit.codec!r}, a key frame every "
                f"{commit.keyframes}, chunks of {commit.chunk}, steps {steps[:3]}..."
            )
        return commit


def chunk_digest(bits: Array) -> int:
    """xxh3-64 of a chunk's raw bits, padding left out."""
    return xxhash.xxh3_64_intdigest(bits.view(np.uint8).data)


def frame_digest(chunk_digests: Sequence[Array]) -> str:
    """xxh3-128, hex, over a frame's chunk digests, vector after vector."""
    joined = b"".join(d.astype("<u8").tobytes() for d in chunk_digests)
    return xxhash.xxh3_128_hexdigest(joined)


def table_document(vectors: Mapping[str, FlatVector]) -> dict[str, Any]:
    """The ``zarr.json`` of the group ``tensors``: the tensor table, vector after vector."""
    rows = [[t.name, t.dtype, list(t.shape), t.offset] for t in tensors_of(vectors).values()]
    attributes = {"columns": ["name", "dtype", "shape", "offset"], "tensors": rows}
    return group_document(attributes)


def read_table(path: Path, commit: Commit) -> dict[str, FlatVector]:
    """The flat vectors of the tensor table that the commit names."""
    file = path / "tensors" / "zarr.json"
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{file}: missing from the store") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}") from error
    if sha256_of(content) != commit.tensors_sha256:
        raise FormatError(f"{file}: damaged: its digest does not match the commit")
    by_dtype: dict[str, list[TensorInfo]] = {d: [] for d in commit.sizes}
    if unknown := by_dtype.keys() - DTYPES:
        raise FormatError(f"{file}: unknown dtypes {', '.join(sorted(unknown))}")
    for name, dtype, shape, offset in json.loads(content)["attributes"]["tensors"]:
        by_dtype[dtype].append(TensorInfo(name, dtype, tuple(shape), offset))
    vectors = {d: FlatVector(d, rows, commit.chunk) for d, rows in by_dtype.items()}
    if {d: v.size for d, v in vectors.items()} != dict(commit.sizes):
        raise FormatError(f"{file}: the tensor table does not add up to the commit's vectors")
    return vectors


def sha256_of(content: bytes) -> str:
    """The content's sha256, hex."""
    return hashlib.sha256(content).hexdigest()


def add_frame(commit: Commit, frame: Frame) -> Commit:
    """The commit with one more checkpoint."""
    return replace(commit, frames=(*commit.frames, frame))
