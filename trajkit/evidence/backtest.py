"""Backtest: forecasts made at earlier checkpoints of a run, judged on its later ones."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.errors import InvalidInput
from trajkit.evidence.candidates import COMBINATIONS, HOLD, PLAIN, all_candidates, coverage, ratio
from trajkit.evidence.choice import choose, trust_horizon
from trajkit.evidence.errors import Errors, sum_errors
from trajkit.evidence.kept import Backtest, commit_backtest
from trajkit.evidence.origins import BacktestPlan, plan_backtest
from trajkit.fits.window import choose_window, window_digest
from trajkit.progress import Finished, Progress, Started, as_subscriber, shows_progress
from trajkit.stats.combinations import squared_distance
from trajkit.store.lock import ResultsLock
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store
from trajkit.text import format_bytes, format_rate, parse_bytes

MAX_TENSORS = 2048
"""tensors that have their own row; of models with more, those of one module are pooled"""
DEFAULTS = 7
"""the first candidates are the estimators at their defaults, which every table shows"""


@shows_progress
def backtest(
    traj: Source,
    *,
    origins: int = 5,
    horizons: Sequence[int] | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress | bool = False,
) -> Backtest:
    """Judge every rule of extrapolation on the run's own later checkpoints, and keep the outcome.

    At each origin a line is fitted to the checkpoints up to there, and nothing after is looked at;
    what each rule says of later checkpoints is compared with them, and with holding the origin's.
    Forecasts are compared as numbers, before they are rounded to the checkpoint's dtype.

    Args:
        traj: the run.
        origins: how many checkpoints forecasts start from.
        horizons: training steps beyond the origin (default: doubling, up to a window's length).
        from_step: first training step of the window (default: the first in the store).
        to_step: last training step of the window (default: the last in the store).
        memory: budget, above the interpreter and its libraries.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Returns:
        The outcome, also kept in the store in place of an earlier one.

    Raises:
        InvalidInput: too few checkpoints, or horizons that none of them meets.
        OverBudget: the budget is too small. Locked: another writer holds the store.
        FormatError: a damaged chunk; an earlier backtest stays.
    """
    store, progress = as_store(traj), as_subscriber(progress)
    window = choose_window(store, from_step, to_step)
    plan = plan_backtest(window.axis.steps, origins, horizons)
    groups, names = group_tensors(store)
    if not names:
        raise InvalidInput(f"{store.path}: no floating-point tensor to forecast")
    started = time.perf_counter()
    raw_bytes = window.n_frames * sum(v.n_bytes for v in store.vectors.values() if v.dtype.is_float)
    progress(Started(f"backtest {len(plan.origins)} origins", raw_bytes))
    errors = sum_errors(store, window, plan, groups, parse_bytes(memory), progress)
    record = describe(plan, errors)
    record |= {"frames_digest": window_digest(store, window)}
    seconds = time.perf_counter() - started
    record["seconds"] = seconds
    with ResultsLock(store.path):
        kept = commit_backtest(store, record, tensor_rows(plan, errors.sums_FGS, names))
    rate = format_rate(raw_bytes, seconds)
    progress(Finished(f"{len(plan.forecasts)} forecasts, {format_bytes(raw_bytes)} at {rate}"))
    return kept


def group_tensors(store: Store) -> tuple[dict[str, int], list[str]]:
    """The row of every floating-point tensor, and the rows' names.

    A model of more than 2,048 tensors has its numbered parts pooled (``layers.*.mlp``), so that the
    sums stay small.
    """
    floats = [t.name for v in store.vectors.values() if v.dtype.is_float for t in v.tensors]
    many = len(floats) > MAX_TENSORS
    keys = {name: pooled_name(name) if many else name for name in floats}
    names = list(dict.fromkeys(keys.values()))
    at = {name: i for i, name in enumerate(names)}
    return {name: at[key] for name, key in keys.items()}, names


def pooled_name(name: str) -> str:
    """The name with every number in it as ``*``.

    >>> pooled_name("model.layers.3.mlp.experts.7.w1.weight")
    'model.layers.*.mlp.experts.*.w1.weight'
    """
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def judge_combinations(plan: BacktestPlan, gram_TT: Array) -> Array:
    """Squared error over that of holding, of every combination [F, combinations]; NaN: no move."""
    steps = np.array(plan.steps, np.float64)
    found = np.full((len(plan.forecasts), len(COMBINATIONS)), np.nan)
    for f, forecast in enumerate(plan.forecasts):
        known = slice(0, forecast.origin + 1)
        hold = np.zeros(forecast.origin + 1)
        hold[-1] = 1.0
        held = squared_distance(gram_TT, hold, forecast.target)
        if not held:
            continue
        for c, candidate in enumerate(COMBINATIONS):
            weights = candidate.weights(
                gram_TT[known, known], steps[known], float(steps[forecast.target])
            )
            found[f, c] = squared_distance(gram_TT, weights, forecast.target) / held
    return found


def describe(plan: BacktestPlan, errors: Errors) -> dict[str, Any]:
    """What the errors say, in JSON types: a column a horizon."""
    sums_FS = errors.sums_FGS.sum(axis=1)
    candidates = all_candidates()
    errors_FC = np.array([[c.squared_error(sums) for c in candidates] for sums in sums_FS])
    held_F = np.array([HOLD.squared_error(sums) for sums in sums_FS])
    if errors.gram_TT is not None:
        shares = np.nan_to_num(judge_combinations(plan, errors.gram_TT), nan=1.0)
        errors_FC = np.concatenate([errors_FC, shares * held_F[:, None]], axis=1)
        candidates = (*candidates, *COMBINATIONS)
    choices = choose(plan, errors_FC, held_F, candidates)
    by_horizon = [
        sums_FS[[f for f, forecast in enumerate(plan.forecasts) if forecast.horizon == i]].sum(0)
        for i in range(len(plan.horizons))
    ]
    return {
        "steps": list(plan.steps),
        "origins": [plan.steps[o] for o in plan.origins],
        "horizons": list(plan.horizons),
        "forecasts": [
            {
                "origin": plan.steps[f.origin],
                "target": plan.steps[f.target],
                "horizon": plan.horizons[f.horizon],
            }
            for f in plan.forecasts
        ],
        "ratio": {c.name: _ratios(plan, errors_FC[:, i], held_F) for i, c in enumerate(candidates)},
        "defaults": [c.name for c in candidates if c in (*all_candidates()[:DEFAULTS], *PLAIN)],
        "best": [
            {
                "horizon": c.horizon,
                "rule": c.rule.name,
                **asdict(c.rule),
                "ratio": c.ratio,
                "honest_ratio": c.honest_ratio,
            }
            for c in choices
        ],
        "trust_horizon": trust_horizon(choices),
        "coverage": [dict(coverage(sums)) for sums in by_horizon],
    }


def _ratios(plan: BacktestPlan, errors_F: Array, held_F: Array) -> list[float | None]:
    """A rule's error over holding, one a horizon."""
    found: list[float | None] = []
    for i in range(len(plan.horizons)):
        own = [f for f, forecast in enumerate(plan.forecasts) if forecast.horizon == i]
        held = float(held_F[own].sum())
        found.append(float(np.sqrt(errors_F[own].sum() / held)) if held > 0 else None)
    return found


def tensor_rows(
    plan: BacktestPlan, sums_FGS: Array, names: Sequence[str]
) -> list[Mapping[str, Any]]:
    """A row a tensor and horizon: the error over holding of the estimators at their defaults."""
    rows: list[Mapping[str, Any]] = []
    shown = all_candidates()[:DEFAULTS]
    for i, horizon in enumerate(plan.horizons):
        own = [f for f, forecast in enumerate(plan.forecasts) if forecast.horizon == i]
        for name, sums in zip(names, sums_FGS[own].sum(axis=0), strict=True):
            ratios = {c.name: ratio(c, sums) for c in shown}
            held = HOLD.squared_error(sums)
            rows.append({"tensor": name, "horizon": horizon, "held_error": held, **ratios})
    return rows
