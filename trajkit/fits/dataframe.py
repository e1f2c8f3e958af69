"""Tables as polars has them: data frames for people, and the parquet of an earlier trajkit.

polars comes with ``trajkit[tables]``: nothing that is written needs it.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trajkit.errors import FormatError, Unsupported
from trajkit.fits.table import ADDED, COLUMNS, COUNTS, RSQ_TABLE_BINS
from trajkit.text import shown

if TYPE_CHECKING:
    import polars as pl

MAX_ROWS = 1 << 22
_MAY_BE_EMPTY = ("share_", "mean_", "median_", "rms_", "max_", *ADDED)
"""how columns begin that have no value where no element was fitted"""


def import_polars(what: str) -> Any:
    """The module polars; raises :class:`Unsupported` with what needs it, where it is missing."""
    try:
        import polars
    except ImportError:
        raise Unsupported(f"{what} needs polars; pip install 'trajkit[tables]'") from None
    return polars


def make_frame(rows: Sequence[Mapping[str, Any]]) -> "pl.DataFrame":
    """The rows of a fit's table as a data frame, columns and types always the same.

    Raises:
        Unsupported: polars is not installed.
    """
    polars = import_polars("a data frame")
    frame: pl.DataFrame = polars.DataFrame(list(rows), schema=_schema(polars), orient="row")
    return frame


def read_parquet(content: bytes, where: str) -> list[dict[str, Any]]:
    """The rows of a table that an earlier trajkit kept as parquet.

    Raises:
        FormatError: it is no such table, whatever its digest says.
        Unsupported: polars is not installed.
    """
    polars = import_polars(f"{where}: a fit by an earlier trajkit")
    schema = _schema(polars)
    try:
        rows = polars.scan_parquet(io.BytesIO(content)).select(polars.len()).collect().item()
        if rows > MAX_ROWS:
            raise FormatError(f"{where}: {rows} rows, more than {MAX_ROWS}")
        held = polars.read_parquet_schema(io.BytesIO(content))
        names = [c for c in COLUMNS if c in held or c not in ADDED]
        frame = polars.read_parquet(io.BytesIO(content), columns=names)
    except FormatError:
        raise
    except (Exception, polars.exceptions.PanicException) as error:  # it names no errors of its own
        raise FormatError(f"{where}: not readable: {shown(error)}") from error
    lacking = [polars.lit(None, schema[c]).alias(c) for c in COLUMNS if c not in names]
    frame = frame.with_columns(lacking).select(COLUMNS)
    wrong = [c for c, kind in schema.items() if frame.schema[c] != kind]
    filled = [c for c in COLUMNS if not c.startswith(_MAY_BE_EMPTY)]
    wrong += [c for c in filled if frame[c].null_count()]
    if not wrong and (frame["hist_rsq"].list.len() != RSQ_TABLE_BINS).any():
        wrong.append("hist_rsq")
    if wrong:
        raise FormatError(f"{where}: not what column {wrong[0]} can hold")
    found: list[dict[str, Any]] = frame.to_dicts()
    return found


def _schema(polars: Any) -> dict[str, Any]:
    kinds = {
        "name": polars.String,
        "dtype": polars.String,
        "shape": polars.List(polars.Int64),
        "hist_rsq": polars.List(polars.Int64),
        "verdict": polars.String,
        **dict.fromkeys(("elements", "drifting", *COUNTS), polars.Int64),
    }
    return {column: kinds.get(column, polars.Float64) for column in COLUMNS}
