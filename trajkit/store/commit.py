"""The commit: everything that one atomic replace of the root ``zarr.json`` makes true."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.header import MAX_DIMENSIONS
from trajkit.checkpoints.layout import FlatVector, TensorInfo, tensors_of
from trajkit.checkpoints.parse import Node, parse_json
from trajkit.checkpoints.record import SOURCE_DIGITS
from trajkit.disk import canonical_json, read_file
from trajkit.errors import FormatError, Unsupported
from trajkit.store.codecs import CODECS
from trajkit.store.documents import group_document
from trajkit.text import shown

FORMAT = "trajkit"
VERSION = 2
"""with keys by cost; a store with a key every K frames is of version 1"""
KEY_BYTES = 8
"""a frame becomes a key where the deltas since the last one have so many times its bytes, or
MOST_DELTAS are between: 9/8 of the deltas' own bytes at most, and a step is read from nine keys'
bytes at most"""
MOST_DELTAS = 2048
MAX_CHUNK_ELEMENTS = 1 << 24
"""C that a reader takes; trajkit writes 2^18"""
MAX_ELEMENTS = 1 << 59
"""of a vector: their bytes fit 63 bits, whatever the dtype"""
FLOATS = [d.name for d in DTYPES.values() if d.is_float]


@dataclass(frozen=True, slots=True)
class Frame:
    """What the commit records of one checkpoint."""

    step: int
    digest: str
    """xxh3-128, hex, over the digests of its chunks' raw bits, vector after vector"""
    source: str
    """the description of the files it came from: ``assets/source-<this>.json.gz``"""
    stored_bytes: int
    is_key: bool | None = None
    """whether it holds the bits; None where K says it"""
    changed: int | None = None
    """elements of a delta frame whose bits are not those of the frame before; None where unknown"""


@dataclass(frozen=True, slots=True)
class Commit:
    """The root attributes: everything that one atomic replace makes true."""

    codec: str
    keyframes: int | None
    """K, a key every K frames; None: keys by cost"""
    chunk: int
    sizes: Mapping[str, int]
    """N of each vector, by dtype, in the order of the tensor table"""
    tensors_sha256: str
    cast: str | None
    """the dtype that floating-point tensors were converted to on ingest, if they were"""
    frames: tuple[Frame, ...]

    def is_key(self, t: int) -> bool:
        """Whether frame ``t`` holds the bits; of the frame to come, whether it is to."""
        if self.keyframes is not None:
            return t % self.keyframes == 0
        if t < len(self.frames):
            return bool(self.frames[t].is_key)
        return self._key_is_due()

    def _key_is_due(self) -> bool:
        """Whether the deltas since the last key cost as much as that key allows."""
        spent = 0
        for deltas, frame in enumerate(reversed(self.frames)):
            if frame.is_key:
                return spent >= KEY_BYTES * frame.stored_bytes or deltas >= MOST_DELTAS
            spent += frame.stored_bytes
        return True

    @property
    def density(self) -> float | None:
        """The mean share of elements that change between checkpoints, of those where it is known."""
        n = sum(self.sizes.values())
        known = [f.changed / n for f in self.frames if f.changed is not None and n]
        return sum(known) / len(known) if known else None

    def document(self) -> dict[str, Any]:
        """The root ``zarr.json``, its own digest included."""
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION if self.keyframes is None else 1,
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
        if self.keyframes is None:
            attributes["keys"] = [t for t, f in enumerate(self.frames) if f.is_key]
            attributes["changed"] = [f.changed for f in self.frames]
        attributes["sha256"] = sha256_of(canonical_json(attributes))
        return group_document(attributes)

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Self:
        """The commit in a root ``zarr.json``; raises when a byte of it is not as it was written.

        Raises:
            FormatError: it is damaged, or not what a store can be, whatever its digest says.
            Unsupported: it is of a later format version.
        """
        attributes = parse_json(content, shown(path))["attributes"]
        made_by = attributes.get("format")
        if made_by is None or made_by.value != FORMAT:
            raise FormatError(f"{shown(path)}: a Zarr group, but not a trajkit store")
        version = attributes["version"].whole()
        if not 1 <= version <= VERSION:
            raise Unsupported(
                f"{shown(path)}: store format version {version}; this trajkit reads versions 1 to "
                f"{VERSION}"
            )
        cast = attributes.get("cast")
        frames = _parse_frames(attributes)
        commit = cls(
            codec=attributes["codec"].one_of(CODECS),
            keyframes=attributes["keyframes"].whole(1) if version == 1 else None,
            chunk=attributes["chunk"].whole(1, MAX_CHUNK_ELEMENTS),
            sizes=_parse_sizes(attributes["sizes"]),
            tensors_sha256=attributes["tensors_sha256"].digest(64),
            cast=None if cast is None else cast.one_of(FLOATS),
            frames=frames if version == 1 else _parse_keys(attributes, frames),
        )
        if canonical_json(commit.document()) != content:
            raise FormatError(f"{shown(path)}: damaged: its digest does not match its content")
        return commit


def _parse_sizes(sizes: Node) -> dict[str, int]:
    """N of each vector, by dtype."""
    found: dict[str, int] = {}
    for row in sizes.items():
        dtype, size = row.items(2)
        if dtype.one_of(DTYPES) in found:
            raise dtype.refuse("each dtype once")
        found[dtype.value] = size.whole(0, MAX_ELEMENTS)
    return found


def _parse_frames(attributes: Node) -> tuple[Frame, ...]:
    """The committed checkpoints, from their four columns."""
    steps = attributes["steps"].wholes()
    if not all(a < b for a, b in pairwise(steps)):
        raise attributes["steps"].refuse("ascending steps")
    digests, sources = attributes["digests"].items(len(steps)), attributes["sources"].items()
    if len(sources) != len(steps):
        raise attributes["sources"].refuse(f"a list of {len(steps)}")
    stored = attributes["stored_bytes"].wholes()
    if len(stored) != len(steps):
        raise attributes["stored_bytes"].refuse(f"a list of {len(steps)}")
    return tuple(
        Frame(step, digest.digest(32), source.digest(SOURCE_DIGITS), n_bytes)
        for step, digest, source, n_bytes in zip(steps, digests, sources, stored, strict=True)
    )


def _parse_keys(attributes: Node, frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """The checkpoints with what a store of keys by cost says of them besides."""
    if attributes["keyframes"].value is not None:
        raise attributes["keyframes"].refuse("null, where keys are listed")
    keys = attributes["keys"].wholes()
    begins = keys[:1] == ((0,) if frames else ())
    if not (begins and all(a < b for a, b in pairwise((*keys, len(frames))))):
        raise attributes["keys"].refuse("ascending frames of the store, the first of them 0")
    changed = attributes["changed"].items(len(frames))
    known = [None if node.value is None else node.whole(0, MAX_ELEMENTS) for node in changed]
    held = set(keys)
    return tuple(
        replace(frame, is_key=t in held, changed=n)
        for t, (frame, n) in enumerate(zip(frames, known, strict=True))
    )


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
    where = shown(file)
    try:
        content = read_file(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{where}: missing from the store") from None
    if sha256_of(content) != commit.tensors_sha256:
        raise FormatError(f"{where}: damaged: its digest does not match the commit")
    by_dtype: dict[str, list[TensorInfo]] = {d: [] for d in commit.sizes}
    names: set[str] = set()
    for row in parse_json(content, where)["attributes"]["tensors"].items():
        info = _parse_tensor(row, by_dtype)
        if info.name in names:
            raise row.refuse("each name once")
        names.add(info.name)
        by_dtype[info.dtype].append(info)
    if empty := [d for d, rows in by_dtype.items() if not rows]:
        raise FormatError(f"{where}: no tensor is {', '.join(empty)}, which the commit counts")
    vectors = {d: FlatVector(d, rows, commit.chunk) for d, rows in by_dtype.items()}
    if {d: v.size for d, v in vectors.items()} != dict(commit.sizes):
        raise FormatError(f"{where}: the tensor table does not add up to the commit's vectors")
    return vectors


def _parse_tensor(row: Node, dtypes: Collection[str]) -> TensorInfo:
    """One row of the table: name, dtype, shape, offset."""
    name, dtype, shape, offset = row.items(4)
    info = TensorInfo(
        name.text(), dtype.one_of(dtypes), shape.wholes(), offset.whole(0, MAX_ELEMENTS)
    )
    extent = 1
    for n in info.shape:
        extent *= n or 1  # [2^40, 2^40, 0] holds nothing, yet no array can have that shape
        if extent > MAX_ELEMENTS:
            raise shape.refuse("a shape whose bytes fit 63 bits")
    if len(info.shape) > MAX_DIMENSIONS:
        raise shape.refuse(f"at most {MAX_DIMENSIONS} dimensions")
    return info


def sha256_of(content: bytes) -> str:
    """The content's sha256, hex."""
    return hashlib.sha256(content).hexdigest()


def add_frame(commit: Commit, frame: Frame) -> Commit:
    """The commit with one more checkpoint."""
    return replace(commit, frames=(*commit.frames, frame))
