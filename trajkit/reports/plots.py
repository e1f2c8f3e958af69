"""The report's figures about the run and its elements: checkpoints, R², chosen trajectories."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trajkit.arrays import Array
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
from trajkit.reports.findings import percent
from trajkit.reports.gallery import Pick
from trajkit.reports.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_RULES = 24
_MOST_POINTS = 160


def draw_timeline(
    steps: Array, shares: Array, in_window: Array, palette: Palette, width: int
) -> Drawing:
    """What each checkpoint takes in the store, on the axis of training steps.

    Args:
        steps: int64 [T].
        shares: stored bytes over raw bytes [T].
        in_window: whether it was fitted, bool [T].
        palette: colours.
        width: in pixels.

    """
    drawing = Drawing(width, 132, palette)
    ax = drawing.axes(46, 10, width - 62, 80)
    thickness = float(np.clip((width - 62) / (2.2 * len(steps)), 0.8, 5))
    for part, colour in ((~in_window, palette.null), (in_window, palette.accent)):
        x = np.repeat(steps[part].astype(float), 3)
        y = np.ravel([(0.0, s, np.nan) for s in shares[part]])
        ax.plot(x, y, color=colour, lw=thickness, solid_capstyle="butt")
    ax.set_ylim(0, max(1.0, float(shares.max()) * 1.05))
    span = max(float(steps[-1] - steps[0]), 1.0)
    ax.set_xlim(steps[0] - 0.015 * span, steps[-1] + 0.015 * span)
    ax.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    rule_across(ax)
    whole_ticks(ax, width)
    ax.set_xlabel("training step")
    return drawing


@dataclass(frozen=True)
class RsqData:
    """What the R² histogram shows."""

    hist: Array
    """counts of fitted elements on [0, 1]"""
    hist_kept: Array
    null: Sequence[float] | None
    """of driftless walks, shares in equal bins on [0, 1]; None where none is known"""
    threshold: float
    share: float | None
    null_share: float | None
    median: float | None
    null_median: float | None


def draw_histogram(
    data: RsqData, palette: Palette, width: int, height: int = 340, what: str = "an element"
) -> Drawing:
    """R² of all fitted elements with the random walk's over it and the threshold marked."""
    drawing = Drawing(width, height, palette)
    bins = 25 if drawing.narrow else 50
    edges = np.linspace(0, 1, bins + 1)
    observed = _rebin(data.hist, bins)
    null = np.zeros(bins) if data.null is None else np.reshape(data.null, (bins, -1)).sum(axis=1)
    ax = drawing.axes(46, 62, width - 66, height - 106)
    ax.stairs(observed, edges, fill=True, color=palette.accent, alpha=0.28, lw=0)
    if 0 < data.hist_kept.sum() < data.hist.sum():
        kept = _rebin(data.hist_kept, bins) * (data.hist_kept.sum() / data.hist.sum())
        ax.stairs(kept, edges, fill=True, color=palette.accent, alpha=0.4, lw=0)
    ax.stairs(observed, edges, color=palette.accent, lw=1.4, baseline=None)
    ax.stairs(null, edges, color=palette.ink, lw=1.6, baseline=None, linestyle=DASHED)
    top = 1.04 * max(float(observed.max()), float(null.max()), 1e-9)
    ax.set(xlim=(0, 1), ylim=(0, top))
    line = ax.axvline(data.threshold, 0, 1 + 54 / (height - 106), color=palette.muted, lw=1)
    line.set(linestyle=DOTTED, clip_on=False)
    percent_ticks(ax, "y")
    ax.set_xticks(np.linspace(0, 1, 6))
    rule_across(ax)
    ax.set_xlabel(f"R² of the line fitted to {what}")
    _write_shares(ax, data, palette, drawing.narrow)
    _mark_medians(ax, data, palette, drawing.narrow)
    return drawing


def _rebin(hist: Array, bins: int) -> Array:
    """A histogram's shares in fewer bins."""
    shares: Array = hist.reshape(bins, -1).sum(axis=1) / max(int(hist.sum()), 1)
    return shares


def _write_shares(ax: "Axes", data: RsqData, palette: Palette, narrow: bool) -> None:
    """How much lies above the threshold, over the plot and beside the threshold's line."""
    left = data.threshold > 0.5
    shares = [
        ("this run", data.share, palette.accent),
        ("random walk", data.null_share, palette.ink),
    ]
    for i, (name, value, colour) in enumerate(shares):
        short = f"{name} {percent(value)} > {data.threshold:g}"
        long = f"{name}: {percent(value)} above {data.threshold:g}"
        write(
            ax,
            short if narrow else long,
            (data.threshold, 1),
            (-7 if left else 7, 40 - 15 * i),
            color=colour,
            weight="bold",
            ha="right" if left else "left",
        )


def _mark_medians(ax: "Axes", data: RsqData, palette: Palette, narrow: bool) -> None:
    """A triangle and a number over the plot for the run's median and the walk's."""
    medians = [
        (data.null_median, palette.ink, "median"),
        (data.median, palette.accent, "median"),
    ]
    known = [m for m in medians if m[0] is not None]
    values = [float(m[0] or 0.0) for m in known]
    close = len(values) == 2 and abs(values[0] - values[1]) < (0.32 if narrow else 0.12)
    for value, (_, colour, name) in zip(values, known, strict=True):
        align = "center"
        if close:
            align = "right" if value == min(values) and value < max(values) else "left"
        if value > 0.9:
            align = "right"
        elif value < 0.1:
            align = "left"
        shift = {"center": 0, "right": 5, "left": -5}[align]
        if close and value > 0.9 and value == min(values):
            continue  # no room left for a second label
        write(
            ax, f"{name} {value:.2f}", (value, 1), (shift, 9), color=colour, ha=align, fontsize=10
        )
        ax.plot(
            [value], [1], "v", ms=7, mew=0, color=colour, clip_on=False,
            transform=ax.get_xaxis_transform(), zorder=5,
        )  # fmt: skip


def draw_gallery(picks: Sequence[Pick], x_mean: float, palette: Palette, width: int) -> Drawing:
    """One panel an element: its values as steps and points, its line, the values of its format."""
    columns = 1 if width < 600 else 3
    left, gap, head, tall, foot = 42, 34, 46, 128, 40
    across = (width - 8 - columns * left - (columns - 1) * gap) / columns
    n_rows = max(1, math.ceil(len(picks) / columns))
    drawing = Drawing(width, n_rows * (head + tall + foot) - 10, palette)
    for i, pick in enumerate(picks):
        row, column = divmod(i, columns)
        at = left + column * (across + left + gap)
        ax = drawing.axes(at, row * (head + tall + foot) + head, across, tall)
        _draw_pick(ax, pick, x_mean, palette)
        _label_pick(ax, pick, palette, across, left)
    return drawing


def _draw_pick(ax: "Axes", pick: Pick, x_mean: float, palette: Palette) -> None:
    """One element: change since the first fitted checkpoint, in powers of ten."""
    finite = np.isfinite(pick.values)
    inside = pick.fitted & finite
    origin = float(pick.values[inside][0])
    line = pick.mean - origin + pick.slope * (pick.steps - x_mean)
    change = np.where(finite, pick.values, np.nan) - origin
    everything = np.concatenate([change[finite], line[pick.fitted]])
    low, high = float(everything.min()), float(everything.max())
    exponent = math.floor(math.log10(max(abs(low), abs(high), 1e-300)))
    unit = 10.0**exponent
    x = pick.steps.astype(float)
    if (high - low) / pick.ulp <= _MOST_RULES:
        rules = np.arange(math.floor(low / pick.ulp), math.ceil(high / pick.ulp) + 1) * pick.ulp
        ax.hlines(rules / unit, x[0], x[-1], color=palette.grid, lw=0.8, zorder=0)
    ax.step(x, change / unit, where="post", color=palette.muted, lw=0.9)
    if len(x) <= _MOST_POINTS:
        for part, colour in ((inside, palette.ink), (finite & ~pick.fitted, palette.null)):
            ax.plot(x[part], change[part] / unit, "o", ms=3, mew=0, color=colour)
    ax.plot(x[pick.fitted], line[pick.fitted] / unit, color=palette.accent, lw=2)
    if not pick.fitted.all():
        ax.plot(x, line / unit, color=palette.accent, lw=1, linestyle=DASHED, zorder=1)
    room = 0.09 * max(high - low, 1e-3 * unit)
    ax.set_ylim((low - room) / unit, (high + room) / unit)
    value_ticks(ax)
    scale = f"× 10{str(exponent).translate(_SUPERSCRIPT)}"
    write(ax, scale, (1, 1), (0, 10), fontsize=9, color=palette.muted, ha="right")


def _label_pick(ax: "Axes", pick: Pick, palette: Palette, across: float, left: float) -> None:
    whole_ticks(ax, across, 62)
    ax.tick_params(labelsize=9.5, length=3)
    ax.set_xlabel("training step", fontsize=9.5, labelpad=1)
    place = f" [{', '.join(str(i) for i in pick.index)}]" if pick.index else ""
    name = shorten(pick.tensor.removesuffix(".weight"), (across + left - 40) / 5.7 - len(place))
    write(ax, pick.role.capitalize(), (0, 1), (2 - left, 24), weight="bold", fontsize=11.5)
    write(ax, name + place, (0, 1), (2 - left, 10), fontsize=9.5, color=palette.muted)
    rsq = "R² > 0.999" if 0.9995 <= pick.rsq < 1 else f"R² {pick.rsq:.3f}"
    write(ax, rsq, (1, 1), (0, 24), ha="right", color=palette.accent, weight="bold")
