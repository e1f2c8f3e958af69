"""How far distributions moved: KL over the whole vocabulary at chosen places of a probe set.

Two references are held, the first model's and the one before, as log-probabilities in float32. They
are V numbers a place, so the places are a sample where there are many: drawn once, by a seed.
"""

from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.libraries import torch

MOST_PLACES = 1024
_CACHED = 1 << 18


@dataclass(frozen=True, slots=True)
class Divergence:
    """Mean KL between next-token distributions, in nats, over the places looked at."""

    to_base: float
    """KL(this || base)"""
    from_base: float
    """KL(base || this): what k3 estimates from responses of the base model"""
    to_before: float
    """KL(this || step before)"""
    places: int


def choose_places(n_tokens: int, vocabulary: int, budget_bytes: int, most: int, seed: int) -> Array:
    """Places whose distributions fit the budget three times over: int64, ascending."""
    fitting = max(1, budget_bytes // (3 * 4 * vocabulary))
    count = min(n_tokens, most, fitting)
    if count == n_tokens:
        return np.arange(n_tokens)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(n_tokens, count, replace=False))


class DivergenceWatcher:
    """Sees the logits of one model after another; the first is the base."""

    def __init__(self, places: Array) -> None:
        self.places = places
        self._base: torch.Tensor | None = None
        self._before: torch.Tensor | None = None
        self._now: torch.Tensor | None = None

    def see(self, places_M: Array, logits_MV: "torch.Tensor") -> None:
        """Keep the log-probabilities of the places that were chosen."""
        at = np.searchsorted(self.places, places_M)
        at = np.minimum(at, len(self.places) - 1)
        inside = self.places[at] == places_M
        if not inside.any():
            return
        if self._now is None:
            shape = (len(self.places), logits_MV.shape[1])
            self._now = torch.empty(shape, dtype=torch.float32)
        rows = logits_MV[torch.from_numpy(np.flatnonzero(inside)).to(logits_MV.device)]
        self._now[torch.from_numpy(at[inside])] = torch.log_softmax(rows.float(), -1).cpu()

    def finish(self) -> Divergence:
        """What the model just seen is from the base and from the one before; it is next's before."""
        now = self._now
        assert now is not None
        base = now if self._base is None else self._base
        before = now if self._before is None else self._before
        to_base, from_base = mean_kls(now, base)
        to_before = to_base if before is base else mean_kls(now, before)[0]
        found = Divergence(to_base, from_base, to_before, places=len(self.places))
        # the memory of the one before is free now, unless it is the base's
        self._now = None if before is base else before
        self._base, self._before = base, now
        return found


def mean_kls(p_MV: "torch.Tensor", q_MV: "torch.Tensor") -> tuple[float, float]:
    """Means over rows of KL(p || q) and KL(q || p), from log-probabilities float32 [M, V].

    KL(p || q) = Σ p (log p - log q), a few rows at a time, so that they stay in a CPU's cache. Logs
    below -1e4 count as that: the probability is 0, and a term of 0 stays 0.
    """
    if p_MV is q_MV:
        return 0.0, 0.0
    there = back = 0.0
    rows = max(1, _CACHED // p_MV.shape[1])
    for at in range(0, len(p_MV), rows):
        p, q = (t[at : at + rows].clamp(min=-1e4).flatten() for t in (p_MV, q_MV))
        off = p - q
        there += float(torch.dot(p.exp_(), off))
        back -= float(torch.dot(q.exp_(), off))
    return max(there / len(p_MV), 0.0), max(back / len(p_MV), 0.0)
