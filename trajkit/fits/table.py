"""The table of a fit: one row a tensor, from the statistics its elements were reduced to."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from trajkit.arrays import Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.errors import FormatError
from trajkit.kernels.state import Stats
from trajkit.stats.histograms import histogram_quantile, share
from trajkit.text import shown

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


_SCHEMA: dict[str, Any] = {
    "name": pl.String,
    "dtype": pl.String,
    "shape": pl.List(pl.Int64),
    "elements": pl.Int64,
    **dict.fromkeys(COUNTS, pl.Int64),
    **dict.fromkeys(
        (
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
        ),
        pl.Float64,
    ),
    "hist_rsq": pl.List(pl.Int64),
    "null_median_rsq": pl.Float64,
    "null_above_threshold": pl.Float64,
    "drifting": pl.Int64,
    "verdict": pl.String,
}


_ADDED = ("null_median_rsq", "null_above_threshold", "drifting", "verdict")
"""columns that tables of an earlier trajkit have not; they are null there"""
_MAY_BE_EMPTY = ("share_", "mean_", "median_", "rms_", "max_", *_ADDED)
"""how columns begin that have no value where no element was fitted"""
MAX_ROWS = 1 << 22


def make_table(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """The rows as a polars table, one row a tensor, columns and types always the same."""
    return pl.DataFrame(list(rows), schema=_SCHEMA, orient="row")


def pack_table(table: pl.DataFrame) -> bytes:
    """The table as a parquet file's bytes."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def unpack_table(content: bytes) -> pl.DataFrame:
    """The table from :func:`pack_table`'s bytes; columns of a later trajkit are left out.

    Raises:
        FormatError: it is no such table, whatever its digest says.
    """
    try:
        rows = pl.scan_parquet(io.BytesIO(content)).select(pl.len()).collect().item()
        if rows > MAX_ROWS:
            raise FormatError(f"the table of tensors has {rows} rows, more than {MAX_ROWS}")
        held = pl.read_parquet_schema(io.BytesIO(content))
        names = [c for c in _SCHEMA if c in held or c not in _ADDED]
        table = pl.read_parquet(io.BytesIO(content), columns=names)
    except FormatError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # it names no errors of its own
        raise FormatError(f"the table of tensors is not readable: {shown(error)}") from error
    lacking = [pl.lit(None, _SCHEMA[c]).alias(c) for c in _SCHEMA if c not in names]
    table = table.with_columns(lacking).select(list(_SCHEMA))
    wrong = [c for c, kind in _SCHEMA.items() if table.schema[c] != kind]
    filled = [c for c in _SCHEMA if not c.startswith(_MAY_BE_EMPTY)]
    wrong += [c for c in filled if table[c].null_count()]
    if not wrong and (table["hist_rsq"].list.len() != RSQ_TABLE_BINS).any():
        wrong.append("hist_rsq")
    if wrong:
        raise FormatError(f"the table of tensors: not what column {wrong[0]} can hold")
    return table
