"""Which weights the outputs choose: the last guided search on the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajkit.errors import NotFound
from trajkit.outputs.guide.kept import read_searches
from trajkit.reports.figures import Drawing, log_ticks, rule_across, shorten, whole_ticks, write
from trajkit.reports.markup import escape
from trajkit.reports.palette import Palette
from trajkit.store.store import Store

CAPTION = (
    "<b>How to read it.</b> How far a rule's outputs are from the extrapolated logits, over the steps "
    "beyond the data: KL in nats a response token, on probes that did not choose. Less is nearer. The "
    "blue line is the rule that was chosen for the last point; holding is the last checkpoint. KL "
    "grows by orders of magnitude, so that its axis is logarithmic."
)
ALT = "KL from the extrapolated logits at each horizon, by rule"
_COMPARED = {"hold": "kl_hold", "anchored": "kl_anchored", "two-point": "kl_two_point"}
_LISTED = 8
"""rules in the table, beside those that are compared"""


@dataclass(frozen=True)
class GuidePage:
    """The last search, and what it looked at on the way."""

    searches: tuple[Mapping[str, Any], ...]
    """those that a store keeps, oldest first; the last one is shown"""
    steps: tuple[int, ...]
    """that the store holds now"""

    @property
    def last(self) -> Mapping[str, Any]:
        """The search shown."""
        return self.searches[-1]

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """(horizon, KL) by rule, ascending; the rule chosen last."""
        found: dict[str, list[tuple[int, float]]] = {name: [] for name in _COMPARED}
        found[self.last["rule"]] = []
        for point in self.last["curve"]:
            for name, kl in point["kl"].items():
                found.setdefault(name, []).append((point["horizon"], kl))
        for name, key in _COMPARED.items():
            found[name].append((self.last["horizon"], self.last[key]))
        if self.last["rule"] not in _COMPARED:
            found[self.last["rule"]].append((self.last["horizon"], self.last["kl"]))
        return {name: sorted(points) for name, points in found.items() if points}

    @property
    def place(self) -> str:
        """Where the rule chosen stands among those tried."""
        tried = [t["rule"] for t in self.last["candidates"]]
        ranks = [f"{name} {tried.index(name) + 1}" for name in _COMPARED if name in tried]
        beside = f"; of these, {', '.join(ranks)}" if ranks else ""
        return f"On the probes that chose, {self.last['rule']} is 1 of {len(tried)} rules{beside}."

    @property
    def sentences(self) -> tuple[str, ...]:
        """The outcome in words."""
        last = self.last
        found = [f"{last['sentence'][:1].upper()}{last['sentence'][1:]}.", self.place]
        if last["refusal"] is not None:
            found.append(f"It was refused: {last['refusal']}.")
        others = [s for s in self.searches[:-1] if s["window"] == last["window"]]
        if others:
            named = (f"step {s['step']:,}: {s['rule']} ({_share(s)})" for s in others)
            found.append(f"Searched for before, KL over that of holding: {'; '.join(named)}.")
        if last["window"][1] != self.steps[-1]:
            found.append(
                f"It goes by checkpoints up to step {last['window'][1]:,}; the store has later ones."
            )
        return tuple(found)

    @property
    def html(self) -> tuple[str, str]:
        """Lead and content of the section."""
        words = "".join(f"<p>{escape(s)}</p>" for s in self.sentences)
        return "", words + self._table()

    @property
    def summary(self) -> dict[str, Any]:
        """For summary.json."""
        return {"searches": [dict(search) for search in self.searches]}

    def _table(self) -> str:
        tried: Sequence[Mapping[str, Any]] = self.last["candidates"]
        shown = [*tried[:_LISTED], *(t for t in tried[_LISTED:] if t["rule"] in _COMPARED)]
        judged = {name: self.last[key] for name, key in _COMPARED.items()}
        judged[self.last["rule"]] = self.last["kl"]
        rows = "".join(
            f'<tr><th scope="row">{escape(t["rule"])}</th><td class="n">{t["kl"]:.3g}</td>'
            f'<td class="n">{_number(judged.get(t["rule"]))}</td></tr>'
            for t in shown
        )
        return (
            '<div class="scroll"><table class="plain even"><thead><tr><th>KL from the extrapolated '
            f"logits of step {self.last['step']:,}</th><th>probes that chose</th><th>others</th></tr>"
            f"</thead><tbody>{rows}</tbody></table></div>"
        )


def read_guide_page(store: Store) -> GuidePage | None:
    """The page's account of the searches that a store keeps; None where it keeps none.

    Raises:
        FormatError: they are damaged.
    """
    try:
        searches = read_searches(store)
    except NotFound:
        return None
    return GuidePage(tuple(searches), tuple(store.steps.tolist())) if searches else None


def draw_guide(page: GuidePage, palette: Palette, width: int) -> Drawing:
    """KL against the horizon, a line a rule, the rule chosen thickest."""
    tall, left, right = 220, 60, 14
    drawing = Drawing(width, tall + 88, palette)
    ax = drawing.axes(left, 34, width - left - right, tall)
    curves = page.curves()
    shades = (palette.ink, palette.muted, palette.null, palette.axis)
    for i, (name, points) in enumerate(curves.items()):
        chosen = name == page.last["rule"]
        colour = palette.accent if chosen else shades[i % len(shades)]
        x, y = zip(*points, strict=True)
        seen = [v if v > 0 else float("nan") for v in y]
        wide = 2.4 if chosen else 1.2
        ax.plot(x, seen, color=colour, lw=wide, marker="o", ms=5 if chosen else 3)
        if chosen or not drawing.narrow:
            write(
                ax,
                shorten(name, 24),
                (0, 1),
                (4 + 150 * (len(curves) - 1 - i), 12),
                color=colour,
                fontsize=10,
            )
    if any(y > 0 for points in curves.values() for _, y in points):
        log_ticks(ax)
    ax.set_xlabel("training steps beyond the data")
    whole_ticks(ax, width - left - right)
    rule_across(ax)
    return drawing


def _share(search: Mapping[str, Any]) -> str:
    return (
        f"{search['kl'] / search['kl_hold']:.2f}" if search["kl_hold"] > 0 else "holding moved by 0"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
