"""``wiener``: the drift, by the part of its square that is not noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trajkit.fits.estimators.estimator import Points, Values
from trajkit.fits.estimators.weighted import Weighted

if TYPE_CHECKING:
    from trajkit.arrays import Array


@dataclass(frozen=True)
class Wiener(Weighted):
    """last + drift h max(0, 1 - 1/t²), drift = (last - first)/(x_T - x_1), t that of the drift.

    t² - 1 over t² is what E[t²] = 1 + (true drift)²/variance leaves of a drift's square.
    """

    name: ClassVar[str] = "wiener"
    formula: ClassVar[str] = "last + drift h max(0, 1 - 1/t²)"
    reads: ClassVar[tuple[str, ...]] = ("last", "drift_t")
    reads_first: ClassVar[bool] = True

    def rate(self, values: Values, points: Points) -> Array:
        """The drift, through the window's first and last checkpoint."""
        from trajkit.kernels.api import values_of

        first, last = (values_of(bits, values.dtype) for bits in (values.first, values.last))
        drift: Array = (last - first) / points.span
        return drift.astype("float32", copy=False)

    def weight(self, values: Values, points: Points) -> Array:
        """1 - 1/t², float32."""
        del points
        t = values.fit["drift_t"].astype("float32")
        weight: Array = 1 - 1 / (t * t)
        return weight
