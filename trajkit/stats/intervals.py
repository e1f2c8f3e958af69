"""Prediction intervals for one element beyond the window of its line.

Two kinds of errors about a line value = mean + slope (x - x̄), T checkpoints, u = x - x̄, S_xx = Σ u²:

    iid        the residuals are independent noise of variance s² = SSE / (T - 2): a checkpoint at x*
               is within  q s √(1 + 1/T + u*²/S_xx)  of the line (Seber and Lee 2003, section 5.3)
    diffusion  the residuals wander: increments have mean b Δx and variance s² Δx. From the last
               checkpoint, with the drift b = (y_T - y_1)/X and s² = Σ (Δy - b Δx)²/Δx / (T - 2), a
               checkpoint h steps on is within  q s √(h + h²/X)  of y_T + b h  (h of its own increments,
               h²/X of the drift's error)

q is Student's quantile with T - 2 degrees. A stored value is rounded: each bound moves out by half a
spacing of the format (ulp) at the value.

Arrays of any one shape; float64.
"""

import numpy as np

from trajkit.arrays import Array
from trajkit.stats.axis import StepAxis
from trajkit.stats.student import student_tail


def student_quantile(coverage: float, degrees: int) -> float:
    """Q with P(\\|T\\| <= q) = coverage, by bisection to 1e-9.

    >>> round(student_quantile(0.95, 12), 4)
    2.1788
    """
    low, high = 0.0, 1.0
    while float(student_tail(np.array(high), degrees)) > 1 - coverage:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if float(student_tail(np.array(middle), degrees)) > 1 - coverage:
            low = middle
        else:
            high = middle
    return high


def iid_interval(
    mean: Array, slope: Array, sse: Array, axis: StepAxis, step: float,
    ulp: Array | float = 0.0, coverage: float = 0.95,
) -> tuple[Array, Array]:  # fmt: skip
    """Lower and upper bound of a value at ``step``, for independent noise about the line.

    Args:
        mean: the line's value at x̄.
        slope: a training step.
        sse: Σ of squared residuals.
        axis: of the window, three checkpoints or more.
        step: the training step asked for.
        ulp: spacing of the format at the value; 0 for a value that is not rounded.
        coverage: 0.95 for a 95 % interval.

    >>> axis = StepAxis.of([0, 10, 20])
    >>> low, high = iid_interval(np.zeros(1), np.ones(1), np.zeros(1), axis, 30, ulp=0.5)
    >>> float(low[0]), float(high[0])
    (19.75, 20.25)
    """
    n = len(axis.steps)
    u = step - axis.mean
    centre = mean + slope * u
    spread = np.sqrt(np.maximum(sse, 0) / (n - 2) * (1 + 1 / n + u**2 / axis.s_xx))
    half = student_quantile(coverage, n - 2) * spread + 0.5 * np.asarray(ulp)
    return centre - half, centre + half


def diffusion_interval(
    last: Array, drift: Array, variance: Array, axis: StepAxis, step: float,
    ulp: Array | float = 0.0, coverage: float = 0.95,
) -> tuple[Array, Array]:  # fmt: skip
    """Lower and upper bound of a value at ``step``, for a walk with drift from the last checkpoint.

    Args:
        last: the value at the last checkpoint.
        drift: b, a training step.
        variance: s², of an increment a training step.
        axis: of the window, three checkpoints or more.
        step: the training step asked for, at or after the last.
        ulp: as in :func:`iid_interval`.
        coverage: as in :func:`iid_interval`.

    >>> axis = StepAxis.of([0, 1, 2])
    >>> low, high = diffusion_interval(np.ones(1), np.zeros(1), np.zeros(1), axis, 5, ulp=0.5)
    >>> float(low[0]), float(high[0])
    (0.75, 1.25)
    """
    ahead = step - axis.steps[-1]
    centre = last + drift * ahead
    spread = np.sqrt(np.maximum(variance, 0) * (ahead + ahead**2 / axis.span))
    half = student_quantile(coverage, len(axis.steps) - 2) * spread + 0.5 * np.asarray(ulp)
    return centre - half, centre + half
