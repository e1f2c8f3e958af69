"""The report's first page: how the run moved, when it turned, and its metrics; in words and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trajkit.checkpoints.metrics import Metrics
from trajkit.evidence.metrics import MetricFinding, goals_of, judge_metrics
from trajkit.evidence.movement import Evidence
from trajkit.reports.findings import number, percent
from trajkit.reports.markup import escape
from trajkit.reports.movement_plots import MOST_METRICS, MovementData
from trajkit.text import printable

STRAIGHT_ON = 0.9
"""mean rates before and after a break closer than this (cosine) are called a change of pace"""


@dataclass(frozen=True)
class MovementPage:
    """What the page says of movement."""

    data: MovementData
    sentences: tuple[str, ...]
    table: str
    """HTML: figures beside those of a driftless walk"""
    summary: Mapping[str, Any]
    """for summary.json"""


def describe_movement(found: Evidence, metrics: Metrics | None) -> MovementPage:
    """The page's account of a run's movement and metrics."""
    overall = found.overall
    judged: Sequence[MetricFinding] = ()
    curves: list[tuple[MetricFinding, Sequence[tuple[int, float]]]] = []
    if metrics is not None:
        judged = judge_metrics(metrics, found.steps, overall["speed"])
        first, last = found.steps[0], found.steps[-1]
        for finding in _unlike(judged, metrics)[:MOST_METRICS]:
            inside = [(s, v) for s, v in metrics.curves[finding.name] if first <= s <= last]
            curves.append((finding, inside))
    data = MovementData(
        found.steps,
        overall["speed"],
        overall["cosine"],
        overall["changed"],
        [b["step"] for b in overall["breaks"]],
        curves,
    )
    sentences = (*_say_turns(found), *(_say_metric(f) for f, _ in curves), *_say_left_out(metrics))
    summary = {**overall, "steps": list(found.steps), "metrics": [asdict(f) for f in judged]}
    return MovementPage(data, sentences, _table(found), summary)


def _unlike(judged: Sequence[MetricFinding], metrics: Metrics) -> list[MetricFinding]:
    """Findings whose curves differ: trainers log one reward under several names."""
    seen: list[Any] = []
    kept = []
    for finding in judged:
        curve = metrics.curves[finding.name]
        if curve not in seen:
            seen.append(curve)
            kept.append(finding)
    return kept


def _say_turns(found: Evidence) -> list[str]:
    overall = found.overall
    if not overall["breaks"]:
        return ["No turn stands out from the scatter of the changes."]
    parts = []
    for b in overall["breaks"]:
        cosine, ratio = b["cosine"], b["speed_ratio"]
        what = "turned" if cosine is None or cosine < STRAIGHT_ON else "changed its pace"
        size = "" if ratio is None else f", speed times {ratio:.2g}"
        parts.append(
            f"{what} at step {b['step']:,} (cosine before and after {number(cosine)}{size})"
        )
    regime = (
        f"The longest piece without one runs from step {overall['linear_from']:,} to "
        f"{overall['linear_to']:,}; fit --from-step auto begins there."
    )
    return [f"The run {'; it '.join(parts)}.", regime]


def _say_metric(finding: MetricFinding) -> str:
    name = printable(finding.name)
    text = f"By {name} the best step is {finding.best_step:,} ({finding.best:.3g})"
    if finding.peak_step is None or finding.moved_after is None:
        return f"{text}; it ends at {finding.last:.3g}."
    return (
        f"{text}. After the checkpoint of step {finding.peak_step:,} it fell, to {finding.last:.3g}, "
        f"while the weights moved on: {percent(finding.moved_after)} of all movement came after."
    )


def _say_left_out(metrics: Metrics | None) -> list[str]:
    """Why a loss beside a reward is not judged, where there is one."""
    if metrics is None or not any("loss" in n.lower() for n in metrics.curves):
        return []
    goals = goals_of(metrics.curves)
    if any("reward" in name.lower() for name in goals):
        return [
            "No step is best by the loss: of a run with a reward it is that of policy gradients, "
            "which says nothing of how good the model is."
        ]
    return []


def _table(found: Evidence) -> str:
    """The run's figures beside those of a walk and a line."""
    n, overall = len(found.steps) - 1, found.overall
    rows = (
        (
            "net displacement over path length",
            number(overall["net_over_path"]),
            number(n**-0.5),
            "1.00",
        ),
        ("growth exponent of |W − W₀|²", number(overall["growth"]), "1.00", "2.00"),
        ("mean cosine of successive changes", number(overall["successive_cosine"]), "0.00", "1.00"),
        (
            "part of the net displacement that is drift",
            number(overall["drift_part"]),
            "0.00",
            "1.00",
        ),
        (
            "first principal component's share",
            number(overall["first_component"]),
            number(overall["walk_first_component"]),
            "1.00",
        ),
    )
    head = "<tr><th></th><th>this run</th><th>driftless walk</th><th>line</th></tr>"
    lines = (
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="n">{escape(v)}</td>' for v in values)
        + "</tr>"
        for name, *values in rows
    )
    return (
        f'<div class="scroll"><table class="plain"><thead>{head}</thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
