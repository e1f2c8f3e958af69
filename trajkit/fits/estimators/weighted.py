"""Estimators that move each element by its own part: a weight in [0, 1] from how sure its drift is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from trajkit.fits.estimators.estimator import Counts, Points, Values
from trajkit.fits.estimators.slopes import FromSlope

if TYPE_CHECKING:
    from trajkit.arrays import Array
    from trajkit.fits.devices import Arithmetic
    from trajkit.kernels.gate import Gate
    from trajkit.kernels.rounding import Rounding


def gate_by(weight: Array, gate: Gate) -> Gate:
    """The gate that holds elements of no weight (float32 [N]), and those that ``gate`` holds."""
    import numpy as np

    if gate.score is not None and gate.threshold is not None:
        weight = np.where(gate.score > np.float32(gate.threshold), weight, np.float32(0))
    return replace(gate, score=weight.astype(np.float32, copy=False), threshold=0.0)


class Weighted(FromSlope):
    """What ``shrunk`` and ``wiener`` have in common: last + rate h w; w not above 0 is held."""

    gates_itself: ClassVar[bool] = True

    def coefficient(self, points: Points, step: int) -> float:
        """The horizon h, in training steps."""
        return float(step - points.last_step)

    def rate(self, values: Values, points: Points) -> Array:
        """Change a training step before it is weighted, float32 [N]."""
        raise NotImplementedError

    def weight(self, values: Values, points: Points) -> Array:
        """The weight, float32 [N]; NaN or not above 0: the element is held."""
        raise NotImplementedError

    def evaluate(
        self,
        values: Values,
        points: Points,
        step: int,
        *,
        gate: Gate,
        rounding: Rounding,
        out: Array,
        arithmetic: Arithmetic,
        scale: float = 1.0,
    ) -> Counts:
        """Write last + h · (rate · w), the product in float32; a gate by score closes w."""
        import numpy as np

        with np.errstate(all="ignore"):
            weight = self.weight(values, points)
            slope = (self.rate(values, points) * weight).astype(np.float32, copy=False)
        weighed = Values(values.dtype, {**values.fit, "slope": slope}, values.first, values.last)
        return super().evaluate(
            weighed, points, step, gate=gate_by(weight, gate), rounding=rounding, out=out,
            arithmetic=arithmetic, scale=scale,
        )  # fmt: skip
