"""Series kept whole or not at all: plain Zarr arrays with a row a checkpoint, and their record.

    <kind>/<name>/
      zarr.json   group; its attributes are the record: the commit
      ...         arrays [T, N] that grow by a row a checkpoint, and arrays that do not grow

Arrays are written with zarr-python; a row counts once the record names its step, and the record is
replaced in one rename after the row is on the disk. It has a digest of every row.

Axis letters: T checkpoints, N columns of an array.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import xxhash

from trajkit.arrays import Array
from trajkit.disk import canonical_json, disk_errors, replace_file, sync_directory, sync_file
from trajkit.errors import AlreadyExists, FormatError, InvalidInput, Mismatch, NotFound, Unsupported
from trajkit.store.documents import GROUP, group_document
from trajkit.store.lock import StoreLock
from trajkit.store.store import Store
from trajkit.text import shown

CHUNK = 1 << 18
"""elements of a row that are one chunk"""
_UNWRITTEN = {"float64": 1e300, "float32": 1e30, "int32": -1, "int64": -1, "uint8": 0}
"""what Zarr gives for a chunk that is gone: by dtype, numbers that none of the arrays can hold"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsRecord:
    """What every record has; a kind of series adds its own fields."""

    FORMAT: ClassVar[str]
    """what the attributes call it"""
    VERSION: ClassVar[int] = 1
    FOLDER: ClassVar[str]
    """where in a store they lie"""
    DO: ClassVar[str]
    """what makes a row, as messages say it"""
    DONE: ClassVar[str]
    """the same of a row that is there"""
    ARRAYS: ClassVar[tuple[str, ...]]
    """names that its arrays may have"""
    TUPLES: ClassVar[tuple[str, ...]] = ("steps", "weights")
    """fields that JSON makes lists of"""

    name: str
    steps: tuple[int, ...] = ()
    """training steps that have a row, ascending"""
    weights: tuple[str, ...] = ()
    """which weights each row is of: the store's digest of the checkpoint, or of the folder"""
    digests: Mapping[str, Any] = field(default_factory=dict)
    """xxh3-64, hex: of each fixed array, and of each row of the others"""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def redo(self) -> str:
        """The end of every message about damage: what to do."""
        return f"{self.DO} again with --force"

    @property
    def row_arrays(self) -> Mapping[str, tuple[str, int]]:
        """The arrays [T, N] by name: dtype and N."""
        raise NotImplementedError

    @property
    def fixed_arrays(self) -> Mapping[str, str]:
        """The arrays that do not grow, by name: dtype."""
        raise NotImplementedError

    def document(self) -> dict[str, Any]:
        """The group's ``zarr.json``, its own digest included."""
        attributes: dict[str, Any] = {
            "format": self.FORMAT,
            "version": self.VERSION,
            **asdict(self),
        }
        attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
        return group_document(attributes)

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Self:
        """The record in a ``zarr.json``; raises :class:`FormatError` when a byte of it changed."""
        try:
            attributes = json.loads(content)["attributes"]
            known = {f.name for f in fields(cls)}
            values = {k: v for k, v in attributes.items() if k in known}
            for name in cls.TUPLES:
                values[name] = tuple(values[name])
            record = cls(**values)
            intact = canonical_json(record.document()) == content
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: not readable {cls.FOLDER}: {error!r}") from error
        if not intact:
            raise FormatError(f"{path}: damaged, or of another version; {record.redo}")
        return record


R = TypeVar("R", bound=RowsRecord)


class KeptRows(Generic[R]):
    """A series that is kept, open for reading."""

    def __init__(self, path: Path, record: R) -> None:
        self.path = path
        self.record = record

    @property
    def steps(self) -> Array:
        """Training steps that have a row, int64 [T]."""
        return np.array(self.record.steps, np.int64)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements [start, stop) of every row of an array [T, N].

        Raises:
            FormatError: the array is damaged.
        """
        rows = len(self.record.steps)
        stop = self.record.row_arrays[name][1] if stop is None else stop
        return self._read(name, (slice(0, rows), slice(start, stop)), (rows, stop - start))

    def row(self, name: str, t: int, start: int = 0, stop: int | None = None) -> Array:
        """Elements [start, stop) of one row of an array; raises likewise."""
        stop = self.record.row_arrays[name][1] if stop is None else stop
        where = (slice(t, t + 1), slice(start, stop))
        return np.asarray(self._read(name, where, (1, stop - start))[0])

    def fixed(self, name: str) -> Array:
        """An array that does not grow, whole."""
        return self._read(name, (slice(None),), None)

    def _read(self, name: str, where: tuple[slice, ...], shape: tuple[int, ...] | None) -> Array:
        path, zarr, redo = self.path / name, import_zarr(), self.record.redo
        try:
            found = np.asarray(zarr.open_array(path, mode="r")[where])
        except Exception as error:  # whatever zarr and its codecs raise on damaged bytes
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FormatError(f"{path}: damaged: {line}; {redo}") from error
        dtypes = {n: d for n, (d, _) in self.record.row_arrays.items()}
        dtypes |= dict(self.record.fixed_arrays)
        if found.dtype != dtypes[name] or (shape is not None and found.shape != shape):
            raise FormatError(f"{path}: damaged: its shape or dtype is not what was written")
        if (found == np.asarray(_UNWRITTEN[dtypes[name]], dtypes[name])).any():
            raise FormatError(f"{path}: damaged: a chunk is missing; {redo}")
        return found


class RowsWriter(Generic[R]):
    """Adds rows to a series; hold the lock of its folder meanwhile."""

    def __init__(self, path: Path, record: R) -> None:
        self.path = path
        self.record = record

    def append(self, step: int, rows: Mapping[str, Array], **changes: Any) -> None:
        """Write one checkpoint's row and commit it.

        ``changes`` are fields of the record beside the steps and digests.
        """
        zarr = import_zarr()
        record, path = self.record, self.path
        t = len(record.steps)
        growing = record.row_arrays
        digests = {k: list(v) if k in growing else v for k, v in record.digests.items()}
        with disk_errors(path):
            for name, (_, width) in growing.items():
                array = zarr.open_array(path / name, mode="r+")
                if array.shape[0] != t + 1:
                    array.resize((t + 1, width))
                array[t] = rows[name]
                digests.setdefault(name, []).append(digest_of(rows[name]))
                sync_tree(path / name / "c" / str(t))  # the rows before are on the disk already
                sync_directory(path / name / "c")
                sync_file(path / name / "zarr.json")
                sync_directory(path / name)
        self.commit(replace(record, steps=(*record.steps, step), digests=digests, **changes))

    def commit(self, record: R) -> None:
        """Make a record true, in one rename."""
        replace_file(self.path / "zarr.json", canonical_json(record.document()))
        self.record = record


def create_rows(path: Path, record: R, fixed: Mapping[str, Array], force: bool) -> R:
    """Make a series without a row, there whole or not at all; its record, with digests.

    Raises:
        AlreadyExists: something is at ``path``, and is not of this kind, or not to be replaced, or
            holds a file that is not of it.
    """
    if path.exists() and not (force and holds(path, type(record))):
        raise AlreadyExists(f"{path}: is there already; choose another --name, or pass --force")
    if path.exists() and (foreign := _find_foreign(path, record.ARRAYS)) is not None:
        raise AlreadyExists(
            f"{shown(foreign)}: not written by trajkit, and would be lost; move it, or choose another "
            "--name"
        )
    part = path.with_name(f".{path.name}.part")
    record = replace(record, digests={name: digest_of(a) for name, a in fixed.items()})
    with disk_errors(path):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, array in fixed.items():
            _create_array(part / name, array.shape, array.dtype.name, (CHUNK,))[:] = array
        for name, (dtype, width) in record.row_arrays.items():
            _create_array(part / name, (0, width), dtype, (1, min(width, CHUNK)))
        replace_file(part / "zarr.json", canonical_json(record.document()))
        sync_tree(part)
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
        sync_directory(path.parent)
    return record


def check_same(path: Path, there: RowsRecord, asked: RowsRecord, names: tuple[str, ...]) -> None:
    """Raise :class:`Mismatch` unless rows to be added have these fields in common with those there."""
    for what in names:
        if getattr(there, what) != getattr(asked, what):
            raise Mismatch(
                f"{path}: was {there.DONE} with another {what.replace('_', ' ')}; choose another "
                f"--name, or pass --force to {there.DO} anew"
            )


def rows_path(store: Store, kind: type[RowsRecord], name: str) -> Path:
    """Where a series lies in a store; raises :class:`InvalidInput` for a bad name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InvalidInput(f"not a name: {name!r}; use letters, digits, '-', '_' and '.'")
    return store.path / kind.FOLDER / name


def read_record(path: Path, kind: type[R], have: list[str], make: str) -> R:
    """The record of a series.

    Raises:
        NotFound: there is none; the message names those that are there (``have``) and the command
            that makes one (``make``). FormatError: it is damaged.
    """
    try:
        content = (path / "zarr.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{path}: no {kind.FOLDER} there (there are: {', '.join(have) or 'none'}); make them "
            f"with '{make}'"
        ) from None
    return kind.parse(path / "zarr.json", content)


def names_in(store: Store, kind: type[RowsRecord]) -> list[str]:
    """The names of the series of a kind in a store."""
    folder = store.path / kind.FOLDER
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def say_changed(store: Store, record: RowsRecord) -> str:
    """A sentence where rows are not of the weights that the store has at their steps; else empty.

    Checkpoints were replaced since, or rows were made of folders, whose digests are others.
    """
    digests = {frame.step: frame.digest for frame in store.commit.frames}
    rows = zip(record.steps, record.weights, strict=True)
    changed = [step for step, digest in rows if digests.get(step, digest) != digest]
    if not changed:
        return ""
    steps = ", ".join(map(str, changed[:4])) + (", ..." if len(changed) > 4 else "")
    return (
        f"Not {record.DONE} on the weights that the store has now: step{'s' * (len(changed) > 1)} "
        f"{steps} of the {record.FOLDER} {record.name!r}; --force {record.DO}s them anew."
    )


def holds(path: Path, kind: type[RowsRecord]) -> bool:
    """Whether a folder holds a series of a kind, damaged or not."""
    try:
        document = json.loads((path / "zarr.json").read_bytes())
        return bool(document["attributes"]["format"] == kind.FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def lock_rows(path: Path) -> Iterator[None]:
    """Be the one writer of a series, there or yet to be made.

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


def make_group(store: Store, kind: type[RowsRecord]) -> None:
    """The group of a kind in a store."""
    folder = store.path / kind.FOLDER
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    if not (folder / "zarr.json").exists():
        replace_file(folder / "zarr.json", GROUP)


def check_arrays(kept: KeptRows[Any]) -> Iterator[str]:
    """One line for every array of a series that is not as it was written."""
    record = kept.record
    for name in (*record.fixed_arrays, *record.row_arrays):
        try:
            if name in record.fixed_arrays:
                intact = digest_of(kept.fixed(name)) == record.digests.get(name)
            else:
                rows = range(len(record.steps))
                digests = list(record.digests.get(name, []))
                intact = [digest_of(kept.row(name, t)) for t in rows] == digests
        except FormatError as error:
            yield str(error)
            continue
        if not intact:
            yield f"{kept.path / name}: damaged: not what was written; {record.redo}"


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


def _find_foreign(path: Path, arrays: Iterable[str]) -> Path | None:
    """Something in a series' folder that is none of its files, nor what a killed write leaves."""
    names = "|".join(map(re.escape, arrays))
    own = re.compile(
        rf"(?:(?:{names})|(?:{names})/c(?:/\d+)*|(?:(?:{names})/)?zarr\.json)(?:\..*)?"
    )
    for found in sorted(path.rglob("*")):
        if found.is_symlink() or not own.fullmatch(found.relative_to(path).as_posix()):
            return found
    return None


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
