"""Power spectra of a run's changes, from the inner products of the changes alone.

With d_k the change of step k and G_kl = <d_k, d_l>, the power of all elements together at frequency m/K
a step is  S_m = (1/K) Σ_kl G_kl exp(-2πi m (k - l)/K), and Σ_m S_m = Σ_k |d_k|². Of a driftless walk S
is flat. S_0 is the net displacement's: |Σ d_k|²/K.

Axis letters: K changes, M = K // 2 + 1 frequencies, J directions.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def spectrum(gram_KK: Array) -> Array:
    """Share of the power at every frequency from 0 to a half, both signs together, float64 [M].

    >>> flat = spectrum(np.eye(8))  # a walk: 1/8 at 0 and 1/2, 2/8 between
    >>> flat.round(3).tolist()
    [0.125, 0.25, 0.25, 0.25, 0.125]
    >>> spectrum(np.ones((8, 8))).round(3).tolist()  # a line: all of it at 0
    [1.0, 0.0, 0.0, 0.0, 0.0]
    """
    n = len(gram_KK)
    power_K = np.real(np.diagonal(np.fft.ifft(np.fft.fft(gram_KK, axis=0), axis=1)))
    folded_M = power_K[: n // 2 + 1].copy()
    folded_M[1 : (n + 1) // 2] += power_K[n // 2 + 1 :][::-1]
    return np.asarray(folded_M / folded_M.sum())


def low_share(share_M: Array, n: int, period: int) -> float:
    """Share of the power in periods of at least ``period`` steps, the net displacement included."""
    return float(share_M[: n // period + 1].sum())


def filtered_walk(n: int, decay: float) -> Array:
    """Spectrum of white noise through an exponential mean, Adam's with β1 = decay, float64 [M].

    |H(ω)|² = (1 - β)² / (1 - 2 β cos ω + β²), in its stationary state.

    >>> np.allclose(filtered_walk(8, 0.0), spectrum(np.eye(8)))
    True
    """
    omega_K = 2 * np.pi * np.arange(n) / n
    power_K = (1 - decay) ** 2 / (1 - 2 * decay * np.cos(omega_K) + decay**2)
    folded_M = power_K[: n // 2 + 1].copy()
    folded_M[1 : (n + 1) // 2] += power_K[n // 2 + 1 :][::-1]
    return np.asarray(folded_M / folded_M.sum())


def directions(gram_KK: Array, count: int) -> tuple[Array, Array]:
    """How the second half of a run moves along the main directions of its first half.

    The directions are u_j = Σ_k v_kj d_k / σ_j, from eigenvectors v and values σ² of the first half's
    block of G; <d_l, u_j> of later changes comes from G alone. Nothing of the second half chooses them.

    Returns:
        the coefficients of the second half, float64 [K - K // 2, J], and its own block of G.
    """
    half = len(gram_KK) // 2
    value_K, vector_KK = np.linalg.eigh(gram_KK[:half, :half])
    top = np.argsort(value_K)[::-1][:count]
    size_J = np.sqrt(np.maximum(value_K[top], 1e-300))
    return gram_KK[half:, :half] @ vector_KK[:, top] / size_J, gram_KK[half:, half:]


def bins(share_M: Array, n: int, count: int = 14) -> list[tuple[float, float]]:
    """A spectrum of n changes for a figure: frequency, power over a walk's, in bins of even ratio.

    >>> bins(spectrum(np.eye(9)), 9, 2)
    [(0.0, 1.0), (0.1111111111111111, 1.0), (0.3333333333333333, 1.0)]
    """
    flat_M = filtered_walk(n, 0.0)
    edges = np.unique(np.geomspace(1, len(share_M), count + 1).round().astype(int))
    found = [(0.0, float(share_M[0] / flat_M[0]))]
    for a, b in pairwise(edges.tolist()):
        middle = float(np.arange(a, b).mean() / n)
        found.append((middle, round(float(share_M[a:b].sum() / flat_M[a:b].sum()), 12)))
    return found
