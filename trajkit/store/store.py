"""The trajectory store, opened for reading: plain Zarr v3 with a committed list of steps.

    trajkit.zarr/
      zarr.json              the commit: format, codec, vectors, committed steps, digests
      steps                  int64 [T]
      tensors/zarr.json      the tensor table
      frames/<dtype>         unsigned [T, N]: one coded frame a checkpoint
      digests/<dtype>        uint64 [T, chunks]: xxh3-64 of each chunk's raw bits
      assets/                the run's config and tokenizer files; descriptions of the source files
      fits/<name>/           see trajkit.fits

Frame t is a *key* frame (the bits as they are) where the commit says so, by a list or by K, otherwise a
*delta* frame of zigzag differences to frame t - 1. What lies beyond the committed steps is ignored.
DESIGN.md says what must hold and what is refused.
"""

import stat
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector, TensorInfo, tensors_of
from trajkit.disk import read_file
from trajkit.errors import FormatError, NotFound
from trajkit.kernels import api as kernels
from trajkit.store.array import ZArray
from trajkit.store.chunks import ChunkReader
from trajkit.store.codecs import Codec, PlainCodec, codec_by_name
from trajkit.store.commit import Commit, chunk_digest, frame_digest, read_table

KEPT_DIGEST_BYTES = 1 << 24
"""bytes of chunk digests that an open store keeps"""
MOST_BEHIND = 16
"""steps by which the arrays' own metadata may follow the commit, less one; divides STEPS_CHUNK"""
STEPS_CHUNK = 1 << 16
"""checkpoints a chunk of ``steps``: one chunk, so that a longer run changes its shape only"""


class Store:
    """A snapshot of a store as committed at the moment of opening; needs no lock."""

    def __init__(self, path: Path, commit: Commit, vectors: Mapping[str, FlatVector]) -> None:
        self.path = path
        self.commit = commit
        self.vectors = dict(vectors)
        """the flat vectors, by dtype"""
        self.codec: Codec = codec_by_name(commit.codec)
        self._kept_digests: dict[int, dict[str, Array]] = {}
        self._lock = Lock()
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
    def open(cls, path: str | PathLike[str]) -> Self:
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
            commit = Commit.parse(root, read_file(root))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(
                f"no store at {path}: make one with 'trajkit ingest CKPTS', or name another with "
                "--store"
            ) from None
        return cls(path, commit, read_table(path, commit))

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
        """Bytes of everything that keeps the checkpoints: not what was made of them."""
        made = {self.path / name for name in ("fits", "outputs", "activations")}
        files = (f for f in self.path.rglob("*") if made.isdisjoint(f.parents))
        return sum(_size_of(f) for f in files)

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
        """Whether frame ``t`` is a key frame; of the frame to come, whether it will be."""
        return bool(self._key_flags[t])

    @cached_property
    def _key_flags(self) -> Array:
        """Which frames are keys, the one to come after them; bool [T + 1]."""
        return np.array([self.commit.is_key(t) for t in range(len(self.commit.frames) + 1)])

    @property
    def keys(self) -> list[int]:
        """The key frames, ascending."""
        found: list[int] = np.flatnonzero(self._key_flags[:-1]).tolist()
        return found

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

    def chunk_digests(self, t: int) -> dict[str, Array]:
        """The digest of every chunk's bits at frame ``t``, uint64 [chunks] by dtype.

        They are those that the commit's own digest of the frame is of; the rows read last are kept.

        Raises:
            FormatError: they are not, or a file is missing or damaged.
        """
        with self._lock:
            if t in self._kept_digests:
                return self._kept_digests[t]
        rows = {d: array.read_row(t) for d, array in self.digests.items()}
        if frame_digest(list(rows.values())) != self.commit.frames[t].digest:
            raise FormatError(
                f"{self.path}: step {self.steps[t]}: chunk digests do not match the commit"
            )
        self.keep_digests(t, rows)
        return rows

    def keep_digests(self, t: int, rows: dict[str, Array]) -> None:
        """Keep the digests of frame ``t``, as read or as just committed; the oldest are let go."""
        with self._lock:
            self._kept_digests[t] = rows
            n_bytes = sum(row.nbytes for row in rows.values())
            while len(self._kept_digests) * n_bytes > KEPT_DIGEST_BYTES:
                del self._kept_digests[next(iter(self._kept_digests))]

    def check_bits(self, dtype: str, t: int, k: int, bits: Array) -> None:
        """Check that bits (unsigned, padding left out) are those of chunk ``k`` at frame ``t``.

        Raises:
            FormatError: they are not: a frame is damaged, or lies in another's place.
        """
        if chunk_digest(bits) != int(self.chunk_digests(t)[dtype][k]):
            raise FormatError(
                f"{self.path}: the bits do not match their digest: "
                f"{self.describe_chunk(dtype, t, k)}"
            )

    def read_bits(self, dtype: str, t: int, k: int, out: Array, scratch: Array) -> None:
        """Fill ``out`` (unsigned [C]) with the bits of chunk ``k`` at frame ``t``.

        Decodes from the last key frame on; ``scratch`` is sized as ``out``.
        What comes out is checked against its digest.
        """
        key = int(np.flatnonzero(self._key_flags[: t + 1])[-1])
        self.read_codes(dtype, key, k, out)
        for later in range(key + 1, t + 1):
            self.read_codes(dtype, later, k, scratch)
            kernels.decode_frame(scratch, out, out)
        start, stop = self.vectors[dtype].chunk_span(k)
        self.check_bits(dtype, t, k, out[: stop - start])

    def describe_chunk(self, dtype: str, t: int, k: int) -> str:
        """Which step and which tensors a chunk belongs to, for messages."""
        vector = self.vectors[dtype]
        names = [span.tensor.name for span in vector.spans(*vector.chunk_span(k))]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        s = "s" if len(names) > 1 else ""
        return f"step {self.steps[t]}, tensor{s} {', '.join(names[:3])}{more}"


def _size_of(path: Path) -> int:
    """Bytes of a regular file; 0 of anything else, and of what a writer has just moved away."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
