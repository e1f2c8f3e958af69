"""The noise of stochastic rounding: the same for an element whoever computes it."""

import numpy as np
from numpy.typing import NDArray


def uniform_noise(seed: int, first_index: int, n: int) -> NDArray[np.uint32]:
    """Uniform uint32 [N] that depend on ``seed`` and the elements' global indices alone.

    The upper 32 bits of splitmix64 (Steele, Lea and Flood 2014) with the counter
    mix(seed) + index · 0x9E3779B97F4A7C15; mix is splitmix64's own output function.

    >>> bool((uniform_noise(1, 5, 3) == uniform_noise(1, 0, 8)[5:]).all())
    True
    """
    with np.errstate(over="ignore"):
        start = mix_seed(seed)
        index_N = np.arange(n, dtype=np.uint64) + np.uint64(first_index % 2**64)
        mixed: NDArray[np.uint64] = _mix(start + index_N * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(32)).astype(np.uint32)


def mix_seed(seed: int) -> np.uint64:
    """Where the counter of :func:`uniform_noise` starts."""
    with np.errstate(over="ignore"):
        return np.uint64(_mix(np.array([seed % 2**64], dtype=np.uint64))[0])


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's output function: every input bit reaches every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
