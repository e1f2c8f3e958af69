"""How far the lines can be trusted: the backtest on the report's first page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajkit.errors import NotFound
from trajkit.evidence.kept import Backtest, read_backtest
from trajkit.reports.figures import DASHED, Drawing, PlannedFigure, rule_across, write
from trajkit.reports.markup import escape
from trajkit.reports.palette import Palette
from trajkit.store.store import Store

CHOSEN = "chosen beforehand"
_DRAWN = 4
"""rules drawn beside the one chosen beforehand; the table has all"""


@dataclass(frozen=True)
class TrustPage:
    """What the page says of a backtest."""

    horizons: Sequence[int]
    """training steps beyond the data"""
    rows: Mapping[str, Sequence[float | None]]
    """rule -> error over holding, one a horizon; the rule chosen beforehand last"""
    sentences: tuple[str, ...]

    @property
    def html(self) -> tuple[str, str]:
        """Lead and content of the section."""
        words = "".join(f"<p>{escape(s)}</p>" for s in self.sentences)
        return "", words + _table(self)

    @property
    def summary(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "horizons": list(self.horizons),
            "ratio": {k: list(v) for k, v in self.rows.items()},
        }


def read_trust(store: Store) -> TrustPage | None:
    """The page's account of the backtest that a store keeps; None where it keeps none.

    Raises:
        FormatError: it is damaged.
    """
    try:
        return describe_trust_page(read_backtest(store), store.steps.tolist())
    except NotFound:
        return None


def describe_trust_page(found: Backtest, steps: Sequence[int]) -> TrustPage:
    """A backtest in a table and sentences; ``steps`` are those that the store holds now."""
    record = found.record
    rows = {name: record["ratio"][name] for name in record["defaults"]}
    rows[CHOSEN] = [choice["honest_ratio"] for choice in record["best"]]
    sentences = [found.sentence[:1].upper() + found.sentence[1:] + "."]
    if list(record["steps"]) != list(steps):
        last = record["steps"][-1]
        sentences.append(
            f"It was made of checkpoints up to step {last:,}; run trajkit backtest again."
        )
    return TrustPage(record["horizons"], rows, tuple(sentences))


def draw_trust(page: TrustPage, palette: Palette, width: int) -> Drawing:
    """Error over holding against the horizon, a line a rule; below the dashed line is better."""
    tall, left, right = 220, 52, 14
    drawing = Drawing(width, tall + 88, palette)
    ax = drawing.axes(left, 34, width - left - right, tall)
    x = list(range(len(page.horizons)))
    names = [*[n for n in page.rows if n != CHOSEN][:_DRAWN], CHOSEN]
    shades = (palette.muted, palette.null, palette.axis, palette.ink)
    for i, name in enumerate(names):
        values = [float("nan") if v is None else v for v in page.rows[name]]
        chosen = name == CHOSEN
        colour = palette.accent if chosen else shades[i % len(shades)]
        ax.plot(
            x, values, color=colour, lw=2.4 if chosen else 1.2, marker="o", ms=5 if chosen else 3
        )
        drawn = [v for v in values if v == v]
        if drawn and (chosen or not drawing.narrow):
            write(ax, name, (0, 1), (4 + 130 * (len(names) - 1 - i), 12), color=colour, fontsize=10)
    ax.axhline(1, color=palette.ink, lw=1.2, linestyle=DASHED)
    ax.set_xticks(x, [f"+{h:,}" for h in page.horizons])
    ax.set_xlabel("training steps beyond the data")
    rule_across(ax)
    return drawing


def _table(page: TrustPage) -> str:
    head = "".join(f"<th>+{h:,}</th>" for h in page.horizons)
    lines = (
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="n">{"–" if v is None else f"{v:.3f}"}</td>' for v in row)
        + "</tr>"
        for name, row in page.rows.items()
    )
    return (
        '<div class="scroll"><table class="plain even"><thead><tr><th>error over holding</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def trust_figure(page: TrustPage) -> PlannedFigure:
    """The figure with its caption."""
    return PlannedFigure(
        "trust",
        lambda palette, width: draw_trust(page, palette, width),
        "<b>How to read it.</b> Forecasts from earlier checkpoints, judged on later ones: the size of a "
        "rule's error over that of keeping the last checkpoint. Below the dashed line it is better. The "
        "blue line is the rule that was best on forecasts whose outcome was known before.",
        "Error over holding at each horizon, by rule",
    )
