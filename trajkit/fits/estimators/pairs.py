"""Estimators that go through two checkpoints a and b; every element moves unless a gate is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trajkit.fits.estimators.estimator import Counts, Parameter, Points, Values

if TYPE_CHECKING:
    from trajkit.arrays import Array
    from trajkit.fits.devices import Arithmetic
    from trajkit.kernels.gate import Gate
    from trajkit.kernels.rounding import Rounding


class FromPair:
    """What ``two-point`` and ``expo`` have in common."""

    parameters: ClassVar[tuple[Parameter, ...]] = ()
    needs_fit: ClassVar[bool] = False
    reads_first: ClassVar[bool] = True
    combines: ClassVar[bool] = False
    gates_itself: ClassVar[bool] = True
    asks_for: ClassVar[str] = "--steps"
    reads: ClassVar[tuple[str, ...]] = ()
    from_last: ClassVar[bool] = False
    """whether the difference b - a is added to b, not to a"""

    def coefficient(self, points: Points, step: int) -> float:
        """What the difference b - a is multiplied by."""
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
        """Write a + c (b - a); from the last, b + c (b - a) as b + (-c)(a - b): the same bits.

        Of the way from b a part s is gone by c' = s c from the last, else by c' = 1 + s (c - 1).
        """
        factor = self.coefficient(points, step)
        if scale != 1:
            factor = scale * factor if self.from_last else 1 + scale * (factor - 1)
        a, b = values.first, values.last
        if self.from_last:
            a, b, factor = b, a, -factor
        moved, held, unchanged = arithmetic.extrapolate_pair(
            a, b, factor, values.last, values.dtype, gate=gate, rounding=rounding, out_bits=out
        )
        if factor == 0 and self.from_last:
            out[...] = values.last  # all its bits: -0.0 + 0.0 would be 0.0
            return Counts(0, held, moved + unchanged)
        return Counts(moved, held, unchanged)
