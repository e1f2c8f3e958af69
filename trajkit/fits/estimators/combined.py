"""Estimators that add up checkpoints: the same weights, which sum to one, for every element."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trajkit.fits.estimators.estimator import Counts, Parameter, Points, Values
from trajkit.fits.estimators.weighted import gate_by

if TYPE_CHECKING:
    from trajkit.arrays import Array
    from trajkit.fits.devices import Arithmetic
    from trajkit.kernels.gate import Gate
    from trajkit.kernels.rounding import Rounding


class Combined:
    """What ``ema``, ``rank-k`` and ``rank-k-anchored`` have in common: last + (Σ_t w_t y_t - last)."""

    parameters: ClassVar[tuple[Parameter, ...]] = ()
    needs_fit: ClassVar[bool] = False
    reads_first: ClassVar[bool] = False
    combines: ClassVar[bool] = True
    needs_gram: ClassVar[bool] = False
    gates_itself: ClassVar[bool] = True
    asks_for: ClassVar[str] = "--steps"
    reads: ClassVar[tuple[str, ...]] = ()

    def weights(self, gram_TT: Array, steps_T: Array, step: int) -> Array:
        """The weight of each checkpoint for a target, float64 [T]."""
        raise NotImplementedError

    def coefficient(self, points: Points, step: int) -> float:
        """1: the move is added as it is."""
        del points, step
        return 1.0

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
        """Write last + move, the move rounded to float32; elements without a finite one are held."""
        import numpy as np

        assert values.move is not None
        with np.errstate(over="ignore"):
            move = values.move.astype(np.float32)
        size = np.where(np.isfinite(move), np.abs(move), np.float32(0))
        factor = scale * self.coefficient(points, step)
        moved, held, unchanged = arithmetic.extrapolate_line(
            "last", values.last, move, move, values.dtype, dx=factor,
            gate=gate_by(size, gate), rounding=rounding, out_bits=out,
        )  # fmt: skip
        return Counts(moved, held, unchanged)
