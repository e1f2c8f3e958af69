"""``damped``: anchored, over a multiple of the horizon."""

from dataclasses import dataclass
from typing import ClassVar

from trajkit.defaults import DEFAULT_DAMPING
from trajkit.fits.estimators.estimator import Parameter, Points
from trajkit.fits.estimators.slopes import FromSlope


@dataclass(frozen=True)
class Damped(FromSlope):
    """last + slope (L h).

    >>> Damped(0.25).coefficient(Points(0, 100, 50.0), 120)
    5.0
    """

    damping: float = DEFAULT_DAMPING

    name: ClassVar[str] = "damped"
    formula: ClassVar[str] = "last + slope (L h)"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "damping", "L", f"the horizon is multiplied by this (default {DEFAULT_DAMPING})", 0, 2
        ),
    )

    def coefficient(self, points: Points, step: int) -> float:
        """The damped horizon L h, in training steps."""
        return self.damping * (step - points.last_step)
