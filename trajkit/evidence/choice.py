"""Which rule is taken for a horizon, by what was known before; and how far any can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.evidence.candidates import HOLD, Candidate
from trajkit.evidence.origins import BacktestPlan


@dataclass(frozen=True, slots=True)
class Choice:
    """A rule for a horizon, and how it fared where it was not chosen."""

    horizon: int
    """training steps"""
    rule: Candidate
    """best over all origins: what to take now"""
    ratio: float | None
    """its error over holding on the forecasts that chose it: no forecast of the future"""
    honest_ratio: float | None
    """error over holding of the rules that were best on earlier forecasts alone, each judged on a
    forecast made after; the first candidate, a default, stands where nothing earlier was known"""


def choose(
    plan: BacktestPlan, errors_FC: Array, held_F: Array, candidates: Sequence[Candidate]
) -> tuple[Choice, ...]:
    """The choice for each horizon.

    A forecast made at x_o may only be chosen for by forecasts whose targets lie at or before x_o;
    of these, those of the longest horizon up to its own.

    Args:
        plan: the forecasts, F of them.
        errors_FC: Σ of squared errors [forecasts, candidates].
        held_F: the same of holding [forecasts].
        candidates: the rules, C of them.
    """
    found = []
    for i, horizon in enumerate(plan.horizons):
        own = [f for f, forecast in enumerate(plan.forecasts) if forecast.horizon == i]
        total_C = errors_FC[own].sum(axis=0)
        best = int(total_C.argmin())
        error, held = 0.0, 0.0
        for f in own:
            error += errors_FC[f, _best_before(plan, f, errors_FC)]
            held += held_F[f]
        total = held_F[own].sum()
        found.append(
            Choice(
                horizon,
                candidates[best] if total_C[best] < total else HOLD,
                float(np.sqrt(min(total_C[best], total) / total)) if total > 0 else None,
                float(np.sqrt(error / held)) if held > 0 else None,
            )
        )
    return tuple(found)


def _best_before(plan: BacktestPlan, f: int, errors_FC: Array) -> int:
    """The candidate with the least error on what was known when forecast ``f`` was made; or 0."""
    forecast = plan.forecasts[f]
    known = [
        g
        for g, other in enumerate(plan.forecasts)
        if other.target <= forecast.origin and other.horizon <= forecast.horizon
    ]
    if not known:
        return 0
    longest = max(plan.forecasts[g].horizon for g in known)
    same = [g for g in known if plan.forecasts[g].horizon == longest]
    return int(errors_FC[same].sum(axis=0).argmin())


def trust_horizon(choices: Sequence[Choice]) -> int:
    """The furthest horizon up to which every choice, made beforehand, has beaten holding; or 0."""
    trusted = 0
    for choice in choices:
        if choice.honest_ratio is None or choice.honest_ratio >= 1:
            break
        trusted = choice.horizon
    return trusted
