"""Scores of a probe set as they are kept: plain Zarr arrays, one row a checkpoint.

    outputs/<name>/
      zarr.json        group; its attributes are the record: the commit
      log_p, entropy   float32 [T, N]        rank, argmax   int32 [T, N]
      ids              int32 [N]             response tokens, end to end
      offsets          int64 [R + 1]         where each response begins
      prompt_ids       int32 [P]             prompt_offsets   int64 [R + 1]
      text             uint8                 UTF-8: a JSON array [prompt, response, its tokens] a line

T checkpoints, N response tokens, R responses. Arrays are written with zarr-python; a row counts once
the record names its step, and the record is replaced in one rename after the row is on the disk. It
has a digest of every row.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from trajkit.arrays import Array
from trajkit.disk import canonical_json, disk_errors, replace_file, sync_directory, sync_file
from trajkit.errors import AlreadyExists, FormatError, InvalidInput, NotFound, Unsupported
from trajkit.outputs.batching import offsets_of
from trajkit.outputs.probes import Probe
from trajkit.store.documents import GROUP, group_document
from trajkit.store.lock import StoreLock
from trajkit.store.store import Store

FORMAT = "trajkit-outputs"
VERSION = 1
ROWS = {"log_p": "float32", "entropy": "float32", "rank": "int32", "argmax": "int32"}
"""the arrays [T, N]"""
FIXED = {
    "ids": "int32",
    "offsets": "int64",
    "prompt_ids": "int32",
    "prompt_offsets": "int64",
    "text": "uint8",
}
"""those that do not grow"""
_CHUNK = 1 << 18
_UNWRITTEN = {"float32": 1e30, "int32": -1, "int64": -1, "uint8": 0}
"""what Zarr gives for a chunk that is gone: by dtype, numbers that none of the arrays can hold"""


@dataclass(frozen=True, slots=True)
class Record:
    """What was scored and how, as kept in the group's attributes."""

    name: str
    probes: str
    """digest of the probes' tokens"""
    tokenizer: str
    """digest of the tokenizer"""
    tokens: int
    """N"""
    responses: int
    """R"""
    dtype: str
    """of the model while it scored"""
    divergence_places: int
    """places whose whole distributions were compared"""
    steps: tuple[int, ...] = ()
    """training steps scored so far, ascending"""
    weights: tuple[str, ...] = ()
    """which weights each row is of: the store's digest of the checkpoint, or of the folder"""
    divergences: tuple[Mapping[str, Any], ...] = ()
    """:class:`trajkit.outputs.distances.Divergence` of each row"""
    noise: Mapping[str, float] | None = None
    """:class:`trajkit.outputs.logprobs.Noise`"""
    digests: Mapping[str, Any] = field(default_factory=dict)
    """xxh3-64, hex: of each fixed array, and of each row of the others"""
    versions: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The group's ``zarr.json``, its own digest included."""
        attributes: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(self)}
        attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
        return group_document(attributes)

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Self:
        """The record in a ``zarr.json``; raises :class:`FormatError` when a byte of it changed."""
        try:
            attributes = json.loads(content)["attributes"]
            known = {f.name for f in fields(cls)}
            values = {k: v for k, v in attributes.items() if k in known}
            for name in ("steps", "weights", "divergences"):
                values[name] = tuple(values[name])
            record = cls(**values)
            intact = canonical_json(record.document()) == content
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: not readable outputs: {error!r}") from error
        if not intact:
            raise FormatError(f"{path}: damaged, or of another version; score again with --force")
        return record


class Outputs:
    """The scores of one probe set over the checkpoints of a run."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record

    def __repr__(self) -> str:
        r = self.record
        return f"<Outputs {r.name!r}: {len(r.steps)} checkpoints, {r.tokens:,} tokens>"

    @property
    def steps(self) -> Array:
        """Training steps scored, int64 [T]."""
        return np.array(self.record.steps, np.int64)

    @property
    def log_p(self) -> Array:
        """Log-probability of each response token at each step, float32 [T, N]."""
        return self.rows("log_p")

    @cached_property
    def ids(self) -> Array:
        """The response tokens, int32 [N]."""
        return self.fixed("ids")

    @cached_property
    def offsets(self) -> Array:
        """Where each response begins, int64 [R + 1]."""
        return self.fixed("offsets")

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """(prompt, response) of each response, as text."""
        return [(prompt, response) for prompt, response, _ in self._lines]

    @property
    def pieces(self) -> list[list[str]]:
        """Each response's tokens, as text apart."""
        return [pieces for _, _, pieces in self._lines]

    @cached_property
    def _lines(self) -> list[tuple[str, str, list[str]]]:
        lines = self.fixed("text").tobytes().decode().split("\n")
        return [tuple(json.loads(line)) for line in lines if line]

    def positions(self) -> Array:
        """Each token's place in its response, int64 [N]."""
        starts = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return np.asarray(np.arange(self.record.tokens) - starts)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements [start, stop) of every row of an array [T, N].

        Raises:
            FormatError: the array is damaged.
        """
        rows = len(self.record.steps)
        stop = self.record.tokens if stop is None else stop
        return self._read(name, (slice(0, rows), slice(start, stop)), (rows, stop - start))

    def row(self, name: str, t: int) -> Array:
        """One row of an array, [N]."""
        n = self.record.tokens
        return np.asarray(self._read(name, (slice(t, t + 1), slice(0, n)), (1, n))[0])

    def fixed(self, name: str) -> Array:
        """An array that does not grow, whole."""
        return self._read(name, (slice(None),), None)

    def _read(self, name: str, where: tuple[slice, ...], shape: tuple[int, ...] | None) -> Array:
        path, zarr = self.path / name, import_zarr()
        try:
            found = np.asarray(zarr.open_array(path, mode="r")[where])
        except Exception as error:  # whatever zarr and its codecs raise on damaged bytes
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FormatError(f"{path}: damaged: {line}; score again with --force") from error
        dtype = {**ROWS, **FIXED}[name]
        if found.dtype != dtype or (shape is not None and found.shape != shape):
            raise FormatError(f"{path}: damaged: its shape or dtype is not what was written")
        if (found == np.asarray(_UNWRITTEN[dtype], dtype)).any():
            raise FormatError(f"{path}: damaged: a chunk is missing; score again with --force")
        return found


class OutputsWriter:
    """Adds rows to outputs; hold the lock of their folder meanwhile."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs

    def append(self, step: int, rows: Mapping[str, Array], **changes: Any) -> None:
        """Write one checkpoint's row and commit it.

        ``changes`` are fields of the record beside the steps and digests.
        """
        zarr = import_zarr()
        record, path = self.outputs.record, self.outputs.path
        t = len(record.steps)
        digests = {k: list(v) if k in ROWS else v for k, v in record.digests.items()}
        with disk_errors(path):
            for name in ROWS:
                array = zarr.open_array(path / name, mode="r+")
                if array.shape[0] != t + 1:
                    array.resize((t + 1, record.tokens))
                array[t] = rows[name]
                digests.setdefault(name, []).append(digest_of(rows[name]))
                sync_tree(path / name / "c" / str(t))  # the rows before are on the disk already
                sync_directory(path / name / "c")
                sync_file(path / name / "zarr.json")
                sync_directory(path / name)
        self.commit(replace(record, steps=(*record.steps, step), digests=digests, **changes))

    def commit(self, record: Record) -> None:
        """Make a record true, in one rename."""
        path = self.outputs.path
        replace_file(path / "zarr.json", canonical_json(record.document()))
        self.outputs = Outputs(path, record)


def create_outputs(
    path: Path,
    record: Record,
    probes: Sequence[Probe],
    decode: Callable[[int], str],
    force: bool,
) -> Outputs:
    """Outputs without a row, there whole or not at all; ``decode`` gives a token's text.

    Raises:
        AlreadyExists: something is at ``path``, and is not outputs that ``force`` may replace.
    """
    if path.exists() and not (force and is_outputs(path)):
        raise AlreadyExists(f"{path}: is there already; choose another --name, or pass --force")
    part = path.with_name(f".{path.name}.part")
    known = {i: decode(i) for p in probes for i in p.response_ids}
    lines = "".join(
        json.dumps([p.prompt, p.response, [known[i] for i in p.response_ids]]) + "\n"
        for p in probes
    )
    fixed = {
        "ids": np.array([i for p in probes for i in p.response_ids], np.int32),
        "offsets": offsets_of(probes),
        "prompt_ids": np.array([i for p in probes for i in p.prompt_ids], np.int32),
        "prompt_offsets": np.cumsum([0, *(len(p.prompt_ids) for p in probes)]).astype(np.int64),
        "text": np.frombuffer(lines.encode(), np.uint8),
    }
    record = replace(record, digests={name: digest_of(a) for name, a in fixed.items()})
    with disk_errors(path):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, array in fixed.items():
            _create_array(part / name, array.shape, array.dtype.name, (_CHUNK,))[:] = array
        chunk = (1, min(record.tokens, _CHUNK))
        for name, dtype in ROWS.items():
            _create_array(part / name, (0, record.tokens), dtype, chunk)
        replace_file(part / "zarr.json", canonical_json(record.document()))
        sync_tree(part)
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
        sync_directory(path.parent)
    return Outputs(path, record)


def outputs_path(store: Store, name: str) -> Path:
    """Where outputs of a name lie in a store; raises :class:`InvalidInput` for a bad name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InvalidInput(f"not a name: {name!r}; use letters, digits, '-', '_' and '.'")
    return store.path / "outputs" / name


def read_outputs(where: Store | Path, name: str = "default") -> Outputs:
    """Outputs in a store by their name, or in a folder.

    Raises:
        NotFound: there are none. FormatError: the record is damaged.
    """
    path = outputs_path(where, name) if isinstance(where, Store) else where
    try:
        content = (path / "zarr.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        have = ", ".join(outputs_names(where)) if isinstance(where, Store) else ""
        raise NotFound(
            f"{path}: no outputs there (there are: {have or 'none'}); make them with 'trajkit "
            "logprobs --probes P.jsonl'"
        ) from None
    return Outputs(path, Record.parse(path / "zarr.json", content))


def outputs_names(store: Store) -> list[str]:
    """The names of the outputs in a store."""
    folder = store.path / "outputs"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def is_outputs(path: Path) -> bool:
    """Whether a folder holds what this module writes, damaged or not."""
    try:
        document = json.loads((path / "zarr.json").read_bytes())
        return bool(document["attributes"]["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def lock_outputs(path: Path) -> Iterator[None]:
    """Be the one writer of some outputs, there or yet to be made.

    Raises:
        Locked: another process is.
    """
    beside = path.with_name(f".{path.name}.writer")
    with disk_errors(beside):
        beside.mkdir(parents=True, exist_ok=True)
    try:
        with StoreLock(beside):
            yield
    finally:
        with suppress(OSError):  # another writer waits in it
            beside.rmdir()


def make_group(store: Store) -> None:
    """The group ``outputs`` of a store."""
    folder = store.path / "outputs"
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    if not (folder / "zarr.json").exists():
        replace_file(folder / "zarr.json", GROUP)


def import_zarr() -> Any:
    """zarr-python; raises :class:`Unsupported` and says how to get it where it is missing."""
    try:
        import zarr
        import zarr.codecs
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"outputs are kept by {error.name}: pip install 'trajkit[models]'"
        ) from error
    return zarr


def digest_of(array: Array) -> str:
    """xxh3-64, hex, of an array's bytes."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).tobytes())


def sync_tree(folder: Path) -> None:
    """Make every file and name below a folder durable."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            sync_file(path)
    sync_directory(folder)


def _create_array(path: Path, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...]) -> Any:
    zarr = import_zarr()
    return zarr.create_array(
        path,
        shape=shape,
        dtype=dtype,
        fill_value=_UNWRITTEN[dtype],
        chunks=tuple(max(min(c, max(n, 1)), 1) for c, n in zip(chunks, shape, strict=True))
        if len(shape) == 1
        else chunks,
        compressors=[zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
