"""Student's t: how often noise alone is so far from zero."""

import math

import numpy as np

from trajkit.arrays import Array

_NORMAL_ABOVE = 2000
"""degrees of freedom from which the normal distribution serves"""


def student_tail(t: Array, degrees: int) -> Array:
    """P(\\|T\\| >= t) of Student's t, t >= 0 of any shape, degrees >= 1, float64.

    The finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4), with
    θ = atan(t / √ν); above 2,000 the normal approximation 26.7.8, right to 1e-6.

    >>> student_tail(np.array([0.0, 2.0, 12.706]), 1).round(3)
    array([1.   , 0.295, 0.05 ])
    >>> student_tail(np.array([2.0]), 12).round(4)
    array([0.0687])
    """
    t = np.asarray(t, np.float64)
    if degrees > _NORMAL_ABOVE:
        z = t * (1 - 1 / (4 * degrees)) / np.sqrt(1 + t**2 / (2 * degrees))
        return np.asarray(np.vectorize(lambda v: math.erfc(v / math.sqrt(2)))(z))
    theta = np.arctan(t / math.sqrt(degrees))
    cos, sin = np.cos(theta), np.sin(theta)
    term = np.ones_like(t) if degrees % 2 == 0 else cos
    total = np.zeros_like(t) if degrees == 1 else term.copy()
    for k in range(2 if degrees % 2 == 0 else 3, degrees - 1, 2):
        term = term * cos**2 * ((k - 1) / k)
        total += term
    inside = sin * total if degrees % 2 == 0 else (theta + sin * total) * (2 / math.pi)
    return np.asarray(np.clip(1 - inside, 0.0, 1.0))
