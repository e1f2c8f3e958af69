"""A fit's numbers in plain words: one sentence, what it means, and what it does not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trajkit.stats.walks import WalkReference

MARGIN = 0.1
"""R² within this of the random walk's is called no better than chance"""
FEW_CHECKPOINTS = 8
"""below this the walk's own R² is high, and the page says so"""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the report says first."""

    verdict: str
    """``above`` the random walk, ``alike``, ``below``, ``two`` checkpoints only, or ``nothing``"""
    sentence: str
    notes: tuple[str, ...]
    """what it means, a sentence or two each"""


def percent(part: float | None, digits: int = 0) -> str:
    """A share in per cent.

    >>> percent(0.7066), percent(0.004), percent(None)
    ('71 %', '0.4 %', 'none')
    """
    if part is None:
        return "none"
    value = 100 * part
    if value in (0, 100):
        digits = 0
    if 0 < value < 1 or 99 < value < 100:
        digits = max(digits, 1)
        if value < 0.1:
            return "under 0.1 %"
        if value > 99.9:
            return "over 99.9 %"
    return f"{value:.{digits}f} %"


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals, or "none".

    >>> number(0.8614), number(None)
    ('0.86', 'none')
    """
    return "none" if value is None else f"{value:.{digits}f}"


def judge(numbers: Mapping[str, Any]) -> str:
    """The verdict on a fit's :meth:`~trajkit.fits.Fit.describe` numbers.

    >>> judge({"fitted": 9, "checkpoints": 9, "median_rsq": 0.5, "null_median_rsq": 0.45,
    ...        "share_above_threshold": 0.3, "null_above_threshold": 0.28})
    'alike'
    """
    if not numbers["fitted"]:
        return "nothing"
    if numbers["checkpoints"] < 3:
        return "two"
    lead = numbers["median_rsq"] - numbers["null_median_rsq"]
    if lead < -MARGIN:
        return "below"
    if lead > MARGIN and numbers["share_above_threshold"] >= numbers["null_above_threshold"]:
        return "above"
    return "alike"


def find(numbers: Mapping[str, Any], walk: WalkReference | None) -> Finding:
    """The finding of a fit.

    Args:
        numbers: :meth:`trajkit.fits.Fit.describe`.
        walk: Durbin-Watson and drift of driftless walks on the same steps.

    """
    verdict = judge(numbers)
    return Finding(verdict, _sentence(verdict, numbers), tuple(_notes(verdict, numbers, walk)))


def _sentence(verdict: str, n: Mapping[str, Any]) -> str:
    checkpoints, threshold = n["checkpoints"], f"{n['rsq_threshold']:g}"
    if verdict == "nothing":
        return _nothing(n)
    if verdict == "two":
        return (
            "Two checkpoints say nothing about linearity: a line through two points always fits, "
            "so every element that changed has R² 1."
        )
    scores = (
        f"over {checkpoints} checkpoints their median R² is {number(n['median_rsq'])} where a "
        f"driftless random walk scores {number(n['null_median_rsq'])}, and "
        f"{percent(n['share_above_threshold'])} of them lie above {threshold} where "
        f"{percent(n['null_above_threshold'])} of walks would"
    )
    lead = {
        "above": "The weights that changed moved along straighter lines than chance explains",
        "alike": "The weights that changed moved along lines no straighter than chance would draw",
        "below": "The weights that changed moved less along lines than even a random walk would",
    }[verdict]
    return f"{lead}: {scores}."


def _nothing(n: Mapping[str, Any]) -> str:
    elements, checkpoints = n["elements"], n["checkpoints"]
    if not elements:
        return "There is nothing to fit: the store holds no floating-point element."
    if n["static"] == elements:
        what = f"all {elements:,} elements are static, the same in all {checkpoints} checkpoints"
    elif n["invalid"] == elements:
        what = f"all {elements:,} elements held NaN or Inf in some checkpoint"
    else:
        what = f"{n['static']:,} elements never changed and {n['invalid']:,} held NaN or Inf"
    return f"There is nothing to fit: {what}."


def _notes(verdict: str, n: Mapping[str, Any], walk: WalkReference | None) -> list[str]:
    notes = []
    if verdict == "above":
        notes.append(
            "A line is then a fair summary of where these weights went. It does not follow that "
            "they will go on: only later checkpoints, held out of the fit, can show that."
        )
    elif verdict == "alike":
        notes.append(
            "A walk that goes nowhere in particular also looks straight in hindsight. An R² like "
            "this is no evidence of a drift, and extrapolating it is a guess."
        )
    elif verdict == "below":
        notes.append(
            "This is what noise about a fixed value, or a path that turns back, looks like. There "
            "is no line to extend."
        )
    elif verdict == "two":
        notes.append("Ingest more checkpoints and fit again; from about eight on R² can tell.")
    elif n["elements"] and not n["invalid"]:
        notes.append(
            "Either nothing was trained, or every update was smaller than the format's spacing."
        )
    if verdict in ("above", "alike", "below"):
        if n["checkpoints"] < FEW_CHECKPOINTS:
            notes.append(
                f"With {n['checkpoints']} checkpoints nearly any path looks straight; more of them "
                "would separate a drift from a walk better."
            )
        if walk is not None and n["share_drift_t_above_2"] is not None:
            notes.append(
                "A test that does not look at R²: the mean change from checkpoint to checkpoint is "
                f"at least two standard errors from zero for "
                f"{percent(n['share_drift_t_above_2'])} of the elements, and for "
                f"{percent(walk.share_drift_t_above_2)} of walks."
            )
        few = n["few_distinct"] / n["fitted"]
        if few > 0.1 and n["kept"]:
            notes.append(
                f"{percent(few)} of the fitted elements took only two or three values, where any R² "
                f"is partly an accident; without them the median is {number(n['median_rsq_kept'])}."
            )
    if n["invalid"] and n["fitted"]:
        notes.append(f"{n['invalid']:,} elements held NaN or Inf and are left out of every figure.")
    return notes
