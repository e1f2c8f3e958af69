"""Skill of outputs: log-probabilities forecast from earlier checkpoints, judged on later ones.

The backtest of the weights (:mod:`trajkit.evidence.backtest`) over tokens in place of weights: the same
origins and horizons, the same rules and gates, the same choice beforehand. Only what is read differs:
a line is fitted to every token's log p over the checkpoints up to an origin, and nothing after it is
looked at. Skill = 1 - SSE / SSE_hold; 0 is no better than holding the origin's value.

Axis letters: T checkpoints, N response tokens, F forecasts, S sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.evidence.backtest import describe
from trajkit.evidence.errors import MAX_GRAM, Errors, axes_and_nulls, horizon_of
from trajkit.evidence.origins import BacktestPlan, plan_backtest
from trajkit.kernels.skill import SUMS, tally_errors
from trajkit.outputs.kept import Outputs
from trajkit.outputs.linearity import fit_lines

CHOSEN = "chosen beforehand"
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Skill:
    """One rule at one horizon."""

    rule: str
    """an estimator with its gate as the backtest names it, or ``chosen beforehand``"""
    horizon: int
    """training steps beyond the origin"""
    skill: float | None
    """None where nothing moved"""


@dataclass(frozen=True, slots=True)
class OutputsSkill:
    """What the backtest's rules are worth for token log-probabilities."""

    record: Mapping[str, Any]
    """as :func:`trajkit.evidence.backtest.describe` has it: origins, horizons, errors over holding"""

    @property
    def rows(self) -> list[Skill]:
        """Estimators at their defaults, averages and directions, and the rule chosen beforehand."""
        ratios = self.record["ratio"]
        more = [name for name in ratios if name.startswith(("ema", "rank-k"))]
        table = {name: ratios[name] for name in (*self.record["defaults"], *more)}
        table[CHOSEN] = [choice["honest_ratio"] for choice in self.record["best"]]
        return [
            Skill(name, horizon, None if ratio is None else 1 - ratio**2)
            for name, row in table.items()
            for horizon, ratio in zip(self.record["horizons"], row, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Origins, horizons, trust horizon, and a skill a rule and horizon; JSON types."""
        kept = {name: self.record[name] for name in ("origins", "horizons", "trust_horizon")}
        skills: dict[str, list[float | None]] = {}
        for row in self.rows:
            skills.setdefault(row.rule, []).append(row.skill)
        best = [choice["rule"] for choice in self.record["best"]]
        return {**kept, "best": best, "skill": skills}


def measure_skill(
    outputs: Outputs, *, origins: int = 5, horizons: Sequence[int] | None = None
) -> OutputsSkill:
    """The skill of every rule of the backtest at every horizon, over all tokens.

    Args:
        outputs: scored at five checkpoints or more.
        origins: how many checkpoints forecasts start from.
        horizons: training steps (default: doubling, up to a window's length).

    Raises:
        InvalidInput: too few checkpoints, or horizons that none of them meets.
        FormatError: the outputs are damaged.

    Memory: 65,536 tokens at all checkpoints.
    """
    plan = plan_backtest(outputs.record.steps, origins, horizons)
    sums_FS = np.zeros((len(plan.forecasts), len(SUMS)))
    n_steps = len(plan.steps)
    gram_TT = np.zeros((n_steps, n_steps)) if n_steps <= MAX_GRAM else None
    for start in range(0, outputs.record.tokens, _BLOCK):
        stop = min(start + _BLOCK, outputs.record.tokens)
        y_TN = outputs.rows("log_p", start, stop).astype(np.float64)
        sums_FS += sum_token_errors(y_TN, plan)
        if gram_TT is not None:
            deltas_TN = y_TN - y_TN[0]
            gram_TT += deltas_TN @ deltas_TN.T
    return OutputsSkill(describe(plan, Errors(sums_FS[:, None], gram_TT)))


def sum_token_errors(y_TN: Array, plan: BacktestPlan) -> Array:
    """What every forecast of the plan is wrong by, in the backtest's sums, float64 [F, S]."""
    axes, nulls = axes_and_nulls(plan)
    known = {origin: _know(y_TN[: origin + 1], plan.steps[: origin + 1]) for origin in plan.origins}
    flags_N = np.zeros(y_TN.shape[1], np.uint8)
    found = []
    for forecast in plan.forecasts:
        at = plan.origins.index(forecast.origin)
        values = {**known[forecast.origin], "real": y_TN[forecast.target]}
        horizon = horizon_of(plan, forecast, axes[at], nulls[at])
        found.append(tally_errors(values, flags_N, horizon))
    return np.array(found)


def _know(y_TN: Array, steps: tuple[int, ...]) -> dict[str, Array]:
    """The lines of a prefix; numbers are exact, so that intervals have no margin for rounding."""
    lines = fit_lines(y_TN, steps)
    return {
        "last": y_TN[-1],
        "first": y_TN[0],
        "slope": lines.slope,
        "mean": lines.mean,
        "rsq": lines.rsq,
        "t": lines.drift_t,
        "margin": np.zeros_like(lines.slope),
    }
