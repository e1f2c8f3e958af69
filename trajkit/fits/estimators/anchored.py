"""``anchored``: from the last checkpoint along the slope."""

from dataclasses import dataclass
from typing import ClassVar

from trajkit.fits.estimators.estimator import Points
from trajkit.fits.estimators.slopes import FromSlope


@dataclass(frozen=True)
class Anchored(FromSlope):
    """last + slope h, with h = x* - x_T.

    >>> Anchored().coefficient(Points(0, 100, 50.0), 120)
    20.0
    """

    name: ClassVar[str] = "anchored"
    formula: ClassVar[str] = "last + slope h"

    def coefficient(self, points: Points, step: int) -> float:
        """The horizon h, in training steps."""
        return float(step - points.last_step)
