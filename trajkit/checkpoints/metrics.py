"""Metrics on the training-step axis: from a trainer's own log, or a file that a person names.

``trainer_state.json`` is what transformers' and TRL's trainers leave beside each checkpoint; its
``log_history`` is a list of objects with a ``step``. Only finite numbers are taken; everything is
bounded, since the file may be anybody's.
"""

import csv
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from trajkit.errors import FormatError, InvalidInput, NotFound, TrajkitError, Unsupported

TRAINER_STATE = "trainer_state.json"
LARGEST_BYTES = 1 << 26
MOST_METRICS = 256
MOST_POINTS = 1_000_000
_LONGEST_NAME = 120
_AXES = frozenset({"step", "epoch", "global_step"})


@dataclass(frozen=True, slots=True)
class Metrics:
    """Curves by name, each with its own training steps, ascending."""

    curves: Mapping[str, tuple[tuple[int, float], ...]]

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """The curves of rows that have a ``step``; of two values at a step the later one.

        >>> Metrics.of_rows([{"step": 2, "reward": 1.0}, {"step": 1, "reward": 0.5, "x": "no"}])
        Metrics(curves={'reward': ((1, 0.5), (2, 1.0))})
        """
        found: dict[str, dict[int, float]] = {}
        points = 0
        for row in rows:
            step = _whole(row.get("step"))
            if step is None:
                continue
            for name, raw in row.items():
                value = None if name in _AXES else _finite(raw)
                if value is None or (name not in found and len(found) >= MOST_METRICS):
                    continue
                found.setdefault(str(name)[:_LONGEST_NAME], {})[step] = value
                points += 1
                if points > MOST_POINTS:
                    raise InvalidInput(f"more than {MOST_POINTS:,} values of metrics")
        return cls({n: tuple(sorted(curve.items())) for n, curve in sorted(found.items())})

    def merged(self, other: "Metrics") -> "Metrics":
        """These curves and the other's; where both have a step, the other's value."""
        names = sorted(self.curves.keys() | other.curves.keys())
        both = {n: dict(self.curves.get(n, ())) | dict(other.curves.get(n, ())) for n in names}
        return Metrics({n: tuple(sorted(curve.items())) for n, curve in both.items()})


def _whole(value: Any) -> int | None:
    """A training step: a whole number from 0 to 2^53, whatever it is written as."""
    number = _finite(value)
    whole = number is not None and number == int(number) and 0 <= number <= 2**53
    return int(number) if whole and number is not None else None


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_trainer_state(folder: Path) -> Metrics | None:
    """The metrics of the ``trainer_state.json`` in a checkpoint's folder; None where there is none.

    Raises:
        FormatError: it is there, and is not one.
    """
    path = (folder if folder.is_dir() else folder.parent) / TRAINER_STATE
    if not path.is_file():
        return None
    try:
        history = json.loads(_content(path))["log_history"]
        if not isinstance(history, list):
            raise TypeError("log_history is not a list")
        return Metrics.of_rows(row for row in history if isinstance(row, dict))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: not a trainer's state: {error!r}") from error


def read_metrics(path: Path) -> Metrics:
    """The metrics of a file with a ``step`` column, or of TensorBoard events.

    Args:
        path: a CSV, TSV, JSONL, JSON or parquet file, a trainer's state, an event file, or a folder
            of them.

    Raises:
        NotFound: no such file. InvalidInput: no column ``step``, or no number beside it.
        Unsupported: another kind of file, or tbparse is not installed.
        FormatError: not readable as what its name says.
    """
    if not path.exists():
        raise NotFound(f"{path}: no such file of metrics")
    try:
        rows = _rows(path)
        if rows and not any("step" in row for row in rows):
            raise InvalidInput(f"{path}: no column 'step' among {', '.join(map(str, rows[0]))}")
        metrics = Metrics.of_rows(rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, TrajkitError):
            raise
        raise FormatError(f"{path}: not readable as metrics: {error}") from error
    if not metrics.curves:
        raise InvalidInput(f"{path}: no numbers beside a 'step'")
    return metrics


def _rows(path: Path) -> Sequence[Mapping[str, Any]]:
    suffix = path.suffix.lower()
    if path.is_dir() or "tfevents" in path.name:
        return _tensorboard_rows(path)
    match suffix:
        case ".csv" | ".tsv":
            text = _content(path).decode("utf-8-sig")
            delimiter = "\t" if suffix == ".tsv" else ","
            return list(csv.DictReader(text.splitlines(), delimiter=delimiter))
        case ".jsonl" | ".ndjson":
            lines = _content(path).splitlines()
            return [
                row for line in lines if line.strip() and isinstance(row := json.loads(line), dict)
            ]
        case ".json":
            found = json.loads(_content(path))
            rows = found["log_history"] if isinstance(found, dict) else found
            return [row for row in rows if isinstance(row, dict)]
        case ".parquet":
            try:
                import polars as pl
            except ImportError:
                raise Unsupported(
                    f"{path}: parquet needs polars; pip install 'trajkit[tables]'"
                ) from None
            if path.stat().st_size > LARGEST_BYTES:
                raise InvalidInput(f"{path}: more than {LARGEST_BYTES >> 20} MiB of metrics")
            try:
                return pl.read_parquet(path).to_dicts()
            except pl.exceptions.PolarsError as error:
                raise FormatError(f"{path}: not readable as metrics: {error}") from error
        case _:
            raise Unsupported(
                f"{path}: metrics are read from .csv, .jsonl, .json, .parquet or TensorBoard events"
            )


def _tensorboard_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        from tbparse import SummaryReader
    except ImportError:
        raise Unsupported(
            f"{path}: TensorBoard events need tbparse; pip install 'trajkit[tensorboard]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, about how tbparse calls it
        scalars = SummaryReader(str(path)).scalars
    triples = zip(scalars["step"], scalars["tag"], scalars["value"], strict=True)
    return [{"step": int(step), str(tag): float(value)} for step, tag, value in triples]


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise FormatError(f"{path}: not a regular file")
    if path.stat().st_size > LARGEST_BYTES:
        raise InvalidInput(f"{path}: more than {LARGEST_BYTES >> 20} MiB of metrics")
    return path.read_bytes()
