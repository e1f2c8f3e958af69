"""How a whole tensor or model moved, from the inner products of its changes alone.

With d_k = W_(k+1) - W_k the change between checkpoints k and k + 1, over any number of elements, the
Gram matrix G_kl = <d_k, d_l> holds everything below. Δx_k: training steps of the change, X their sum.

    speed      |d_k| / Δx_k
    cosine     of d_k with the sum of all other changes (0 for a driftless walk, 1 on a line)
    successive mean cosine of d_k and d_(k+1)
    net / path |Σ d_k| / Σ |d_k|     (1 on a line, 1/√n for a walk of n even changes)
    growth     slope of log |W_t - W_0|² on log (x_t - x_0): 1 diffusion, 2 a line
    drift part of |Σ d_k|²: μ² X² / |Σ d_k|², μ² the mean of G_kl / (Δx_k Δx_l) over pairs two or more
               apart, weighted by Δx_k Δx_l; pairs next to each other share a rounded value
    first component's share of Σ_t |W_t - W_0|²: the largest eigenvalue of P_ts = <W_t - W_0, W_s - W_0>
               over its trace. Displacements are not centred: of a walk P_ts is proportional to
               min(x_t, x_s) - x_0, whose share goes to 8/π² with T (its eigenvalues go as
               1/(2 k - 1)²); its value on the run's own axis stands beside it.

Axis letters: T checkpoints, K = T - 1 changes.
"""

from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array


@dataclass(frozen=True, slots=True)
class Movement:
    """How some elements moved together; see the module."""

    speed: tuple[float, ...]
    """[K], a training step"""
    cosine: tuple[float | None, ...]
    """[K], with the sum of all other changes; None where either is nothing"""
    successive_cosine: float | None
    net_over_path: float | None
    growth: float | None
    drift_part: float | None
    """in [0, 1]"""
    first_component: float | None
    walk_first_component: float
    """of a driftless walk on the same axis"""


def describe_gram(gram_KK: Array, dx_K: Array) -> Movement:
    """The figures of one Gram matrix, float64 [K, K], over changes of ``dx_K`` training steps.

    >>> line = describe_gram(np.ones((3, 3)), np.ones(3))
    >>> line.net_over_path, line.cosine, round(line.growth, 6), line.drift_part
    (1.0, (1.0, 1.0, 1.0), 2.0, 1.0)
    >>> walk = describe_gram(np.eye(400), np.ones(400))
    >>> round(walk.growth, 6), walk.drift_part, walk.cosine[0]
    (1.0, 0.0, 0.0)
    >>> round(walk.first_component, 2), round(8 / np.pi**2, 2)
    (0.81, 0.81)
    """
    size_K = np.sqrt(np.maximum(np.diag(gram_KK), 0))
    row_K = gram_KK.sum(axis=1)
    total = float(row_K.sum())
    path = float(size_K.sum())
    return Movement(
        speed=tuple((size_K / dx_K).tolist()),
        cosine=tuple(_cosines(gram_KK, size_K, row_K, total)),
        successive_cosine=_successive(gram_KK, size_K),
        net_over_path=float(np.sqrt(max(total, 0.0))) / path if path > 0 else None,
        growth=_growth(gram_KK, dx_K),
        drift_part=_drift_part(gram_KK, dx_K, total),
        first_component=_first_share(_positions(gram_KK)),
        walk_first_component=_first_share(_positions(np.diag(dx_K))) or 1.0,
    )


def _cosines(gram_KK: Array, size_K: Array, row_K: Array, total: float) -> list[float | None]:
    """Cosine of each change with the sum of all others."""
    square_K = size_K**2
    others_K = np.sqrt(np.maximum(total - 2 * row_K + square_K, 0))
    with np.errstate(all="ignore"):
        cosine_K = (row_K - square_K) / (size_K * others_K)
    return [float(np.clip(c, -1, 1)) if np.isfinite(c) else None for c in cosine_K]


def _successive(gram_KK: Array, size_K: Array) -> float | None:
    both_K = size_K[1:] * size_K[:-1]
    known_K = both_K > 0
    return float(np.mean(np.diag(gram_KK, 1)[known_K] / both_K[known_K])) if known_K.any() else None


def _growth(gram_KK: Array, dx_K: Array) -> float | None:
    square_K = np.diag(_positions(gram_KK))
    known_K = square_K > 0
    if known_K.sum() < 2:
        return None
    return float(np.polyfit(np.log(np.cumsum(dx_K)[known_K]), np.log(square_K[known_K]), 1)[0])


def _drift_part(gram_KK: Array, dx_K: Array, total: float) -> float | None:
    apart_KK = np.abs(np.subtract.outer(np.arange(len(dx_K)), np.arange(len(dx_K)))) >= 2
    weight = float(np.outer(dx_K, dx_K)[apart_KK].sum())
    if not weight or total <= 0:
        return None
    square_rate = float(gram_KK[apart_KK].sum()) / weight
    return float(np.clip(square_rate * dx_K.sum() ** 2 / total, 0, 1))


def _positions(gram_KK: Array) -> Array:
    """<W_t - W_0, W_s - W_0>, float64 [K, K], from that of the changes."""
    return np.asarray(np.cumsum(np.cumsum(gram_KK, axis=0), axis=1))


def _first_share(gram_TT: Array) -> float | None:
    trace = float(np.trace(gram_TT))
    return float(np.linalg.eigvalsh(gram_TT)[-1]) / trace if trace > 0 else None


def drift_cosine(cross: float, total_a: float, total_b: float) -> float | None:
    """Cosine of two net displacements from their inner product and squared norms."""
    scale = float(np.sqrt(max(total_a, 0.0) * max(total_b, 0.0)))
    return float(np.clip(cross / scale, -1, 1)) if scale > 0 else None
