"""What a driftless random walk scores, on the same steps, where R² alone does not decide.

Beside :func:`trajkit.stats.nulls.null_rsq`: Durbin-Watson of the residuals and t of the drift, with
the definitions of the kernels' ``solve``. Axis letters: T checkpoints, W walks.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trajkit.arrays import Array
from trajkit.stats.student import student_tail

_WALKS, _MOST_WALKS = 8192, 32768
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class WalkReference:
    """Durbin-Watson and drift of driftless Gaussian walks on one step axis."""

    dw_low: float
    """lower quartile of Durbin-Watson"""
    dw_median: float
    dw_high: float
    """upper quartile"""
    share_drift_t_above_2: float
    """share of walks whose drift looks significant, |t| >= 2: Student's t, T - 2 degrees of freedom"""


@lru_cache(maxsize=8)
def reference_walks(steps: tuple[int, ...], seed: int = 0) -> WalkReference | None:
    """The reference for these training steps; None below three, where neither number exists.

    The increments' variance is proportional to the training steps between checkpoints. The drift's
    t weighs each difference by 1/Δx, so that it is Student's with T - 2 degrees on any axis.

    >>> walk = reference_walks(tuple(range(14)))
    >>> 0.9 < walk.dw_median < 1.2, 0.06 < walk.share_drift_t_above_2 < 0.08  # REFERENCE: 1.08
    (True, True)
    """
    if len(steps) < 3:
        return None
    dw_W = durbin_watson(steps, seed)
    low, median, high = np.quantile(dw_W, [0.25, 0.5, 0.75]).tolist()
    return WalkReference(low, median, high, float(student_tail(np.array(2.0), len(steps) - 2)))


@lru_cache(maxsize=8)
def durbin_watson(steps: tuple[int, ...], seed: int = 0) -> Array:
    """Durbin-Watson of driftless Gaussian walks on these steps (three or more), float64 [W].

    32,768 walks, fewer for T above 244 (8,192 from 976 on, at least 512 above 4,882). Memory: a few
    blocks of 8 MiB.
    """
    x_T = np.asarray(steps, np.float64)
    u_T = x_T - x_T.mean()
    dx_T = np.diff(x_T)
    rng = np.random.default_rng(seed)
    n_walks = int(np.clip(4 * 10**7 // len(x_T), 512, _WALKS))
    n_walks = max(n_walks, min(8 * 10**6 // len(x_T), _MOST_WALKS))
    rows = max(1, _BLOCK_ELEMENTS // len(x_T))
    dw = []
    for start in range(0, n_walks, rows):
        n = min(rows, n_walks - start)
        d_WT = rng.standard_normal((n, len(dx_T))) * np.sqrt(dx_T)
        y_WT = np.concatenate([np.zeros((n, 1)), np.cumsum(d_WT, axis=1)], axis=1)
        y_WT -= y_WT.mean(axis=1, keepdims=True)
        slope_W = (y_WT @ u_T) / (u_T @ u_T)
        sse_W = np.einsum("wt,wt->w", y_WT, y_WT) - slope_W**2 * (u_T @ u_T)
        dw.append(((d_WT - slope_W[:, None] * dx_T) ** 2).sum(axis=1) / sse_W)
    return np.concatenate(dw)
