"""The report's figures, drawn with matplotlib's object interface; the one module that imports it.

Every figure is a function (data, palette, width) -> Figure. Lengths are CSS pixels: one SVG unit is
one pixel at full width. The page gets a wide and a narrow drawing in a palette of stand-in colours
that become CSS variables, so that one drawing serves light and dark; files get plain colours.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from trajkit.codecs import Array
from trajkit.errors import InvalidInput
from trajkit.gallery import Pick
from trajkit.modules import Cell, ModuleGrid, Row
from trajkit.palette import Palette
from trajkit.svg import printable, tip_id
from trajkit.walks import WalkReference

FORMATS = ("png", "pdf", "svg")
WIDE, NARROW = 912, 344
"""widths drawn, in pixels"""
_NARROW_BELOW = 600
_RC = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "path.simplify": False,
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3.5,
    "ytick.major.size": 3.5,
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass
class Drawing:
    """A figure, and the tooltips of the marks in it."""

    figure: Figure
    tips: list[str] = field(default_factory=list)

    def svg(self) -> str:
        """The figure as an SVG file's text."""
        out = io.StringIO()
        self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        return out.getvalue()

    def save(self, path: Path) -> None:
        """Write the figure in the format of the path's suffix."""
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
        self.figure.savefig(path, dpi=144, metadata=metadata)


@contextmanager
def drawing_style(palette: Palette, salt: str = "trajkit") -> Iterator[None]:
    """Matplotlib's settings for everything drawn and saved inside."""
    colours = {
        "text.color": palette.ink,
        "axes.labelcolor": palette.muted,
        "axes.edgecolor": palette.axis,
        "xtick.color": palette.axis,
        "ytick.color": palette.axis,
        "xtick.labelcolor": palette.muted,
        "ytick.labelcolor": palette.muted,
        "axes.facecolor": "none",
        "figure.facecolor": palette.surface,
    }
    with mpl.rc_context({**_RC, **colours, "svg.hashsalt": salt}):
        yield


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, if they are known; raises :class:`InvalidInput` otherwise."""
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise InvalidInput(
            f"unknown figure format {unknown[0]!r}: choose from {', '.join(FORMATS)}"
        )
    return tuple(dict.fromkeys(formats))


def _new(width: float, height: float) -> Drawing:
    return Drawing(Figure(figsize=(width / 72, height / 72), dpi=72))


def _axes(drawing: Drawing, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels from the top left corner."""
    w, h = (72 * x for x in drawing.figure.get_size_inches())
    return drawing.figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def _bare(ax: Axes) -> None:
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def draw_timeline(
    steps: Array, shares: Array, in_window: Array, palette: Palette, width: int
) -> Drawing:
    """What each checkpoint takes in the store, on the axis of training steps.

    Args:
        steps: int64 [T]. shares: stored bytes over raw bytes [T]. in_window: fitted, bool [T].
        palette: colours. width: in pixels.

    """
    drawing = _new(width, 132)
    ax = _axes(drawing, 42, 10, width - 58, 80)
    for part, colour in ((~in_window, palette.null), (in_window, palette.accent)):
        x = np.repeat(steps[part].astype(float), 3)
        y = np.ravel([(0.0, s, np.nan) for s in shares[part]])
        line_width = float(np.clip((width - 58) / (2.2 * max(len(steps), 1)), 0.8, 5))
        ax.plot(x, y, color=colour, lw=line_width, solid_capstyle="butt")
    ax.set_ylim(0, max(1.0, float(shares.max(initial=0)) * 1.05))
    span = max(float(steps[-1] - steps[0]), 1.0) if len(steps) else 1.0
    ax.set_xlim(steps[0] - 0.015 * span, steps[-1] + 0.015 * span)
    ax.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    ax.grid(axis="y", color=palette.grid, lw=0.8)
    ax.set_axisbelow(True)
    _count_axis(ax, width)
    ax.set_xlabel("training step")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return drawing


def _count_axis(ax: Axes, width: float) -> None:
    """Whole training steps as tick labels, few enough for the width."""
    ticker = mpl.ticker.MaxNLocator(
        max(2, int(width // 90)), integer=True, steps=[1, 2, 2.5, 5, 10]
    )
    ax.xaxis.set_major_locator(ticker)
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))


@dataclass(frozen=True)
class RsqData:
    """What the R² histogram shows."""

    hist: Array
    """counts of fitted elements on [0, 1]"""
    hist_kept: Array
    null: Array
    """R² of driftless walks, ascending"""
    threshold: float
    share: float | None
    null_share: float | None
    median: float | None
    null_median: float | None


def draw_histogram(data: RsqData, palette: Palette, width: int, height: int = 330) -> Drawing:
    """R² of all fitted elements with the random walk's over it and the threshold marked."""
    narrow = width < _NARROW_BELOW
    bins = 25 if narrow else 50
    edges = np.linspace(0, 1, bins + 1)
    observed = _rebin(data.hist, bins)
    null = np.histogram(data.null, edges)[0] / max(len(data.null), 1)
    drawing = _new(width, height)
    ax = _axes(drawing, 46, 46, width - 66, height - 92)
    ax.stairs(observed, edges, fill=True, color=palette.accent, alpha=0.28, lw=0)
    ax.stairs(observed, edges, color=palette.accent, lw=1.4, baseline=None)
    if 0 < data.hist_kept.sum() < data.hist.sum():
        kept = _rebin(data.hist_kept, bins) * (data.hist_kept.sum() / data.hist.sum())
        ax.stairs(kept, edges, fill=True, color=palette.accent, alpha=0.4, lw=0)
    ax.stairs(null, edges, color=palette.ink, lw=1.6, baseline=None, linestyle=(0, (4, 2)))
    top = 1.12 * max(float(observed.max(initial=0)), float(null.max(initial=0)), 1e-9)
    ax.set(xlim=(0, 1), ylim=(0, top))
    ax.axvline(data.threshold, color=palette.muted, lw=1, linestyle=(0, (1, 2)))
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, symbol=" %", decimals=None))
    ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.grid(axis="y", color=palette.grid, lw=0.8)
    ax.set_axisbelow(True)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("R² of the line fitted to an element")
    _label_threshold(ax, data, palette, narrow)
    for value, colour, name in (
        (data.null_median, palette.ink, "walk"),
        (data.median, palette.accent, "run"),
    ):
        if value is not None:
            ax.plot([value], [0], marker="^", ms=7, color=colour, clip_on=False, zorder=5)
            ax.annotate(
                f"{name} {value:.2f}",
                (value, 0),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center" if value < 0.93 else "right",
                fontsize=10,
                color=colour,
                weight="bold",
                zorder=6,
                bbox={
                    "boxstyle": "square,pad=.15",
                    "fc": palette.surface,
                    "ec": "none",
                    "alpha": 0.8,
                },
            )
    return drawing


def _label_threshold(ax: Axes, data: RsqData, palette: Palette, narrow: bool) -> None:
    """What lies right of the threshold, above the plot."""
    left = data.threshold > 0.5
    shares = [
        ("this run", data.share, palette.accent),
        ("random walk", data.null_share, palette.ink),
    ]
    at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    align = {"ha": "right" if left else "left", "va": "bottom"}
    shift = -6 if left else 6
    for i, (name, value, colour) in enumerate(shares):
        text = (
            "none"
            if value is None
            else f"{100 * value:.{0 if value >= 0.01 or value == 0 else 1}f} %"
        )
        ax.annotate(
            f"{name} {text}" if narrow else f"{name}: {text} above {data.threshold:g}",
            (data.threshold, 1.0),
            xytext=(shift, 16 - 14 * i),
            color=colour,
            weight="bold",
            fontsize=11,
            **at,  # type: ignore[arg-type]  # a dict of keyword arguments of two types
            **align,  # type: ignore[arg-type]
        )


def _rebin(hist: Array, bins: int) -> Array:
    """A histogram's shares in fewer bins."""
    shares: Array = hist.reshape(bins, -1).sum(axis=1) / max(int(hist.sum()), 1)
    return shares


def draw_modules(
    grid: ModuleGrid,
    null_median: float | None,
    null_share: float | None,
    threshold: float,
    palette: Palette,
    width: int,
) -> Drawing:
    """Two heat maps, layers x modules: median R², and the share above the threshold."""
    narrow = width < _NARROW_BELOW
    rows = grid.all_rows
    label_width = _label_width(rows, width, 0.38 if narrow else 0.26)
    gap, row_height, head = 28, 19, 46
    across = width - label_width - 12 if narrow else (width - label_width - gap) / 2
    cell_width = min(across / max(grid.layers, 1), 46.0)
    body = row_height * (len(rows) + (0.7 if grid.rows and grid.outside else 0))
    panel_height = head + body + 34
    drawing = _new(width, (2 if narrow else 1) * panel_height + 4)
    panels: list[tuple[str, Callable[[Cell], float | None], float | None]] = [
        ("median R²", lambda cell: cell.median_rsq, null_median),
        (f"share with R² > {threshold:g}", lambda cell: cell.share_above, null_share),
    ]
    for i, (title, measure, null) in enumerate(panels):
        left = label_width if narrow else label_width + i * (across + gap)
        top = head + (i * panel_height if narrow else 0)
        ax = _axes(drawing, left, top, across, body)
        ax.set(xlim=(0, across / cell_width), ylim=(body / row_height, 0))
        _fill_cells(drawing, ax, grid, measure, null, palette, cell_width, title)
        _label_rows(ax, grid, label_width, i == 0 or narrow)
        _layer_ticks(ax, grid.layers, cell_width)
        ax.annotate(
            title, (0, 1), xycoords="axes fraction", xytext=(0, 28), textcoords="offset points",
            weight="bold", fontsize=11.5, va="bottom",
        )  # fmt: skip
        _colour_bar(drawing, left, top - 24, min(across, 180), null, palette)
    return drawing


def _fill_cells(
    drawing: Drawing,
    ax: Axes,
    grid: ModuleGrid,
    measure: Callable[[Cell], float | None],
    null: float | None,
    palette: Palette,
    cell_width: float,
    title: str,
) -> None:
    for y, row, is_outside in _row_places(grid):
        wide = max(1.0, 30 / cell_width) if is_outside else 1.0
        for x, cell in row.cells.items():
            value = measure(cell)
            where = row.label if is_outside else f"{row.label}, layer {x}"
            count = f"{cell.fitted:,} of {cell.total('elements'):,} elements fitted"
            shown = "none fitted" if value is None else f"{title} {value:.3f}"
            drawing.tips.append(printable(f"{where}: {shown}; {count}"))
            colour = palette.heat_colour(value, null) if value is not None else "none"
            pad = 0.0 if cell_width < 5 else 0.5
            ax.add_patch(
                Rectangle(
                    (x + pad / cell_width, y + 0.03),
                    wide - 2 * pad / cell_width,
                    0.94,
                    facecolor=colour,
                    edgecolor=palette.grid if value is None else "none",
                    lw=0.8 if value is None else 0,
                    gid=tip_id(len(drawing.tips) - 1),
                )
            )
            if value is not None and (cell_width >= 30 or is_outside):
                ax.text(
                    x + wide / 2,
                    y + 0.52,
                    f"{value:.2f}".lstrip("0") if value < 1 else "1",
                    ha="center",
                    va="center",
                    fontsize=9.5,
                    color=palette.on_heat(value, null),
                )


def _row_places(grid: ModuleGrid) -> Iterator[tuple[float, Row, bool]]:
    """(top edge, row, whether it lies outside the layers)."""
    for y, row in enumerate(grid.rows):
        yield float(y), row, False
    gap = 0.7 if grid.rows else 0.0
    for y, row in enumerate(grid.outside):
        yield len(grid.rows) + gap + y, row, True


def _label_rows(ax: Axes, grid: ModuleGrid, label_width: float, shown: bool) -> None:
    places = list(_row_places(grid))
    letters = int((label_width - 12) / 6.1)
    labels = [_shorten(row.label, letters) if shown else "" for _, row, _ in places]
    ax.set_yticks([y + 0.5 for y, _, _ in places], labels, fontsize=10.5)
    _bare(ax)


def _label_width(rows: Sequence[Row], width: float, most: float) -> float:
    letters = max((len(printable(row.label)) for row in rows), default=4)
    return min(letters * 6.1 + 14, most * width)


def _layer_ticks(ax: Axes, layers: int, cell_width: float) -> None:
    if not layers:
        ax.set_xticks([])
        return
    every = next(n for n in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 10**6) if n * cell_width >= 24)
    numbers = list(range(0, layers, every))
    ax.set_xticks([n + 0.5 for n in numbers], [str(n) for n in numbers], fontsize=10)
    ax.set_xlabel("layer", loc="left", fontsize=10.5)


def _colour_bar(
    drawing: Drawing, left: float, top: float, width: float, null: float | None, palette: Palette
) -> None:
    """The colours from 0 to 1, the random walk's value at the neutral middle."""
    ax = _axes(drawing, left, top, width, 7)
    n = 60
    for i in range(n):
        value = (i + 0.5) / n
        colour = palette.heat_colour(value, null)
        ax.add_patch(Rectangle((i / n, 0), 1.02 / n, 1, facecolor=colour, lw=0))
    ax.set(xlim=(0, 1), ylim=(0, 1), yticks=[])
    _bare(ax)
    ticks = {0.0: "0", 1.0: "1"}
    if null is not None and 0.0 < null < 1.0:
        ticks[null] = f"walk {null:.2f}"
        if null > 0.7:
            del ticks[1.0]
    ax.set_xticks(list(ticks), list(ticks.values()), fontsize=9)
    ax.tick_params(axis="x", pad=1)


def draw_drift(
    grid: ModuleGrid,
    walk: WalkReference | None,
    window: float,
    palette: Palette,
    width: int,
) -> Drawing:
    """Per module, a dot a layer: Durbin-Watson, significant drift, and the slope in ulps."""
    narrow = width < _NARROW_BELOW
    rows = [row for row in grid.all_rows if row.pooled.fitted]
    label_width = _label_width(rows, width, 0.38 if narrow else 0.24)
    gap, row_height, head, foot = 26, 18, 40, 34
    across = width - label_width - 16 if narrow else (width - label_width - 2 * gap - 10) / 3
    body = row_height * max(len(rows), 1)
    panel_height = head + body + foot
    drawing = _new(width, (3 if narrow else 1) * panel_height)
    panels = (
        ("Durbin-Watson", "median_durbin_watson"),
        ("share with |t| of drift ≥ 2", "share_drift_t_above_2"),
        ("ulps moved in 100 steps", "median_ulps_per_100_steps"),
    )
    dots = sum(len(row.cells) for row in rows) <= 1500
    for i, (title, column) in enumerate(panels):
        left = label_width + (0 if narrow else i * (across + gap))
        ax = _axes(drawing, left, head + (i * panel_height if narrow else 0), across, body)
        ax.set_ylim(max(len(rows), 1), 0)
        _draw_reference(ax, column, walk, window, palette)
        for y, row in enumerate(rows):
            _draw_spread(ax, y + 0.5, row, column, palette, dots)
        letters = int((label_width - 12) / 6.1)
        shown = [_shorten(row.label, letters) if i == 0 or narrow else "" for row in rows]
        ax.set_yticks([y + 0.5 for y in range(len(rows))], shown, fontsize=10.5)
        ax.grid(axis="y", color=palette.grid, lw=0.8)
        ax.set_axisbelow(True)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.annotate(
            title, (0, 1), xycoords="axes fraction", xytext=(0, 19), textcoords="offset points",
            weight="bold", fontsize=11.5, va="bottom",
        )  # fmt: skip
    return drawing


def _draw_reference(
    ax: Axes, column: str, walk: WalkReference | None, window: float, palette: Palette
) -> None:
    """What a driftless walk, or rounding, gives in one panel; and the panel's x axis."""
    note = ""
    if column == "median_ulps_per_100_steps":
        half = 0.5 * 100 / window
        low, high = min(half / 4, 0.02), max(half * 4, 16)
        ax.set_xscale("log", base=2)
        values = ax.get_xlim()
        ax.set_xlim(min(low, values[0]), max(high, values[1]))
        ax.axvline(half, color=palette.ink, lw=1.4, linestyle=(0, (4, 2)))
        ticks = 2.0 ** np.arange(-16, 17, 3)
        ax.set_xticks(ticks, [f"{t:g}" if t >= 1 else f"1/{1 / t:g}" for t in ticks])
        ax.set_xlim(low, high)
        ax.minorticks_off()
        note = "dashed: half an ulp in the window"
    elif walk is None:
        ax.set(xlim=(0, 4), xticks=[])
        note = "takes three checkpoints"
    elif column == "median_durbin_watson":
        ax.axvspan(walk.dw_low, walk.dw_high, color=palette.null, alpha=0.22, lw=0)
        ax.axvline(walk.dw_median, color=palette.ink, lw=1.4, linestyle=(0, (4, 2)))
        ax.axvline(2, color=palette.muted, lw=1, linestyle=(0, (1, 2)))
        ax.set(xlim=(0, max(2.6, walk.dw_high * 1.1)))
        note = f"dashed: walk {walk.dw_median:.2f}   dotted: noise about a line"
    else:
        ax.axvline(walk.share_drift_t_above_2, color=palette.ink, lw=1.4, linestyle=(0, (4, 2)))
        ax.set(xlim=(0, 1))
        ax.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, symbol=" %"))
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
        note = f"dashed: walk {100 * walk.share_drift_t_above_2:.0f} %"
    ax.annotate(
        note, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
        fontsize=9, color=palette.muted, va="bottom",
    )  # fmt: skip


def _draw_spread(ax: Axes, y: float, row: Row, column: str, palette: Palette, dots: bool) -> None:
    """A dot a layer, a line from the least to the largest, a bar at the weighted median."""
    values = [v for cell in row.cells.values() if (v := cell.typical(column)) is not None]
    middle = row.pooled.typical(column)
    if middle is None:
        return
    ax.plot([min(values), max(values)], [y, y], color=palette.accent, lw=1, alpha=0.5)
    if dots and len(values) > 1:
        ax.plot(values, [y] * len(values), "o", ms=4.2, mew=0, color=palette.accent, alpha=0.45)
    ax.plot([middle], [y], marker="|", ms=12, mew=2.6, color=palette.accent)


def draw_gallery(picks: Sequence[Pick], x_mean: float, palette: Palette, width: int) -> Drawing:
    """One panel an element: its values as steps and points, its line, the values of its format."""
    columns = 1 if width < _NARROW_BELOW else 3
    left, gap, head, tall, foot = 44, 30, 46, 128, 34
    across = (width - 12 - columns * left - (columns - 1) * gap) / columns
    n_rows = max(1, math.ceil(len(picks) / columns))
    drawing = _new(width, n_rows * (head + tall + foot))
    for i, pick in enumerate(picks):
        row, column = divmod(i, columns)
        at = left + column * (across + left + gap)
        ax = _axes(drawing, at, row * (head + tall + foot) + head, across, tall)
        _draw_pick(ax, pick, x_mean, palette, across)
    return drawing


def _draw_pick(ax: Axes, pick: Pick, x_mean: float, palette: Palette, across: float) -> None:
    finite = np.isfinite(pick.values)
    inside = pick.fitted & finite
    origin = float(pick.values[inside][0])
    line = pick.mean - origin + pick.slope * (pick.steps - x_mean)
    change = pick.values - origin
    everything = np.concatenate([change[finite], line[pick.fitted]])
    low, high = float(everything.min()), float(everything.max())
    exponent = math.floor(math.log10(max(abs(low), abs(high), 1e-300)))
    scale = 10.0**exponent
    room = 0.09 * max(high - low, 1e-3 * scale)
    x = pick.steps.astype(float)
    if (high - low) / pick.ulp <= 24:
        grid = np.arange(math.floor(low / pick.ulp), math.ceil(high / pick.ulp) + 1) * pick.ulp
        ax.hlines(grid / scale, x[0], x[-1], color=palette.grid, lw=0.8, zorder=0)
    ax.step(x, change / scale, where="post", color=palette.muted, lw=0.9)
    if len(x) <= 160:
        outside = finite & ~pick.fitted
        for part, colour in ((inside, palette.ink), (outside, palette.null)):
            ax.plot(x[part], change[part] / scale, "o", ms=3, mew=0, color=colour)
    ax.plot(x[pick.fitted], line[pick.fitted] / scale, color=palette.accent, lw=2)
    if not pick.fitted.all():
        ax.plot(x, line / scale, color=palette.accent, lw=1, linestyle=(0, (3, 3)), zorder=1)
    ax.set_ylim((low - room) / scale, (high + room) / scale)
    ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda y, _: f"{y:g}".replace("-", "−")))
    _count_axis(ax, across)
    letters = int(across / 5.6)
    place = f"[{', '.join(str(i) for i in pick.index)}]" if pick.index else ""
    at = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    ax.annotate(
        pick.role,
        (0, 1),
        xytext=(-34, 22),
        weight="bold",
        fontsize=11.5,
        **at,  # type: ignore[arg-type]
    )
    ax.annotate(
        f"R² {pick.rsq:.3f}", (1, 1), xytext=(0, 22), ha="right", color=palette.accent,
        weight="bold", fontsize=11, **at,  # type: ignore[arg-type]
    )  # fmt: skip
    ax.annotate(
        _shorten(pick.tensor.removesuffix(".weight"), letters - len(place)) + place,
        (0, 1), xytext=(-34, 8), fontsize=9.5, color=palette.muted, **at,  # type: ignore[arg-type]
    )  # fmt: skip
    unit = f"×10{str(exponent).translate(_SUPERSCRIPT)}"
    ax.set_xlabel("training step", fontsize=9.5, loc="left", labelpad=1)
    ax.annotate(
        f"change, {unit}", (1, 0), xytext=(0, -27), ha="right", fontsize=9.5,
        color=palette.muted, **{**at, "va": "center"},  # type: ignore[arg-type]
    )  # fmt: skip
    ax.tick_params(labelsize=9.5)


def _shorten(text: str, letters: int) -> str:
    """A name in so many letters, the middle left out; ASCII, for the fonts figures have.

    >>> _shorten("model.layers.0.self_attn", 12)
    'model.…_attn'
    """
    text = text.encode("ascii", "backslashreplace").decode()
    text = printable(text)
    if len(text) <= max(letters, 6):
        return text
    keep = max(letters, 6) - 1
    return text[: keep // 2 + keep % 2] + "…" + text[len(text) - keep // 2 :]


__all__ = [
    "FORMATS",
    "NARROW",
    "WIDE",
    "Drawing",
    "RsqData",
    "check_formats",
    "draw_drift",
    "draw_gallery",
    "draw_histogram",
    "draw_modules",
    "draw_timeline",
    "drawing_style",
]
