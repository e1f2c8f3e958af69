"""A line through the log-probability of every response token over the training steps.

Ordinary least squares on the true step axis, as for weights; R² is NaN for a token that never
changes. The filter of arXiv 2601.04537 keeps tokens with |log p(last) - log p(first)| > 0.2.

Axis letters: T checkpoints, N response tokens, R responses.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.errors import InvalidInput
from trajkit.outputs.kept import Outputs
from trajkit.stats.axis import StepAxis
from trajkit.stats.nulls import null_above, null_median

PAPER_CHANGE = 0.2
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Lines:
    """A least-squares line a column."""

    slope: Array
    """float64, change a training step"""
    mean: Array
    """float64, value at x̄"""
    rsq: Array
    """float64; NaN where nothing changes"""
    drift_t: Array
    """float64: t of the mean first difference; NaN for fewer than three checkpoints"""


@dataclass(frozen=True, slots=True)
class OutputsFit:
    """Lines through the tokens of a probe set, and through their sums a response."""

    name: str
    steps: tuple[int, ...]
    threshold: float
    tokens: Lines
    """[N]"""
    responses: Lines
    """[R]: the sum of a response's log-probs"""
    kept: Array
    """bool [N]: passes the filter, and changes at all"""
    min_change: float
    """the filter: |log p(last) - log p(first)| above this; 0 keeps all that change"""

    def describe(self) -> dict[str, Any]:
        """The fit in numbers, a driftless random walk's beside them; JSON types."""
        rsq = self.tokens.rsq[self.kept]
        sums = self.responses.rsq[np.isfinite(self.responses.rsq)]
        strong = np.abs(self.tokens.drift_t[self.kept]) >= 2
        return {
            "outputs": self.name,
            "checkpoints": len(self.steps),
            "from_step": self.steps[0],
            "to_step": self.steps[-1],
            "tokens": len(self.kept),
            "min_change": self.min_change,
            "kept": len(rsq),
            "share_kept": len(rsq) / max(len(self.kept), 1),
            "median_rsq": _median(rsq),
            "null_median_rsq": null_median(self.steps),
            "rsq_threshold": self.threshold,
            "share_above_threshold": float(np.mean(rsq > self.threshold)) if len(rsq) else None,
            "null_above_threshold": null_above(self.steps, self.threshold),
            "share_drift_t_above_2": float(np.mean(strong)) if len(rsq) else None,
            "median_rsq_of_sums": _median(sums),
        }


def fit_outputs(outputs: Outputs, threshold: float = 0.7, min_change: float = 0.0) -> OutputsFit:
    """Fit a line to every token's log-probability, and to every response's sum.

    Args:
        outputs: scored at two checkpoints or more.
        threshold: R² above which a token counts as linear.
        min_change: tokens that changed by no more, first to last, are not kept (the paper: 0.2).

    Raises:
        InvalidInput: fewer than two checkpoints. FormatError: the outputs are damaged.

    Notes:
        float64. Memory: 65,536 tokens at all checkpoints.
    """
    steps = outputs.record.steps
    if len(steps) < 2:
        raise InvalidInput(
            f"{outputs.path}: a line needs 2 checkpoints or more, scored are {len(steps)}"
        )
    n, offsets = outputs.record.tokens, outputs.offsets
    parts, change = [], np.zeros(n)
    sums = np.zeros((len(steps), len(offsets) - 1))
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        y = outputs.rows("log_p", start, stop).astype(np.float64)
        parts.append(fit_lines(y, steps))
        change[start:stop] = np.abs(y[-1] - y[0])
        for t in range(len(steps)):
            sums[t] += np.bincount(owner[start:stop], y[t], len(offsets) - 1)
    tokens = Lines(*(np.concatenate(c) for c in zip(*map(_columns, parts), strict=True)))
    kept = np.isfinite(tokens.rsq) & ((change > min_change) | (min_change == 0))
    return OutputsFit(
        outputs.record.name, steps, threshold, tokens, fit_lines(sums, steps), kept, min_change
    )


def fit_lines(y_TN: Array, steps: tuple[int, ...]) -> Lines:
    """The least-squares line of each column over the training steps.

    drift's t is of the mean first difference, with variance in proportion to the steps between
    (DESIGN.md, section 3).

    >>> lines = fit_lines(np.array([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]]), (0, 10, 30))
    >>> lines.slope.round(3).tolist(), lines.rsq.round(3).tolist()
    ([0.1, 0.0], [1.0, nan])
    """
    axis = StepAxis.of(list(steps))
    x = np.array(steps, np.float64)
    u = (x - axis.mean)[:, None]
    first = y_TN[0]
    d = y_TN - first  # as for weights: small numbers, no cancellation
    mean = d.mean(axis=0)
    slope = (u * d).sum(axis=0) / axis.s_xx
    total = ((d - mean) ** 2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        changes = (y_TN != first).any(axis=0)
        rsq = np.where(changes, np.minimum(slope**2 * axis.s_xx / total, 1.0), np.nan)
        drift_t = np.full(len(first), np.nan)
        if len(steps) > 2:
            # as for weights: first differences weighted by 1/Δx, so that uneven steps make no drift
            dx, dy = np.diff(x)[:, None], np.diff(y_TN, axis=0)
            drift = (y_TN[-1] - first) / axis.span
            spread = ((dy - drift * dx) ** 2 / dx).sum(axis=0) / (len(steps) - 2)
            drift_t = drift * axis.span / np.sqrt(spread * axis.span)
    return Lines(slope, first + mean, rsq, np.where(changes, drift_t, np.nan))


def by_position(fit: OutputsFit, outputs: Outputs, bins: int = 8) -> list[dict[str, Any]]:
    """Median R² and mean |slope| of kept tokens by place in the response, in bins of like counts."""
    positions = outputs.positions()
    places = positions[fit.kept]
    if not len(places):
        return []
    edges = np.unique(np.quantile(places, np.linspace(0, 1, bins + 1)).astype(np.int64))
    found = []
    for low, high in zip(edges, [*edges[1:-1], edges[-1] + 1] if len(edges) > 1 else [edges[0] + 1],
                         strict=False):  # fmt: skip
        chosen = fit.kept & (positions >= low) & (positions < high)
        found.append({"from": int(low), "to": int(high) - 1, **_summary(fit, chosen)})
    return [row for row in found if row["tokens"]]


def by_token(fit: OutputsFit, outputs: Outputs, most: int = 20) -> list[dict[str, Any]]:
    """The same by token, those first whose log-probs move most in all."""
    ids, weight = outputs.ids, np.abs(fit.tokens.slope)
    kept_ids = np.unique(ids[fit.kept])
    totals = [(float(weight[fit.kept & (ids == i)].sum()), int(i)) for i in kept_ids]
    rows = []
    for _, token in sorted(totals, reverse=True)[:most]:
        rows.append({"token": token, **_summary(fit, fit.kept & (ids == token))})
    return rows


def _summary(fit: OutputsFit, chosen: Array) -> dict[str, Any]:
    slope = fit.tokens.slope[chosen]
    return {
        "tokens": int(chosen.sum()),
        "median_rsq": _median(fit.tokens.rsq[chosen]),
        "mean_slope": float(slope.mean()) if len(slope) else None,
        "mean_abs_slope": float(np.abs(slope).mean()) if len(slope) else None,
    }


def _columns(lines: Lines) -> tuple[Array, ...]:
    return lines.slope, lines.mean, lines.rsq, lines.drift_t


def _median(values: Array) -> float | None:
    return float(np.median(values)) if len(values) else None
