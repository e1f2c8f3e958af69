"""The content of ``trajkit.json``: the same for the same inputs, whenever and wherever."""

import platform
from dataclasses import asdict
from typing import Any

import numpy as np

import trajkit
from trajkit.forecast.evaluation import Evaluation
from trajkit.forecast.request import Request
from trajkit.forecast.result import Target
from trajkit.forecast.rules import COPIED


def describe_target(evaluation: Evaluation, request: Request, target: Target) -> dict[str, Any]:
    """How one target was computed, from what, with which outcome; JSON types."""
    rule, fit = evaluation.rule, None if evaluation.fit is None else evaluation.fit.record
    window = [rule.points.first_step, rule.points.last_step]
    if rule.estimator.combines:
        window = evaluation.store.steps[rule.first : rule.last + 1].tolist()
    elif fit is not None and rule.estimator.needs_fit:
        window = list(fit.steps)
    by_rsq = rule.gate is not None and rule.gate.score == "rsq"
    shown = {k: v for k, v in asdict(target).items() if k != "path" and v is not None}
    return {
        "made_by": "trajkit extrapolate",
        "trajkit": trajkit.__version__,
        "target": shown,
        "estimator": rule.estimator.name,
        **({} if evaluation.chosen is None else {"auto": dict(evaluation.chosen.record)}),
        **({} if request.guide is None else {"guide": dict(request.guide.record)}),
        "parameters": rule.parameters,
        **({} if rule.gate is None or by_rsq else {"gate": str(rule.gate)}),
        "rsq_threshold": rule.gate.threshold if rule.gate is not None and by_rsq else None,
        **({} if request.max_norm is None else {"max_norm": request.max_norm}),
        "fitted_steps": window,
        "last_step": rule.points.last_step,
        "tensor_rules": [f"{pattern}=copy" for pattern in COPIED] + list(request.tensors),
        "layout_from": evaluation.template.like or f"step {rule.points.last_step}",
        "fit": None
        if fit is None or not rule.reads
        else {
            "name": fit.name,
            "steps": list(fit.steps),
            "rsq_threshold": fit.rsq_threshold,
            "frames_digest": fit.frames_digest,
            "versions": dict(fit.versions),
        },
        "versions": {
            "trajkit": trajkit.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }
