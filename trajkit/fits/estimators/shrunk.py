"""``shrunk``: anchored, by the part of R² that a driftless walk would not have had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trajkit.fits.estimators.estimator import Points, Values
from trajkit.fits.estimators.weighted import Weighted

if TYPE_CHECKING:
    from trajkit.arrays import Array


@dataclass(frozen=True)
class Shrunk(Weighted):
    """last + slope h max(0, (R² - null)/(1 - null)), null: median R² of a driftless walk."""

    name: ClassVar[str] = "shrunk"
    formula: ClassVar[str] = "last + slope h max(0, (R² - null)/(1 - null))"
    reads: ClassVar[tuple[str, ...]] = ("last", "slope", "rsq")

    def rate(self, values: Values, points: Points) -> Array:
        """The slope."""
        del points
        return values.fit["slope"]

    def weight(self, values: Values, points: Points) -> Array:
        """(R² - null)/(1 - null); nothing where a walk could not score less than 1."""
        null, rsq = points.null_rsq, values.fit["rsq"]
        return (rsq - null) * (1 / (1 - null)) if null < 1 else rsq * 0
