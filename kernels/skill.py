"""How far forecasts made at one checkpoint lie from a later one, in sums that add up.

For an element with last value y_o at the origin x_o, the line's slope and mean there, and the real
value y at a later step x* = x_o + h:

    e = y - y_o                      what holding the last value is wrong by
    p = slope h                      what the line through the last value moves by
    q = (y_o - y_1) h / (x_o - x_1)  what the line through the first and last value moves by
    l = y - (mean + slope (x* - x̄))  what the least-squares line is wrong by

A rule that moves by a w p, with a damping a and a weight or gate w in [0, 1], has the squared error

    Σ (e - a w p)² = Σ e² - 2 a Σ e w p + a² Σ (w p)²

so that one pass serves every gate, every damping and every weight. Elements that are invalid are
left out; static ones have p = q = 0. ``SUMS`` names the sums, in float64.

Intervals (95 %, see :mod:`trajkit.stats.intervals`) are counted where an element has an R² and a
drift t: around the line for independent residuals, around y_o + q for a random walk with drift,
each widened by half an ulp of the stored format.

Axis letters: N elements, S sums.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.flags import FLAG_INVALID

RSQ_LEVELS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.985)
"""gates by R²: an element moves where its R² is above"""
LINE_LEVELS = (0.0, 0.7)
"""those of them that the least-squares line itself is judged at"""
T_LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
"""gates by the drift's t: an element moves where \\|t\\| is above"""
PLAIN = (
    *("elements", "ee", "eq", "qq", "e_wiener", "wiener2", "e_shrunk", "shrunk2", "mean2"),
    *("counted", "inside_iid", "inside_walk"),
)
SUMS = (
    *PLAIN,
    *(f"{what}_rsq:{level:g}" for what in ("ep", "pp") for level in RSQ_LEVELS),
    *(f"{what}_rsq:{level:g}" for what in ("ll", "held") for level in LINE_LEVELS),
    *(f"{what}_t:{level:g}" for what in ("ep", "pp") for level in T_LEVELS),
)
"""S names. ``held`` is Σ e² where the gate is closed, ``ll`` Σ l² where it is open"""


class Horizon(NamedTuple):
    """What one forecast knows of the step axis."""

    h: float
    """training steps from the origin to the target"""
    dx: float
    """training steps from the window's mean step to the target"""
    span: float
    """training steps from the window's first checkpoint to the origin"""
    checkpoints: float
    """checkpoints in the window"""
    s_xx: float
    """Σ (x - x̄)² over the window"""
    null: float
    """median R² of a driftless walk on the window, which ``shrunk`` takes for nothing"""
    z: float
    """quantile of the intervals: Student's, of the window's checkpoints less two"""


def tally_errors(
    values: dict[str, NDArray[Any]], flags_N: NDArray[np.uint8], horizon: Horizon
) -> NDArray[np.float64]:
    """The sums of N elements, float64 [S]: the specification, in float64.

    Args:
        values: float [N] each: ``real``, ``last``, ``first``, ``slope``, ``mean``, ``rsq``, ``t``
            and ``margin`` (half an ulp of the last value).
        flags_N: uint8 [N].
        horizon: of the forecast.
    """
    real, last, first, slope, mean, rsq, t, margin = (
        values[name].astype(np.float64)
        for name in ("real", "last", "first", "slope", "mean", "rsq", "t", "margin")
    )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        valid = ((flags_N & FLAG_INVALID) == 0) & np.isfinite(real) & np.isfinite(last)
        e = np.where(valid, real - last, 0)
        p = np.where(valid, slope * horizon.h, 0)
        q = np.where(valid, (last - first) * (horizon.h / horizon.span), 0)
        line = np.where(valid, real - (mean + slope * horizon.dx), 0)
        wiener = q * np.where(np.abs(t) > 1, 1 - 1 / (t * t), 0)
        shrunk = p * np.where(rsq > horizon.null, (rsq - horizon.null) / (1 - horizon.null), 0)
        counted = valid & (rsq > 0) & (t != 0) & np.isfinite(t)
        degrees = max(horizon.checkpoints - 2, 1)
        iid = slope**2 * horizon.s_xx * (1 / rsq - 1) / degrees
        iid = iid * (1 + 1 / horizon.checkpoints + horizon.dx**2 / horizon.s_xx)
        step = ((last - first) / t) ** 2 / horizon.span
        walk = step * horizon.h * (1 + horizon.h / horizon.span)
        in_iid = counted & (np.abs(line) <= horizon.z * np.sqrt(iid) + margin)
        in_walk = counted & (np.abs(e - q) <= horizon.z * np.sqrt(walk) + margin)
        sums: list[Any] = [valid.sum(), e @ e, e @ q, q @ q, e @ wiener, wiener @ wiener]
        sums += [e @ shrunk, shrunk @ shrunk, (np.where(valid, real - mean, 0) ** 2).sum()]
        sums += [counted.sum(), in_iid.sum(), in_walk.sum()]
        gates = [rsq > np.float32(level) for level in RSQ_LEVELS]
        sums += [(e * p)[g].sum() for g in gates] + [(p * p)[g].sum() for g in gates]
        gates = [rsq > np.float32(level) for level in LINE_LEVELS]
        sums += [(line * line)[g].sum() for g in gates] + [(e * e)[~g].sum() for g in gates]
        strong = [np.abs(t) > np.float32(level) for level in T_LEVELS]
        sums += [(e * p)[g].sum() for g in strong] + [(p * p)[g].sum() for g in strong]
    return np.array(sums, np.float64)
