"""What two passes of one checkpoint differ by, batched differently: smaller differences mean nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.batching import Batch, make_batches
from trajkit.outputs.probes import Probe


@dataclass(frozen=True, slots=True)
class Noise:
    """|Δ| of every number between two passes of the checkpoint ``step``."""

    step: int
    largest: float
    mean: float
    p99: float
    """99 % of the numbers differ by less"""

    @classmethod
    def between(cls, step: int, once: Array, again: Array) -> Self:
        """Of two passes' numbers, floats [N]; differences are taken in float64."""
        off = np.abs(again.astype(np.float64) - once)
        return cls(
            step=step,
            largest=float(off.max()),
            mean=float(off.mean()),
            p99=float(np.quantile(off, 0.99)),
        )


def halve_batches(probes: Sequence[Probe], batches: Sequence[Batch]) -> list[Batch]:
    """The same probes, in batches half as large as the largest of these."""
    largest = max(batch.ids_BL.size for batch in batches)
    return make_batches(probes, max(largest // 2, 1))
