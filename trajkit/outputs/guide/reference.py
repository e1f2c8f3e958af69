"""Extrapolated logits at the probes, l0 + alpha (l1 - l0), and how far a model's outputs are from them.

KL(reference || model) = Σ p (log p - log q) over the vocabulary, nats, the mean over response tokens.
Logits are the model's own, from there on float32; sums over tokens float64.

Axis letters: M places (response tokens), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.batching import Batch, make_batches
from trajkit.outputs.distances import choose_places
from trajkit.outputs.libraries import torch
from trajkit.outputs.probes import Probe
from trajkit.outputs.scoring import logit_blocks

_ARRAYS = 5
"""float32 [V] a place: logits of the first and of the last checkpoint, once more where noise is
measured, and the reference; :func:`choose_places` counts with three"""
_CACHED = 1 << 18
_FAR = -1e4
"""a log-probability below counts as this: the probability is 0, and a term of 0 stays 0"""


@dataclass(frozen=True, eq=False)
class Part:
    """Some probes, and what the first and the last checkpoint say at their places."""

    probes: tuple[Probe, ...]
    batches: tuple[Batch, ...]
    places: Array
    """int64 [M]: response tokens looked at, ascending"""

    @property
    def tokens(self) -> int:
        """Ids of one forward, prompts included."""
        return sum(p.n_tokens for p in self.probes)


def make_part(
    probes: Sequence[Probe], batch_tokens: int, vocabulary: int, budget_bytes: int, most: int
) -> Part:
    """A part whose distributions fit the budget; a sample of its places where they do not all."""
    n = sum(len(p.response_ids) for p in probes)
    places = choose_places(n, vocabulary, budget_bytes * 3 // _ARRAYS, most, seed=0)
    return Part(tuple(probes), tuple(make_batches(probes, batch_tokens)), places)


def read_logits(model: Any, part: Part, batches: Sequence[Batch] | None = None) -> "torch.Tensor":
    """A model's logits at a part's places, float32 [M, V] on the CPU."""
    out: torch.Tensor | None = None
    for places, _, logits in logit_blocks(model, batches or part.batches):
        if out is None:
            out = torch.empty((len(part.places), logits.shape[1]), dtype=torch.float32)
        rows, at = _find(part.places, places)
        out[torch.from_numpy(at)] = logits[torch.from_numpy(rows).to(logits.device)].float().cpu()
    assert out is not None
    return out


def extrapolate_logits(first: "torch.Tensor", last: "torch.Tensor", alpha: float) -> "torch.Tensor":
    """Log-probabilities of l0 + alpha (l1 - l0), float32 [M, V]; what l1 forbids stays forbidden.

    >>> first, last = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    >>> extrapolate_logits(first, last, 2.0).exp()
    tensor([[0.1192, 0.8808]])
    """
    moved = last if alpha == 1 else torch.lerp(first, last, alpha)
    moved = torch.where(torch.isneginf(last), last, moved)
    return torch.log_softmax(moved, -1).clamp_(min=_FAR)


def kl_from(model: Any, part: Part, reference_MV: "torch.Tensor") -> float:
    """Mean KL(reference || model) over a part's places, nats; the model's logits are not kept."""
    total = 0.0
    for places, _, logits in logit_blocks(model, part.batches):
        rows, at = _find(part.places, places)
        if len(at):
            seen = logits[torch.from_numpy(rows).to(logits.device)].float().cpu()
            total += float(row_kls(reference_MV[torch.from_numpy(at)], seen).sum())
    return total / len(part.places)


def row_kls(reference_MV: "torch.Tensor", logits_MV: "torch.Tensor") -> "torch.Tensor":
    """KL(reference || softmax of logits) of every row, float64 [M]; the reference as log-probabilities.

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> row_kls(torch.log_softmax(logits, -1), logits - 1).abs() < 1e-7
    tensor([True])
    """
    found = []
    rows = max(1, _CACHED // reference_MV.shape[1])
    for start in range(0, len(reference_MV), rows):
        p = reference_MV[start : start + rows]
        q = torch.log_softmax(logits_MV[start : start + rows], -1).clamp_(min=_FAR)
        found.append(torch.linalg.vecdot(p.exp(), p - q).double())
    return torch.cat(found)


def _find(chosen: Array, places_M: Array) -> tuple[Array, Array]:
    """Rows of a block that were chosen, and where among the chosen they are."""
    at = np.minimum(np.searchsorted(chosen, places_M), len(chosen) - 1)
    rows = np.flatnonzero(chosen[at] == places_M)
    return rows, at[rows]
