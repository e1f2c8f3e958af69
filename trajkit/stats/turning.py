"""When did a run turn? Breaks in its mean rate of change, from the Gram matrix of its changes.

A piece of the run moves at one mean rate m (a vector over the elements) with increments about it whose
variance is proportional to Δx. For a break after change b, S1 and S2 the sums of the changes before and
after it, X1 and X2 their training steps, the squared error of one mean rate exceeds that of two by

    F_b = X1 X2 / (X1 + X2) |S1 / X1 - S2 / X2|²

and the break is where F_b is largest: the least-squares one. Its p-value is by permutation: if nothing
turned, the changes may stand in any order, and max F is as large as the run's own in a share p of 999
seeded orders (with the run's own counted among them; drawing stops when p can no longer be 0.01).
Pieces are broken again while p <= 0.01, at most three times, the largest break first; a piece has two
changes or more.

The linear regime is the longest piece; it starts where the break before it is. Changes that follow one
another closely resemble each other where an optimizer has momentum or a path bends slowly: breaks are
then found in a run that has no sharp one, so the turn at each is said with it, as the cosine of the
mean rates before and after and the ratio of their sizes.

Axis letters: K changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trajkit.arrays import Array

PERMUTATIONS = 999
SIGNIFICANT = 0.01
HOPELESS = int(SIGNIFICANT * (PERMUTATIONS + 1))
LEAST = 2
"""changes a piece has at least"""
MOST_BREAKS = 3


@dataclass(frozen=True, slots=True)
class Break:
    """A place where the mean rate of change differs before and after."""

    after: int
    """changes before it: the break is at checkpoint ``after``"""
    p_value: float
    cosine: float | None
    """of the mean rates of the pieces before and after"""
    speed_ratio: float | None
    """size of the mean rate after over that before"""


def find_breaks(gram_KK: Array, dx_K: Array, seed: int = 0) -> tuple[Break, ...]:
    """The significant breaks, in order.

    Args:
        gram_KK: inner products of the changes, float64 [K, K].
        dx_K: their training steps.
        seed: of the permutations.

    >>> d = np.array([[1.0, 0]] * 6 + [[0, 1.0]] * 6) + np.random.default_rng(0).normal(0, 0.1, (12, 2))
    >>> [b.after for b in find_breaks(d @ d.T, np.ones(12))]
    [6]
    """
    rng = np.random.default_rng(seed)
    found: dict[int, float] = {}
    pieces = [(0, len(dx_K))]
    while pieces and len(found) < MOST_BREAKS:
        candidates = []
        for start, stop in pieces:
            inside = slice(start, stop)
            gains = _gains(gram_KK[inside, inside], dx_K[inside])
            if len(gains) and np.isfinite(gains).all() and gains.max() > 0:
                candidates.append((float(gains.max()), start, stop, int(gains.argmax())))
        if not candidates:
            break
        _, start, stop, best = max(candidates)
        inside = slice(start, stop)
        p = _permuted(gram_KK[inside, inside], dx_K[inside], rng)
        pieces.remove((start, stop))
        if p <= SIGNIFICANT:
            at = start + best + LEAST
            found[at] = p
            pieces += [(start, at), (at, stop)]
    return _describe(gram_KK, dx_K, dict(sorted(found.items())))


def linear_regime(breaks: Sequence[Break], dx_K: Array) -> tuple[int, int]:
    """First and last checkpoint of the longest piece between breaks, by training steps.

    >>> linear_regime([], np.ones(5))
    (0, 5)
    """
    edges = [0, *(b.after for b in breaks), len(dx_K)]
    lengths = [float(dx_K[a:b].sum()) for a, b in pairwise(edges)]
    longest = int(np.argmax(lengths))
    return edges[longest], edges[longest + 1]


def _gains(gram_KK: Array, dx_K: Array) -> Array:
    """F_b for b = LEAST to K - LEAST."""
    n = len(dx_K)
    if n < 2 * LEAST:
        return np.empty(0)
    inner = np.cumsum(np.cumsum(gram_KK, axis=0), axis=1)
    steps = np.cumsum(dx_K)
    b = np.arange(LEAST, n - LEAST + 1) - 1
    s11, s_all = inner[b, b], inner[-1, -1]
    s1a = inner[b, -1]
    x1, x2 = steps[b], steps[-1] - steps[b]
    s12, s22 = s1a - s11, s_all - 2 * s1a + s11
    gap = s11 / x1**2 - 2 * s12 / (x1 * x2) + s22 / x2**2
    return np.asarray(x1 * x2 / steps[-1] * np.maximum(gap, 0))


def _permuted(gram_KK: Array, dx_K: Array, rng: np.random.Generator) -> float:
    """The share of orders whose largest F is at least the run's own, itself counted."""
    own = float(_gains(gram_KK, dx_K).max())
    as_large = 1
    for done in range(1, PERMUTATIONS + 1):
        order = rng.permutation(len(dx_K))
        as_large += float(_gains(gram_KK[np.ix_(order, order)], dx_K[order]).max()) >= own
        if as_large > HOPELESS:  # p is above SIGNIFICANT, whatever the rest say
            return as_large / (done + 1)
    return as_large / (PERMUTATIONS + 1)


def _describe(gram_KK: Array, dx_K: Array, found: dict[int, float]) -> tuple[Break, ...]:
    edges = [0, *found, len(dx_K)]
    breaks = []
    for i, (at, p) in enumerate(found.items()):
        one, two = slice(edges[i], at), slice(at, edges[i + 2])
        s11, s22 = (float(gram_KK[s, s].sum()) for s in (one, two))
        size = np.sqrt(max(s11, 0.0) * max(s22, 0.0))
        cosine = float(np.clip(gram_KK[one, two].sum() / size, -1, 1)) if size > 0 else None
        rates = [np.sqrt(max(s, 0.0)) / dx_K[w].sum() for s, w in ((s11, one), (s22, two))]
        ratio = float(rates[1] / rates[0]) if rates[0] > 0 else None
        breaks.append(Break(at, p, cosine, ratio))
    return tuple(breaks)
