"""A fit's numbers in plain words: one sentence, what it means, and what it does not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trajkit.stats.walks import WalkReference

NOISE_RSQ, NOISE_DW = 0.15, 1.5
"""below this R² and above this Durbin-Watson a run that does not drift is noise about a value"""
FEW_CHECKPOINTS = 8
"""below this the walk's own R² is high, and the page says so"""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the report says first."""

    verdict: str
    """``straight``, ``drifting`` or ``wandering`` (:mod:`trajkit.stats.verdict`), ``static``,
    ``two`` checkpoints only, ``nothing`` to fit, or ``unjudged``: a fit from before verdicts"""
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

    >>> number(0.8614), number(-0.001), number(None)
    ('0.86', '0.00', 'none')
    """
    if value is None:
        return "none"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before zero


def find(numbers: Mapping[str, Any], walk: WalkReference | None) -> Finding:
    """The finding of a fit.

    Args:
        numbers: :meth:`trajkit.fits.Fit.describe`.
        walk: Durbin-Watson and drift of driftless walks on the same steps.

    """
    verdict = numbers.get("verdict") or "unjudged"
    if not numbers["fitted"]:
        verdict = "nothing"
    elif numbers["checkpoints"] < 3:
        verdict = "two"
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
        f"driftless random walk with increments of their size scores "
        f"{number(n['null_median_rsq'])}, and {percent(n['share_above_threshold'])} of them lie "
        f"above {threshold} where {percent(n['null_above_threshold'])} of walks would"
    )
    lead = {
        "straight": "The weights that changed moved along straight lines",
        "drifting": "The weights that changed drift, more than a driftless random walk would",
        "wandering": "The weights that changed wander: they drift no more than a driftless random "
        "walk would seem to",
        "static": "Hardly any weight moved",
        "unjudged": "This fit was made before drift was told from diffusion (run trajkit fit again)",
    }[verdict]
    if verdict in ("straight", "drifting", "wandering") and n.get("drift_share") is not None:
        lead += (
            f" ({percent(n['drift_share'])} drift significantly, at a false discovery rate of 5 %)"
        )
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


def _of_walks(n: Mapping[str, Any], walk: WalkReference) -> str:
    """How many walks have |t| of two or more; through the format, where the fit keeps that."""
    through = n.get("null_share_drift_t_above_2")
    if through is None:
        return f"{percent(walk.share_drift_t_above_2)} of walks without rounding"
    return f"{percent(through)} of driftless walks with their increments"


def _notes(verdict: str, n: Mapping[str, Any], walk: WalkReference | None) -> list[str]:
    notes = []
    if verdict == "straight":
        notes.append(
            "A line is then a fair summary of where these weights went, and what is left about it is "
            "noise. It does not follow that they will go on: only later checkpoints, held out of the "
            "fit, can show that."
        )
    elif verdict == "drifting":
        notes.append(
            "Part of the movement goes one way, part of it wanders or bends, and errors of a line "
            "grow with its length. How far it can be extended only later checkpoints, held out of "
            "the fit, can show."
        )
    elif verdict == "wandering":
        notes.append(
            "A walk that goes nowhere in particular also looks straight in hindsight. An R² like "
            "this is no evidence of a drift, and extrapolating it is a guess."
        )
        if n["median_rsq"] < NOISE_RSQ and (n["median_durbin_watson"] or 0.0) > NOISE_DW:
            notes.append(
                "It moves less along lines than a walk: this is what noise about a fixed value, or a "
                "path that turns back, looks like. There is no line to extend."
            )
    elif verdict == "two":
        notes.append("Ingest more checkpoints and fit again; from about eight on R² can tell.")
    elif n["elements"] and not n["invalid"]:
        notes.append(
            "Either nothing was trained, or every update was smaller than the format's spacing."
        )
    if verdict in ("straight", "drifting", "wandering", "unjudged"):
        if n["checkpoints"] < FEW_CHECKPOINTS:
            notes.append(
                f"With {n['checkpoints']} checkpoints nearly any path looks straight; more of them "
                "would separate a drift from a walk better."
            )
        ulps, continuous = n.get("increment_ulps"), n.get("continuous_null_median_rsq")
        if ulps is not None and continuous is not None and ulps < 2:
            notes.append(
                f"From checkpoint to checkpoint the weights moved about {ulps:.2g} of the spacing of "
                "their number format. Rounding to it adds noise to any path; without it a walk "
                f"would score {number(continuous)}."
            )
        if walk is not None and n["share_drift_t_above_2"] is not None:
            notes.append(
                "A test that does not look at R²: the mean change from checkpoint to checkpoint is "
                f"at least two standard errors from zero for "
                f"{percent(n['share_drift_t_above_2'])} of the elements, and for {_of_walks(n, walk)}."
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
