"""How a fit was made and what it found, as kept in its ``zarr.json``.

The attributes of that group are the fields of :class:`FitRequest` and :class:`FitFindings` side by
side, ``format``, ``version``, ``arrays``, and ``sha256`` over all others as they stand. Fields that
a later trajkit has added are kept; those that an earlier one had not yet have their defaults.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from trajkit.arrays import DTYPES
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, Unsupported
from trajkit.fits.fields import (
    LARGEST_STEP,
    Check,
    any_of,
    ascending_steps,
    hexadecimal,
    mapping,
    number,
    optional,
    sequence,
    text,
    whole,
)
from trajkit.kernels.state import new_stats
from trajkit.store.documents import group_document

FORMAT = "trajkit-fit"
VERSION = 1
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
"""a fit's name is a folder's"""
ARRAYS_FOLDER = r"arrays-[0-9a-f]{16}"


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What was asked of a fit."""

    name: str
    steps: tuple[int, ...]
    """training steps of the checkpoints fitted"""
    frames_digest: str
    """xxh3-128 over the digests of the frames fitted: which bits this is a fit of"""
    dtypes: tuple[str, ...]
    """the flat vectors that were fitted; integers are not"""
    rsq_threshold: float
    min_range: float
    """filter: elements whose max - min is at most this are not *kept*; 0 filters none"""
    min_distinct: int
    """filter: elements with fewer distinct values are not *kept*"""
    device: str


@dataclass(frozen=True, slots=True)
class FitFindings:
    """What it found, and with what."""

    stats: Mapping[str, Any]
    """the kernels' :class:`~trajkit.kernels.state.Stats` of all elements, histograms as lists"""
    null: Mapping[str, Any]
    """what a driftless random walk with the same increments scores, how many elements drift beside
    it, and the verdict (:class:`trajkit.fits.walks.FitWalks`)"""
    versions: Mapping[str, str]
    seconds: float
    table_sha256: str
    sums: Mapping[str, Any] | None = None
    """the scalars of the sums of each dtype, where the sums are kept"""
    sums_version: int | None = None
    """``SUMS_VERSION`` of the kernels that made the sums; None: made before there was one"""
    frames_read: int = 0
    """checkpoints read for this fit: all of its window, or those since the fit it continues"""
    digests: Mapping[str, str] = field(default_factory=dict)
    """of each array, by its path in the fit's folder: which files are this fit's"""
    paper: Mapping[str, Any] | None = None
    """the statistics of :class:`trajkit.fits.paper.PaperStats`, where they were asked for"""
    path: str | None = None
    """what its chunks were fitted from: ``dense`` (frames), ``events`` (changes) or ``mixed``; None:
    not known, or there was none"""
    null_rsq: tuple[float, ...] | None = None
    """shares of those walks in 1,000 bins of R² on [0, 1]; None: not known, or nothing moved"""
    modules: tuple[Mapping[str, Any], ...] | None = None
    """each module's own verdict, layers folded (:meth:`trajkit.fits.walks.FitWalks.modules`); None:
    made before there were any"""


@dataclass(frozen=True, slots=True)
class FitRecord:
    """A fit's record: what was asked, what was found, and where the arrays are."""

    asked: FitRequest
    found: FitFindings
    arrays: str | None = None
    """the folder of the arrays in the fit's own; None: that itself, as once was"""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """fields of a later trajkit, as they stand"""

    @property
    def name(self) -> str:
        """The fit's name."""
        return self.asked.name

    @property
    def steps(self) -> tuple[int, ...]:
        """Training steps of the checkpoints fitted."""
        return self.asked.steps

    @property
    def rsq_threshold(self) -> float:
        """R² above which an element counts as linear."""
        return self.asked.rsq_threshold

    @property
    def frames_digest(self) -> str:
        """Which bits this is a fit of."""
        return self.asked.frames_digest

    @property
    def versions(self) -> Mapping[str, str]:
        """What the fit was made with."""
        return self.found.versions

    def document(self) -> dict[str, Any]:
        """The group's ``zarr.json``, its own digest included."""
        attributes = {"format": FORMAT, "version": VERSION, **asdict(self.asked)}
        attributes |= asdict(self.found) | {"arrays": self.arrays, **self.unknown}
        return group_document(attributes | {"sha256": _digest(attributes)})

    def inner_groups(self) -> tuple[str, ...]:
        """The Zarr groups of one vector, relative to its folder."""
        return ("",) if self.found.sums is None else ("", "sums")

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Self:
        """The record in a ``zarr.json``.

        Raises:
            FormatError: a byte of it changed, or a field is not what it can be.
            Unsupported: it is of a later version.
        """
        attributes = _read_attributes(path, content)
        try:
            asked, found = _take(FitRequest, attributes), _take(FitFindings, attributes)
            arrays = _CHECKS["arrays"](attributes.pop("arrays", None))
        except ValueError as error:
            raise FormatError(
                f"{path}: not a readable fit: {error}; run trajkit fit again"
            ) from None
        return cls(asked, found, arrays, attributes)


def _digest(attributes: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(attributes)).hexdigest()


def _read_attributes(path: Path, content: bytes) -> dict[str, Any]:
    """The attributes but for format, version and digest, which are checked here."""
    try:
        document = json.loads(content)
        attributes = dict(document["attributes"])
        told, kind = attributes.pop("sha256", None), attributes.get("format")
        intact = _digest(attributes) == told and canonical_json(document) == content
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{path}: not a readable fit; run trajkit fit again") from None
    version = attributes.pop("version", None)
    if kind != FORMAT or not isinstance(version, int):
        raise FormatError(f"{path}: not a readable fit; run trajkit fit again")
    if version > VERSION:
        raise Unsupported(
            f"{path}: fit format version {version}; this trajkit reads version {VERSION}"
        )
    if not intact:
        raise FormatError(f"{path}: damaged; run trajkit fit again")
    del attributes["format"]
    return attributes


Half = TypeVar("Half", FitRequest, FitFindings)


def _take(kind: type[Half], attributes: dict[str, Any]) -> Half:
    """One half of the record, its fields taken out of the attributes and checked."""
    values = {}
    for f in fields(kind):
        if f.name in attributes:
            value = attributes.pop(f.name)
            try:
                values[f.name] = _CHECKS[f.name](value)
            except ValueError as error:
                shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}..."
                raise ValueError(f"{f.name}: expected {error}, found {shown}") from None
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{f.name} is missing")
    return kind(**values)


def _check_stats(value: Any) -> Mapping[str, Any]:
    """Counts, sums and histograms as the kernels' Stats has them."""
    if not isinstance(value, dict):
        raise ValueError("an object")
    known = asdict(new_stats(0.0, 1.0))
    if missing := known.keys() - value.keys():
        raise ValueError(f"statistics with {sorted(missing)[0]}")
    for name, like in known.items():
        if name in _STATS_RANGES:
            number(*_STATS_RANGES[name])(value[name])
        elif isinstance(like, np.ndarray):
            if len(sequence(_count, len(like))(value[name])) != len(like):
                raise ValueError(f"{name} of {len(like)} counts")
        elif isinstance(like, int):
            _count(value[name])
        elif isinstance(value[name], bool) or not isinstance(value[name], int | float):
            raise ValueError(f"{name} a number")
    return {name: value[name] for name in known}


_STATS_RANGES = {"threshold": (0.0, 1.0), "steps_window": (0.0, 2.0 * LARGEST_STEP)}
_count = whole(0, 2**63 - 1)
_word = text(r"[ -~]{0,200}", "a line of 200 characters at most")
_float_dtype = text(
    "|".join(d.name for d in DTYPES.values() if d.is_float), "a dtype that lines are fitted to"
)
_told = optional(any_of(number(), _word))
_scalars = mapping(_word, _told, 64)


def _check_module(value: Any) -> Mapping[str, Any]:
    """A module's row: its name, its counts and shares, its verdict."""
    if not isinstance(value, dict) or not value.keys() >= _MODULE:
        raise ValueError(f"an object with {', '.join(sorted(_MODULE))}")
    row = {key: _MODULE_FIELDS.get(key, _told)(found) for key, found in value.items()}
    return {key: row[key] for key in sorted(row)}


_share = optional(number(0, 1))
_MODULE_FIELDS: dict[str, Check] = {
    "module": text(r"[^\x00-\x1f\x7f]{1,4096}", "a module's name"),
    "elements": _count,
    "fitted": _count,
    "verdict": optional(text("static|straight|drifting|wandering", "a verdict")),
    **dict.fromkeys(("median_rsq", "share_above_threshold", "null_median_rsq"), _share),
    **dict.fromkeys(("null_above_threshold", "drift_share", "drift_excess"), _told),
}
_MODULE = frozenset(_MODULE_FIELDS)
_CHECKS: dict[str, Check] = {
    "name": text(NAME, "a fit's name"),
    "steps": ascending_steps,
    "frames_digest": hexadecimal(32),
    "dtypes": sequence(_float_dtype, len(DTYPES)),
    "rsq_threshold": number(0, 1),
    "min_range": number(0),
    "min_distinct": whole(0, 4),
    "device": _word,
    "stats": _check_stats,
    "null": _scalars,
    "versions": mapping(_word, _word, 64),
    "seconds": number(0),
    "table_sha256": hexadecimal(64),
    "sums": optional(mapping(_word, any_of(_told, _scalars), 64)),
    "sums_version": optional(_count),
    "frames_read": _count,
    "path": optional(text("dense|events|mixed", "dense, events or mixed")),
    "digests": mapping(_word, hexadecimal(32), 1000),
    "paper": optional(_scalars),
    "null_rsq": optional(sequence(number(0, 1), 1000, 1000)),
    "modules": optional(sequence(_check_module, 256)),
    "arrays": optional(text(ARRAYS_FOLDER, "the name of a folder of arrays")),
}
"""what each field may be"""
