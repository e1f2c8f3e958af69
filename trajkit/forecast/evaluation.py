"""What is evaluated, chunk by chunk: a request with everything looked up that it names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trajkit.defaults import DEFAULT_FIT
from trajkit.errors import InvalidInput
from trajkit.fits.devices import choose_device
from trajkit.fits.estimators.damped import Damped
from trajkit.fits.estimators.estimator import Estimator, Points, describe_parameters
from trajkit.fits.estimators.gates import GateRule
from trajkit.fits.kept import Fit, fit_names, read_fit
from trajkit.fits.window import check_fit_is_current
from trajkit.forecast.auto import Chosen, settle
from trajkit.forecast.request import Request
from trajkit.forecast.rules import assign_factors, assign_rules, parse_rule
from trajkit.forecast.template import Template, float_dtypes, template_like, template_of_step
from trajkit.kernels.flags import FLAG_BELOW_THRESHOLD, HELD_FLAGS
from trajkit.kernels.rounding import Rounding
from trajkit.stats.nulls import null_median
from trajkit.store.store import Store
from trajkit.store.tensors import as_store


@dataclass(frozen=True, slots=True)
class Rule:
    """How elements are evaluated; a value that any process can work by."""

    store_path: Path
    fit_name: str | None
    fit_digest: str
    """which fit of that name; empty where there is none"""
    estimator: Estimator
    points: Points
    first: int
    """frame of the checkpoint a"""
    last: int
    """frame of the checkpoint b"""
    gate: GateRule | None
    by_flag: bool
    """the gate is the fit's own, so that its flags say where it is closed"""
    rounding: Rounding
    tensors: tuple[tuple[str, str], ...]
    """(name, ``extrapolate``, ``hold`` or ``copy``) of every tensor"""
    device: str
    """``cpu`` or ``cuda``"""
    weights: tuple[tuple[int, tuple[float, ...]], ...] = ()
    """of a combination of checkpoints: target step -> what each from a to b weighs"""
    scales: tuple[tuple[int, float], ...] = ()
    """target step -> the part of the way that is gone, where a cap on the jump cuts it short"""
    factors: tuple[tuple[str, float], ...] = ()
    """(name, what the damping is multiplied by) of tensors that are moved further or less far"""

    def estimator_by(self, factor: float) -> Estimator:
        """The estimator for tensors that a factor stands beside."""
        if factor == 1 or not isinstance(self.estimator, Damped):
            return self.estimator
        return Damped(self.estimator.damping * factor)

    @property
    def reads(self) -> tuple[str, ...]:
        """The fit's arrays that are read, those first that tell whether to read the rest."""
        by_score = () if self.gate is None or self.by_flag else (self.gate.array,)
        if not self.estimator.needs_fit and self.gate is None:
            return ()
        return tuple(dict.fromkeys(("flags", *self.estimator.reads, *by_score)))

    @property
    def held_flags(self) -> int:
        """Elements with any of these flags are held."""
        return HELD_FLAGS | (FLAG_BELOW_THRESHOLD if self.by_flag else 0)

    @property
    def parameters(self) -> dict[str, Any]:
        """What to record beside the estimator's name."""
        found: dict[str, Any] = {"rounding": self.rounding.mode}
        if self.rounding.is_stochastic:
            found["seed"] = self.rounding.seed
        own = describe_parameters(self.estimator)
        found |= {k: v for k, v in own.items() if k != "alpha"}  # a target says its own
        if self.factors:
            found["factors"] = dict(self.factors)
        if not self.estimator.needs_fit:
            found |= {"from_step": self.points.first_step, "to_step": self.points.last_step}
        return found


@dataclass(frozen=True)
class Evaluation:
    """A rule, with the store, the fit and the template that it was made of."""

    rule: Rule
    store: Store
    fit: Fit | None
    template: Template
    rules: dict[str, str] = field(repr=False)
    """what happens to every tensor, by name"""
    chosen: Chosen | None = None
    """why this rule, where ``auto`` chose it"""


def resolve(request: Request) -> Evaluation:
    """Look up what a request names.

    Raises:
        NotFound: no such store, fit or step. Mismatch: the fit is of other checkpoints than the
            store holds, or ``like`` is of another model. InvalidInput: points in the wrong order, a
            pattern that matches nothing, no such device.
    """
    request, chosen = settle(request)
    device, store = choose_device(request.device), as_store(request.traj)
    estimator, asked = request.make_estimator(), request.gate_asked()
    fit = _find_fit(store, request.fit, estimator.needs_fit or asked is not None)
    if fit is not None:
        check_fit_is_current(store, fit)
    if not len(store.steps):
        raise InvalidInput(f"{store.path}: holds no step yet; run trajkit ingest first")
    window = store.steps if fit is None else fit.steps
    first = store.index_of(int(window[0]) if request.from_step is None else request.from_step)
    last = store.index_of(int(window[-1]) if request.to_step is None else request.to_step)
    if not estimator.needs_fit and first >= last:
        raise InvalidInput(
            f"{estimator.name} needs a from_step earlier than its to_step, not "
            f"{store.steps[first]} and {store.steps[last]}"
        )
    own = None if fit is None else GateRule("rsq", fit.rsq_threshold)
    gate = asked if request.has_gate or estimator.gates_itself else own
    null = null_median(fit.record.steps) if fit is not None and estimator.name == "shrunk" else 0.0
    template = (
        template_of_step(store, last)
        if request.like is None
        else template_like(Path(request.like), store, last)
    )
    rules = _assign_rules(request, store, fit, estimator, template)
    rule = Rule(
        store_path=store.path,
        fit_name=None if fit is None else fit.record.name,
        fit_digest="" if fit is None else fit_digest(fit),
        estimator=estimator,
        points=Points(
            int(store.steps[first]),
            int(store.steps[last]),
            0.0 if fit is None else fit.x_mean,
            1.0 if null is None else null,
        ),
        first=first,
        last=last,
        gate=gate,
        by_flag=gate is not None and gate == own,
        rounding=request.make_rounding(),
        tensors=tuple(rules.items()),
        device=device,
        factors=tuple(assign_factors(rules, request.factors).items()),
    )
    if fit is not None:
        fit.check_keeps(rule.reads)
    return Evaluation(rule, store, fit, template, rules, chosen)


def fit_digest(fit: Fit) -> str:
    """Which fit of its name this is."""
    return f"{fit.record.frames_digest}-{fit.record.found.table_sha256}"


def _find_fit(store: Store, fit: str | Fit, needed: bool) -> Fit | None:
    if isinstance(fit, Fit):
        return fit
    if not needed and fit == DEFAULT_FIT and fit not in fit_names(store):
        return None
    return read_fit(store, fit)


def _assign_rules(
    request: Request, store: Store, fit: Fit | None, estimator: Estimator, template: Template
) -> dict[str, str]:
    fitted = float_dtypes(store.vectors)
    if fit is not None and estimator.needs_fit:
        fitted = tuple(d for d in fitted if d in fit.arrays)
    rules = [parse_rule(text) for text in request.tensors]
    return assign_rules(store.tensors, rules, fitted, template.tied)
