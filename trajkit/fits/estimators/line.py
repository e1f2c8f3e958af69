"""``line``: the fitted line itself."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trajkit.fits.estimators.estimator import Points
from trajkit.fits.estimators.slopes import FromSlope


@dataclass(frozen=True)
class Line(FromSlope):
    """mean + slope (x* - x̄).

    >>> Line().coefficient(Points(0, 100, 50.0), 120)
    70.0
    """

    name: ClassVar[str] = "line"
    formula: ClassVar[str] = "mean + slope (x - x̄)"
    reads: ClassVar[tuple[str, ...]] = ("last", "slope", "mean")
    base: ClassVar[Literal["last", "mean"]] = "mean"

    def coefficient(self, points: Points, step: int) -> float:
        """Training steps from x̄."""
        return step - points.x_mean
