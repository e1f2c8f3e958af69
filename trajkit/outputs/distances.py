"""How far distributions moved: KL over the whole vocabulary at chosen places of a probe set.

Two references are held, the first model's and the one before, as log-probabilities in float32. They
are V numbers a place, so the places are a sample where there are many: drawn once, by a seed.
"""

from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.libraries import torch

MOST_PLACES = 4096


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
        found = Divergence(
            to_base=mean_kl(now, base),
            from_base=mean_kl(base, now),
            to_before=mean_kl(now, before),
            places=len(self.places),
        )
        # the memory of the one before is free now, unless it is the base's
        self._now = None if before is base else before
        self._base, self._before = base, now
        return found


def mean_kl(p_MV: "torch.Tensor", q_MV: "torch.Tensor") -> float:
    """Mean over rows of Σ p (log p - log q), from log-probabilities; a few rows at a time."""
    if p_MV is q_MV:
        return 0.0
    total, rows = 0.0, max(1, (1 << 22) // p_MV.shape[1])
    for at in range(0, len(p_MV), rows):
        p, q = p_MV[at : at + rows], q_MV[at : at + rows]
        # as in torch's kl_div: where p is 0 the term is 0
        terms = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True)
        total += float(torch.nan_to_num(terms, nan=0.0).sum(dtype=torch.float64))
    return max(total / len(p_MV), 0.0)
