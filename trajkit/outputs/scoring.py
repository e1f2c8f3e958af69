"""Teacher-forced scores of fixed responses under one model: log p, entropy, rank, likeliest token.

The model's body runs over a whole batch; its head runs over a few places at a time, and softmax in
float32 goes over the vocabulary in slices, so that logits of a long response never exist at once.

Axis letters: M response tokens of a batch, N of the probe set, V vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.batching import Batch
from trajkit.outputs.libraries import torch

BLOCK_BYTES = 1 << 26
"""of one block of logits, in the model's own dtype and float32 together"""
SLICE = 1 << 15
"""V at a time"""
CACHED = 1 << 18
"""logits at a time on a CPU, so that a dozen passes over them find them in its cache"""


@dataclass(frozen=True, slots=True)
class Scores:
    """What one model says of every response token."""

    log_p_N: Array
    """float32: natural logarithm of the token's probability, given all before it"""
    entropy_N: Array
    """float32, nats: of the distribution it is drawn from"""
    rank_N: Array
    """int32: tokens likelier than it; 0 for the likeliest"""
    argmax_N: Array
    """int32: the likeliest token"""


class Watcher(Protocol):
    """Whoever wants the distributions themselves."""

    def see(self, places_M: Array, logits_MV: "torch.Tensor") -> None:
        """The raw logits at some places of the probe set, on the model's device."""


def score(
    model: Any,
    batches: Sequence[Batch],
    n_tokens: int,
    *,
    watcher: Watcher | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Scores:
    """Scores of all response tokens.

    Args:
        model: a causal language model of transformers, in eval mode.
        batches: the probe set's (:func:`trajkit.outputs.batching.make_batches`).
        n_tokens: N.
        watcher: sees every block of logits.
        block_bytes: memory for one block.

    Notes:
        Memory: what the body needs for one batch, and one block. Arithmetic: the model's own dtype
        up to the logits; float32 from there.
    """
    log_p, entropy = np.zeros(n_tokens, np.float32), np.zeros(n_tokens, np.float32)
    rank, argmax = np.zeros(n_tokens, np.int32), np.zeros(n_tokens, np.int32)
    for places, targets, logits in logit_blocks(model, batches, block_bytes):
        found = score_logits(logits, targets)
        log_p[places], entropy[places] = found[0].cpu().numpy(), found[1].cpu().numpy()
        rank[places], argmax[places] = found[2].cpu().numpy(), found[3].cpu().numpy()
        if watcher is not None:
            watcher.see(places, logits)
    return Scores(log_p, entropy, rank, argmax)


@torch.no_grad()  # as a decorator: off while the caller has its turn
def logit_blocks(
    model: Any, batches: Sequence[Batch], block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[Array, "torch.Tensor", "torch.Tensor"]]:
    """The logits that predict response tokens: (places [M], targets [M], logits [M, V]), in blocks.

    ``places`` count response tokens over the whole probe set. Every place comes once.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rows = max(1, block_bytes // (vocabulary * (model.dtype.itemsize + 12)))
    for batch in batches:
        ids = torch.from_numpy(batch.ids_BL).to(model.device)
        with _body_and_head(model, ids) as (hidden, head):
            chosen = torch.from_numpy(batch.rows_M).to(model.device)
            targets = torch.from_numpy(batch.targets_M).to(model.device)
            for at in range(0, len(chosen), rows):
                block = slice(at, at + rows)
                logits = head(hidden[chosen[block]])
                yield batch.places_M[block], targets[block], logits


@torch.no_grad()
def score_logits(
    logits_MV: "torch.Tensor", targets_M: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Log p, entropy, rank and argmax [M] of targets under logits, float32 in slices of V.

    With m the largest logit and s = Σ exp(l - m): log p = l_target - m - log s, and
    entropy = log s - Σ exp(l - m) (l - m) / s. Sums are rescaled where a later slice has a larger m.
    """
    rows = max(1, CACHED // min(logits_MV.shape[1], SLICE))
    if logits_MV.device.type != "cpu" or len(logits_MV) <= rows:
        return _score_rows(logits_MV, targets_M)
    parts = [
        _score_rows(logits_MV[at : at + rows], targets_M[at : at + rows])
        for at in range(0, len(logits_MV), rows)
    ]
    log_p, entropy, rank, likeliest = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_p, entropy, rank, likeliest


def _score_rows(
    logits_MV: "torch.Tensor", targets_M: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """The same, for as many rows as go together."""
    target = logits_MV.gather(1, targets_M[:, None]).float()
    most = torch.full_like(target, -torch.inf)
    total, weighted = torch.zeros_like(target), torch.zeros_like(target)
    above = torch.zeros_like(targets_M)
    likeliest = torch.zeros_like(targets_M)
    for start in range(0, logits_MV.shape[1], SLICE):
        part = logits_MV[:, start : start + SLICE].float()
        above += (part > target).sum(1)
        peak, where = part.max(1, keepdim=True)
        likeliest = torch.where(peak > most, where + start, likeliest[:, None])[:, 0]
        raised = torch.maximum(peak, most)
        anchor = torch.where(raised.isneginf(), 0, raised)  # forbidden all: exp gives 0
        shift = most - anchor  # of what was summed before
        scale = shift.exp()
        shift = torch.where(total > 0, shift, 0)  # nothing before: -inf
        weighted = scale * (weighted + shift * total)
        total = scale * total
        part = part - anchor
        weights = part.exp()
        total += weights.sum(1, keepdim=True)
        moment = torch.linalg.vecdot(weights, part)[:, None]
        if moment.isnan().any():  # forbidden tokens: exp is 0, and 0 times -inf is not
            moment = torch.linalg.vecdot(weights, part.clamp_(min=-1e4))[:, None]
        weighted += moment
        most = raised
    log_total = total.log()
    log_p = target - most - log_total
    entropy = log_total - weighted / total
    return log_p[:, 0], entropy[:, 0], above, likeliest


@contextmanager
def _body_and_head(model: Any, ids_BL: "torch.Tensor") -> Iterator[tuple[Any, Any]]:
    """The body's last states [B L, H], and a function from some of them to logits.

    The head is the model itself with its body replaced by one that has its answer ready: so that
    whatever a family does behind the last layer (a soft cap, a scale) is done.
    """
    body = getattr(model, model.base_model_prefix, None)
    if body is None or body is model:
        logits = model(input_ids=ids_BL, use_cache=False).logits
        yield logits.flatten(0, 1), lambda rows: rows
        return
    found = body(input_ids=ids_BL, use_cache=False)

    def head(hidden: Any) -> Any:
        part = copy.copy(found)
        part["last_hidden_state"] = hidden[None]
        kept = vars(body).get("forward")
        body.forward = lambda *_, **__: part
        try:
            return model(input_ids=ids_BL[:, :1], use_cache=False).logits[0]
        finally:
            del body.forward
            if kept is not None:  # some wrappers put theirs there
                body.forward = kept

    yield found.last_hidden_state.flatten(0, 1), head
