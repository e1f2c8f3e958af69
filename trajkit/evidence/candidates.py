"""Which rules a backtest compares, and what the sums of a pass say of each.

A candidate is what ``trajkit extrapolate`` takes: an estimator, a gate, a damping. A new one is a
line in :func:`all_candidates` and its error from the sums of :mod:`trajkit.kernels.skill`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.kernels.skill import LINE_LEVELS, RSQ_LEVELS, SUMS, T_LEVELS
from trajkit.stats.combinations import ema_weights, rank_weights

DAMPINGS = (0.25, 0.5, 0.75, 1.25, 1.5)
_AT = {name: i for i, name in enumerate(SUMS)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One rule: how elements move, which of them, and by how much of it."""

    estimator: str
    gate: str | None = None
    """``rsq:L`` or ``t:L``: an element moves where its R², or its drift's \\|t\\|, is above L"""
    damping: float = 1.0
    parameter: float | None = None
    """an average's decay, or how many directions"""

    @property
    def name(self) -> str:
        """The rule in one word.

        >>> Candidate("damped", "t:3", 0.5).name, Candidate("line", "rsq:0.7").name
        ('damped 0.5 t:3', 'line rsq:0.7')
        """
        parts = [self.estimator]
        if self.estimator == "damped":
            parts.append(f"{self.damping:g}")
        if self.parameter is not None:
            parts.append(f"{self.parameter:g}")
        return " ".join([*parts, self.gate] if self.gate else parts)

    def squared_error(self, sums: Array) -> float:
        """Σ of squared errors of this rule, from the sums [S]."""
        match self.estimator:
            case "hold":
                return float(sums[_AT["ee"]])
            case "mean":
                return float(sums[_AT["mean2"]])
            case "two-point":
                return _moved(sums, "eq", "qq", 1.0)
            case "wiener" | "shrunk":
                return _moved(sums, f"e_{self.estimator}", f"{self.estimator}2", 1.0)
            case "line":
                return float(sums[_AT[f"ll_{self.gate}"]] + sums[_AT[f"held_{self.gate}"]])
            case "anchored" | "damped":
                return _moved(sums, f"ep_{self.gate}", f"pp_{self.gate}", self.damping)
        raise AssertionError(self.estimator)

    def weights(self, gram_TT: Array, steps_T: Array, target: float) -> Array:
        """What a combination of checkpoints makes of each, [T], from what is known at its origin."""
        match self.estimator, self.parameter:
            case "ema", float(decay):
                return ema_weights(len(steps_T), decay)
            case "rank-k" | "rank-k-anchored", float(k):
                anchored = self.estimator == "rank-k-anchored"
                return rank_weights(gram_TT, steps_T, target, int(k), anchored)
        raise AssertionError(self)


HOLD = Candidate("hold")
COMBINATIONS = (
    Candidate("ema", parameter=0.5),
    Candidate("ema", parameter=0.8),
    Candidate("rank-k", parameter=1.0),
    Candidate("rank-k-anchored", parameter=1.0),
    Candidate("rank-k", parameter=3.0),
    Candidate("rank-k-anchored", parameter=3.0),
)
"""combinations of checkpoints, judged on a sample of the elements"""


PLAIN = (
    Candidate("ema", parameter=0.5),
    Candidate("rank-k", parameter=1.0),
    Candidate("rank-k-anchored", parameter=1.0),
)
"""those of them that are an estimator at its default"""


def _moved(sums: Array, cross: str, square: str, damping: float) -> float:
    """Σ (e - a m)²."""
    error = sums[_AT["ee"]] - 2 * damping * sums[_AT[cross]] + damping**2 * sums[_AT[square]]
    return max(float(error), 0.0)


def all_candidates() -> tuple[Candidate, ...]:
    """Every rule that is compared; the first few are the estimators at their defaults."""
    gates = [f"rsq:{level:g}" for level in RSQ_LEVELS] + [f"t:{level:g}" for level in T_LEVELS]
    plain = [
        Candidate("anchored", "rsq:0.7"),
        Candidate("line", "rsq:0.7"),
        Candidate("two-point"),
        Candidate("damped", "rsq:0.7", 0.3),
        Candidate("shrunk"),
        Candidate("wiener"),
        Candidate("mean"),
    ]
    more = [Candidate("line", f"rsq:{level:g}") for level in LINE_LEVELS]
    more += [Candidate("anchored", gate) for gate in gates]
    more += [Candidate("damped", gate, damping) for gate in gates for damping in DAMPINGS]
    return tuple(dict.fromkeys([*plain, *more]))


def ratio(candidate: Candidate, sums: Array) -> float | None:
    """\\|forecast - real\\| / \\|last - real\\| over the elements of the sums; None where none moved."""
    held = HOLD.squared_error(sums)
    return float(np.sqrt(candidate.squared_error(sums) / held)) if held > 0 else None


def coverage(sums: Array) -> Mapping[str, float | None]:
    """Share of elements whose real value lay in their interval, by kind of interval."""
    counted = sums[_AT["counted"]]
    return {
        kind: float(sums[_AT[f"inside_{kind}"]] / counted) if counted else None
        for kind in ("iid", "walk")
    }
