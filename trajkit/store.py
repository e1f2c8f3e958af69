"""The trajectory store, opened for reading: plain Zarr v3 with a committed list of steps.

    trajkit.zarr/
      zarr.json              the commit: format, codec, vectors, committed steps, digests
      steps                  int64 [T]
      tensors/zarr.json      the tensor table
      frames/<dtype>         unsigned [T, N]: one coded frame a checkpoint
      digests/<dtype>        uint64 [T, chunks]: xxh3-64 of each chunk's raw bits
      assets/                the run's config and tokenizer files; descriptions of the source files
      fits/<name>/           see trajkit.fits

Frame t is a *key* frame (the bits as they are) when t is a multiple of K, otherwise a *delta* frame
of zigzag differences to frame t - 1. What lies beyond the committed steps is ignored. DESIGN.md
says what must hold and what is refused.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from trajkit.codecs import CODECS, Array, Codec, PlainCodec, codec_by_name
from trajkit.dtypes import DTYPES
from trajkit.errors import FormatError, NotFound, StorageError, Unsupported
from trajkit.kernels import api as kernels
from trajkit.layout import FlatVector, TensorInfo, tensors_of
from trajkit.zarrays import ChunkReader, ZArray, canonical_json, group_document

FORMAT = "trajkit"
VERSION = 1
STEPS_CHUNK = 1 << 16
"""checkpoints a chunk of ``steps``: one chunk, so that a longer run changes its shape only"""


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
        attributes["sha256"] = _sha256(canonical_json(attributes))
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


class Store:
    """A snapshot of a store as committed at the moment of opening; needs no lock."""

    def __init__(self, path: Path, commit: Commit, vectors: Mapping[str, FlatVector]) -> None:
        self.path = path
        self.commit = commit
        self.vectors = dict(vectors)
        """the flat vectors, by dtype"""
        self.codec: Codec = codec_by_name(commit.codec)
        rows = len(commit.frames)
        names = ("checkpoint", "element")
        self.frames = {
            d: ZArray(path / "frames" / d, v.dtype.bits, v.size, v.chunk, self.codec, rows, names)
            for d, v in self.vectors.items()
        }
        """the coded frames, unsigned [T, N], by dtype"""
        self.digests = {
            d: ZArray(
                path / "digests" / d,
                np.dtype("uint64"),
                v.n_chunks,
                max(v.n_chunks, 1),
                PlainCodec(),
                rows,
                ("checkpoint", "chunk"),
            )
            for d, v in self.vectors.items()
        }

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open what is committed at ``path``.

        Raises:
            NotFound: there is no store.
            FormatError: the root attributes or the tensor table are damaged.
            Unsupported: the store is of a later format version.
            StorageError: the disk refused to read it.
        """
        path = Path(path)
        root = path / "zarr.json"
        try:
            commit = Commit.parse(root, root.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(
                f"no store at {path}: make one with 'trajkit ingest CKPTS', or name another with "
                "--store"
            ) from None
        except OSError as error:
            raise StorageError(f"{root}: {error.strerror or error}") from error
        return cls(path, commit, _read_table(path, commit))

    def grown(self, commit: Commit) -> Self:
        """The same store at a later commit."""
        return type(self)(self.path, commit, self.vectors)

    @cached_property
    def steps(self) -> Array:
        """The committed training steps, int64 [T], ascending."""
        return np.array([f.step for f in self.commit.frames], np.int64)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name."""
        return tensors_of(self.vectors)

    @property
    def steps_array(self) -> ZArray:
        """The array ``steps``, for other readers; trajkit reads the commit."""
        rows = len(self.commit.frames)
        return ZArray(
            self.path / "steps",
            np.dtype("int64"),
            rows,
            STEPS_CHUNK,
            codec_by_name("zstd"),
            dimension_names=("checkpoint",),
        )

    @property
    def raw_bytes(self) -> int:
        """Bytes of all committed checkpoints' elements, uncoded."""
        return len(self.commit.frames) * sum(v.n_bytes for v in self.vectors.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of everything that keeps the checkpoints: the store's files, but for the fits."""
        files = (f for f in self.path.rglob("*") if f.is_file())
        fits = self.path / "fits"
        return sum(f.stat().st_size for f in files if fits not in f.parents)

    def index_of(self, step: int) -> int:
        """The frame index of a committed step; raises :class:`NotFound` and says what there is."""
        hits = np.flatnonzero(self.steps == step)
        if not len(hits):
            raise NotFound(f"{self.path}: step {step} is not in the store; {self._range()}")
        return int(hits[0])

    def _range(self) -> str:
        if not len(self.steps):
            return "it holds no step yet"
        return f"it holds {len(self.steps)} steps from {self.steps[0]} to {self.steps[-1]}"

    def is_key(self, t: int) -> bool:
        """Whether frame ``t`` is a key frame."""
        return t % self.commit.keyframes == 0

    def read_codes(self, dtype: str, t: int, k: int, out: Array) -> None:
        """Fill ``out`` (unsigned [C]) with the codes of chunk ``k`` of frame ``t``."""
        try:
            self.frames[dtype].read_chunk(t, k, out)
        except FormatError as error:
            raise FormatError(f"{error}; {self.describe_chunk(dtype, t, k)}") from error

    def read_code_rows(self, reader: ChunkReader, frames: range, k: int, out_TN: Array) -> None:
        """Fill ``out_TN`` (unsigned [T, C]) with the codes of chunk ``k`` of some frames.

        ``reader`` is one of ``self.frames``, open. Raises as :meth:`read_codes`.
        """
        try:
            reader.read_rows(frames, k, out_TN)
        except FormatError:  # once more, one by one, to say which step it is
            for t, out in zip(frames, out_TN, strict=True):
                self.read_codes(reader.array.path.name, t, k, out)

    def read_bits(self, dtype: str, t: int, k: int, out: Array, scratch: Array) -> None:
        """Fill ``out`` (unsigned [C]) with the bits of chunk ``k`` at frame ``t``.

        Decodes from the last key frame on, at most K - 1 deltas; ``scratch`` is sized as ``out``.
        """
        key = t - t % self.commit.keyframes
        self.read_codes(dtype, key, k, out)
        for later in range(key + 1, t + 1):
            self.read_codes(dtype, later, k, scratch)
            kernels.decode_frame(scratch, out, out)

    def describe_chunk(self, dtype: str, t: int, k: int) -> str:
        """Which step and which tensors a chunk belongs to, for messages."""
        vector = self.vectors[dtype]
        names = [span.tensor.name for span in vector.spans(*vector.chunk_span(k))]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        s = "s" if len(names) > 1 else ""
        return f"step {self.steps[t]}, tensor{s} {', '.join(names[:3])}{more}"


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


def _read_table(path: Path, commit: Commit) -> dict[str, FlatVector]:
    file = path / "tensors" / "zarr.json"
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{file}: missing from the store") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}") from error
    if _sha256(content) != commit.tensors_sha256:
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


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def add_frame(commit: Commit, frame: Frame) -> Commit:
    """The commit with one more checkpoint."""
    return replace(commit, frames=(*commit.frames, frame))
