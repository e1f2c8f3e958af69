"""Checkpoints as sums of others: weights, one a checkpoint, that do not look at any element.

A combination Σ_t w_t y_t with Σ_t w_t = 1 is the same for every element, so that its error against
a real checkpoint y_g follows from the Gram matrix of the deltas alone. With Δ_t = y_t - y_1 and
G_st = Δ_s · Δ_t:

    \\|Σ_t w_t y_t - y_g\\|² = v' G v,    v = w - e_g

Averages (``ema_weights``) and lines in a few directions (``rank_weights``, arXiv 2605.21468 for one
direction) are such combinations. Axis letters: T checkpoints, K directions.
"""

import numpy as np

from trajkit.arrays import Array


def ema_weights(n: int, decay: float) -> Array:
    """Weights of an exponential moving average over checkpoints, float64 [T], the newest last.

    w_t is in proportion to decay^(T - 1 - t); the weights sum to one.

    >>> ema_weights(3, 0.5).round(3).tolist()
    [0.143, 0.286, 0.571]
    """
    weights = float(decay) ** np.arange(n - 1, -1, -1, dtype=np.float64)
    return np.asarray(weights / weights.sum())


def rank_weights(gram_TT: Array, steps_T: Array, target: float, k: int, anchored: bool) -> Array:
    """Weights of the forecast in the K directions along which the deltas are largest.

    With the deltas from the first checkpoint D = U S V', the coefficients along direction j are
    U_tj S_j. Each is extended to the target by ordinary least squares on the training step: the line
    itself, from the first checkpoint; or, anchored, its slope from the last checkpoint.

    Args:
        gram_TT: G, deltas from the first checkpoint, float64 [T, T].
        steps_T: training steps.
        target: the training step to come.
        k: directions; fewer where the deltas have fewer.
        anchored: go on from the last checkpoint.

    Returns:
        float64 [T], summing to one; the last checkpoint alone where nothing has moved.

    >>> steps = np.array([0.0, 1.0, 2.0])
    >>> rank_weights(np.outer(steps, steps), steps, 4.0, 1, False).round(6).tolist()
    [-1.4, 0.8, 1.6]
    """
    n = len(steps_T)
    weights = np.zeros(n)
    values, vectors = np.linalg.eigh((gram_TT + gram_TT.T) / 2)
    order = np.argsort(values)[::-1][:k]
    order = order[values[order] > max(values[-1], 0.0) * 1e-12]
    x = np.asarray(steps_T, np.float64)
    u = x - x.mean()
    for j in order.tolist():
        size = np.sqrt(values[j])
        path = vectors[:, j] * size
        slope = (u @ path) / (u @ u)
        along = slope * (target - x[-1]) if anchored else path.mean() + slope * (target - x.mean())
        weights += along * vectors[:, j] / size
    weights[0] += 1.0 - weights.sum() - anchored
    weights[-1] += float(anchored)
    return weights


def squared_distance(gram_TT: Array, weights_T: Array, real: int) -> float:
    """\\|Σ_t w_t y_t - y_real\\|² from the Gram matrix; weights beyond their length are zero.

    >>> squared_distance(np.array([[0.0, 0.0], [0.0, 4.0]]), np.array([1.0]), 1)
    4.0
    """
    off = np.zeros(len(gram_TT))
    off[: len(weights_T)] = weights_T
    off[real] -= 1.0
    return max(float(off @ gram_TT @ off), 0.0)
