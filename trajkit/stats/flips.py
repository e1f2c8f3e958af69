"""Walks made of a run's own changes: each checkpoint's change with its sign by the toss of a coin.

Columns that move together (a layer's neurons) are no independent witnesses: the median of their R²
varies far more from walk to walk than that of independent ones. Where there is no drift, the change
of all columns between two checkpoints is as likely as its opposite; so a walk with these changes
turned round at random, all columns together, is as likely as the run itself (Fisher's randomisation
test; the run counts among the walks: Phipson and Smyth, 2010).

Axis letters: T checkpoints, D = T - 1 changes, N columns, K walks.
"""

from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array

WALKS = 999
MOST_COLUMNS = 512
"""columns looked at; of more, a sample"""


@dataclass(frozen=True, slots=True)
class FlippedWalks:
    """Median R² of walks made of the run's own changes."""

    low: float
    """2.5 % of the walks have less"""
    median: float
    high: float
    """2.5 % have more"""
    p: float
    """share of walks, the run among them, whose median R² is at least the run's; never below
    1 / (walks + 1), and with few checkpoints never small: 6 give about 1/16 at best, 7 half of it"""


def sample_columns(n: int, most: int = MOST_COLUMNS, seed: int = 0) -> Array:
    """Indices of the columns looked at, int64, ascending."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def flipped_walks(
    values_TN: Array, steps: tuple[int, ...], walks: int = WALKS, seed: int = 0
) -> FlippedWalks | None:
    """The median R² of a run's columns beside that of walks made of its own changes.

    Args:
        values_TN: float64; columns that never change or are not finite are left out.
        steps: training steps, ascending.
        walks: K.
        seed: of the signs.

    Returns:
        None for fewer than three checkpoints, or where no column changes.

    Notes:
        float64. Time: K T N; memory: a few times T N.

    >>> ramp = np.arange(12.0)[:, None] * [1.0, 2.0]
    >>> flipped_walks(ramp, tuple(range(12))).p < 0.01
    True
    """
    moving_N = np.isfinite(values_TN).all(axis=0) & (values_TN != values_TN[:1]).any(axis=0)
    if len(steps) < 3 or not moving_N.any():
        return None
    changes_DN = np.diff(values_TN[:, moving_N].astype(np.float64), axis=0)
    x_T = np.asarray(steps, np.float64)
    u_T = x_T - x_T.mean()
    own = _median_rsq(changes_DN, u_T)
    rng = np.random.default_rng(seed)
    medians_K = np.array(
        [
            _median_rsq(changes_DN * rng.choice([-1.0, 1.0], len(changes_DN))[:, None], u_T)
            for _ in range(walks)
        ]
    )
    low, median, high = np.quantile(medians_K, [0.025, 0.5, 0.975]).tolist()
    as_straight = int(np.count_nonzero(medians_K >= own * (1 - 1e-12)))
    return FlippedWalks(low, median, high, (1 + as_straight) / (1 + walks))


def _median_rsq(changes_DN: Array, u_T: Array) -> float:
    """Median over columns of R² of the walk with these changes."""
    y_TN = np.zeros((len(u_T), changes_DN.shape[1]))
    np.cumsum(changes_DN, axis=0, out=y_TN[1:])
    y_TN -= y_TN.mean(axis=0)
    total_N = np.einsum("tn,tn->n", y_TN, y_TN)
    with np.errstate(invalid="ignore", divide="ignore"):
        rsq_N = (u_T @ y_TN) ** 2 / ((u_T @ u_T) * total_N)
    return float(np.nanmedian(rsq_N))
