"""A fit as it is kept in the store: arrays, a table, and a record of how it was made.

    fits/<name>/
      zarr.json              the record: steps, threshold, filters, versions, statistics, digests
      tensors.parquet        one row a tensor
      <dtype>/slope, mean, rsq (float32 [N]), last (unsigned [N]), flags (uint8 [N])
      <dtype>/sums/...       the sums themselves, where they are kept: a later fit goes on from them

A fit is written beside its place and renamed, so that it is there whole or not at all.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.defaults import DEFAULT_FIT
from trajkit.errors import FormatError, InvalidInput, NotFound
from trajkit.fits.arrays import fit_arrays, read_elements
from trajkit.fits.record import FitRecord
from trajkit.kernels.state import Stats
from trajkit.stats.axis import StepAxis
from trajkit.store.store import Store

if TYPE_CHECKING:
    import polars as pl


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
            "null_median_rsq": record.null["median_rsq"],
            "null_above_threshold": record.null["above_threshold"],
            "frames_read": record.frames_read,
            "paper": record.paper,
            "seconds": record.seconds,
            "device": record.device,
        }

    def summary(self) -> "pl.DataFrame":
        """One row a tensor: counts, R², Durbin-Watson, drift and slope statistics."""
        from trajkit.fits.table import unpack_table

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
