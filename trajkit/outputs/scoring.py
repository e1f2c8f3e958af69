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

BLOCK_BYTES = 1 << 28
"""of one block of logits, in the model's own dtype and float32 together: with a vocabulary of 150,000
it has 220 rows, and a head that multiplies fewer than 200 at a time is slow"""
SLICE = 1 << 15
"""V at a time"""
CACHED = 1 << 18
"""logits at a time on a CPU, so that the passes over them find them in its cache"""
CACHED_GPU = 1 << 23
"""the same on a GPU, which wants more at once"""


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
    rows = max(1, block_bytes // (vocabulary * (model.dtype.itemsize + 4)))
    for batch in batches:
        ids = torch.from_numpy(batch.ids_BL).to(model.device)
        with body_and_head(model, ids) as (hidden, head):
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

    With m the largest logit of a slice and p its softmax: log Σ exp(l - m) = -log p_max, and the mean
    of l - m is Σ p (l - m). Over the slices, each weighs by its part of the sum. Then log p is
    l_target - m - log Σ exp(l - m), and entropy is log Σ exp(l - m) - mean of (l - m).
    """
    target_M1 = logits_MV.gather(1, targets_M[:, None]).float()
    starts = range(0, logits_MV.shape[1], SLICE)
    slices = [_measure_slice(logits_MV[:, at : at + SLICE], target_M1) for at in starts]
    peak_MS, log_sum_MS, mean_MS, where_MS, above_MS = (
        torch.stack(column, 1) for column in zip(*slices, strict=True)
    )
    most_M1, slice_M1 = peak_MS.max(1, keepdim=True)
    log_parts_MS = peak_MS - most_M1 + log_sum_MS
    log_total_M1 = log_parts_MS.logsumexp(1, keepdim=True)
    shift_MS = torch.where(peak_MS.isneginf(), 0, peak_MS - most_M1)
    mean_M = ((log_parts_MS - log_total_M1).exp() * (shift_MS + mean_MS)).sum(1)
    log_p_M = (target_M1 - most_M1 - log_total_M1)[:, 0]
    likeliest_M = (where_MS.gather(1, slice_M1) + slice_M1 * SLICE)[:, 0]
    return log_p_M, log_total_M1[:, 0] - mean_M, above_MS.sum(1), likeliest_M


def _measure_slice(
    part_MV: "torch.Tensor", target_M1: "torch.Tensor"
) -> tuple["torch.Tensor", ...]:
    """A slice's m, log Σ exp(l - m), mean of l - m, where m is, logits above the target's; [M] each."""
    n, width = part_MV.shape
    cached = CACHED if part_MV.device.type == "cpu" else CACHED_GPU
    rows = max(1, min(cached // width, n))
    # memory that is got anew for each few rows costs more than the arithmetic
    scratch = part_MV.new_empty((2, rows, width), dtype=torch.float32)
    where, above = torch.empty_like(target_M1, dtype=torch.int64), torch.empty_like(target_M1)
    peak, log_sum, mean = (torch.empty_like(target_M1) for _ in range(3))
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        part = part_MV[block].float()
        off, weights = scratch[:, : len(part)]
        where[block, 0] = _argmax(part)
        above[block, 0] = _count_above(part, target_M1[block])
        torch.gather(part, 1, where[block], out=peak[block])
        torch.sub(part, peak[block], out=off)
        if peak[block].isneginf().any():  # forbidden all; its part of the sum is 0
            off[peak[block, 0].isneginf()] = 0.0
        torch.softmax(off, 1, out=weights)
        torch.gather(weights, 1, where[block], out=log_sum[block])
        mean[block, 0] = weighted_means(weights, off)
    return tuple(x[:, 0] for x in (peak, -log_sum.log(), mean, where, above))


# On the CPU numpy's loops are vectorised, and torch's take three to ten times as long.


def _argmax(part_MV: "torch.Tensor") -> "torch.Tensor":
    """The place of each row's largest number, int64 [M]; the first of several."""
    if part_MV.device.type == "cpu":
        return torch.from_numpy(part_MV.numpy().argmax(1))
    return part_MV.argmax(1)


def _count_above(part_MV: "torch.Tensor", target_M1: "torch.Tensor") -> "torch.Tensor":
    """How many numbers of each row are larger than the row's target, int64 [M]."""
    if part_MV.device.type == "cpu":
        pairs = zip(part_MV.numpy(), target_M1.numpy(), strict=True)
        return torch.tensor([np.count_nonzero(row > target) for row, target in pairs])
    return (part_MV > target_M1).sum(1)


def weighted_means(weights_MV: "torch.Tensor", off_MV: "torch.Tensor") -> "torch.Tensor":
    """Σ w x of each row, [M], of logarithms x; beyond 1e4 they count as that, and as 0 where no number.

    So a term of probability 0 is 0. Changes ``off`` where that is needed.
    """
    found = _dots(weights_MV, off_MV)
    if found.isfinite().all():
        return found
    return _dots(weights_MV, off_MV.nan_to_num_(0.0, posinf=1e4, neginf=-1e4))


def _dots(one_MV: "torch.Tensor", two_MV: "torch.Tensor") -> "torch.Tensor":
    if one_MV.device.type == "cpu":
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.vecdot(one_MV.numpy(), two_MV.numpy()))
    found: torch.Tensor = torch.linalg.vecdot(one_MV, two_MV)
    return found


@contextmanager
def body_and_head(model: Any, ids_BL: "torch.Tensor") -> Iterator[tuple[Any, Any]]:
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
