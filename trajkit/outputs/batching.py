"""Probes in batches of like lengths, padded on the right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.probes import Probe


@dataclass(frozen=True, slots=True)
class Batch:
    """Some probes as one rectangle of ids, and where the response tokens are in it.

    M response tokens, each predicted from the place before it.
    """

    ids_BL: Array
    """int64 [B, L], padded on the right: a causal model never looks there"""
    rows_M: Array
    """int64 [M]: the places of the rectangle, row after row, that predict response tokens"""
    targets_M: Array
    """int64 [M]: the tokens they predict"""
    places_M: Array
    """int64 [M]: where each token stands in the whole probe set"""
    probes_B: Array
    """int64 [B]: which probe each row is"""
    lengths_B: Array
    """int64 [B]: ids of each row that are no padding: the probe's, its last one left out"""


def offsets_of(probes: Sequence[Probe]) -> Array:
    """Where each response begins among all response tokens, and their number: int64 [R + 1].

    >>> offsets_of([Probe((1,), (2, 3), "", ""), Probe((1,), (), "", "")]).tolist()
    [0, 2, 2]
    """
    lengths = [len(p.response_ids) for p in probes]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def make_batches(probes: Sequence[Probe], tokens: int, pad: int = 0) -> list[Batch]:
    """Batches of at most ``tokens`` ids, padding included; a longer probe goes alone.

    Probes without a response are in none. The longest come first, so that memory peaks at once.
    """
    offsets = offsets_of(probes)
    order = sorted(
        (i for i, p in enumerate(probes) if p.response_ids),
        key=lambda i: (-probes[i].n_tokens, i),
    )
    batches, begin = [], 0
    while begin < len(order):
        widest = probes[order[begin]].n_tokens
        end = begin + max(tokens // widest, 1)
        batches.append(_make_batch(probes, order[begin:end], offsets, pad))
        begin = end
    return batches


def _make_batch(probes: Sequence[Probe], chosen: Sequence[int], offsets: Array, pad: int) -> Batch:
    # the last token predicts nothing that is asked for
    lengths = np.array([probes[i].n_tokens - 1 for i in chosen], np.int64)
    width = int(lengths.max())
    ids = np.full((len(chosen), width), pad, np.int64)
    rows, targets, places = [], [], []
    for b, i in enumerate(chosen):
        probe = probes[i]
        ids[b, : lengths[b]] = (*probe.prompt_ids, *probe.response_ids)[:-1]
        n = len(probe.response_ids)
        rows.append(b * width + len(probe.prompt_ids) - 1 + np.arange(n))
        targets.append(np.array(probe.response_ids, np.int64))
        places.append(offsets[i] + np.arange(n))
    return Batch(
        ids,
        np.concatenate(rows),
        np.concatenate(targets),
        np.concatenate(places),
        np.array(chosen, np.int64),
        lengths,
    )
