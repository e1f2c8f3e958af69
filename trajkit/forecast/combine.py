"""Combinations of checkpoints: what each weighs, and the moves that they amount to, chunk by chunk.

Two passes over the window: one for the weights, where they depend on how the run moved, and one
that adds up the frames. A move is Σ_t w_t (y_t - y_1) - (y_T - y_1), in float64, so that an element
at rest stays to the bit.

Axis letters: T checkpoints, S targets, N elements.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.evidence.deltas import measure_deltas, plan_deltas
from trajkit.fits.estimators.combined import Combined
from trajkit.forecast.evaluation import Evaluation
from trajkit.kernels import api as kernels
from trajkit.progress import Progress
from trajkit.store.chunks import ChunkReader
from trajkit.store.store import Store
from trajkit.store.walk import walk_bytes, walk_frames


def weigh(
    evaluation: Evaluation, steps: Sequence[int], budget: int, progress: Progress
) -> Evaluation:
    """The evaluation with the weights of every checkpoint, where its estimator combines them.

    Args:
        evaluation: what is evaluated.
        steps: targets.
        budget: bytes of memory.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: a window of too many checkpoints. OverBudget: the budget is too small.
    """
    rule, estimator = evaluation.rule, evaluation.rule.estimator
    if not isinstance(estimator, Combined):
        return evaluation
    frames = range(rule.first, rule.last + 1)
    steps_T = evaluation.store.steps[rule.first : rule.last + 1]
    gram_TT: Array = np.empty((0, 0))
    if estimator.needs_gram:
        gram_TT = measure_deltas(evaluation.store, frames, budget, progress)
    weights = tuple((s, tuple(estimator.weights(gram_TT, steps_T, s).tolist())) for s in steps)
    return replace(evaluation, rule=replace(rule, weights=weights))


def plan_weights(evaluation: Evaluation, budget: int) -> int:
    """Bytes that finding the weights takes; 0 where they do not depend on the run.

    Raises:
        InvalidInput: a window of too many checkpoints. OverBudget: the budget is too small.
    """
    rule = evaluation.rule
    if not (isinstance(rule.estimator, Combined) and rule.estimator.needs_gram):
        return 0
    floats = [v for v in evaluation.store.vectors.values() if v.dtype.is_float and v.size]
    n_frames = rule.last + 1 - rule.first
    return max((plan_deltas(v, n_frames, budget)[0].n_bytes for v in floats), default=0)


def combine_bytes(vector: FlatVector, n_targets: int) -> int:
    """Bytes that the moves of one chunk take."""
    return walk_bytes(vector) + vector.chunk * (8 * (n_targets + 3) + 2 * 8)


def combine_chunk(
    store: Store, reader: ChunkReader, vector: FlatVector, frames: range, k: int, weights_ST: Array
) -> Array:
    """What each target's combination says less the last checkpoint, float64 [S, N]; NaN where none."""
    start, stop = vector.chunk_span(k)
    moves_SN = np.zeros((len(weights_ST), stop - start))
    first = term = np.empty(0)
    for t, bits in walk_frames(store, reader, vector, frames, k):
        with np.errstate(invalid="ignore"):  # signalling NaNs
            values = kernels.values_of(bits, vector.dtype.name).astype(np.float64)
        if t == frames.start:
            first, term = values.copy(), np.empty_like(values)
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(values, first, out=values)
            for weight, move_N in zip(weights_ST[:, t - frames.start], moves_SN, strict=True):
                move_N += np.multiply(values, weight, out=term)
                if t == frames.stop - 1:
                    move_N -= values
    return moves_SN
