"""What an extrapolation is going to write, checked as far as it can be without writing."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trajkit.checkpoints.target import Place
from trajkit.errors import AlreadyExists, InvalidInput
from trajkit.forecast.cautions import find_cautions
from trajkit.forecast.chunks import plan_chunks
from trajkit.forecast.combine import plan_weights
from trajkit.forecast.evaluation import Evaluation, resolve
from trajkit.forecast.request import MOST_DIGITS, Request
from trajkit.forecast.result import ExtrapolatePlan, Target
from trajkit.parallel import Plan
from trajkit.store.output import check_output
from trajkit.text import parse_bytes


@dataclass(frozen=True)
class Forecast:
    """Everything that is left to do is to run it."""

    request: Request
    evaluation: Evaluation
    targets: tuple[Target, ...]
    workers: Plan
    group: int
    """chunks a task"""
    summary: ExtrapolatePlan
    """the same for people"""
    places: tuple[Place, ...]
    """of each target, checked"""


def plan(request: Request) -> Forecast:
    """Resolve and check a request.

    Raises:
        InvalidInput: no target, no place, or a combination that makes no sense.
        AlreadyExists: something is at an output path. OverBudget: the budget is too small.
        NotFound, Mismatch: as :func:`trajkit.forecast.evaluation.resolve`.
    """
    evaluation = resolve(request)
    if request.out is None:
        raise InvalidInput("no folder to write was given")
    targets = find_targets(evaluation, request)
    places = _check_places(evaluation, request.out, targets, request.force)
    combined = len(targets) * evaluation.rule.estimator.combines
    budget = parse_bytes(request.memory)
    workers, group = plan_chunks(
        evaluation.store.vectors, budget, combined=combined, measured=request.max_norm is not None
    )
    weigh_bytes = plan_weights(evaluation, budget)
    sizes = dict.fromkeys(("extrapolate", "hold", "copy"), 0)
    for name, rule in evaluation.rules.items():
        sizes[rule] += evaluation.store.tensors[name].size
    out = request.out.absolute()
    there = next(p for p in (out, *out.parents) if p.exists())
    files = evaluation.template.files
    summary = ExtrapolatePlan(
        targets=targets,
        estimator=evaluation.rule.estimator.name,
        last_step=evaluation.rule.points.last_step,
        files=len(files),
        n_bytes=len(targets) * sum(f.n_bytes for f in files),
        free_bytes=shutil.disk_usage(there).free,
        extrapolated=sizes["extrapolate"],
        held=sizes["hold"],
        copied=sizes["copy"],
        workers=workers.workers,
        memory_bytes=max(workers.n_bytes, weigh_bytes),
        warnings=tuple(
            dict.fromkeys(
                [
                    *(w for t in targets for w in find_cautions(evaluation, t)),
                    *(() if request.guide is None else request.guide.cautions),
                ]
            )
        ),
    )
    return Forecast(request, evaluation, targets, workers, group, summary, places)


def find_targets(evaluation: Evaluation, request: Request) -> tuple[Target, ...]:
    """The targets, checked, with the folder each goes to.

    Raises:
        InvalidInput: no target, or several where one number gives one checkpoint.
    """
    estimator, points = evaluation.rule.estimator, evaluation.rule.points
    own, steps = estimator.target_step(points), request.steps
    if own is not None and abs(own) >= 10**MOST_DIGITS:
        raise InvalidInput(
            f"alpha amounts to step {own:.2g}, which no run reaches; choose a smaller"
        )
    if own is not None and len(steps) > 1:
        raise InvalidInput(
            f"{estimator.name} with one alpha gives one checkpoint: give one step at most"
        )
    steps = steps or (() if own is None else (own,))
    if not steps:
        by = " or alpha" if "alpha" in {p.name for p in estimator.parameters} else ""
        raise InvalidInput(f"no target step{by} given")
    many, out = len(steps) > 1, request.out or Path()
    return tuple(
        Target(
            step=step,
            horizon=step - points.last_step,
            path=str(out / f"step_{step}" if many else out),
            alpha=estimator.coefficient(points, step) if estimator.name == "expo" else None,
        )
        for step in steps
    )


def _check_places(
    evaluation: Evaluation, out: Path, targets: Sequence[Target], force: bool
) -> tuple[Place, ...]:
    if len(targets) > 1 and os.path.lexists(out) and not out.is_dir():
        raise AlreadyExists(f"{out}: is a file; several targets go to folders in {out}")
    return tuple(check_output(evaluation.store, Path(t.path), force) for t in targets)
