"""Which elements may move, as people write it: ``rsq:0.7``, ``t:3``, ``none``."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from trajkit.errors import InvalidInput

if TYPE_CHECKING:
    from trajkit.arrays import Array


@dataclass(frozen=True, slots=True)
class Score:
    """A number of each element that a gate can ask for."""

    array: str
    """the fit's array that holds it, float [N]"""
    title: str
    low: float
    high: float
    """the thresholds that make sense"""
    example: float
    is_signed: bool = False
    """whether its absolute value is compared"""


SCORES = {
    "rsq": Score("rsq", "R²", 0.0, 1.0, 0.7),
    "t": Score("drift_t", "|t| of the drift", 0.0, 65504.0, 3.0, is_signed=True),
}
"""the scores a gate can be put to; a new one is a line here and an array of the fit"""


@dataclass(frozen=True, slots=True)
class GateRule:
    """An element moves where a score is above a threshold.

    Raises:
        InvalidInput: no such score, or a threshold out of its range.

    >>> str(GateRule("rsq", 0.7)), GateRule("rsq", 0.7).describe()
    ('rsq:0.7', 'R² above 0.7')
    """

    score: str
    threshold: float

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise InvalidInput(f"no gate by {self.score!r}; choose from {', '.join(SCORES)}")
        score = SCORES[self.score]
        if not (isfinite(self.threshold) and score.low <= self.threshold <= score.high):
            raise InvalidInput(
                f"{self.score}_threshold must lie in [{score.low:g}, {score.high:g}], not "
                f"{self.threshold}"
            )

    def __str__(self) -> str:
        return f"{self.score}:{self.threshold:g}"

    @property
    def array(self) -> str:
        """The fit's array that is compared."""
        return SCORES[self.score].array

    def of(self, values: Array) -> Array:
        """What is compared, float32 [N], from what is kept in that array."""
        size = abs(values) if SCORES[self.score].is_signed else values
        return size.astype("float32", copy=False)

    def describe(self) -> str:
        """The rule for people."""
        return f"{SCORES[self.score].title} above {self.threshold:g}"


def parse_gate(text: str) -> GateRule | None:
    """The gate in ``SCORE:THRESHOLD``; None for ``none``, where every element may move.

    Raises:
        InvalidInput: not of that form, no such score, a threshold out of range.

    >>> parse_gate("rsq:0.9"), parse_gate("none")
    (GateRule(score='rsq', threshold=0.9), None)
    """
    if text == "none":
        return None
    score, colon, number = text.partition(":")
    try:
        threshold = float(number)
    except ValueError:
        threshold = float("nan")
    if not colon or threshold != threshold:
        example = ", ".join(f"{name}:{s.example:g}" for name, s in SCORES.items())
        raise InvalidInput(
            f"not a gate: {text!r}; write SCORE:THRESHOLD such as {example}, or none"
        )
    return GateRule(score, threshold)
