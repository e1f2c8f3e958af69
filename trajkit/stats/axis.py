"""The step axis of a window, and its moments."""

from dataclasses import dataclass

from trajkit.arrays import Array


@dataclass(frozen=True, slots=True)
class StepAxis:
    """The training steps of a window, and their moments.

    >>> axis = StepAxis.of([0, 10, 20])
    >>> axis.mean, axis.s_xx, axis.span, axis.unit
    (10.0, 200.0, 20, 10.0)
    """

    steps: tuple[int, ...]
    mean: float
    """x̄, in training steps"""
    s_xx: float
    """sum of (x - x̄)², in squared training steps"""

    @classmethod
    def of(cls, steps: Array | list[int]) -> "StepAxis":
        """The axis of ascending training steps."""
        ints = [int(s) for s in steps]
        origin = ints[0]  # exact for windows far from step 0
        shifted = [s - origin for s in ints]
        mean = sum(shifted) / len(shifted)
        return cls(tuple(ints), origin + mean, float(sum((s - mean) ** 2 for s in shifted)))

    @property
    def span(self) -> int:
        """Training steps from the first checkpoint to the last."""
        return self.steps[-1] - self.steps[0]

    @property
    def unit(self) -> float:
        """The largest distance from x̄: steps in this unit lie in [-1, 1]."""
        return max(self.mean - self.steps[0], self.steps[-1] - self.mean) or 1.0
