"""``mean``: the average of the window's checkpoints."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trajkit.fits.estimators.estimator import Points
from trajkit.fits.estimators.slopes import FromSlope


@dataclass(frozen=True)
class Mean(FromSlope):
    """The fit's mean, whatever the target.

    >>> Mean().coefficient(Points(0, 100, 50.0), 120)
    0.0
    """

    name: ClassVar[str] = "mean"
    formula: ClassVar[str] = "mean of the window"
    reads: ClassVar[tuple[str, ...]] = ("last", "slope", "mean")
    base: ClassVar[Literal["last", "mean"]] = "mean"
    gates_itself: ClassVar[bool] = True

    def coefficient(self, points: Points, step: int) -> float:
        """Nothing: the line at x̄."""
        del points, step
        return 0.0
