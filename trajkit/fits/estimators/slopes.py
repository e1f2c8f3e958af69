"""Estimators that follow the fitted line: a base, and the slope times a coefficient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trajkit.fits.estimators.estimator import Counts, Parameter, Points, Values

if TYPE_CHECKING:
    from trajkit.arrays import Array
    from trajkit.fits.devices import Arithmetic
    from trajkit.kernels.gate import Gate
    from trajkit.kernels.rounding import Rounding


class FromSlope:
    """What ``anchored``, ``line`` and ``damped`` have in common."""

    parameters: ClassVar[tuple[Parameter, ...]] = ()
    needs_fit: ClassVar[bool] = True
    reads_first: ClassVar[bool] = False
    combines: ClassVar[bool] = False
    gates_itself: ClassVar[bool] = False
    asks_for: ClassVar[str] = "--steps"
    reads: ClassVar[tuple[str, ...]] = ("last", "slope")
    base: ClassVar[Literal["last", "mean"]] = "last"

    def coefficient(self, points: Points, step: int) -> float:
        """Training steps that the slope is multiplied by."""
        raise NotImplementedError

    def target_step(self, points: Points) -> int | None:
        """None: a target has to be said."""
        del points
        return None

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
        """Write base + coefficient · slope; of that a part goes from the last checkpoint."""
        slope, dx, base = values.fit["slope"], self.coefficient(points, step), self.base
        mean = values.fit.get("mean", slope)  # not read where the base is the last checkpoint
        if scale != 1 and base == "mean":
            slope, dx, base = _way_to_line(values, slope, mean, dx), scale, "last"
        elif scale != 1:
            dx *= scale
        moved, held, unchanged = arithmetic.extrapolate_line(
            base, values.last, slope, mean, values.dtype,
            dx=dx, gate=gate, rounding=rounding, out_bits=out,
        )  # fmt: skip
        if dx == 0 and base == "last":
            out[...] = values.last  # all its bits: -0.0 + 0.0 would be 0.0
            return Counts(0, held, moved + unchanged)
        return Counts(moved, held, unchanged)


def _way_to_line(values: Values, slope: Array, mean: Array, dx: float) -> Array:
    """From the last checkpoint to mean + slope dx, float32 [N]."""
    import numpy as np

    from trajkit.kernels.api import values_of

    last = values_of(values.last, values.dtype).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return (mean.astype(np.float64) + slope.astype(np.float64) * dx - last).astype(np.float32)
