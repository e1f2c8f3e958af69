"""The table of a fit: one row a tensor, from the statistics its elements were reduced to.

It is kept as a gzipped JSON object of columns, each a list with a value a tensor, so that whatever
reads JSON reads it: ``polars.DataFrame(json.load(gzip.open(path)))``.
"""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.checkpoints.parse import Node, parse_json, unzip
from trajkit.kernels.state import Stats
from trajkit.stats.histograms import histogram_quantile, share

RSQ_TABLE_BINS = 50
"""bins of R² on [0, 1] kept a tensor; the whole model keeps them all"""

COUNTS = (
    "static",
    "invalid",
    "fitted",
    "above_threshold",
    "few_distinct",
    "small_range",
    "below_half_ulp",
    "kept",
    "kept_above",
)


def describe_stats(stats: Stats) -> dict[str, Any]:
    """The numbers of a :class:`Stats` that people read, by name; shares are of fitted elements."""
    fitted = stats.fitted
    numbers: dict[str, Any] = {"elements": stats.elements}
    numbers |= {name: getattr(stats, name) for name in COUNTS}
    drift_edges = np.linspace(-20, 20, len(stats.hist_drift_t) + 1)
    significant = (drift_edges[1:] <= -2) | (drift_edges[:-1] >= 2)
    numbers |= {
        "share_above_threshold": share(stats.above_threshold, fitted),
        "mean_rsq": share(stats.rsq_sum, fitted),
        "median_rsq": histogram_quantile(stats.hist_rsq, 0, 1),
        "median_rsq_kept": histogram_quantile(stats.hist_rsq_kept, 0, 1),
        "share_above_threshold_kept": share(stats.kept_above, stats.kept),
        "median_durbin_watson": histogram_quantile(stats.hist_dw, 0, 4),
        "median_drift_t": histogram_quantile(stats.hist_drift_t, -20, 20),
        "share_drift_t_above_2": share(
            int(stats.hist_drift_t[significant].sum()), int(stats.hist_drift_t.sum())
        ),
        "median_ulps_per_100_steps": _median_ulps(stats.hist_ulps),
        "rms_slope": None if not fitted else float(np.sqrt(stats.slope_sumsq / fitted)),
        "max_abs_slope": stats.max_abs_slope,
    }
    return numbers


def _median_ulps(hist_ulps: Array) -> float | None:
    log2 = histogram_quantile(hist_ulps, -16, 16)
    return None if log2 is None else float(2.0**log2)


def tensor_row(info: TensorInfo, stats: Stats) -> dict[str, Any]:
    """One tensor's row of the table."""
    coarse = stats.hist_rsq.reshape(RSQ_TABLE_BINS, -1).sum(axis=1)
    return {
        "name": info.name,
        "dtype": info.dtype,
        "shape": list(info.shape),
        **describe_stats(stats),
        "hist_rsq": coarse.tolist(),
    }


_NUMBERS = (
    "share_above_threshold",
    "mean_rsq",
    "median_rsq",
    "median_rsq_kept",
    "share_above_threshold_kept",
    "median_durbin_watson",
    "median_drift_t",
    "share_drift_t_above_2",
    "median_ulps_per_100_steps",
    "rms_slope",
    "max_abs_slope",
)
"""statistics that have no value where no element was fitted"""

_NULLS = (
    "null_median_rsq",
    "null_above_threshold",
    "null_median_durbin_watson",
    "null_share_drift_t_above_2",
)
"""what a driftless walk with a tensor's own increments scores"""

Column = list[Any]


def _cells(read: Callable[[Node], Any]) -> Callable[[Node], Column]:
    return lambda column: [read(cell) for cell in column.items()]


def _wholes(column: Node) -> Column:
    return list(column.wholes())


def _reals(column: Node) -> Column:
    values = column.value
    if isinstance(values, list) and all(v is None or type(v) is float for v in values):
        return values
    return [None if cell.value is None else cell.real() for cell in column.items()]


def _histogram(cell: Node) -> list[int]:
    words = cell.text().split()
    if len(words) != RSQ_TABLE_BINS or not all(len(w) < 20 and w.isdecimal() for w in words):
        raise cell.refuse(f"{RSQ_TABLE_BINS} counts")
    return [int(word) for word in words]


_COLUMNS: Mapping[str, Callable[[Node], Column]] = {
    "name": _cells(Node.text),
    "dtype": _cells(Node.text),
    "shape": _cells(lambda cell: list(cell.wholes())),
    "elements": _wholes,
    **dict.fromkeys(COUNTS, _wholes),
    **dict.fromkeys(_NUMBERS, _reals),
    "hist_rsq": _cells(_histogram),
    **dict.fromkeys(_NULLS, _reals),
    "drifting": _cells(lambda cell: None if cell.value is None else cell.whole()),
    "verdict": _cells(lambda cell: None if cell.value is None else cell.text()),
}
COLUMNS = tuple(_COLUMNS)
ADDED = (*_NULLS, "drifting", "verdict")
"""columns that tables of an earlier trajkit have not; their values are None there"""
MAX_BYTES = 1 << 30
"""of a table, unpacked"""


def pack_table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as they are kept: every column of the table, whatever else a row holds."""
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in COLUMNS}
    columns["hist_rsq"] = [" ".join(map(str, row["hist_rsq"])) for row in rows]
    return pack_columns(columns)


def pack_columns(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Columns of JSON values as a gzipped JSON object, the same bytes each time."""
    text = json.dumps(columns, separators=(",", ":"))
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def unpack_table(content: bytes, where: str) -> list[dict[str, Any]]:
    """The rows from :func:`pack_table`'s bytes; columns of a later trajkit are left out.

    Raises:
        FormatError: it is no such table, whatever its digest says.
    """
    held = parse_json(unzip(content, where, MAX_BYTES), where, constants=True)
    names = held["name"].items()
    columns = {
        column: [None] * len(names)
        if column in ADDED and column not in held.value
        else read(held[column])
        for column, read in _COLUMNS.items()
    }
    for column, values in columns.items():
        if len(values) != len(names):
            raise held[column].refuse(f"{len(names)} values")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
