"""The report's figures about activations: R² by layer, and what changed the layers' outputs."""

import math
from collections.abc import Iterator, Sequence
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
from trajkit.reports.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 12


@dataclass(frozen=True)
class LayerRsq:
    """R² of one module over the layers."""

    module: str
    layers: Array
    """layer numbers, int64 [L]"""
    quartiles: Array
    """lower, median and upper, float64 [L, 3]; NaN where nothing was fitted"""


@dataclass(frozen=True)
class PartCurves:
    """What changed one module's output since the first checkpoint, layers folded."""

    module: str
    steps: Array
    """training steps after the first, int64 [T - 1]"""
    along: Array
    """input, weights and product along the change, float64 [T - 1, 3]; NaN where nothing moved"""


def draw_layers(
    rows: Sequence[LayerRsq], null: float | None, palette: Palette, width: int
) -> Drawing:
    """One panel a module: median R² of each layer with its middle half, and the walk's median."""
    drawing, places = _panels(len(rows), palette, width)
    for row, ax in zip(rows, places, strict=False):
        for x, (low, middle, high) in zip(row.layers, row.quartiles, strict=True):
            ax.plot([x, x], [low, high], color=palette.accent, lw=2.2, alpha=0.4)
            ax.plot(x, middle, "o", ms=5, mew=0, color=palette.accent)
        if null is not None:
            ax.axhline(null, color=palette.ink, lw=1.2, linestyle=DASHED)
        first, last = int(row.layers.min(initial=0)), int(row.layers.max(initial=0))
        ax.set(ylim=(0, 1.02), xlim=(first - 0.5, last + 0.5))
        ax.set_yticks([0, 0.5, 1])
        rule_across(ax)
        whole_ticks(ax, _inner_width(drawing), 40)
        ax.set_xlabel("layer", fontsize=9.5, labelpad=1)
        _title(ax, row.module, drawing)
    return drawing


def draw_parts(rows: Sequence[PartCurves], palette: Palette, width: int) -> Drawing:
    """One panel a module: the three parts along the output's change, over the training steps."""
    drawing, places = _panels(len(rows), palette, width, foot=58)
    styles = (
        ("input", palette.ink, "solid"),
        ("weights", palette.accent, "solid"),
        ("product", palette.muted, DOTTED),
    )
    for row, ax in zip(rows, places, strict=False):
        for along, (_, colour, line) in zip(row.along.T, styles, strict=True):
            ax.plot(row.steps, along, color=colour, lw=1.8, linestyle=line)
            if len(row.steps) == 1:
                ax.plot(row.steps, along, "o", ms=4, mew=0, color=colour)
        seen = row.along[np.isfinite(row.along)]
        ax.set_ylim(min(-0.1, *seen, 0.0) - 0.02, max(1.02, *seen, 0.0) + 0.02)
        value_ticks(ax)
        percent_ticks(ax, "y", 4)
        rule_across(ax)
        whole_ticks(ax, _inner_width(drawing), 62)
        ax.set_xlabel("training step", fontsize=9.5, labelpad=1)
        _title(ax, row.module, drawing)
        for (name, colour, _), x in zip(styles, (0, 52, 122), strict=True):
            write(ax, name, (0, 0), (x, -50), fontsize=9.5, color=colour, weight="bold")
    return drawing


_LEFT, _GAP, _HEAD, _TALL = 48, 26, 26, 120


def _panels(
    n: int, palette: Palette, width: int, foot: int = 40
) -> tuple[Drawing, Iterator["Axes"]]:
    """A drawing with room for so many panels, and their axes."""
    columns = 1 if width < 600 else min(3, max(n, 1))
    rows = max(1, math.ceil(n / columns))
    drawing = Drawing(width, rows * (_HEAD + _TALL + foot), palette)
    across = (width - 8 - columns * _LEFT - (columns - 1) * _GAP) / columns

    def axes() -> Iterator["Axes"]:
        for i in range(n):
            row, column = divmod(i, columns)
            left = _LEFT + column * (across + _LEFT + _GAP)
            yield drawing.axes(left, row * (_HEAD + _TALL + foot) + _HEAD, across, _TALL)

    return drawing, axes()


def _inner_width(drawing: Drawing) -> float:
    """About what a panel's axes have."""
    return drawing.width - 56 if drawing.narrow else (drawing.width - 204) / 3


def _title(ax: "Axes", module: str, drawing: Drawing) -> None:
    letters = (_inner_width(drawing) + _LEFT) / 7
    write(ax, shorten(module, letters), (0, 1), (2 - _LEFT, 8), weight="bold", fontsize=11)
