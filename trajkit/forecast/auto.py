"""``--estimator auto``: the rule that the run's own backtest took for the horizon asked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trajkit.errors import FormatError, InvalidInput, Mismatch, NotFound
from trajkit.evidence.kept import Backtest, read_backtest
from trajkit.fits.estimators.gates import parse_gate
from trajkit.fits.estimators.table import ESTIMATORS
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
    choices = [backtest.best_for(h) for h in horizons]
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
    return _with_rule(request, backtest, choice), Chosen(record, tuple(cautions))


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
    if choice.get("estimator") != "hold":
        return []
    return [
        "no rule was better than keeping the last checkpoint at this horizon: these weights are "
        "those of the last checkpoint"
    ]


def _with_rule(request: Request, backtest: Backtest, choice: Mapping[str, Any]) -> Request:
    """The request as if the rule had been asked for; raises FormatError for what is no rule."""
    estimator, gate, damping = (choice.get(key) for key in ("estimator", "gate", "damping"))
    if estimator == "hold":  # anchored over no horizon: every bit of the last checkpoint
        estimator, gate, damping = "damped", "none", 0.0
    try:
        numbers = {"damping": damping} if estimator == "damped" else {}
        if choice.get("parameter") is not None:  # an average's decay, or how many directions
            own = ESTIMATORS[str(estimator)].parameters
            numbers = {own[0].name: choice["parameter"]}
        parameters = {name: float(number) for name, number in numbers.items()}  # type: ignore[arg-type]
        if gate is not None:
            parse_gate(gate)
        return replace(
            request, estimator=str(estimator), parameters=parameters, gate=gate, strict=False
        )
    except (
        InvalidInput,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        OverflowError,
    ) as error:
        raise FormatError(
            f"{backtest.path}: the rule kept is none; run trajkit backtest again"
        ) from error
