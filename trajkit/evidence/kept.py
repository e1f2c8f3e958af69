"""A backtest as it is kept in the store.

    backtest/zarr.json         a Zarr group; its attributes are the record, with its own sha256
    backtest/tensors.json.gz   a row a tensor and horizon, as columns

It is written beside its place and exchanged, so that it is there whole or not at all.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajkit.checkpoints.parse import parse_json, unzip
from trajkit.disk import canonical_json, disk_errors, exchange, replace_file, sync_directory
from trajkit.errors import FormatError, NotFound
from trajkit.fits.dataframe import import_polars
from trajkit.fits.table import MAX_BYTES, pack_columns
from trajkit.store.documents import group_document
from trajkit.store.store import Store
from trajkit.text import shown

if TYPE_CHECKING:
    import polars as pl

FORMAT = "trajkit-backtest"
VERSION = 1
FOLDER = "backtest"
TABLE = "tensors.json.gz"
EARLIER_TABLE = "tensors.parquet"
"""what an earlier trajkit kept, and this one reads"""
_MAX_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Backtest:
    """What forecasts from earlier checkpoints were worth."""

    path: Path
    record: Mapping[str, Any]
    """JSON types: ``origins``, ``horizons`` (training steps), ``ratio`` (rule -> error over holding,
    one a horizon; None where nothing moved), ``best`` (one a horizon), ``trust_horizon`` (training
    steps), ``coverage`` of 95 % intervals, ``forecasts``, ``frames_digest``"""

    @property
    def trust_horizon(self) -> int:
        """Training steps up to which rules chosen beforehand beat holding; 0 where none did."""
        return int(self.record["trust_horizon"])

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        return describe_trust(self.trust_horizon, self.record["horizons"])

    def best_for(self, steps: float) -> Mapping[str, Any]:
        """The kept choice for going ``steps`` beyond the data: that of the next horizon judged.

        Beyond the last one, the last.
        """
        for choice in self.record["best"]:
            if choice["horizon"] >= steps:
                return dict(choice)
        return dict(self.record["best"][-1])

    def tensors(self) -> "pl.DataFrame":
        """One row a tensor and horizon.

        Raises:
            FormatError: it is damaged. Unsupported: polars is not installed.
        """
        polars = import_polars("a data frame")
        content = self.table_bytes()
        frame: pl.DataFrame
        try:
            if content.startswith(b"PAR1"):  # of an earlier trajkit
                frame = polars.read_parquet(io.BytesIO(content))
            else:
                where = str(self.path / TABLE)
                columns = parse_json(unzip(content, where, MAX_BYTES), where).value
                frame = polars.DataFrame(columns, infer_schema_length=None)
        except FormatError:
            raise
        except (Exception, polars.exceptions.PanicException) as error:
            raise FormatError(f"{self.path}: its table is not readable: {shown(error)}") from error
        return frame

    def table_bytes(self) -> bytes:
        """The table as it is kept; raises :class:`FormatError` where it is damaged."""
        path = self.path / TABLE
        if not path.exists():
            path = self.path / EARLIER_TABLE
        content = _read(path)
        if hashlib.sha256(content).hexdigest() != self.record["table_sha256"]:
            raise FormatError(f"{path}: damaged; run trajkit backtest again")
        return content


def describe_trust(trusted: int, horizons: Sequence[int]) -> str:
    """The one sentence of a backtest.

    >>> describe_trust(0, [10, 20, 40, 80]).split("beyond the data ")[1]
    'has been no better than keeping the last checkpoint'
    """
    if not trusted:
        return (
            f"on this run, going even {horizons[0]} steps beyond the data has been no better than "
            "keeping the last checkpoint"
        )
    if trusted == horizons[-1]:
        return (
            f"on this run, going up to {trusted} steps beyond the data, as far as could be judged, "
            "has been better than keeping the last checkpoint"
        )
    return (
        f"on this run, going more than {trusted} steps beyond the data has been worse than keeping "
        "the last checkpoint"
    )


def commit_backtest(
    store: Store, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Backtest:
    """Put a backtest into the store, in place of an earlier one; the lock must be held."""
    names = list(rows[0]) if rows else []
    table = pack_columns({name: [row[name] for row in rows] for name in names})
    target = store.path / FOLDER
    part = store.path / f".{FOLDER}.part"
    with disk_errors(target):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            replace_file(part / TABLE, table)
            attributes = {"format": FORMAT, "version": VERSION, **record}
            attributes["table_sha256"] = hashlib.sha256(table).hexdigest()
            attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
            replace_file(part / "zarr.json", canonical_json(group_document(attributes)))
            if not target.exists():
                part.rename(target)
            elif not exchange(part, target):
                shutil.rmtree(target)
                part.rename(target)
            sync_directory(store.path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return read_backtest(store)


def read_backtest(store: Store) -> Backtest:
    """The backtest kept in a store.

    Raises:
        NotFound: there is none. FormatError: it is damaged.
    """
    path = store.path / FOLDER
    file = path / "zarr.json"
    if not file.is_file():
        raise NotFound(f"{store.path}: no backtest yet; make one with 'trajkit backtest'")
    content = _read(file)
    try:
        attributes = dict(json.loads(content)["attributes"])
        digest = attributes.pop("sha256")
        intact = hashlib.sha256(canonical_json(attributes)).hexdigest() == digest
        intact = intact and attributes.pop("format") == FORMAT
        intact = intact and attributes.pop("version") == VERSION and _adds_up(attributes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise FormatError(f"{file}: damaged, or of another version; run trajkit backtest again")
    return Backtest(path, attributes)


def _adds_up(record: Mapping[str, Any]) -> bool:
    """Whether a record has the shape that everything else relies on."""
    horizons, best, ratios = record["horizons"], record["best"], record["ratio"]
    n = len(horizons)
    whole = [*horizons, *record["origins"], record["trust_horizon"]]
    return (
        0 < n == len(best) == len(record["coverage"])
        and all(type(x) is int and 0 <= x < 2**53 for x in whole)
        and all(isinstance(name, str) and len(row) == n for name, row in ratios.items())
        and all(x is None or isinstance(x, float) for row in ratios.values() for x in row)
        and all(isinstance(choice["rule"], str) and choice["horizon"] >= 0 for choice in best)
        and isinstance(record["frames_digest"], str)
    )


def _read(path: Path) -> bytes:
    """A file's content, if it is a regular one of bearable size."""
    try:
        if path.is_file() and path.stat().st_size <= _MAX_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}") from error
    raise FormatError(f"{path}: missing, or not a file that trajkit wrote")


def check_backtest(store: Store) -> Iterator[str]:
    """One line for every damaged thing in a store's backtest; none where there is no backtest."""
    if (store.path / FOLDER).exists():
        try:
            read_backtest(store).table_bytes()
        except (FormatError, NotFound) as error:
            yield str(error)
