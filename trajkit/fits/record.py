"""How a fit was made and what it found, as kept in its ``zarr.json``."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from trajkit.disk import canonical_json
from trajkit.errors import FormatError
from trajkit.store.documents import group_document

FORMAT = "trajkit-fit"
VERSION = 1


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
    """the kernels' :class:`~trajkit.kernels.state.Stats` of all elements, histograms as lists"""
    null: Mapping[str, Any]
    """what a driftless random walk scores on the same steps"""
    seconds: float
    table_sha256: str
    dtypes: tuple[str, ...]
    """the flat vectors that were fitted; integers are not"""
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
