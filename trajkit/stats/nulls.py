"""What R² scores on a step axis where there is no line: of a driftless walk, of noise.

Durbin-Watson of walks and their drift's t are in :mod:`trajkit.stats.walks`; walks that a narrow
format rounds in :mod:`trajkit.stats.rounding`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trajkit.arrays import Array

_WALKS = 1 << 17
_DRAWS = 4 * 10**7
_BLOCK_BYTES = 1 << 24


@lru_cache(maxsize=32)
def null_rsq(steps: tuple[int, ...], seed: int = 0) -> Array:
    """R² of driftless Gaussian random walks observed at these steps.

    The increment between two checkpoints has variance proportional to the training steps between
    them.

    Args:
        steps: training steps, ascending.
        seed: of the draws; the same seed gives the same numbers.

    Returns:
        float64 [W], ascending: 131,072 walks, fewer for T above 305 (at least 4,096).
        Empty for fewer than two steps. Memory: blocks of 16 MiB.
    """
    if len(steps) < 2:
        return np.empty(0)
    x = np.asarray(steps, np.float64)
    scale = np.sqrt(np.diff(x))
    u = x - x.mean()
    n_walks = int(np.clip(_DRAWS // len(x), 4096, _WALKS))
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK_BYTES // (8 * len(x)))
    parts = []
    for start in range(0, n_walks, rows):
        n = min(rows, n_walks - start)
        y = np.zeros((n, len(x)))
        np.cumsum(rng.standard_normal((n, len(x) - 1)) * scale, axis=1, out=y[:, 1:])
        y -= y.mean(axis=1, keepdims=True)
        parts.append((y @ u) ** 2 / ((u @ u) * np.einsum("ij,ij->i", y, y)))
    return np.sort(np.minimum(np.concatenate(parts), 1.0))


def null_median(steps: tuple[int, ...]) -> float | None:
    """Median R² of the driftless walk; None for fewer than two steps.

    >>> 0.42 < null_median(tuple(range(14))) < 0.48  # REFERENCE: .451
    True
    """
    rsq = null_rsq(steps)
    return float(np.median(rsq)) if len(rsq) else None


def null_above(steps: tuple[int, ...], threshold: float) -> float | None:
    """Share of driftless walks whose R² is above the threshold; None for fewer than two steps."""
    rsq = null_rsq(steps)
    return float(np.mean(rsq > threshold)) if len(rsq) else None


@dataclass(frozen=True, slots=True)
class NoiseReference:
    """What independent Gaussian noise about a constant scores."""

    mean_rsq: float
    median_rsq: float
    above: float
    """share with R² above the threshold"""
    dw_median: float
    """median Durbin-Watson of the residuals"""


@lru_cache(maxsize=8)
def noise_reference(
    steps: tuple[int, ...], threshold: float, seed: int = 0
) -> NoiseReference | None:
    """The second null: white noise about a constant at these steps; None for fewer than three.

    >>> noise = noise_reference(tuple(range(14)), 0.7)
    >>> round(noise.mean_rsq, 2), noise.above < 0.001  # REFERENCE: .077, .0002
    (0.08, True)
    """
    if len(steps) < 3:
        return None
    x = np.asarray(steps, np.float64)
    u, dx = x - x.mean(), np.diff(x)
    rng = np.random.default_rng(seed)
    n_draws = int(np.clip(_DRAWS // len(x), 4096, _WALKS))
    rows = max(1, _BLOCK_BYTES // (8 * len(x)))
    rsq, dw = [], []
    for start in range(0, n_draws, rows):
        y = rng.standard_normal((min(rows, n_draws - start), len(x)))
        y -= y.mean(axis=1, keepdims=True)
        slope, sst = y @ u / (u @ u), np.einsum("ij,ij->i", y, y)
        part = slope**2 * (u @ u)
        rsq.append(part / sst)
        dw.append(((np.diff(y, axis=1) - slope[:, None] * dx) ** 2).sum(axis=1) / (sst - part))
    all_rsq = np.concatenate(rsq)
    return NoiseReference(
        float(all_rsq.mean()),
        float(np.median(all_rsq)),
        float(np.mean(all_rsq > threshold)),
        float(np.median(np.concatenate(dw))),
    )
