"""Training steps as the sums see them: entered once, in units of the window."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.state import Sums


def take_steps(
    sums: Sums, steps_T: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Enter training steps into the host scalars of ``sums``; every backend begins with this.

    Returns:
        u_T and Δu_T, float64 [T]; Δu of the very first checkpoint is 0.

    Raises:
        ValueError: steps that do not increase, or do not lie after ``sums.x_last``.
    """
    x_T = np.asarray(steps_T, dtype=np.float64)
    if x_T.size == 0:
        return x_T, x_T
    before = x_T[0] if sums.count == 0 else sums.x_last
    dx_T = np.diff(x_T, prepend=before)
    rising_T = dx_T > 0
    if sums.count == 0:
        rising_T[0] = np.isfinite(x_T[0])
    if not rising_T.all():
        t = int(np.argmin(rising_T))
        earlier = before if t == 0 else x_T[t - 1]
        raise ValueError(f"training steps must increase: step {x_T[t]:g} follows {earlier:g}")
    u_T, du_T = (x_T - sums.x_ref) / sums.x_unit, dx_T / sums.x_unit
    if sums.count == 0:
        sums.x_first = float(x_T[0])
    sums.x_last = float(x_T[-1])
    sums.count += x_T.size
    sums.s_u += float(u_T.sum())
    sums.s_uu += float(u_T @ u_T)
    sums.s_du2 += float(du_T @ du_T)
    return u_T, du_T


def weigh_steps(
    du_T: NDArray[np.float64], batch: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weights h / Δu of (Δd)² in V, h the least Δu of a batch of frames, and 1 / h of each batch.

    The weights are at most 1, so that a sum in float32 overflows no sooner than Q. The very first
    checkpoint (Δu = 0) has weight 0.

    >>> weigh_steps(np.array([0.0, 2.0, 1.0, 4.0]), 3)
    (array([0. , 0.5, 1. , 1. ]), array([1.  , 0.25]))
    """
    per_du_T = np.divide(1.0, du_T, out=np.zeros_like(du_T), where=du_T > 0)
    starts = np.arange(0, len(du_T), batch)
    per_du_G = np.maximum.reduceat(per_du_T, starts) if len(du_T) else per_du_T
    largest_T = np.repeat(per_du_G, batch)[: len(du_T)]
    weight_T = np.divide(per_du_T, largest_T, out=np.zeros_like(du_T), where=largest_T > 0)
    return weight_T, per_du_G


def span_units(steps_T: NDArray[Any]) -> tuple[float, float]:
    """The x_ref and x_unit that suit a whole window: its mean, and half its length (1 if none).

    >>> span_units(np.array([0, 10, 20]))
    (10.0, 10.0)
    """
    x_T = np.asarray(steps_T, dtype=np.float64)
    x_ref = float(x_T.mean()) if x_T.size else 0.0
    half = float(x_T[-1] - x_T[0]) / 2 if x_T.size else 0.0
    return x_ref, half if half > 0 else 1.0
