"""The report's colours: ink, greys, one accent, a heat scale whose middle is the random walk.

The heat scale runs from orange (below the walk) over grey (as the walk) to blue (above it), a pair
that colour-blind readers tell apart.
"""

from dataclasses import dataclass, fields

HEAT_LEVELS = 31
"""odd, so that the middle has a level of its own"""
_MIDDLE = HEAT_LEVELS // 2


@dataclass(frozen=True)
class Palette:
    """Colours by what they are for, as matplotlib takes them."""

    surface: str
    """behind everything"""
    ink: str
    """text, and the random walk"""
    muted: str
    """lesser text"""
    axis: str
    grid: str
    null: str
    """areas that stand for the random walk or for what is not in the fit"""
    accent: str
    """the run"""
    heat_ink: str
    """text on the far ends of the heat scale"""
    heat: tuple[str, ...]

    def level(self, value: float, null: float | None) -> int:
        """The heat level of a value in [0, 1] whose random walk scores ``null``."""
        middle = min(max(0.5 if null is None else null, 0.02), 0.98)
        scaled = (value - middle) / ((1 - middle) if value >= middle else middle)
        return min(max(round(_MIDDLE + _MIDDLE * scaled), 0), HEAT_LEVELS - 1)

    def heat_colour(self, value: float, null: float | None) -> str:
        """The colour of a value."""
        return self.heat[self.level(value, null)]

    def on_heat(self, value: float, null: float | None) -> str:
        """The text colour that can be read on a value's colour."""
        return self.heat_ink if abs(self.level(value, null) - _MIDDLE) > 0.6 * _MIDDLE else self.ink


def _heat(low: str, low_mid: str, middle: str, high_mid: str, high: str) -> tuple[str, ...]:
    stops = [_rgb(c) for c in (low, low_mid, middle, high_mid, high)]
    out = []
    for i in range(HEAT_LEVELS):
        at = 4 * i / (HEAT_LEVELS - 1)
        j = min(int(at), 3)
        mix = [a + (b - a) * (at - j) for a, b in zip(stops[j], stops[j + 1], strict=True)]
        out.append("#" + "".join(f"{round(v):02x}" for v in mix))
    return tuple(out)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


LIGHT = Palette(
    surface="#ffffff",
    ink="#1a1c20",
    muted="#5d636d",
    axis="#b9bec6",
    grid="#e6e8ec",
    null="#8b919b",
    accent="#1f5fc4",
    heat_ink="#ffffff",
    heat=_heat("#a8480f", "#e3a877", "#ebecee", "#8fb4e8", "#174ea6"),
)
DARK = Palette(
    surface="#15171b",
    ink="#e7e9ed",
    muted="#9aa1ac",
    axis="#4a505a",
    grid="#2a2e35",
    null="#7b828d",
    accent="#78adff",
    heat_ink="#101216",
    heat=_heat("#f0975a", "#8f5a35", "#30343b", "#3f689f", "#8dbaff"),
)
_NAMES = tuple(f.name for f in fields(Palette) if f.name != "heat")
PAGE = Palette(
    **{name: f"#01{i:02x}01" for i, name in enumerate(_NAMES)},
    heat=tuple(f"#02{i:02x}02" for i in range(HEAT_LEVELS)),
)
"""stand-ins that :func:`css_colours` turns into CSS variables"""


def css_colours() -> dict[str, str]:
    """Stand-in colour -> CSS variable."""
    named = {getattr(PAGE, name): f"var(--{name.replace('_', '-')})" for name in _NAMES}
    return named | {colour: f"var(--h{i})" for i, colour in enumerate(PAGE.heat)}


def css_variables(palette: Palette) -> str:
    """The declarations of the variables for one palette."""
    named = [f"--{name.replace('_', '-')}:{getattr(palette, name)}" for name in _NAMES]
    return ";".join(named + [f"--h{i}:{colour}" for i, colour in enumerate(palette.heat)])
