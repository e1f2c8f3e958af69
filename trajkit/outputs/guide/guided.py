"""Guided extrapolation: search for a rule by outputs, then write its weights as any other's."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trajkit.defaults import DEFAULT_FIT, DEFAULT_MEMORY_BYTES, DEFAULT_ROUNDING
from trajkit.errors import InvalidInput, Locked, Refused, StorageError, warn
from trajkit.fits.kept import Fit
from trajkit.forecast.extrapolate import run
from trajkit.forecast.guidance import Guidance
from trajkit.forecast.plan import plan
from trajkit.forecast.request import Request
from trajkit.forecast.result import ExtrapolatePlan, ExtrapolateResult
from trajkit.outputs.guide.candidates import GuideRule
from trajkit.outputs.guide.choice import BATCH_TOKENS, Guide, Guided
from trajkit.outputs.guide.horizon import DEFAULT_SHARE, Horizon, find_horizon
from trajkit.outputs.guide.horizon import as_json as describe_horizon
from trajkit.outputs.guide.kept import keep_searches
from trajkit.outputs.guide.plan import GuidePlan
from trajkit.progress import Note, Progress, listening
from trajkit.store.tensors import Source

AUTO_STEPS = "auto"
"""in place of steps: the furthest target that outputs bear out"""


@dataclass(frozen=True, slots=True)
class GuidedResult(ExtrapolateResult):
    """What was written, and how it was chosen."""

    search_seconds: float = 0.0
    """beside those of writing"""
    guide: Mapping[str, Any] = field(default_factory=dict)
    """the last target's search: ``rule``, ``kl``, ``kl_hold``, ``kl_anchored``, ``kl_two_point`` (on
    probes that did not choose), ``candidates``, ``forwards``, ..."""
    guides: tuple[Mapping[str, Any], ...] = ()
    """every target's"""
    horizon: Mapping[str, Any] | None = None
    """where the target was searched for: ``share``, ``looked_at``, ``sentence``"""


@dataclass(frozen=True, slots=True)
class GuidedPlan(ExtrapolatePlan):
    """What would be searched and written."""

    guide: GuidePlan | None = None
    forwards: int = 0
    """in all, but for a horizon that is searched for"""


def guide(
    traj: Source,
    probes: str | Path,
    step: int,
    *,
    progress: Progress | bool = False,
    **options: Any,
) -> Guided:
    """Search for the rule of a step to come, and write nothing.

    ``options`` are those of :class:`trajkit.outputs.guide.choice.Guide`. The outcome's ``options`` go
    into :func:`trajkit.extrapolate`, :func:`trajkit.load_model` or :func:`trajkit.load_weights`; its
    ``refusal`` says why they should not.

    Raises:
        As :class:`trajkit.outputs.guide.choice.Guide` and :meth:`~Guide.choose`.
    """
    with listening(progress) as subscriber:
        return Guide(traj, probes, progress=subscriber, **options).choose(step)


def extrapolate_guided(
    traj: Source,
    steps: int | Sequence[int] | str,
    out: str | Path,
    probes: str | Path,
    *,
    fit: str | Fit = DEFAULT_FIT,
    tensors: Sequence[str] = (),
    rounding: str = DEFAULT_ROUNDING,
    seed: int = 0,
    like: str | Path | None = None,
    device: str = "cpu",
    check: bool = False,
    force: bool = False,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    budget: int | None = None,
    depth: str = "rules",
    share: float = DEFAULT_SHARE,
    force_guide: bool = False,
    rules: Sequence[GuideRule] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | bool = False,
) -> GuidedResult:
    """Write the weights that the run's own outputs choose for training steps to come.

    Args:
        traj: the run; its fit must be there.
        steps: targets, each searched for on its own; ``auto`` takes the furthest that outputs bear
            out (:mod:`trajkit.outputs.guide.horizon`).
        out: folder to write; with several targets, ``out/step_X`` each.
        probes: JSONL with prompts and responses (:mod:`trajkit.outputs.probes`).
        fit: which fit; its window's first and last checkpoint give the reference.
        tensors: as :func:`trajkit.extrapolate` has it, and so the next five.
        rounding: see there.
        seed: of the rounding.
        like: see there.
        check: see there.
        force: see there.
        memory: budget for distributions, the fit's copy and what is evaluated; the model comes on top.
        device: ``cpu``, ``cuda`` or ``auto``, of the model as well.
        budget: forwards a target, at most (default: as many as it takes).
        depth: ``rules``, or ``families`` for factors a module family.
        share: with ``auto``, the most that KL of the choice may be of that of holding.
        force_guide: write the best rule though it is refused.
        rules: what is tried (default: :func:`trajkit.outputs.guide.candidates.make_grid`).
        batch_tokens: ids a batch of probes, padding included.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Raises:
        Refused: no rule tried is nearer to the extrapolated logits than the last checkpoint on probes
            that did not choose it, or the run moved too little; nothing was written.
        Others as :func:`trajkit.extrapolate` and :class:`trajkit.outputs.guide.choice.Guide`.
    """
    started = time.perf_counter()
    common: dict[str, Any] = {
        "fit": fit, "tensors": tensors, "rounding": rounding, "seed": seed, "device": device,
    }  # fmt: skip
    writing = {**common, "like": like, "check": check, "force": force, "memory": memory}
    _check_places(traj, steps, out, writing)
    with listening(progress) as subscriber:
        searcher = Guide(
            traj, probes, budget=budget, depth=depth, rules=rules, batch_tokens=batch_tokens,
            memory=memory, progress=subscriber, model_device=_model_device(device), **common,
        )  # fmt: skip
        horizon = None
        if isinstance(steps, str):
            horizon = find_horizon(searcher, share)
            found = [horizon.chosen]
        else:
            found = [searcher.choose(step) for step in _as_list(steps)]
        _keep(searcher, found, subscriber)
        refused = [f"step {g.step}: {g.refusal}" for g in found if g.refusal is not None]
        if refused and not force_guide:
            raise Refused(
                f"{refused[0]}; nothing was written (--force-guide writes it all the same)"
            )
        results = []
        for place, guided in zip(_places(out, found), found, strict=True):
            guidance = describe_guide(guided, horizon)
            request = Request.make(
                traj, guided.step, place, guide=guidance, **guided.options, **writing
            )
            results.append(run(plan(request), subscriber))
    for line in dict.fromkeys(line for r in results for line in r.warnings):
        warn(line)
    seconds = time.perf_counter() - started
    joined = _join(results, [g.as_json() for g in found], seconds)
    return joined if horizon is None else replace(joined, horizon=describe_horizon(horizon))


def plan_guided(
    traj: Source,
    steps: int | Sequence[int] | str,
    out: str | Path,
    probes: str | Path,
    **options: Any,
) -> GuidedPlan:
    """What :func:`extrapolate_guided` would search and write, without a forward; raises as it would."""
    own = ("budget", "depth", "rules", "batch_tokens", "force_guide", "share")
    writing = {k: v for k, v in options.items() if k not in own}
    common = {k: v for k, v in writing.items() if k not in ("like", "check", "force")}
    asked = {k: options[k] for k in own[:4] if k in options}
    targets = [1] if isinstance(steps, str) else _as_list(steps)
    summary = _check_places(traj, steps, out, writing)
    searcher = Guide(traj, probes, **asked, **common)
    return GuidedPlan(
        **{f.name: getattr(summary, f.name) for f in fields(summary)},
        guide=searcher.plan,
        forwards=searcher.plan.forwards(len(targets)),
    )


def describe_guide(guided: Guided, horizon: Horizon | None = None) -> Guidance:
    """What is written down beside a guided checkpoint."""
    shown = [
        f"{name} {'–' if kl is None else f'{kl:.3g}'}"
        for name, kl in (("holding", guided.choosing.hold), ("anchored", guided.choosing.anchored),
                         ("two-point", guided.choosing.two_point))
    ]  # fmt: skip
    rows: tuple[tuple[str, str], ...] = (
        (
            "chosen by",
            f"the outputs on {guided.probes:,} probes, of {len(guided.candidates)} rules",
        ),
        (
            "KL from the extrapolated logits, on probes that did not choose",
            f"{guided.kl:.3g} nats a token (holding {guided.kl_hold:.3g}, anchored "
            f"{guided.kl_anchored:.3g}, two-point {guided.kl_two_point:.3g})",
        ),
        ("the same, on probes that chose", f"{guided.choosing.chosen:.3g} ({', '.join(shown)})"),
    )
    record = guided.record
    if horizon is not None:
        rows = (*rows, ("the target", horizon.sentence))
        record["horizon_search"] = describe_horizon(horizon)
    cautions = () if guided.refusal is None else (f"written by force: {guided.refusal}",)
    return Guidance(record, guided.sentence, rows, cautions)


def _check_places(
    traj: Source, steps: int | Sequence[int] | str, out: str | Path, writing: Mapping[str, Any]
) -> ExtrapolatePlan:
    """Raise before any forward where nothing could be written."""
    if isinstance(steps, str) and steps != AUTO_STEPS:
        raise InvalidInput(f"steps are whole numbers, or {AUTO_STEPS}, not {steps!r}")
    targets = [0] if isinstance(steps, str) else _as_list(steps)
    given = Request.make(
        traj, targets, out, estimator="damped", damping=1.0, gate="none", **writing
    )
    found = plan(given).summary
    return replace(found, targets=(), warnings=()) if isinstance(steps, str) else found


def _as_list(steps: int | Sequence[int] | str) -> list[int]:
    if isinstance(steps, str):
        raise InvalidInput(f"steps are whole numbers, not {steps!r}")
    return [steps] if isinstance(steps, int) else list(steps)


def _places(out: str | Path, found: Sequence[Guided]) -> list[Path]:
    if len(found) == 1:
        return [Path(out)]
    return [Path(out) / f"step_{guided.step}" for guided in found]


def _model_device(device: str) -> str:
    """Where models run: where the arithmetic does."""
    from trajkit.fits.devices import choose_device

    return choose_device(device)


def _keep(searcher: Guide, found: Sequence[Guided], progress: Progress) -> None:
    """Keep the searches for the report; a store that cannot be written to is no reason to stop."""
    try:
        keep_searches(searcher.trials.store, [g.as_json() for g in found])
    except (Locked, StorageError) as error:
        progress(Note(f"the search is not kept for the report: {error}"))


def _join(
    results: Sequence[ExtrapolateResult], guides: Sequence[Mapping[str, Any]], seconds: float
) -> GuidedResult:
    """One result of all targets."""
    names = dict.fromkeys(result.estimator for result in results)
    return GuidedResult(
        targets=tuple(target for r in results for target in r.targets),
        estimator=", ".join(names),
        last_step=results[0].last_step,
        moved=sum(r.moved for r in results),
        held=sum(r.held for r in results),
        copied=sum(r.copied for r in results),
        unchanged_after_rounding=sum(r.unchanged_after_rounding for r in results),
        n_bytes=sum(r.n_bytes for r in results),
        seconds=sum(r.seconds for r in results),
        warnings=tuple(dict.fromkeys(line for r in results for line in r.warnings)),
        search_seconds=seconds - sum(r.seconds for r in results),
        guide=guides[-1],
        guides=tuple(guides),
    )
