"""``--estimator auto``: the rule that the run's own backtest took for the horizon asked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trajkit.errors import FormatError, InvalidInput, Mismatch, NotFound
from trajkit.evidence.kept import Backtest, read_backtest
from trajkit.fits.estimators.gates import parse_gate
from trajkit.fits.estimators.table import ESTIMATORS, PARAMETERS
from trajkit.fits.kept import Fit, read_fit
from trajkit.forecast.request import AUTO, Request
from trajkit.store.tensors import as_store


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which rule was taken, and why."""

    record: Mapping[str, Any]
    """``rule``, ``horizon_judged``, ``ratio``, ``honest_ratio``, ``trust_horizon``; JSON types"""
    cautions: tuple[str, ...]


def settle(request: Request) -> tuple[Request, Chosen | None]:
    """The request with the backtest's rule in place of ``auto``; others as they are, and None.

    Without a backtest the rule is ``anchored`` at the fit's own gate, and a caution says so.

    Raises:
        Mismatch: the backtest is of other checkpoints than the fit. FormatError: it is damaged.
        InvalidInput: no target; targets for which it takes different rules; with ``strict``: no
            backtest, or a target beyond the last horizon that was better than holding.
        NotFound: no such fit.
    """
    if request.estimator != AUTO:
        return request, None
    if not request.steps:
        raise InvalidInput("no target step given")
    store = as_store(request.traj)
    fit = request.fit if isinstance(request.fit, Fit) else read_fit(store, request.fit)
    try:
        backtest = read_backtest(store)
    except NotFound:
        text = (
            "no backtest says which rule is best on this run, so that anchored is taken; trajkit "
            "backtest finds out"
        )
        if request.strict:
            raise InvalidInput(f"strict: {text}") from None
        plain = replace(request, estimator="anchored", strict=False)
        return plain, Chosen({"rule": "anchored", "backtest": None}, (text,))
    if backtest.record["frames_digest"] != fit.record.frames_digest:
        raise Mismatch(
            f"{store.path}: the backtest is of other checkpoints than the fit {fit.record.name!r}; "
            "run trajkit backtest over the same steps"
        )
    horizons = [step - fit.record.steps[-1] for step in request.steps]
    furthest = max(horizons)
    choices = [_choose(backtest, h) for h in horizons]
    if len({c["rule"] for c in choices}) > 1:
        rules = ", ".join(str(c["rule"]) for c in choices)
        raise InvalidInput(
            f"auto takes different rules for these steps ({rules}): give one step at a time"
        )
    choice = choices[horizons.index(furthest)]
    cautions = [*_of_trust(request, backtest, furthest), *_of_choice(choice)]
    record = {
        "rule": choice["rule"],
        "horizon_judged": choice["horizon"],
        "ratio": choice["ratio"],
        "honest_ratio": choice["honest_ratio"],
        "trust_horizon": backtest.trust_horizon,
    }
    if "best" in choice:
        record["best"] = choice["best"]
    return _with_rule(request, backtest, choice), Chosen(record, tuple(cautions))


def _choose(backtest: Backtest, horizon: int) -> dict[str, Any]:
    """The kept choice; where ``extrapolate`` does not write it, the best of those that it does."""
    choice = dict(backtest.best_for(horizon))
    if choice.get("estimator") == "hold" or choice.get("estimator") in ESTIMATORS:
        return choice
    column = backtest.record["horizons"].index(choice["horizon"])
    found = {
        name: row[column]
        for name, row in backtest.record["ratio"].items()
        if row[column] is not None and name.split(" ")[0] in ESTIMATORS
    }
    name = min(found, key=found.__getitem__, default="hold")
    if found.get(name, 1.0) >= 1:
        name = "hold"
    best = {"best": choice["rule"], "horizon": choice["horizon"], "honest_ratio": None}
    return best | {"rule": name, "ratio": found.get(name, 1.0), **_parse_rule(name)}


def _parse_rule(name: str) -> dict[str, Any]:
    """Estimator, gate and damping from a rule's name.

    >>> _parse_rule("damped 0.5 t:3")
    {'estimator': 'damped', 'gate': 't:3', 'damping': 0.5}
    """
    estimator, *rest = name.split(" ")
    gate = next((part for part in rest if ":" in part), None)
    damping = float(rest[0]) if estimator == "damped" else 1.0
    return {"estimator": estimator, "gate": gate, "damping": damping}


def _of_trust(request: Request, backtest: Backtest, horizon: int) -> list[str]:
    trusted = backtest.trust_horizon
    if horizon <= trusted:
        return []
    text = (
        f"{horizon} steps beyond the data is further than the {trusted} up to which forecasts of "
        "this run beat its last checkpoint"
        if trusted
        else f"no forecast of this run beat its last checkpoint, let alone {horizon} steps beyond it"
    )
    if request.strict:
        raise InvalidInput(f"strict: {text}")
    return [text]


def _of_choice(choice: Mapping[str, Any]) -> list[str]:
    found = []
    if "best" in choice:
        found.append(
            f"the backtest's best rule at this horizon, {choice['best']}, is none that extrapolate "
            f"writes; the best of those is taken, {choice['rule']}"
        )
    if choice["estimator"] == "hold":
        found.append(
            "no rule was better than keeping the last checkpoint at this horizon: these weights are "
            "those of the last checkpoint"
        )
    return found


def _with_rule(request: Request, backtest: Backtest, choice: Mapping[str, Any]) -> Request:
    """The request as if the rule had been asked for; raises FormatError for what is no rule."""
    estimator, gate, damping = (choice.get(key) for key in ("estimator", "gate", "damping"))
    if estimator == "hold":  # anchored over no horizon: every bit of the last checkpoint
        estimator, gate, damping = "damped", "none", 0.0
    parameters = {"damping": damping} if estimator == "damped" else {}
    try:
        if parameters:
            number = float(parameters["damping"])  # type: ignore[arg-type]
            if not math.isfinite(number):
                raise ValueError(number)
            PARAMETERS["damping"].check(number)
        if gate is not None:
            parse_gate(gate)
        return replace(
            request, estimator=str(estimator), parameters=parameters, gate=gate, strict=False
        )
    except (InvalidInput, ValueError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{backtest.path}: the rule kept is none; run trajkit backtest again"
        ) from error
