"""``two-point``: the straight line through two checkpoints (arXiv 2601.04537, equation 4)."""

from dataclasses import dataclass
from typing import ClassVar

from trajkit.fits.estimators.estimator import Points
from trajkit.fits.estimators.pairs import FromPair


@dataclass(frozen=True)
class TwoPoint(FromPair):
    """a + (x* - x_a)/(x_b - x_a) (b - a).

    >>> TwoPoint().coefficient(Points(0, 100), 150)
    1.5
    """

    name: ClassVar[str] = "two-point"
    formula: ClassVar[str] = "first + (x - x_first)/(x_last - x_first) (last - first)"

    def coefficient(self, points: Points, step: int) -> float:
        """Beta, 1 at the last point."""
        return (step - points.first_step) / points.span
