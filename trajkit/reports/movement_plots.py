"""The figure of evidence: metrics over the speed and the direction of movement, on one step axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trajkit.evidence.metrics import MetricFinding, smooth
from trajkit.reports.figures import (
    DASHED,
    DOTTED,
    Drawing,
    percent_ticks,
    rule_across,
    shorten,
    value_ticks,
    whole_ticks,
    write,
)
from trajkit.reports.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_METRICS = 3
"""metrics drawn, a panel each"""


@dataclass(frozen=True)
class MovementData:
    """What the figure shows."""

    steps: Sequence[int]
    """training steps of the checkpoints looked at, [A]"""
    speed: Sequence[float]
    """[A - 1]"""
    cosine: Sequence[float | None]
    """[A - 1]"""
    changed: Sequence[float]
    """share of elements, [A - 1]"""
    breaks: Sequence[int]
    """training steps at which the run turned"""
    metrics: Sequence[tuple[MetricFinding, Sequence[tuple[int, float]]]]
    """findings and curves, at most MOST_METRICS"""


def draw_movement(data: MovementData, palette: Palette, width: int) -> Drawing:
    """A panel each for the metrics, the speed, the cosine and the share of elements that changed."""
    head, tall, foot = 30, 92, 40
    panels = len(data.metrics) + 3
    drawing = Drawing(width, panels * (head + tall) + foot, palette)
    left = 52
    top = head
    for finding, curve in data.metrics:
        ax = drawing.axes(left, top, width - left - 14, tall)
        _draw_metric(ax, finding, curve, palette, width)
        _finish(ax, data, palette, width, last=False)
        top += head + tall
    speed = ("speed: size of the change a training step", data.speed)
    cosine = ("direction: cosine with all other changes together", data.cosine)
    changed = ("elements that changed", data.changed)
    for i, (title, values) in enumerate((speed, cosine, changed)):
        ax = drawing.axes(left, top, width - left - 14, tall)
        known = np.array([np.nan if v is None else v for v in values], float)
        ax.stairs(known, data.steps, baseline=None, color=palette.accent, lw=1.8)
        write(ax, title, (0, 1), (2 - left, 8), weight="bold", fontsize=11)
        if i == 1:
            ax.axhline(0, color=palette.ink, lw=1.2, linestyle=DASHED)
            low = min(float(np.nanmin(known, initial=0.0)) - 0.05, -0.1)
            ax.set_ylim(max(low, -1.05), 1.05)
        else:
            ax.set_ylim(0, 1.1 * max(float(np.nanmax(known, initial=0.0)), 1e-300))
        _finish(ax, data, palette, width, last=i == 2)
        if i == 2:
            percent_ticks(ax, "y", 3)
        top += head + tall
    return drawing


def _draw_metric(
    ax: "Axes",
    finding: MetricFinding,
    curve: Sequence[tuple[int, float]],
    palette: Palette,
    width: int,
) -> None:
    """One metric, its running mean, and where it is best."""
    x = np.array([s for s, _ in curve], float)
    y = np.array([v for _, v in curve])
    ax.plot(x, y, color=palette.null, lw=0.9, alpha=0.8)
    ax.plot(x, smooth(y.tolist()), color=palette.accent, lw=1.8)
    ax.plot([finding.best_step], [finding.best], "o", ms=6, mew=0, color=palette.ink)
    letters = (width - 190) / 6.6
    write(ax, shorten(finding.name, letters), (0, 1), (-50, 8), weight="bold", fontsize=11)
    best = f"best at step {finding.best_step:,}"
    write(ax, best, (1, 1), (0, 8), ha="right", fontsize=10, color=palette.muted)


def _finish(ax: "Axes", data: MovementData, palette: Palette, width: int, *, last: bool) -> None:
    """The shared axis, the turns, and the checkpoint after which a metric fell."""
    first, end = float(data.steps[0]), float(data.steps[-1])
    room = 0.01 * max(end - first, 1.0)
    ax.set_xlim(first - room, end + room)
    for step in data.breaks:
        ax.axvline(step, color=palette.muted, lw=1.2, linestyle=DOTTED)
    for finding, _ in data.metrics:
        if finding.peak_step is not None:
            ax.axvline(finding.peak_step, color=palette.ink, lw=1, linestyle=DASHED, alpha=0.6)
    rule_across(ax)
    value_ticks(ax)
    whole_ticks(ax, width)
    if last:
        ax.set_xlabel("training step")
    else:
        ax.tick_params(axis="x", labelbottom=False)
