"""Driftless walks and straight lines as a narrow number format shows them.

Unit: the spacing of the format's numbers (ulp) at the element. Three processes:

    master  fp32 master weights walk, and each checkpoint is rounded: y_t = round(w_t),
            w_t - w_(t-1) ~ N(0, s² Δx), w_0 anywhere between two numbers of the format
    stored  the narrow weights are all there is, each update is rounded into them: y_t - y_(t-1)
            is a difference of two Poisson numbers of rate λ Δx / 2 (whole ulps, mean 0)
    line    w_t = w_0 + b (x_t - x_0), each checkpoint rounded

A master's increment keeps its mean size through the rounding, E|Δy| = E|Δw|, but a walk near the
middle between two numbers flips to and fro, which is noise to a line: with increments far below an
ulp R² is much lower than the continuous walk's.

How often an element's checkpoints differ from the one before says how large its increments are, in
ulps. So walks are simulated in groups of like size, half an octave wide, and :class:`RoundedWalks`
holds, for each group, how often its walks change and what they score. The sizes of a tensor's
increments are the mixture of groups under which its own counts of changes are likeliest (expectation
maximisation; a group that never moves is one of them), and what its walk would score is that
mixture of scores. R² is over elements that move.

The last group of each process is the one that rounding does not touch: the continuous walk, the exact
line. Its elements differ at every checkpoint.

Axis letters: T checkpoints, W walks, B bins of the number of changes, G groups of sizes, R bins of
R², D bins of Durbin-Watson, E lower edges of |t|.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from trajkit.arrays import Array
from trajkit.stats.nulls import null_rsq
from trajkit.stats.student import student_tail
from trajkit.stats.walks import durbin_watson

Process = Literal["master", "stored", "line"]
RSQ_BINS, DW_BINS = 1000, 80
T_EDGES_E = np.arange(0.0, 20.5, 0.5)
"""lower edges of the bins of |drift t| (those of the kernels' histogram, folded)"""
WALKS_A_GROUP = 8192
_DRAWS = 2 * 10**7
_BLOCK_ELEMENTS = 1 << 20
_LARGEST = 8.0
"""ulps a mean spacing of checkpoints: above, a walk through rounding is the continuous one"""


def change_edges(n_frames: int) -> Array:
    """Lower ends of the bins of the number of changes, int64 [B]: one by one to 8, then 5/4 apart.

    >>> change_edges(34)
    array([ 0,  1,  2,  3,  4,  5,  6,  7,  8, 10, 12, 15, 18, 22, 27, 33])
    """
    edges = [0, 1]
    while edges[-1] < n_frames - 1:
        edges.append(max(edges[-1] + 1, edges[-1] * 5 // 4 if edges[-1] >= 8 else 0))
    return np.array([e for e in edges if e < n_frames], np.int64)


def count_changes(changes_N: Array, n_frames: int) -> Array:
    """How many elements changed how often, float64 [B].

    >>> count_changes(np.array([0, 1, 1, 9]), 34)[[0, 1, 8, 9]]
    array([1., 2., 1., 0.])
    """
    edges_B = change_edges(n_frames)
    bin_N = np.searchsorted(edges_B, changes_N, side="right") - 1
    return np.bincount(bin_N, minlength=len(edges_B)).astype(np.float64)


def draw_walks(
    steps: tuple[int, ...], process: Process, ulps_W: Array, rng: np.random.Generator
) -> Array:
    """Stored values in ulps, float64 [W, T], of walks (lines) with increments of these sizes.

    ``ulps_W``: the increments' standard deviation (of a line: its increment) over the mean spacing
    of the checkpoints.
    """
    dx_T = np.diff(np.asarray(steps, np.float64))
    dx_T /= dx_T.mean()
    n = len(ulps_W)
    y_WT = np.empty((n, len(dx_T) + 1))
    y_WT[:, 0] = rng.uniform(-0.5, 0.5, n)
    if process == "stored":
        y_WT[:, 0] = 0
        rate_WT = (ulps_W**2)[:, None] * dx_T / 2
        y_WT[:, 1:] = rng.poisson(rate_WT).astype(np.float64) - rng.poisson(rate_WT)
    elif process == "line":
        y_WT[:, 1:] = ulps_W[:, None] * dx_T
    else:
        scale_WT = ulps_W[:, None] * np.sqrt(dx_T)
        y_WT[:, 1:] = rng.standard_normal((n, len(dx_T)), np.float32) * scale_WT
    return np.rint(np.cumsum(y_WT, axis=1, out=y_WT), out=y_WT)


@dataclass(frozen=True, slots=True)
class Scores:
    """What stored values score; of walks that move only, W in all four."""

    changes: Array
    rsq: Array
    drift_t: Array
    """NaN below three checkpoints; ±inf where the rate is the same throughout"""
    dw: Array
    """NaN where the residuals are no more than rounding"""


def score_values(y_WT: Array, steps: tuple[int, ...]) -> Scores:
    """R², drift t and Durbin-Watson of each row that moves, by the definitions of the kernels.

    With rates weighted by 1/Δx: s² = (Σ Δ²/Δx - (y_T - y_1)²/X)/(T - 2), t = (y_T - y_1)/√(s² X)
    for X = x_T - x_1.
    """
    x_T = np.asarray(steps, np.float64)
    u_T, dx_T, span = x_T - x_T.mean(), np.diff(x_T), float(x_T[-1] - x_T[0])
    d_WT = np.diff(y_WT, axis=1)
    moved_W = (d_WT != 0).any(axis=1)
    y_WT, d_WT = y_WT[moved_W], d_WT[moved_W]
    c_WT = y_WT - y_WT.mean(axis=1, keepdims=True)
    s_xx = u_T @ u_T
    slope_W = c_WT @ u_T / s_xx
    sst_W = np.einsum("wt,wt->w", c_WT, c_WT)
    sse_W = sst_W - slope_W**2 * s_xx
    total_W = d_WT.sum(axis=1)
    weighted_W = (d_WT**2) @ (1 / dx_T)
    spread_W = weighted_W - total_W**2 / span
    with np.errstate(all="ignore"):
        rsq_W = np.clip(slope_W**2 * s_xx / sst_W, 0, 1)
        dw_W = ((d_WT - slope_W[:, None] * dx_T) ** 2).sum(axis=1) / sse_W
        dw_W[sse_W <= 2.0**-20 * sst_W] = np.nan
        t_W = total_W / np.sqrt(spread_W / max(len(x_T) - 2, 1) * span)
        sure_W = spread_W <= 2.0**-20 * weighted_W
        t_W[sure_W] = np.copysign(np.inf, total_W[sure_W])
    if len(x_T) < 3:
        t_W, dw_W = np.full_like(t_W, np.nan), np.full_like(dw_W, np.nan)
    return Scores((d_WT != 0).sum(axis=1), rsq_W, t_W, dw_W)


@dataclass(frozen=True, slots=True)
class Mixture:
    """What walks with increments of the sizes of some elements' score."""

    rsq_R: Array
    """share in each of 1,000 bins of R² on [0, 1]"""
    t_tail_E: Array
    """share with |t| at or above :data:`T_EDGES_E`"""
    dw_D: Array
    """share in each of 80 bins of Durbin-Watson on [0, 4]; some have none"""

    @classmethod
    def pool(cls, parts: Sequence[tuple[float, "Mixture"]]) -> "Mixture":
        """The mixture of mixtures, each with its weight."""
        total = sum(w for w, _ in parts)
        names = ("rsq_R", "t_tail_E", "dw_D")
        return cls(*(sum(w / total * getattr(m, name) for w, m in parts) for name in names))

    def above(self, threshold: float) -> float:
        """Share with R² above a threshold, linear within a bin."""
        edges = np.linspace(0, 1, len(self.rsq_R) + 1)
        below = np.concatenate([[0.0], np.cumsum(self.rsq_R)])
        return float(1 - np.interp(threshold, edges, below))

    @property
    def median_rsq(self) -> float:
        """Median R²."""
        return weighted_quantile(self.rsq_R, 1.0)

    @property
    def share_t_above_2(self) -> float:
        """Share whose drift has |t| >= 2; 0 where none has a t."""
        return float(self.t_tail_E[np.searchsorted(T_EDGES_E, 2.0)])

    @property
    def median_dw(self) -> float | None:
        """Median Durbin-Watson, None where none has one."""
        return weighted_quantile(self.dw_D, 4.0) if self.dw_D.sum() > 0 else None


def weighted_quantile(share_B: Array, high: float, q: float = 0.5) -> float:
    """The q-quantile of shares in equal bins on [0, high], linear within the bin.

    >>> weighted_quantile(np.array([0.5, 0.5]), 1.0, 0.75)
    0.75
    """
    below = np.cumsum(share_B)
    b = int(np.searchsorted(below, q * below[-1]))
    inside = (q * below[-1] - (below[b] - share_B[b])) / share_B[b]
    return float(high / len(share_B) * (b + inside))


@dataclass(frozen=True, slots=True)
class RoundedWalks:
    """What walks of one process score on one step axis, in groups of like increments."""

    ulps_G: Array
    """middle of each group's increments, in ulps a mean spacing of checkpoints"""
    changes_GB: Array
    """share of all its walks in each bin of the number of changes"""
    rsq_GR: Array
    """of walks that move; so are the rest"""
    t_tail_GE: Array
    dw_GD: Array

    def weigh(self, changes_B: Array, rounds: int = 100) -> Array:
        """The mixture of groups under which counts of changes are likeliest, float64 [G].

        Weights are of elements that move; they add up to 1. ``changes_B``: :func:`count_changes`,
        of at least one element that moved.
        """
        still = np.zeros((1, len(changes_B)))
        still[0, 0] = 1
        likely_GB = np.concatenate([self.changes_GB, still]) + 1e-9
        w_G = np.full(len(likely_GB), 1 / len(likely_GB))
        for _ in range(rounds):
            w_G = w_G * (likely_GB @ (changes_B / (w_G @ likely_GB)))
            w_G /= w_G.sum()
        moving_G = w_G[:-1] * (1 - self.changes_GB[:, 0])
        return np.asarray(moving_G / moving_G.sum())

    def mix(self, changes_B: Array) -> Mixture | None:
        """What elements with these counts of changes would score; None where none moved."""
        if not changes_B[1:].sum() > 0:
            return None
        w_G = self.weigh(changes_B)
        return Mixture(w_G @ self.rsq_GR, w_G @ self.t_tail_GE, w_G @ self.dw_GD)

    def typical_ulps(self, changes_B: Array) -> float:
        """Median size of the increments, a group's middle; infinite where rounding is no matter."""
        below_G = np.cumsum(self.weigh(changes_B))
        return float(self.ulps_G[np.searchsorted(below_G, 0.5)])


@lru_cache(maxsize=16)
def rounded_walks(steps: tuple[int, ...], process: Process, seed: int = 0) -> RoundedWalks:
    """The scores of walks of all sizes on these training steps, two or more of them.

    Args:
        steps: training steps, ascending.
        process: see the module.
        seed: of the draws; the same seed gives the same numbers.

    Notes:
        8,192 walks a group, fewer for T above 135 (at least 512), sizes log-uniform within it;
        blocks of 8 MiB.
    """
    n_frames = len(steps)
    ulps_G = _sizes(n_frames, process)
    edges_B = change_edges(n_frames)
    n_walks = int(np.clip(_DRAWS // (n_frames * len(ulps_G)), 512, WALKS_A_GROUP))
    within_W = 2.0 ** (((np.arange(n_walks) + 0.5) / n_walks - 0.5) / 2)
    rng = np.random.default_rng(seed)
    rows = []
    for ulps in ulps_G.tolist():
        bins = [np.zeros(len(edges_B)), np.zeros(RSQ_BINS), np.zeros(len(T_EDGES_E))]
        bins.append(np.zeros(DW_BINS))
        blocks = -(-n_walks * n_frames // _BLOCK_ELEMENTS)
        for b in range(blocks):
            y_WT = draw_walks(steps, process, ulps * within_W[b::blocks], rng)
            _count_scores(score_values(y_WT, steps), len(y_WT), n_frames, bins)
        changes_B, rsq_R, t_E, dw_D = bins
        moved = max(rsq_R.sum(), 1.0)
        t_tail_E = np.cumsum(t_E[::-1])[::-1]
        rows.append((changes_B / n_walks, rsq_R / moved, t_tail_E / moved, dw_D / moved))
    rows.append(_unrounded(steps, process, seed))
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return RoundedWalks(np.append(ulps_G, np.inf), *columns)


def _unrounded(
    steps: tuple[int, ...], process: Process, seed: int
) -> tuple[Array, Array, Array, Array]:
    """The continuous walk's scores, the exact line's; every checkpoint differs from the last."""
    changes_B = np.zeros(len(change_edges(len(steps))))
    changes_B[-1] = 1
    if process == "line":
        rsq_R = np.zeros(RSQ_BINS)
        rsq_R[-1] = 1
        return changes_B, rsq_R, np.ones(len(T_EDGES_E)), np.zeros(DW_BINS)
    rsq = null_rsq(steps, seed)
    rsq_R = np.histogram(rsq, RSQ_BINS, (0, 1))[0] / len(rsq)
    dw_D = np.zeros(DW_BINS)
    tail_E = np.zeros(len(T_EDGES_E))
    if len(steps) > 2:
        dw_W = np.minimum(durbin_watson(steps, seed), 4.0)
        dw_D += np.histogram(dw_W, DW_BINS, (0, 4))[0] / len(dw_W)
        tail_E += student_tail(T_EDGES_E, len(steps) - 2)
    return changes_B, rsq_R, tail_E, dw_D


def _sizes(n_frames: int, process: Process) -> Array:
    """The groups' middles: from walks of which few ever move to those that rounding cannot hurt."""
    least = {"master": 0.1, "stored": 0.3, "line": 0.3}[process]
    low = least / (n_frames - 1) ** (1.0 if process == "line" else 0.5)
    n_groups = int(np.ceil(2 * np.log2(_LARGEST / low)))
    return np.asarray(_LARGEST * 2.0 ** (-np.arange(n_groups)[::-1] / 2))


def _count_scores(scores: Scores, n_walks: int, n_frames: int, bins: list[Array]) -> None:
    """Add a block's walks to the bins of changes, R², |t| and Durbin-Watson."""
    changes_B, rsq_R, t_E, dw_D = bins
    changes_B += count_changes(scores.changes, n_frames)
    changes_B[0] += n_walks - len(scores.changes)
    rsq_R += np.histogram(scores.rsq, RSQ_BINS, (0, 1))[0]
    size_W = np.abs(scores.drift_t[~np.isnan(scores.drift_t)])
    at_W = np.searchsorted(T_EDGES_E, size_W, side="right") - 1
    t_E += np.bincount(at_W, minlength=len(t_E))
    known_W = np.minimum(scores.dw[~np.isnan(scores.dw)], 4.0)
    dw_D += np.histogram(known_W, DW_BINS, (0, 4))[0]
