"""A backtest as it is kept in the store.

    backtest/zarr.json         a Zarr group; its attributes are the record, with its own sha256
    backtest/tensors.json.gz   a row a tensor and horizon, as columns

It is written beside its place and exchanged, so that it is there whole or not at all.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajkit.checkpoints.parse import Node, parse_json, unzip
from trajkit.disk import (
    disk_errors,
    exchange,
    read_file,
    refuse_links,
    replace_file,
    sync_directory,
)
from trajkit.errors import FormatError, NotFound, StorageError
from trajkit.fits.dataframe import import_polars
from trajkit.fits.fields import LARGEST_STEP
from trajkit.fits.table import MAX_BYTES, pack_columns
from trajkit.store.signed import LARGEST_RECORD, read_signed, signed_document
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
        path, earlier = self.path / TABLE, self.path / EARLIER_TABLE
        if not path.exists() and earlier.exists():
            path = earlier
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
    """Put a backtest into the store, in place of an earlier one; the lock must be held.

    Raises:
        FormatError: something that trajkit did not write lies in the place. StorageError: the disk
            refused.
    """
    names = list(rows[0]) if rows else []
    table = pack_columns({name: [row[name] for row in rows] for name in names})
    target = store.path / FOLDER
    part = store.path / f".{FOLDER}.part"
    with disk_errors(target):
        _refuse_others(store.path, target)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            replace_file(part / TABLE, table)
            fields = {**record, "table_sha256": hashlib.sha256(table).hexdigest()}
            replace_file(part / "zarr.json", signed_document(FORMAT, VERSION, fields))
            if not target.exists():
                part.rename(target)
            elif not exchange(part, target):
                shutil.rmtree(target)
                part.rename(target)
            sync_directory(store.path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return read_backtest(store)


def _refuse_others(root: Path, target: Path) -> None:
    """Raise where the place holds what trajkit did not write: it would be deleted."""
    refuse_links(root, target)
    if not target.exists():
        return
    own = {"zarr.json", TABLE, EARLIER_TABLE}
    other = next((p for p in sorted(target.iterdir()) if p.name not in own), None)
    if other is not None:
        raise FormatError(f"{shown(other)}: trajkit did not write this; move it out of the store")


def read_backtest(store: Store) -> Backtest:
    """The backtest kept in a store.

    Raises:
        NotFound: there is none. FormatError: it is damaged, or not what trajkit writes.
    """
    path = store.path / FOLDER
    try:
        record = read_signed(path, FORMAT, VERSION)
        if record is not None:
            return Backtest(path, _checked(record))
    except FormatError as error:
        raise FormatError(f"{error}; run trajkit backtest again") from None
    raise NotFound(f"{store.path}: no backtest yet; make one with 'trajkit backtest'")


def _checked(record: Node) -> Mapping[str, Any]:
    """The record, every field of the type that everything else relies on."""
    horizons = record["horizons"].wholes(1, LARGEST_STEP)
    n = len(horizons)
    if not n:
        raise record["horizons"].refuse("horizons")
    for name in ("steps", "origins"):
        record[name].wholes(-LARGEST_STEP, LARGEST_STEP)
    for forecast in record["forecasts"].items():
        for name in ("origin", "target", "horizon"):
            forecast[name].whole(-LARGEST_STEP, LARGEST_STEP)
    record["trust_horizon"].whole(0, LARGEST_STEP)
    record["frames_digest"].digest(32)
    record["table_sha256"].digest(64)
    ratios = dict(record["ratio"].entries())
    for name, row in ratios.items():
        Node(name, row.file, "ratio").text()
        _check_numbers(row.items(n))
    for default in record["defaults"].items():
        default.one_of(ratios)
    for choice in record["best"].items(n):
        choice["horizon"].whole(1, LARGEST_STEP)
        choice["rule"].text()
        choice["estimator"].text()
        choice["damping"].number()
        _check_numbers(choice.get(name) for name in ("ratio", "honest_ratio", "parameter"))
        gate = choice.get("gate")
        if gate is not None:
            gate.text()
    for covered in record["coverage"].items(n):
        _check_numbers(covered.get(kind) for kind in ("iid", "walk"))
    own = {"format", "version", "sha256"}
    return {name: value for name, value in record.value.items() if name not in own}


def _check_numbers(nodes: Iterable[Node | None]) -> None:
    """Raise unless each is a finite number, or null."""
    for node in nodes:
        if node is not None and node.value is not None:
            node.number()


def _read(path: Path) -> bytes:
    """A file's content, if it is a regular one of bearable size."""
    try:
        return read_file(path, LARGEST_RECORD)
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{path}: missing, or not a file that trajkit wrote") from None


def check_backtest(store: Store) -> Iterator[str]:
    """One line for every damaged thing in a store's backtest; none where there is no backtest."""
    if os.path.lexists(store.path / FOLDER):
        try:
            read_backtest(store).table_bytes()
        except (FormatError, NotFound, StorageError) as error:
            yield str(error)
