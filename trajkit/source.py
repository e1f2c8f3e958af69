"""One checkpoint on disk, seen as the store's flat vectors; and what is kept of its files.

:class:`FlatReader` reads any range of a flat vector from the safetensors bytes, whatever shards
they lie in. :class:`SourceRecord` is all that is needed, beside the vectors, to write the
checkpoint's files back byte for byte: raw headers, index, and the names of the run's other files.
A safetensors file is its header and its tensors end to end (:mod:`trajkit.header` refuses anything
else), so equal headers and equal bits are equal files.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, Self

import numpy as np

from trajkit.checkpoint import Checkpoint, HalfWritten, TensorEntry, read_into
from trajkit.codecs import Array
from trajkit.dtypes import DTYPES, DType
from trajkit.errors import FormatError, InvalidInput, Mismatch, NotFound, StorageError
from trajkit.layout import CHUNK_ELEMENTS, FlatVector, Span, TensorInfo, lay_out
from trajkit.zarrays import canonical_json

_TIED_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_COMPARE_BYTES = 1 << 20


def stored_dtype(entry: TensorEntry, cast: str | None) -> str:
    """The dtype in which a tensor is kept: its own, or ``cast`` for floating-point ones."""
    return cast if cast and DTYPES[entry.dtype].is_float else entry.dtype


def lay_out_checkpoint(
    checkpoint: Checkpoint, cast: str | None, chunk: int = CHUNK_ELEMENTS
) -> dict[str, FlatVector]:
    """The flat vectors of a store that begins with this checkpoint."""
    entries = checkpoint.tensors.values()
    return lay_out(((e.name, stored_dtype(e, cast), e.shape) for e in entries), chunk)


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
    )


def source_path(store_path: Path, source: str) -> Path:
    """Where a source record lies."""
    return store_path / "assets" / f"source-{source}.json.gz"


class FlatReader:
    """Reads one checkpoint as the store's flat vectors; safe to use from many threads.

    Raises:
        Mismatch: the checkpoint's tensors are not the store's; the message names the first that
            differs and what to do.
    """

    def __init__(
        self, checkpoint: Checkpoint, vectors: Mapping[str, FlatVector], cast: str | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.cast = cast
        self._fds: dict[int, int] = {}
        self._marks: dict[int, tuple[int, int]] = {}
        self._lock = Lock()
        wanted = {t.name: t for v in vectors.values() for t in v.tensors}
        self.entries, self.tied, self.absent = _match(checkpoint, wanted, cast)
        self._vectors = vectors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def fill(self, dtype: str, start: int, stop: int, out: Array) -> None:
        """Fill ``out`` (unsigned [stop - start]) with bits [start, stop) of a vector."""
        for entry, info, span_start, n, at in self._runs(dtype, start, stop):
            self._read(entry, info, span_start, out[at : at + n])

    @property
    def converted(self) -> list[str]:
        """Names of the tensors that the store keeps in another dtype than the files."""
        return [
            t.name
            for vector in self._vectors.values()
            for t in vector.tensors
            if self.entries[t.name].dtype != t.dtype
        ]

    def check_unchanged(self) -> None:
        """Check that no file was written to since its first byte was read here.

        Raises:
            HalfWritten: one was; what was read of it may be neither the old nor the new content.
        """
        for file, fd in self._fds.items():
            if _mark(fd) != self._marks[file]:
                raise HalfWritten(
                    f"{self.checkpoint.files[file].path}: changed while it was being read; "
                    "nothing of this checkpoint is kept: run again when it is complete"
                )

    def check_tied(self) -> None:
        """Prove that tensors taken for tied hold the same bits as their partners.

        Raises:
            Mismatch: they do not.
        """
        for alias, partner in self.tied.items():
            a, b = self.checkpoint.tensors[alias], self.entries[partner]
            if a == b:
                continue  # it stands in for its partner, which is absent
            for at in range(0, a.n_bytes, _COMPARE_BYTES):
                n = min(_COMPARE_BYTES, a.n_bytes - at)
                parts = np.empty((2, n), np.uint8)
                read_into(self._fd(a.file), parts[0].data, a.begin + at)
                read_into(self._fd(b.file), parts[1].data, b.begin + at)
                if not np.array_equal(parts[0], parts[1]):
                    raise Mismatch(
                        f"{self.checkpoint.root}: tensor {alias!r} is not in the store and differs "
                        f"from {partner!r}, to which the config ties it"
                    )

    def _runs(
        self, dtype: str, start: int, stop: int
    ) -> Iterator[tuple[TensorEntry, TensorInfo, int, int, int]]:
        """Ranges that lie together in one file: (entry, tensor, first element, elements, at)."""
        pending: tuple[TensorEntry, Span, int] | None = None
        end_byte = -1
        for span in self._vectors[dtype].spans(start, stop):
            entry = self.entries[span.tensor.name]
            itemsize = DTYPES[entry.dtype].itemsize
            begin = entry.begin + span.start * itemsize
            n = span.stop - span.start
            if (
                pending is not None
                and entry.file == pending[0].file
                and begin == end_byte
                and entry.dtype == pending[0].dtype
            ):
                pending = (pending[0], pending[1], pending[2] + n)
            else:
                if pending is not None:
                    yield pending[0], pending[1].tensor, pending[1].start, pending[2], pending[1].at
                pending = (entry, span, n)
            end_byte = begin + n * itemsize
        if pending is not None:
            yield pending[0], pending[1].tensor, pending[1].start, pending[2], pending[1].at

    def _read(self, entry: TensorEntry, info: TensorInfo, start: int, out: Array) -> None:
        source = DTYPES[entry.dtype]
        offset = entry.begin + start * source.itemsize
        if source.name == info.dtype:
            read_into(self._fd(entry.file), out.view(np.uint8).data, offset)
            return
        raw = np.empty(len(out), source.bits)
        read_into(self._fd(entry.file), raw.view(np.uint8).data, offset)
        out[:] = convert_bits(raw, source, DTYPES[info.dtype])

    def _fd(self, file: int) -> int:
        with self._lock:
            if file not in self._fds:
                self._open(file)
            return self._fds[file]

    def _open(self, file: int) -> None:
        """Open a file of the checkpoint and check that it is the one whose header was read."""
        known = self.checkpoint.files[file]
        try:
            fd = os.open(known.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(
                f"{known.path}: removed since the checkpoint was opened; run again to go on with "
                "what is there"
            ) from None
        except OSError as error:
            raise StorageError(f"{known.path}: {error.strerror or error}") from error
        self._fds[file], self._marks[file] = fd, _mark(fd)
        header = bytearray(len(known.header))
        read_into(fd, memoryview(header), 8, str(known.path))
        if self._marks[file][0] != known.size or header != known.header:
            raise HalfWritten(f"{known.path}: changed since its header was read; run again")


def _mark(fd: int) -> tuple[int, int]:
    """What shows that a file was written to: (size, time of the last change)."""
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def convert_bits(bits: Array, source: DType, target: DType) -> Array:
    """Bits of one floating-point dtype as bits of another, rounded once, to nearest even.

    >>> halfway_up = np.array([1 + 2**-8 + 2**-40]).view("uint64")
    >>> hex(convert_bits(halfway_up, DTYPES["float64"], DTYPES["bfloat16"])[0])
    '0x3f81'
    """
    values: Array = bits.view(source.scalar)
    with np.errstate(over="ignore", invalid="ignore"):  # inf and nan are the cast asked for
        if source.name == "float64" and target.name.startswith(("bfloat", "float8")):
            values = _round_to_odd(values)  # ml_dtypes goes by float32, which would round twice
        return np.asarray(values.astype(target.scalar).view(target.bits))


def _round_to_odd(values: Array) -> Array:
    """float64 as float32, the last bit set where inexact: no later rounding sees a false tie."""
    near = values.astype(np.float32)
    inexact = (near != values) & ~np.isnan(values)
    too_far = inexact & (np.abs(near) > np.abs(values))
    return np.asarray((near.view(np.uint32) - too_far | inexact).view(np.float32))


def _match(
    checkpoint: Checkpoint, wanted: Mapping[str, TensorInfo], cast: str | None
) -> tuple[dict[str, TensorEntry], dict[str, str], tuple[str, ...]]:
    """Pair the store's tensors with the checkpoint's: (entries, tied, absent)."""
    have = checkpoint.tensors
    entries: dict[str, TensorEntry] = {}
    absent: list[str] = []
    for name, info in wanted.items():
        entry = have.get(name)
        if entry is None:
            partner = tied_partner(name, info.shape, have, checkpoint)
            if partner is None:
                raise Mismatch(
                    f"{checkpoint.root}: tensor {name!r} of the store is missing (step "
                    f"{checkpoint.step}); is this another run's checkpoint?"
                )
            entry = have[partner]
            absent.append(name)
        if entry.shape != info.shape:
            raise Mismatch(
                f"{checkpoint.root}: tensor {name!r} has shape {list(entry.shape)}, the series has "
                f"{list(info.shape)} (step {checkpoint.step})"
            )
        if stored_dtype(entry, cast) != info.dtype:
            raise Mismatch(
                f"{checkpoint.root}: tensor {name!r} is {entry.dtype}, the series is {info.dtype} "
                f"(step {checkpoint.step}); make the store with --dtype bfloat16 (rounds once, and "
                "records it) or --dtype float32 (widens without loss)"
            )
        entries[name] = entry
    tied: dict[str, str] = {}
    for name in have.keys() - wanted.keys():
        partner = tied_partner(name, have[name].shape, wanted, checkpoint)
        if partner is None:
            raise Mismatch(
                f"{checkpoint.root}: tensor {name!r} is not in the series' first checkpoint (step "
                f"{checkpoint.step}); is this another run's checkpoint?"
            )
        tied[name] = partner
    return entries, dict(sorted(tied.items())), tuple(absent)


def tied_partner(
    name: str,
    shape: tuple[int, ...],
    among: Mapping[str, TensorEntry] | Mapping[str, TensorInfo],
    checkpoint: Checkpoint,
) -> str | None:
    """The tensor that ``name`` is tied to by the config: a head's embedding, or the reverse."""
    for these, those in ((_TIED_HEADS, _EMBEDDINGS), (_EMBEDDINGS, _TIED_HEADS)):
        if name.endswith(these):
            partners = [n for n in among if n.endswith(those) and among[n].shape == shape]
            if len(partners) == 1 and ties_embeddings(checkpoint):
                return partners[0]
    return None


def ties_embeddings(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's config.json says ``tie_word_embeddings``."""
    path = checkpoint.side_files.get("config.json")
    if path is None:
        return False
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{path}: not a JSON object")
    tied = config.get("tie_word_embeddings")
    text = config.get("text_config")
    if tied is None and isinstance(text, dict):
        tied = text.get("tie_word_embeddings")
    return bool(tied)
