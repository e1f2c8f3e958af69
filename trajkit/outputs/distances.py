"""How far distributions moved: KL over the whole vocabulary at chosen places of a probe set.

Two references are held, the first model's and the one before, as log-probabilities in float32. They
are V numbers a place, so the places are a sample where there are many: drawn once, by a seed.
"""

from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.libraries import torch
from trajkit.outputs.scoring import weighted_means

MOST_PLACES = 1024
_CACHED = 1 << 17
"""numbers of a model at a time, so that they stay in a CPU's cache"""
_CACHED_GPU = 1 << 23


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
    """Places whose distributions fit the budget three times over: int64, ascending.

    Two are held; a third of the budget is for a block of logits.
    """
    fitting = max(1, budget_bytes // (3 * 4 * vocabulary))
    count = min(n_tokens, most, fitting)
    if count == n_tokens:
        return np.arange(n_tokens)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(n_tokens, count, replace=False))


class DivergenceWatcher:
    """Sees the logits of one model after another; the first is the base.

    Memory: log-probabilities of two models at the places, on the CPU, and a few rows.
    """

    def __init__(self, places: Array) -> None:
        self.places = places
        self._base: torch.Tensor | None = None
        self._before: torch.Tensor | None = None
        self._models = 0
        self._begin()

    def _begin(self) -> None:
        self._sums = np.zeros(3)
        self._seen = 0

    @torch.no_grad()
    def see(self, places_M: Array, logits_MV: "torch.Tensor") -> None:
        """Compare the places that were chosen with the two references, and keep them for the next."""
        at = np.searchsorted(self.places, places_M)
        at = np.minimum(at, len(self.places) - 1)
        inside = np.flatnonzero(self.places[at] == places_M)
        device, width = logits_MV.device, logits_MV.shape[1]
        rows = max(1, (_CACHED if device.type == "cpu" else _CACHED_GPU) // width)
        # memory that is got anew for each few rows costs more than the arithmetic
        scratch = torch.empty((4, min(rows, len(inside)), width), device=device)
        for start in range(0, len(inside), rows):
            chosen = inside[start : start + rows]
            now, *rest = scratch[:, : len(chosen)]
            picked = torch.from_numpy(chosen).to(device)
            if logits_MV.dtype == torch.float32:
                logits = torch.index_select(logits_MV, 0, picked, out=now)
            else:
                logits = now.copy_(logits_MV[picked])
            torch.log_softmax(logits, -1, out=now)
            self._compare(torch.from_numpy(at[chosen]), now, rest)
        self._seen += len(inside)

    def _compare(
        self, at_M: "torch.Tensor", now_MV: "torch.Tensor", scratch: "list[torch.Tensor]"
    ) -> None:
        if self._base is None:
            self._base = torch.empty((len(self.places), now_MV.shape[1]))
        if self._models == 0:
            self._base.index_copy_(0, at_M, now_MV.cpu())
            return
        reference, off, weights = scratch
        base = _rows(self._base, at_M, reference)
        back = sum_kl(base, now_MV, torch.softmax(base, -1, out=weights), off)
        torch.softmax(now_MV, -1, out=weights)
        there = since = sum_kl(now_MV, base, weights, off)
        if self._before is None:
            self._before = torch.empty_like(self._base)
        if self._models > 1:
            since = sum_kl(now_MV, _rows(self._before, at_M, reference), weights, off)
        self._sums += there, back, since
        self._before.index_copy_(0, at_M, now_MV.cpu())

    def finish(self) -> Divergence:
        """What the model just seen is from the base and from the one before; it is next's before."""
        assert self._seen == len(self.places), "not every place was seen"
        to_base, from_base, to_before = np.maximum(self._sums / len(self.places), 0.0).tolist()
        self._models += 1
        self._begin()
        return Divergence(to_base, from_base, to_before, places=len(self.places))


def sum_kl(
    log_p_MV: "torch.Tensor", log_q_MV: "torch.Tensor", p_MV: "torch.Tensor", off: "torch.Tensor"
) -> float:
    """Sum over rows of KL(p || q) = Σ p (log p - log q); ``off``, of the same shape, is overwritten.

    From differences of logarithms, so that a small KL is not lost among large terms; what float32
    leaves is an error of some 1e-8 a row. Terms of probability 0 are 0; a log q of -inf counts as -1e4.
    """
    torch.sub(log_p_MV, log_q_MV, out=off)
    return float(weighted_means(p_MV, off).sum(dtype=torch.float64))


def _rows(held: "torch.Tensor", at_M: "torch.Tensor", out: "torch.Tensor") -> "torch.Tensor":
    """Some rows of what is held on the CPU, in ``out``, wherever that is."""
    if out.device.type == "cpu":
        return torch.index_select(held, 0, at_M, out=out)
    return out.copy_(held[at_M])
