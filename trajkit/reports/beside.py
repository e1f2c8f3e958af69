"""Another run set beside the one reported: verdicts, speed, and whether both drift the same way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajkit.errors import InvalidInput
from trajkit.evidence.beside import compare_drifts
from trajkit.evidence.movement import Evidence, find_evidence
from trajkit.fits.kept import Fit, read_fit
from trajkit.progress import Progress
from trajkit.reports.findings import number, percent
from trajkit.reports.markup import escape
from trajkit.stats.verdict import SAY
from trajkit.store.tensors import Source, as_store
from trajkit.text import printable


@dataclass(frozen=True)
class BesidePage:
    """What the page says of two runs."""

    html: tuple[str, str]
    """lead and content"""
    summary: Mapping[str, Any]
    """for summary.json"""


def read_other_run(beside: Source, name: str) -> Fit:
    """The fit of that name of the run to be set beside; raises as :func:`read_fit`."""
    return read_fit(as_store(beside), name)


def describe_beside(
    fit: Fit, evidence: Evidence | None, other: Fit, progress: Progress
) -> BesidePage:
    """Two runs beside one another; measures the other's evidence where it is not kept yet.

    Raises:
        InvalidInput: a window of fewer than three checkpoints. Mismatch: no tensor in common.
    """
    if evidence is None or len(other.record.steps) < 3:
        raise InvalidInput("--beside compares runs of three checkpoints or more")
    theirs = find_evidence(other.store, other.record.steps, progress=progress)
    ends = [(int(f.steps[0]), int(f.steps[-1])) for f in (fit, other)]
    likeness = compare_drifts(fit.store, ends[0], other.store, ends[1])
    numbers = [fit.describe(), other.describe()]
    rows: list[tuple[str, ...]] = [
        ("checkpoints", *(f"{n['checkpoints']:,}" for n in numbers)),
        ("verdict", *(str(n["verdict"]) for n in numbers)),
        ("elements that drift", *(percent(n["drift_share"], 1) for n in numbers)),
        ("median R²", *(number(n["median_rsq"]) for n in numbers)),
        ("median R² of a walk like it", *(number(n["null_median_rsq"]) for n in numbers)),
    ]
    for label, key in (
        ("net displacement over path length", "net_over_path"),
        ("growth exponent", "growth"),
        ("part of the displacement that is drift", "drift_part"),
    ):
        rows.append((label, *(number(e.overall[key]) for e in (evidence, theirs))))
    rows.append(("mean speed, a training step", *(f"{_speed(e):.3g}" for e in (evidence, theirs))))
    modules = [
        (name, cosine, _module_speed(evidence, name), _module_speed(theirs, name))
        for name, cosine in likeness.modules.items()
    ]
    summary = {
        "store": str(other.store.path),
        "verdicts": [n["verdict"] for n in numbers],
        "drift_cosine": likeness.overall,
        "common_elements": likeness.common,
        "modules": {m: {"drift_cosine": c, "speeds": [a, b]} for m, c, a, b in modules},
    }
    return BesidePage(_page(rows, modules, likeness.overall, numbers), summary)


def _page(
    rows: Sequence[tuple[str, ...]],
    modules: Sequence[tuple[str, float | None, float | None, float | None]],
    cosine: float | None,
    numbers: Sequence[Mapping[str, Any]],
) -> tuple[str, str]:
    names = [escape(printable(str(n["store"]))) for n in numbers]
    words = " ".join(
        f"{name}: {escape(SAY[n['verdict']])}." for name, n in zip(names, numbers, strict=True)
    )
    lead = (
        f"{words} The cosine of the two directions of drift is {number(cosine)} (1: the same way; 0: "
        "unrelated)."
    )
    head = f"<tr><th></th><th>{names[0]}</th><th>{names[1]}</th></tr>"
    body = "".join(
        f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td><td>{escape(c)}</td></tr>'
        for a, b, c in rows
    )
    by_module = "".join(
        f'<tr><th scope="row">{escape(printable(m))}</th><td>{number(c)}</td><td>{_small(a)}</td>'
        f"<td>{_small(b)}</td></tr>"
        for m, c, a, b in modules
    )
    return lead, (
        f'<div class="scroll"><table class="plain"><thead>{head}</thead><tbody>{body}</tbody></table>'
        '<table class="plain"><thead><tr><th>module</th><th>cosine of drifts</th>'
        f"<th>speed, {names[0]}</th><th>speed, {names[1]}</th></tr></thead>"
        f"<tbody>{by_module}</tbody></table></div>"
    )


def _small(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _speed(found: Evidence) -> float:
    return float(np.average(found.overall["speed"], weights=np.diff(found.steps)))


def _module_speed(found: Evidence, module: str) -> float | None:
    part = found.modules.get(module)
    if part is None:
        return None
    return float(np.average(part["speed"], weights=np.diff(found.steps)))
