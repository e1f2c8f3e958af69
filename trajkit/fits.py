"""A fit as it is kept in the store: arrays, a table, and a record of how it was made.

    fits/<name>/
      zarr.json              the record: steps, threshold, filters, versions, statistics, digests
      tensors.parquet        one row a tensor
      <dtype>/slope, mean, rsq (float32 [N]), last (unsigned [N]), flags (uint8 [N])
      <dtype>/sums/...       the sums themselves, where they are kept: a later fit goes on from them

A fit is written beside its place and renamed, so that it is there whole or not at all.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from trajkit.codecs import Array, BloscCodec, Codec, PlainCodec
from trajkit.design import StepAxis
from trajkit.errors import FormatError, InvalidInput, NotFound
from trajkit.kernels.sums import SLOTS, Stats
from trajkit.layout import FlatVector, TensorInfo
from trajkit.store import Store
from trajkit.zarrays import (
    GROUP,
    ZArray,
    canonical_json,
    check_content,
    disk_errors,
    group_document,
    replace_file,
    sync_directory,
)

if TYPE_CHECKING:
    import polars as pl

FORMAT = "trajkit-fit"
VERSION = 1
ARRAYS = ("slope", "mean", "rsq", "last", "flags")
SUMS = (
    *("s_d", "s_ud", "s_dd", "q", "p", "y_first", "y_min", "y_max"),
    *("changes", "distinct", "invalid", "slot_0", "slot_1", "slot_2"),
)
"""the arrays of the sums, which are those of :class:`trajkit.kernels.sums.Sums`"""
DEFAULT_FIT = "default"
FIT_CODEC: Codec = PlainCodec()
"""most bits of slopes and means are noise: lz4 and zstd make them 1.1 to 1.2 times smaller, and take
longer than all else that writing and reading a fit needs"""
SUMS_CODEC: Codec = BloscCodec("lz4", 1, "bitshuffle")


@dataclass(frozen=True, slots=True)
class FitRecord:
    """How a fit was made and what it found, as kept in its ``zarr.json``."""

    name: str
    steps: tuple[int, ...]
    """training steps of the checkpoints fitted"""
    rsq_threshold: float
    min_range: float
    """filter: elements whose max - min is at most this are not *kept*; 0 filters none"""
    min_distinct: int
    """filter: elements with fewer distinct values are not *kept*"""
    device: str
    frames_digest: str
    """xxh3-128 over the digests of the frames fitted: which bits this is a fit of"""
    versions: Mapping[str, str]
    stats: Mapping[str, Any]
    """the kernels' :class:`~trajkit.kernels.sums.Stats` of all elements, histograms as lists"""
    null: Mapping[str, Any]
    """what a driftless random walk scores on the same steps"""
    seconds: float
    table_sha256: str
    dtypes: tuple[str, ...]
    """the flat vectors that were fitted; integers are not"""
    sums: Mapping[str, float] | None = None
    """the sums' scalars, where the sums are kept"""
    frames_read: int = 0
    """checkpoints read for this fit: all of its window, or those since the fit it continues"""
    digests: Mapping[str, str] = field(default_factory=dict)
    """of each array, by its path in the fit's folder: which files are this fit's"""
    paper: Mapping[str, Any] | None = None
    """the statistics of :class:`trajkit.paper.PaperStats`, where they were asked for"""

    def document(self) -> dict[str, Any]:
        """The group's ``zarr.json``, its own digest included."""
        attributes = {"format": FORMAT, "version": VERSION, **asdict(self)}
        attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
        return group_document(attributes)

    def inner_groups(self) -> tuple[str, ...]:
        """The Zarr groups of one vector, relative to its folder."""
        return ("",) if self.sums is None else ("", "sums")

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Self:
        """The record in a ``zarr.json``; raises :class:`FormatError` when a byte of it changed."""
        try:
            attributes = json.loads(content)["attributes"]
            fields = {k: v for k, v in attributes.items() if k in cls.__dataclass_fields__}
            for name in ("steps", "dtypes"):
                fields[name] = tuple(fields[name])
            record = cls(**fields)
            intact = canonical_json(record.document()) == content
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{path}: not a readable fit: {error!r}; run trajkit fit again"
            ) from error
        if not intact:
            raise FormatError(f"{path}: damaged, or of another version; run trajkit fit again")
        return record


class Fit:
    """The fitted line of every element: value = mean(name) + slope(name) * (step - x_mean)."""

    def __init__(self, store: Store, path: Path, record: FitRecord) -> None:
        self.store = store
        self.path = path
        self.record = record
        self.arrays = {
            d: fit_arrays(path, store.vectors[d]) for d in record.dtypes if d in store.vectors
        }

    def __repr__(self) -> str:
        n = len(self.record.steps)
        first, last = self.steps[0], self.steps[-1]
        return f"<Fit {self.record.name!r}: {n} checkpoints, steps {first} to {last}>"

    @property
    def steps(self) -> Array:
        """Training steps of the checkpoints fitted, int64 [T]."""
        return np.array(self.record.steps, np.int64)

    @cached_property
    def axis(self) -> StepAxis:
        """The step axis of the window."""
        return StepAxis.of(list(self.record.steps))

    @property
    def x_mean(self) -> float:
        """x̄ of the window, in training steps."""
        return self.axis.mean

    @property
    def rsq_threshold(self) -> float:
        """The threshold the fit was made with."""
        return self.record.rsq_threshold

    def slope(self, name: str) -> Array:
        """Change a training step, float32, the tensor's shape; static: 0, invalid: NaN."""
        return self._read(name, "slope")

    def mean(self, name: str) -> Array:
        """The line's value at x̄, float32 in the tensor's shape; NaN where invalid."""
        return self._read(name, "mean")

    def rsq(self, name: str) -> Array:
        """R² of the line, float32 in the tensor's shape; NaN where static or invalid."""
        return self._read(name, "rsq")

    def flags(self, name: str) -> Array:
        """The bit mask of :mod:`trajkit.kernels.flags`, uint8 in the tensor's shape."""
        return self._read(name, "flags")

    @cached_property
    def stats(self) -> Stats:
        """Counts, moments and histograms of all elements."""
        raw: Mapping[str, Any] = self.record.stats
        fields: dict[str, Any] = {
            k: np.array(v) if isinstance(v, list) else v for k, v in raw.items()
        }
        return Stats(**fields)

    def describe(self) -> dict[str, Any]:
        """The fit in numbers, what a driftless random walk scores beside them; JSON types."""
        from trajkit.summary import describe_stats

        record = self.record
        return {
            "fit": record.name,
            "store": str(self.store.path),
            "checkpoints": len(record.steps),
            "from_step": record.steps[0],
            "to_step": record.steps[-1],
            "rsq_threshold": record.rsq_threshold,
            **describe_stats(self.stats),
            "null_median_rsq": record.null["median_rsq"],
            "null_above_threshold": record.null["above_threshold"],
            "frames_read": record.frames_read,
            "paper": record.paper,
            "seconds": record.seconds,
            "device": record.device,
        }

    def summary(self) -> "pl.DataFrame":
        """One row a tensor: counts, R², Durbin-Watson, drift and slope statistics."""
        from trajkit.summary import unpack_table

        return unpack_table(self._table_bytes())

    def _table_bytes(self) -> bytes:
        path = self.path / "tensors.parquet"
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self.record.table_sha256:
            raise FormatError(f"{path}: damaged; run trajkit fit again")
        return content

    def _read(self, name: str, what: str) -> Array:
        info = self._info(name)
        array = self.arrays[info.dtype][what]
        return read_elements(array, info.offset, info.stop).reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        info = self.store.tensors.get(name)
        if info is None:
            raise NotFound(f"{self.store.path}: no tensor {name!r}")
        if info.dtype not in self.arrays:
            raise NotFound(f"{name!r} is {info.dtype}: no line is fitted to integers")
        return info


def fit_arrays(path: Path, vector: FlatVector) -> dict[str, ZArray]:
    """The arrays of one vector's fit, by name."""
    dtypes = {"last": vector.dtype.bits, "flags": np.dtype("uint8")}
    return {
        name: _element_array(path / vector.dtype.name / name, dtypes.get(name), vector, FIT_CODEC)
        for name in ARRAYS
    }


def sums_arrays(path: Path, vector: FlatVector) -> dict[str, ZArray]:
    """The arrays of one vector's sums (``bits_last`` is the fit's ``last``), by name.

    Floats are kept as they are in memory, so that going on from them equals never having stopped.
    """
    bits = vector.dtype.bits
    value = np.dtype("float64" if vector.dtype.name == "float64" else "float32")
    double = np.dtype("float64")
    dtypes = {
        **dict.fromkeys(("s_d", "s_ud", "s_dd", "q", "p"), double),
        **dict.fromkeys(("y_first", "y_min", "y_max"), value),
        "changes": np.dtype("uint16"),
        "distinct": np.dtype("uint8"),
        "invalid": np.dtype("uint8"),
        **{f"slot_{i}": bits for i in range(SLOTS)},
    }
    folder = path / vector.dtype.name / "sums"
    return {
        name: _element_array(folder / name, dtype, vector, SUMS_CODEC)
        for name, dtype in dtypes.items()
    }


def _element_array(
    path: Path, dtype: np.dtype[Any] | None, vector: FlatVector, codec: Codec
) -> ZArray:
    """An array [N] chunked like the vector's frames; float32 unless said otherwise."""
    return ZArray(path, dtype or np.dtype("float32"), vector.size, vector.chunk, codec)


def read_elements(array: ZArray, start: int, stop: int) -> Array:
    """Elements [start, stop) of a 1-D array."""
    out = np.empty(stop - start, array.dtype)
    chunk = np.empty(array.chunk, array.dtype)
    for k in range(start // array.chunk, -(-stop // array.chunk) if stop > start else 0):
        array.read_chunk(0, k, chunk)
        lo, hi = array.span(k)
        a, b = max(lo, start), min(hi, stop)
        out[a - start : b - start] = chunk[a - lo : b - lo]
    return out


def check_fit_name(name: str) -> str:
    """The name, if it can be a folder's; raises :class:`InvalidInput` otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InvalidInput(f"not a fit name: {name!r}; use letters, digits, '-', '_' and '.'")
    return name


def read_fit(store: Store, name: str = DEFAULT_FIT) -> Fit:
    """A fit of a store.

    Raises:
        NotFound: there is none of that name. FormatError: it is damaged.
    """
    path = store.path / "fits" / check_fit_name(name)
    try:
        record = FitRecord.parse(path / "zarr.json", (path / "zarr.json").read_bytes())
    except FileNotFoundError:
        have = ", ".join(fit_names(store)) or "none"
        raise NotFound(
            f"{store.path}: no fit {name!r} (there are: {have}); make one with 'trajkit fit'"
        ) from None
    return Fit(store, path, record)


def fit_names(store: Store) -> list[str]:
    """The names of the fits in a store."""
    folder = store.path / "fits"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def read_fits(store: Store) -> dict[str, Fit]:
    """All fits of a store, by name."""
    return {name: read_fit(store, name) for name in fit_names(store)}


def prepare_fit(store: Store, name: str) -> Path:
    """An empty folder beside the fit's place to write it into."""
    part = store.path / "fits" / f".{name}.part"
    with disk_errors(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    return part


def commit_fit(store: Store, part: Path, record: FitRecord, table: bytes) -> Fit:
    """Write the record and the table, and rename the finished fit into its place."""
    target = store.path / "fits" / record.name
    record = replace(record, table_sha256=hashlib.sha256(table).hexdigest())
    groups = [part / d / inner for d in record.dtypes for inner in record.inner_groups()]
    with disk_errors(part):
        for folder in (*groups, part.parent):
            folder.mkdir(exist_ok=True)
            replace_file(folder / "zarr.json", GROUP)
        replace_file(part / "tensors.parquet", table)
        replace_file(part / "zarr.json", canonical_json(record.document()))
        old = target.with_name(f".{record.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        part.rename(target)
        sync_directory(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    return Fit(store, target, record)


def check_fits(store: Store) -> Iterator[str]:
    """One line for every damaged thing in the store's fits."""
    names = fit_names(store)
    if names:
        yield from check_content(store.path / "fits" / "zarr.json", [GROUP])
    for name in names:
        try:
            fit = read_fit(store, name)
            fit._table_bytes()
        except (FormatError, NotFound) as error:
            yield str(error)
            continue
        for dtype, arrays in fit.arrays.items():
            for inner in fit.record.inner_groups():
                yield from check_content(fit.path / dtype / inner / "zarr.json", [GROUP])
            sums = sums_arrays(fit.path, store.vectors[dtype]) if fit.record.sums else {}
            for array in (*arrays.values(), *sums.values()):
                place = array.path.relative_to(fit.path).as_posix()
                faults = list(_check_array(array))
                yield from faults
                if not faults and array.row_digest() != fit.record.digests.get(place):
                    yield f"{array.path}: intact, but not of this fit; run trajkit fit again"


def _check_array(array: ZArray) -> Iterator[str]:
    yield from check_content(array.path / "zarr.json", [canonical_json(array.metadata())])
    for s, path in enumerate(array.shard_paths(0)):
        try:
            array.check_shard(0, s)
            chunk = np.empty(array.chunk, array.dtype)
            for k in range(
                s * array.shard_chunks, min((s + 1) * array.shard_chunks, array.n_chunks)
            ):
                array.read_chunk(0, k, chunk)
        except FormatError as error:
            text = str(error)
            yield text if str(path) in text else f"{path}: {text}"
