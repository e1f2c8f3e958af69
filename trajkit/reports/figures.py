"""Figures: matplotlib's object interface, and what the report asks of it; nobody else imports it.

Lengths are CSS pixels: one SVG unit is one pixel at full width. The page gets each figure in a wide
and a narrow drawing, in a palette of stand-in colours that become CSS variables, so that a drawing
serves light and dark; files get plain colours. What is drawn is in ``plots`` and ``module_plots``.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from trajkit.errors import InvalidInput
from trajkit.reports.markup import tip_id
from trajkit.reports.palette import Palette
from trajkit.text import printable

FORMATS = ("png", "pdf", "svg")
WIDE, NARROW = 912, 344
"""widths drawn, in pixels"""
DASHED, DOTTED = (0, (4, 2)), (0, (1, 2))
LETTER = 6.1
"""pixels a letter of row labels takes, at most"""
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
    "axes.axisbelow": True,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
}


@dataclass
class Drawing:
    """A figure in the making, and the tooltips of the marks in it."""

    width: float
    height: float
    palette: Palette
    figure: Figure = field(init=False)
    tips: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72)

    @property
    def narrow(self) -> bool:
        """Whether it is drawn for a telephone."""
        return self.width < _NARROW_BELOW

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place in pixels from the top left corner."""
        w, h = self.width, self.height
        box = (left / w, 1 - (top + height) / h, width / w, height / h)
        return self.figure.add_axes(box)

    def cell(
        self, ax: Axes, box: tuple[float, float, float, float], colour: str | None, tip: str
    ) -> None:
        """A filled cell (left, top, width, height) with a tooltip; only a frame without colour."""
        self.tips.append(printable(tip))
        patch = Rectangle(
            box[:2],
            *box[2:],
            facecolor=colour or "none",
            edgecolor="none" if colour else self.palette.grid,
            lw=0 if colour else 0.8,
            gid=tip_id(len(self.tips) - 1),
        )
        ax.add_patch(patch)

    def svg(self) -> str:
        """The figure as an SVG file's text."""
        out = io.StringIO()
        self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        return out.getvalue()

    def save(self, path: Path) -> None:
        """Write the figure in the format of the path's suffix."""
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
        self.figure.savefig(path, dpi=144, metadata=metadata)


@dataclass(frozen=True)
class PlannedFigure:
    """A figure of the page before it is drawn."""

    name: str
    draw: Callable[[Palette, int], Drawing]
    """in a palette, so many pixels wide"""
    caption: str
    """HTML"""
    alt: str


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
        "grid.color": palette.grid,
    }
    settings: Any = {**_RC, **colours, "svg.hashsalt": salt}
    with mpl.rc_context(settings):
        yield


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, once each; raises :class:`InvalidInput` for one that is unknown."""
    for name in formats:
        if name not in FORMATS:
            raise InvalidInput(f"unknown figure format {name!r}: choose from {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def rule_across(ax: Axes) -> None:
    """Faint horizontal rules in place of a left edge."""
    ax.grid(axis="y", lw=0.8)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def strip_axes(ax: Axes) -> None:
    """No edges and no tick marks."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def whole_ticks(ax: Axes, width: float, spacing: float = 90) -> None:
    """Training steps along x: whole numbers, as many as the width holds."""
    n = max(2, int(width // spacing))
    ax.xaxis.set_major_locator(MaxNLocator(n, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}".replace("-", "−")))


def percent_ticks(ax: Axes, axis: str, most: int = 5) -> None:
    """Shares as per cent, with the decimals they need."""
    which = ax.xaxis if axis == "x" else ax.yaxis
    which.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    which.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))


def value_ticks(ax: Axes) -> None:
    """A few values along y, with a true minus."""
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "−")))


def log_ticks(ax: Axes) -> None:
    """Powers of ten along y, as numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def no_minor_ticks(ax: Axes) -> None:
    """None, on a logarithmic axis too."""
    ax.xaxis.set_minor_locator(NullLocator())


def write(
    ax: Axes, text: str, corner: tuple[float, float], shift: tuple[float, float], **style: object
) -> None:
    """Text at so many pixels (right, up) from a place in the axes, (0, 0) to (1, 1)."""
    ax.annotate(
        text,
        corner,
        xycoords="axes fraction",
        xytext=shift,
        textcoords="offset points",
        **{"va": "bottom", **style},  # type: ignore[arg-type]  # any of Text's keywords
    )


def shorten(text: str, letters: float) -> str:
    """A name in so many letters, the middle left out; ASCII, for the fonts that figures have.

    >>> shorten("model.layers.0.self_attn", 12)
    'model.…_attn'
    """
    text = printable(text).encode("ascii", "backslashreplace").decode()
    most = max(int(letters), 6)
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return text[: most - 1 - tail] + "…" + text[len(text) - tail :]
