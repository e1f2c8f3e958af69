"""``expo``: beyond the last checkpoint, away from the first (arXiv 2404.16792)."""

from dataclasses import dataclass
from typing import ClassVar

from trajkit.fits.estimators.estimator import Parameter, Points
from trajkit.fits.estimators.pairs import FromPair


@dataclass(frozen=True)
class Expo(FromPair):
    """b + alpha (b - a).

    >>> Expo().coefficient(Points(0, 100), 150)
    0.5
    >>> Expo(0.3).target_step(Points(0, 100))
    130
    """

    alpha: float | None = None
    """None: the one that reaches the target's step"""

    name: ClassVar[str] = "expo"
    formula: ClassVar[str] = "last + F (last - first)"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("alpha", "F", "last + F (last - first), in place of --steps", -1e6, 1e6),
    )
    from_last: ClassVar[bool] = True
    asks_for: ClassVar[str] = "--alpha"

    def coefficient(self, points: Points, step: int) -> float:
        """Alpha."""
        return (step - points.last_step) / points.span if self.alpha is None else self.alpha

    def target_step(self, points: Points) -> int | None:
        """The step that alpha amounts to."""
        if self.alpha is None:
            return None
        return points.last_step + round(self.alpha * points.span)
