"""The report's figures about a model's modules: heat maps over the layers, drift against noise."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trajkit.reports.figures import (
    DASHED,
    DOTTED,
    LETTER,
    Drawing,
    no_minor_ticks,
    percent_ticks,
    rule_across,
    shorten,
    strip_axes,
    write,
)
from trajkit.reports.findings import percent
from trajkit.reports.modules import Cell, ModuleGrid, Row
from trajkit.reports.palette import HEAT_LEVELS, Palette
from trajkit.stats.walks import WalkReference
from trajkit.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Measure = Callable[[Cell], float | None]
Nulls = tuple[str, float | None]
"""the table's column with each tensor's walks, and the value of all where there is none"""
_ROW = 19
_MOST_DOTS = 1500
_WIDEST_CELL = 46.0
_NUMBERED_CELL = 30.0
"""cells at least so wide have their number in them"""


def draw_modules(
    grid: ModuleGrid,
    null_median: float | None,
    null_share: float | None,
    threshold: float,
    palette: Palette,
    width: int,
) -> Drawing:
    """Two heat maps, layers x modules: median R², and the share above the threshold.

    A cell's neutral colour is what driftless walks with the cell's own increments score.
    """
    narrow = width < 600
    label_width = _label_width(grid.all_rows, width, 0.38 if narrow else 0.26)
    gap, head = 28, 48
    across = width - label_width - 12 if narrow else (width - label_width - gap) / 2
    body = _ROW * len(grid.rows) + (38 if grid.rows else 0)
    strip = _ROW * len(grid.outside)
    panel_height = head + body + strip + 16
    drawing = Drawing(width, (2 if narrow else 1) * panel_height, palette)
    panels: list[tuple[str, Measure, Nulls]] = [
        ("median R²", lambda cell: cell.median_rsq, ("null_median_rsq", null_median)),
        (
            f"share with R² > {threshold:g}",
            lambda cell: cell.share_above,
            ("null_above_threshold", null_share),
        ),
    ]
    for i, (title, measure, null) in enumerate(panels):
        left = label_width + (0 if narrow else i * (across + gap))
        top = head + (i * panel_height if narrow else 0)
        labels = label_width if i == 0 or narrow else 0
        _colour_bar(drawing, left, top - 24, min(across, 184), title, null[1])
        if grid.rows:
            cell_width = min(across / grid.layers, _WIDEST_CELL)
            n = len(grid.rows)
            ax = drawing.axes(left, top, cell_width * grid.layers, _ROW * n)
            ax.set(xlim=(0, grid.layers), ylim=(n, 0))
            _fill_cells(drawing, ax, grid.rows, cell_width, labels, measure, null, title)
            _layer_ticks(ax, grid.layers, cell_width)
        if grid.outside:
            n = len(grid.outside)
            ax = drawing.axes(left, top + body, _WIDEST_CELL, strip)
            ax.set(xlim=(0, 1), ylim=(n, 0), xticks=[])
            _fill_cells(drawing, ax, grid.outside, _WIDEST_CELL, labels, measure, null, title)
    return drawing


def _fill_cells(
    drawing: Drawing,
    ax: "Axes",
    rows: Sequence[Row],
    cell_width: float,
    label_width: float,
    measure: Measure,
    nulls: Nulls,
    title: str,
) -> None:
    """A cell a layer and module, coloured by the measure; labels where there is room for them."""
    palette = drawing.palette
    pad = 0.5 / cell_width if cell_width >= 5 else 0.0
    for y, row in enumerate(rows):
        for x, cell in row.cells.items():
            value, null = measure(cell), own_null(cell, *nulls)
            where = f"{row.label}, layer {x}" if len(row.cells) > 1 else row.label
            shown = "none fitted" if value is None else f"{title} {value:.3f}"
            if value is not None and null is not None:
                shown += f", its walks {null:.3f}"
            colour = None if value is None else palette.heat_colour(value, null)
            drawing.cell(
                ax,
                (x + pad, y + 0.03, 1 - 2 * pad, 0.94),
                colour,
                f"{where}: {shown}; {cell.fitted:,} of {cell.total('elements'):,} elements fitted",
            )
            if value is not None and cell_width >= _NUMBERED_CELL:
                ax.text(
                    x + 0.5, y + 0.53, f"{value:.2f}", ha="center", va="center", fontsize=9.5,
                    color=palette.on_heat(value, null),
                )  # fmt: skip
    strip_axes(ax)
    letters = (label_width - 12) / LETTER
    names = [shorten(row.label, letters) if label_width else "" for row in rows]
    ax.set_yticks([y + 0.5 for y in range(len(rows))], names, fontsize=10.5)


def own_null(cell: Cell, column: str, overall: float | None) -> float | None:
    """What walks with a cell's own increments score, in [0, 1]; of the whole where not known."""
    null = cell.null(column)
    return overall if null is None else min(max(null, 0.0), 1.0)


def _label_width(rows: Sequence[Row], width: float, most: float) -> float:
    letters = max((len(printable(row.label)) for row in rows), default=4)
    return min(letters * LETTER + 14, most * width)


def _layer_ticks(ax: "Axes", layers: int, cell_width: float) -> None:
    """Layer numbers, as many as there is room for."""
    choices = (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 200, 500, layers)
    every = next((n for n in choices if n * cell_width >= 24), layers)
    numbers = range(0, layers, every)
    names = [f"layer {n}" if n == 0 and cell_width * every > 40 else str(n) for n in numbers]
    ax.set_xticks([n + 0.5 for n in numbers], names, fontsize=10)
    if names[0] == "0":
        ax.set_xlabel("layer", loc="left", fontsize=10, labelpad=0)


def _colour_bar(
    drawing: Drawing, left: float, top: float, width: float, title: str, null: float | None
) -> None:
    """The panel's title, and its colours from 0 to 1, neutral where walks of the whole model lie."""
    palette = drawing.palette
    ax = drawing.axes(left, top, width, 7)
    n = 8 * HEAT_LEVELS
    levels = [palette.level((i + 0.5) / n, null) for i in range(n)]
    for i, level in enumerate(levels):  # each over the rest of the bar, so that no seam shows
        if i == 0 or level != levels[i - 1]:
            ax.axvspan(i / n, 1, color=palette.heat[level], lw=0)
    ax.set(xlim=(0, 1), ylim=(0, 1), yticks=[])
    strip_axes(ax)
    ticks = {0.0: "0", 1.0: "1"}
    if null is not None and 0 < null < 1:
        ticks[null] = f"walk {null:.2f}"
        ticks = {x: t for x, t in ticks.items() if x == null or abs(x - null) * width > 36}
    ax.set_xticks(list(ticks), list(ticks.values()), fontsize=9)
    ax.tick_params(axis="x", pad=1)
    write(ax, title, (0, 1), (0, 5), weight="bold", fontsize=11.5)


def draw_drift(
    grid: ModuleGrid, walk: WalkReference | None, window: float, palette: Palette, width: int
) -> Drawing:
    """Per module, a dot a layer: Durbin-Watson, significant drift, and the slope in ulps.

    Dashed: what driftless walks with the module's own increments score, seen through its format; of
    fits that do not keep it, continuous walks on the same steps.
    """
    rows = [row for row in grid.all_rows if row.pooled.fitted]
    narrow = width < 600
    label_width = _label_width(rows, width, 0.38 if narrow else 0.24)
    gap, head, foot = 30, 40, 34
    across = width - label_width - 22 if narrow else (width - label_width - 2 * gap - 14) / 3
    body = _ROW * max(len(rows), 1)
    panel_height = head + body + foot
    drawing = Drawing(width, (3 if narrow else 1) * panel_height, palette)
    dots = sum(len(row.cells) for row in rows) <= _MOST_DOTS
    panels = (
        ("Durbin-Watson", "median_durbin_watson"),
        ("share with drift, |t| ≥ 2", "share_drift_t_above_2"),
        ("ulps moved in 100 steps", "median_ulps_per_100_steps"),
    )
    for i, (title, column) in enumerate(panels):
        left = label_width + (0 if narrow else i * (across + gap))
        ax = drawing.axes(left, head + (i * panel_height if narrow else 0), across, body)
        ax.set_ylim(max(len(rows), 1), 0)
        values = [
            _draw_spread(ax, y + 0.5, row, column, palette, dots) for y, row in enumerate(rows)
        ]
        nulls = [row.pooled.null(f"null_{column}") for row in rows]
        note = _draw_reference(ax, column, walk, window, [v for v in values if v], palette, nulls)
        letters = (label_width - 12) / LETTER
        names = [shorten(row.label, letters) if i == 0 or narrow else "" for row in rows]
        ax.set_yticks([y + 0.5 for y in range(len(rows))], names, fontsize=10.5)
        rule_across(ax)
        write(ax, title, (0, 1), (0, 19), weight="bold", fontsize=11.5)
        write(ax, note, (0, 1), (0, 5), fontsize=9, color=palette.muted)
    return drawing


def _draw_spread(
    ax: "Axes", y: float, row: Row, column: str, palette: Palette, dots: bool
) -> tuple[float, float] | None:
    """A dot a layer, a line over their range, a bar at the weighted median; returns the range."""
    values = [v for cell in row.cells.values() if (v := cell.typical(column)) is not None]
    middle = row.pooled.typical(column)
    if middle is None:
        return None
    low, high = min(values), max(values)
    style: dict[str, Any] = {"color": palette.accent, "clip_on": False}
    ax.plot([low, high], [y, y], lw=1, alpha=0.5, **style)
    if dots and len(values) > 1:
        ax.plot(values, [y] * len(values), "o", ms=4.4, mew=0, alpha=0.45, **style)
    ax.plot([middle], [y], marker="|", ms=12, mew=2.6, **style)
    return low, high


def _draw_reference(
    ax: "Axes",
    column: str,
    walk: WalkReference | None,
    window: float,
    ranges: Sequence[tuple[float, float]],
    palette: Palette,
    nulls: Sequence[float | None],
) -> str:
    """A panel's x axis, and what driftless walks or rounding give; returns a note about it."""
    low = min((r[0] for r in ranges), default=0.1)
    high = max((r[1] for r in ranges), default=1.0)

    own = [(y, null) for y, null in enumerate(nulls) if null is not None]

    def dashed(x: float) -> None:
        ax.axvline(x, color=palette.ink, lw=1.4, linestyle=DASHED)

    def dashed_rows() -> None:
        for y, null in own:
            ax.plot([null, null], [y + 0.04, y + 0.96], color=palette.ink, lw=1.4, linestyle="--")

    if column == "median_ulps_per_100_steps":
        half = 0.5 * 100 / window
        ax.set_xscale("log", base=2)
        no_minor_ticks(ax)
        low, high = min(low, half) / 2.5, max(high, half) * 2.5
        every = max(1, round(math.log2(high / low) / 5))
        ticks = [2.0**e for e in range(-18, 19, every) if low <= 2.0**e <= high]
        ax.set_xticks(ticks, [f"{t:g}" if t >= 1 else f"1/{1 / t:g}" for t in ticks])
        ax.set_xlim(low, high)
        dashed(half)
        return "dashed: half an ulp in the window"
    if walk is None:
        ax.set(xlim=(0, 1), xticks=[])
        return "takes three checkpoints"
    if own and column == "median_durbin_watson":
        dashed_rows()
        ax.axvline(2, color=palette.muted, lw=1, linestyle=DOTTED)
        ax.set_xlim(0, max(2.6, high * 1.05, 1.1 * max(null for _, null in own)))
        return "dashed: its walks · dotted: noise, 2"
    if own:
        dashed_rows()
        ax.set_xlim(0, 1)
        percent_ticks(ax, "x", 4)
        return "dashed: its walks"
    if column == "median_durbin_watson":
        ax.axvspan(walk.dw_low, walk.dw_high, color=palette.null, alpha=0.22, lw=0)
        dashed(walk.dw_median)
        ax.axvline(2, color=palette.muted, lw=1, linestyle=DOTTED)
        ax.set_xlim(0, max(2.6, walk.dw_high * 1.1, high * 1.05))
        return f"dashed: walk {walk.dw_median:.2f} · dotted: noise, 2"
    dashed(walk.share_drift_t_above_2)
    ax.set_xlim(0, 1)
    percent_ticks(ax, "x", 4)
    return f"dashed: walk {percent(walk.share_drift_t_above_2)}"
