"""A fit as it is kept in the store: arrays, a table, and a record of how it was made.

    fits/<name>/
      zarr.json              the record: steps, threshold, filters, versions, statistics, digests
      arrays-<16 digits>/    named by the record, another for every fit
        tensors.json.gz      one row a tensor, as columns
        <dtype>/slope, mean, rsq (float32 [N]), last (unsigned [N]), flags (uint8 [N])
        <dtype>/drift_t        float16 [N]; fits made before it was kept have none
        <dtype>/sums/...     the sums themselves, where they are kept: a later fit goes on from them

The first trajkit kept the arrays beside the record; such fits are read as well.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

import numpy as np
from numpy.typing import NDArray

from trajkit.arrays import Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.defaults import DEFAULT_FIT
from trajkit.errors import (
    FormatError,
    InvalidInput,
    Mismatch,
    NotFound,
    StorageError,
    Unsupported,
)
from trajkit.fits.arrays import LATER, fit_arrays, read_elements
from trajkit.fits.record import FORMAT, NAME, FitRecord
from trajkit.kernels.state import Stats
from trajkit.stats.axis import StepAxis
from trajkit.stats.verdict import read_verdict
from trajkit.store.store import Store

if TYPE_CHECKING:
    import polars as pl


TABLE = "tensors.json.gz"
EARLIER_TABLE = "tensors.parquet"
"""what an earlier trajkit kept, and this one reads"""
_GZIP = b"\x1f\x8b"

_NULL_NUMBERS = {
    "drift_share": "drift_share",
    "continuous_null_median_rsq": "continuous_median_rsq",
    "increment_ulps": "increment_ulps",
    "null_median_durbin_watson": "median_durbin_watson",
    "null_share_drift_t_above_2": "share_drift_t_above_2",
}
"""what :meth:`Fit.describe` takes from the record's null: name there -> name here"""


def _number(value: Any) -> float | None:
    """A number of a record that may be anybody's, or None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class Fit:
    """The fitted line of every element: value = mean(name) + slope(name) * (step - x_mean)."""

    def __init__(self, store: Store, path: Path, record: FitRecord) -> None:
        self.store = store
        self.path = path
        self.record = record
        self.folder = path if record.arrays is None else path / record.arrays
        """the folder of the arrays and the table: of this fit alone"""
        self.arrays = {
            d: {
                name: array
                for name, array in fit_arrays(self.folder, store.vectors[d]).items()
                if name not in LATER or f"{d}/{name}" in record.found.digests
            }
            for d in record.asked.dtypes
            if d in store.vectors
        }

    def __repr__(self) -> str:
        n = len(self.record.steps)
        first, last = self.steps[0], self.steps[-1]
        return f"<Fit {self.record.name!r}: {n} checkpoints, steps {first} to {last}>"

    @property
    def steps(self) -> NDArray[np.int64]:
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

    def slope(self, name: str) -> NDArray[np.float32]:
        """Change a training step, float32, the tensor's shape; static: 0, invalid: NaN."""
        return self._read(name, "slope")

    def mean(self, name: str) -> NDArray[np.float32]:
        """The line's value at x̄, float32 in the tensor's shape; NaN where invalid."""
        return self._read(name, "mean")

    def rsq(self, name: str) -> NDArray[np.float32]:
        """R² of the line, float32 in the tensor's shape; NaN where static or invalid."""
        return self._read(name, "rsq")

    def flags(self, name: str) -> NDArray[np.uint8]:
        """The bit mask of :mod:`trajkit.kernels.flags`, uint8 in the tensor's shape."""
        return self._read(name, "flags")

    def drift_t(self, name: str) -> NDArray[np.float16]:
        """The drift's t, float16 in the tensor's shape; NaN where static, invalid or too short.

        Raises:
            Mismatch: the fit was made before it was kept.
        """
        self.check_keeps(("drift_t",))
        return self._read(name, "drift_t")

    def check_keeps(self, names: Iterable[str]) -> None:
        """Raise :class:`Mismatch` unless this fit has the arrays of these names."""
        for name in names:
            if not all(name in arrays for arrays in self.arrays.values()):
                raise Mismatch(
                    f"{self.path}: the fit {self.record.name!r} was made by an earlier trajkit and "
                    f"keeps no {name}; run trajkit fit again"
                )

    def predict(self, name: str, step: float) -> NDArray[np.float32]:
        """The line's value at a training step, mean + slope (step - x̄), in the tensor's shape.

        Each operation is rounded once to float32; NaN where invalid, the value where static.

        Raises:
            NotFound: no such tensor, or one to which no line is fitted.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            line = self.mean(name) + self.slope(name) * np.float32(step - self.x_mean)
        return np.asarray(line, np.float32)

    @cached_property
    def stats(self) -> Stats:
        """Counts, moments and histograms of all elements."""
        raw = self.record.found.stats
        fields: dict[str, Any] = {
            k: np.array(v) if isinstance(v, list) else v for k, v in raw.items()
        }
        return Stats(**fields)

    @property
    def n_bytes(self) -> int:
        """Bytes of everything that the fit has written."""
        return sum(p.lstat().st_size for p in self.folder.rglob("*") if not p.is_dir())

    def describe(self) -> dict[str, Any]:
        """The fit in numbers, what a driftless random walk scores beside them; JSON types."""
        from trajkit.fits.table import describe_stats

        record = self.record
        return {
            "fit": record.name,
            "store": str(self.store.path),
            "checkpoints": len(record.steps),
            "from_step": record.steps[0],
            "to_step": record.steps[-1],
            "rsq_threshold": record.rsq_threshold,
            **describe_stats(self.stats),
            "null_median_rsq": record.found.null.get("median_rsq"),
            "null_above_threshold": record.found.null.get("above_threshold"),
            "verdict": read_verdict(record.found.null.get("verdict")),
            **{key: _number(record.found.null.get(name)) for key, name in _NULL_NUMBERS.items()},
            "frames_read": record.found.frames_read,
            "path": record.found.path,
            "result_bytes": self.n_bytes,
            "paper": record.found.paper,
            "seconds": record.found.seconds,
            "device": record.asked.device,
        }

    @property
    def modules(self) -> tuple[Mapping[str, Any], ...]:
        """Each module's share that drifts and its verdict, layers and experts folded, with its name.

        Empty where the fit was made before these were kept.
        """
        return self.record.found.modules or ()

    def summary(self) -> "pl.DataFrame":
        """One row a tensor: counts, R², Durbin-Watson, drift and slope statistics.

        Raises:
            Unsupported: polars is not installed; :meth:`rows` needs nothing.
        """
        from trajkit.fits.dataframe import make_frame

        return make_frame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The rows of :meth:`summary`, JSON types; raises :class:`FormatError` where damaged."""
        from trajkit.fits.dataframe import read_parquet
        from trajkit.fits.table import unpack_table

        content = self._table_bytes()
        read = unpack_table if content.startswith(_GZIP) else read_parquet
        return read(content, str(self.folder / "tensors"))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read this fit's arrays inside of it: they are its own, or the error says why not.

        Raises:
            Mismatch: the fit was replaced or dropped since it was opened, in place of the
                :class:`FormatError` that its files are missing.
        """
        try:
            yield
        except FormatError as error:
            if self.is_current():
                raise
            raise Mismatch(
                f"{self.path}: the fit was replaced or dropped since it was opened; open it again"
            ) from error

    def is_current(self) -> bool:
        """Whether the store still keeps this fit, and no other of its name."""
        try:
            now, mine = read_fit(self.store, self.path.name).record, self.record
        except (NotFound, FormatError, Unsupported):
            return False
        return (now.arrays, now.found.digests) == (mine.arrays, mine.found.digests)

    def _table_bytes(self) -> bytes:
        path, earlier = self.folder / TABLE, self.folder / EARLIER_TABLE
        if not path.exists() and earlier.exists():
            path = earlier
        with self.reading():
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                content = b""
            if hashlib.sha256(content).hexdigest() != self.record.found.table_sha256:
                raise FormatError(f"{path}: damaged; run trajkit fit again")
        return content

    def _read(self, name: str, what: str) -> Array:
        info = self._info(name)
        array = self.arrays[info.dtype][what]
        with self.reading():
            return read_elements(array, info.offset, info.stop).reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        info = self.store.tensors.get(name)
        if info is None:
            raise NotFound(f"{self.store.path}: no tensor {name!r}")
        if info.dtype not in self.arrays:
            raise NotFound(f"{name!r} is {info.dtype}: no line is fitted to integers")
        return info


_RESERVED = {"zarr.json", "c", "con", "nul", "aux", "prn"}
"""names that a Zarr group or a file system has other uses for"""


def check_fit_name(name: str) -> str:
    """The name, if it can be a folder's; raises :class:`InvalidInput` otherwise."""
    if not re.fullmatch(NAME, name) or name.lower() in _RESERVED:
        shown = repr(name if len(name) <= 40 else f"{name[:40]}...")
        raise InvalidInput(
            f"not a fit name: {shown}; use up to 100 letters, digits, '-', '_' and '.'"
        )
    return name


def is_fit(home: Path) -> bool:
    """Whether a folder's ``zarr.json`` is a fit's record, be it damaged."""
    path = home / "zarr.json"
    try:
        return path.is_file() and not home.is_symlink() and FORMAT.encode() in _read_bytes(path)
    except (OSError, FormatError):
        return False


def read_fit(store: Store, name: str = DEFAULT_FIT) -> Fit:
    """A fit of a store.

    Raises:
        NotFound: there is none of that name. FormatError: it is damaged.
        Unsupported: it was made by a later trajkit.
    """
    path = store.path / "fits" / check_fit_name(name)
    try:
        record = FitRecord.parse(path / "zarr.json", _read_bytes(path / "zarr.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise no_fit(store, name) from None
    except OSError as error:
        if isinstance(error, NotFound | StorageError):
            raise
        raise StorageError(f"{path}: {error.strerror or error}") from error
    return Fit(store, path, record)


def no_fit(store: Store, name: str) -> NotFound:
    """The error that says which fits there are instead."""
    have = ", ".join(fit_names(store)) or "none"
    return NotFound(
        f"{store.path}: no fit {name!r} (there are: {have}); make one with 'trajkit fit'"
    )


def _read_bytes(path: Path) -> bytes:
    """A record's file, whole; raises :class:`FormatError` where it is larger than one can be."""
    if not path.is_file():  # a pipe would make us wait
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise FormatError(f"{path}: more bytes than the record of a fit; run trajkit fit again")
    return content


_MOST_BYTES = 1 << 27


def fit_names(store: Store) -> list[str]:
    """The names of the fits in a store; what else lies in ``fits/`` is passed over."""
    folder = store.path / "fits"
    if not folder.is_dir():
        return []
    named = (p for p in folder.iterdir() if re.fullmatch(NAME, p.name))
    return sorted(p.name for p in named if is_fit(p))


def read_fits(store: Store) -> dict[str, Fit]:
    """All fits of a store that can be read, by name; a warning names the others."""
    fits = {}
    for name in fit_names(store):
        try:
            fits[name] = read_fit(store, name)
        except (FormatError, Unsupported) as error:
            warn(str(error), stacklevel=2)
        except NotFound:
            continue  # dropped meanwhile
    return fits
