"""What a fit's numbers amount to, in one word, by rules that are written here.

    static     fewer than 1 element in 1,000 has an R²: nothing moved that a checkpoint could show
    straight   at least half of the elements drift, their median R² is at least 0.9 of what an exact
               line scores through the same format, and what is left about the lines is nearer to
               noise than to a walk: the median Durbin-Watson is nearer to the line's than to the
               walk's (no Durbin-Watson, since nothing is left: straight)
    drifting   at least 5 % of the elements drift at a false discovery rate of 5 %, or the share with
               |t| >= 2 exceeds that of driftless walks by 5 % of the rest
    wandering  neither: a driftless walk does as much

With two checkpoints there is no verdict. R² alone decides nothing: a driftless walk has a high R²,
and a curve has one without being a line.
"""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["static", "straight", "drifting", "wandering"]

STATIC_BELOW = 0.001
DRIFTING_FROM = 0.05
STRAIGHT_FROM = 0.5
STRAIGHT_RSQ = 0.9


@dataclass(frozen=True, slots=True)
class Signs:
    """What the verdict is given by, of one tensor or of a whole fit."""

    checkpoints: int
    elements: int
    fitted: int
    """elements with an R²"""
    drift_share: float | None
    """of the elements with a t, those significant at a false discovery rate of 5 %"""
    drift_excess: float
    median_rsq: float | None
    line_rsq: float | None
    """median R² of exact lines through the format"""
    median_dw: float | None
    walk_dw: float | None
    """median Durbin-Watson of driftless walks through the format"""
    line_dw: float | None
    """of exact lines; None where nothing is left about them, and 2, that of noise, is taken"""


def judge(signs: Signs) -> Verdict | None:
    """The verdict; None for fewer than three checkpoints.

    >>> judge(Signs(34, 100, 90, 0.9, 0.9, 0.99, 1.0, 2.1, 0.5, None))
    'straight'
    >>> judge(Signs(34, 100, 90, 0.9, 0.9, 0.96, 1.0, 0.1, 0.5, None))  # a curve
    'drifting'
    >>> judge(Signs(34, 100, 90, 0.0, 0.0, 0.44, 1.0, 0.5, 0.5, None))
    'wandering'
    """
    if signs.checkpoints < 3:
        return None
    if signs.fitted <= STATIC_BELOW * signs.elements or signs.median_rsq is None:
        return "static"
    share = signs.drift_share or 0.0
    if share >= STRAIGHT_FROM and signs.median_rsq >= STRAIGHT_RSQ * (signs.line_rsq or 1.0):
        noise_dw = 2.0 if signs.line_dw is None else signs.line_dw
        middle = (noise_dw + (signs.walk_dw or 0.0)) / 2
        if signs.median_dw is None or signs.median_dw >= min(middle, 2.0):
            return "straight"
    if share >= DRIFTING_FROM or signs.drift_excess >= DRIFTING_FROM:
        return "drifting"
    return "wandering"


SAY: dict[Verdict | None, str] = {
    "static": "nothing moved that a checkpoint could show",
    "straight": "the weights moved along straight lines, with noise about them",
    "drifting": "the weights drift, more than a driftless random walk would, but not along lines alone",
    "wandering": "the weights moved no straighter than a driftless random walk",
    None: "two checkpoints cannot tell a drift from a random walk",
}
"""each verdict in a clause"""


def read_verdict(value: object) -> Verdict | None:
    """A verdict that was kept, None for anything else.

    >>> read_verdict("drifting"), read_verdict("<b>")
    ('drifting', None)
    """
    return next((v for v in SAY if v is not None and v == value), None)
