"""The report's figures about outputs: how far they drifted, and tokens' log-probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.drift import Drift
from trajkit.reports.figures import (
    DASHED,
    Drawing,
    rule_across,
    shorten,
    value_ticks,
    whole_ticks,
    write,
)
from trajkit.reports.palette import Palette


@dataclass(frozen=True)
class TokenPick:
    """One response token over the run."""

    role: str
    """why it is shown: steepest rise, median R², ..."""
    context: str
    """the text before it, its end"""
    token: str
    rsq: float
    steps: Array
    values: Array
    """log p at each step"""
    line: Array
    """the fitted line there"""


@dataclass(frozen=True)
class Curve:
    """One panel of the drift figure."""

    title: str
    steps: Array
    values: Array


def drift_curves(rows: Sequence[Drift], rewards: Sequence[tuple[int, float]]) -> list[Curve]:
    """What is drawn of the drift: KL, likeliest token, entropy; the reward first, where known."""
    steps = np.array([row.step for row in rows])
    curves = [
        Curve("KL from the first, nats", steps, np.array([r.kl_to_base for r in rows])),
        Curve("KL from the one before", steps[1:], np.array([r.kl_to_before for r in rows[1:]])),
        Curve("likeliest token changed", steps, np.array([r.argmax_changed_to_base for r in rows])),
        Curve("entropy, nats", steps, np.array([r.entropy for r in rows])),
        Curve("mean |Δ log p|", steps, np.array([r.change_to_base for r in rows])),
    ]
    if rewards:
        x, y = zip(*rewards, strict=True)
        curves.insert(0, Curve("reward", np.array(x), np.array(y)))
    return curves


def draw_drift_curves(curves: Sequence[Curve], palette: Palette, width: int) -> Drawing:
    """One small panel a curve, all on the axis of training steps."""
    columns = 1 if width < 600 else 3
    left, gap, head, tall, foot = 48, 26, 26, 110, 40
    across = (width - 8 - columns * left - (columns - 1) * gap) / columns
    n_rows = math.ceil(len(curves) / columns)
    drawing = Drawing(width, n_rows * (head + tall + foot), palette)
    for i, curve in enumerate(curves):
        row, column = divmod(i, columns)
        place = left + column * (across + left + gap), row * (head + tall + foot) + head
        ax = drawing.axes(*place, across, tall)
        ax.plot(curve.steps, curve.values, color=palette.accent, lw=1.6)
        if len(curve.steps) <= 60:
            ax.plot(curve.steps, curve.values, "o", ms=3, mew=0, color=palette.accent)
        rule_across(ax)
        value_ticks(ax)
        whole_ticks(ax, across, 62)
        ax.set_xlabel("training step", fontsize=9.5, labelpad=1)
        write(ax, curve.title, (0, 1), (2 - left, 8), weight="bold", fontsize=11)
    return drawing


def draw_tokens(picks: Sequence[TokenPick], palette: Palette, width: int) -> Drawing:
    """One panel a token: its log p at each checkpoint, and its line."""
    columns = 1 if width < 600 else 3
    left, gap, head, tall, foot = 48, 26, 46, 110, 40
    across = (width - 8 - columns * left - (columns - 1) * gap) / columns
    n_rows = max(1, math.ceil(len(picks) / columns))
    drawing = Drawing(width, n_rows * (head + tall + foot), palette)
    for i, pick in enumerate(picks):
        row, column = divmod(i, columns)
        place = left + column * (across + left + gap), row * (head + tall + foot) + head
        ax = drawing.axes(*place, across, tall)
        ax.plot(pick.steps, pick.line, color=palette.accent, lw=1.8)
        ax.plot(pick.steps, pick.values, color=palette.muted, lw=0.8, linestyle=DASHED)
        ax.plot(pick.steps, pick.values, "o", ms=3, mew=0, color=palette.ink)
        rule_across(ax)
        value_ticks(ax)
        whole_ticks(ax, across, 62)
        ax.set_xlabel("training step", fontsize=9.5, labelpad=1)
        room = (across + left) / 6.2 - len(pick.token) - 5
        context = shorten(pick.context[-60:], room) if room > 6 else ""
        write(ax, pick.role.capitalize(), (0, 1), (2 - left, 24), weight="bold", fontsize=11)
        shown = f"{context} [{shorten(pick.token, 14)}]"
        write(ax, shown, (0, 1), (2 - left, 10), fontsize=9.5, color=palette.muted)
        write(
            ax, f"R² {pick.rsq:.3f}", (1, 1), (0, 24), ha="right", color=palette.accent,
            weight="bold",
        )  # fmt: skip
    return drawing
