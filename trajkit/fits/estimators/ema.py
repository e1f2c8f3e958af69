"""``ema``: a moving average over the window's checkpoints, the newest weighing most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trajkit.defaults import DEFAULT_DECAY
from trajkit.fits.estimators.combined import Combined
from trajkit.fits.estimators.estimator import Parameter

if TYPE_CHECKING:
    from trajkit.arrays import Array


@dataclass(frozen=True)
class Ema(Combined):
    """Σ_t D^(T - t) y_t over Σ_t D^(T - t), whatever the target.

    >>> import numpy as np
    >>> Ema(0.5).weights(np.empty((0, 0)), np.arange(3), 9).round(3).tolist()
    [0.143, 0.286, 0.571]
    """

    decay: float = DEFAULT_DECAY

    name: ClassVar[str] = "ema"
    formula: ClassVar[str] = "moving average of the checkpoints"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "decay", "D", f"a checkpoint weighs D times the next one (default {DEFAULT_DECAY})",
            0, 1,
        ),
    )  # fmt: skip

    def weights(self, gram_TT: Array, steps_T: Array, step: int) -> Array:
        """D^(T - t), summing to one; neither the elements nor the steps are looked at."""
        from trajkit.stats.combinations import ema_weights

        del gram_TT, step
        return ema_weights(len(steps_T), self.decay)
