"""All estimators, by name, and how one is made from options."""

from collections.abc import Mapping
from typing import Any

from trajkit.errors import InvalidInput
from trajkit.fits.estimators.anchored import Anchored
from trajkit.fits.estimators.damped import Damped
from trajkit.fits.estimators.ema import Ema
from trajkit.fits.estimators.estimator import Estimator, Parameter
from trajkit.fits.estimators.expo import Expo
from trajkit.fits.estimators.line import Line
from trajkit.fits.estimators.mean import Mean
from trajkit.fits.estimators.rank_k import RankK, RankKAnchored
from trajkit.fits.estimators.shrunk import Shrunk
from trajkit.fits.estimators.two_point import TwoPoint
from trajkit.fits.estimators.wiener import Wiener

_CLASSES: tuple[type[Any], ...] = (
    Anchored,
    Line,
    TwoPoint,
    Damped,
    Shrunk,
    Wiener,
    Mean,
    Ema,
    RankK,
    RankKAnchored,
    Expo,
)
ESTIMATORS: dict[str, type[Any]] = {c.name: c for c in _CLASSES}
"""name -> class"""
PARAMETERS: dict[str, Parameter] = {p.name: p for c in _CLASSES for p in c.parameters}
"""what the estimators take, by name"""
OWNERS: dict[str, tuple[str, ...]] = {
    name: tuple(c.name for c in _CLASSES if name in {p.name for p in c.parameters})
    for name in PARAMETERS
}
"""parameter -> the estimators that take it"""


def make_estimator(name: str, parameters: Mapping[str, float | None]) -> Estimator:
    """An estimator by its name.

    Args:
        name: a key of :data:`ESTIMATORS`.
        parameters: its own, by name; None for the default.

    Raises:
        InvalidInput: no such estimator, a parameter that is not its own, or out of range.

    >>> make_estimator("damped", {"damping": 0.5})
    Damped(damping=0.5)
    >>> make_estimator("line", {"damping": 0.5})
    Traceback (most recent call last):
    ...
    trajkit.errors.InvalidInput: damping is a parameter of the estimator damped, not of line
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    if name not in ESTIMATORS:
        raise InvalidInput(f"unknown estimator {name!r}: choose from {', '.join(ESTIMATORS)}")
    for key, value in given.items():
        if key not in PARAMETERS:
            raise InvalidInput(f"no estimator has a parameter {key!r}; there are: {_known()}")
        if name not in OWNERS[key]:
            owners = " and ".join(OWNERS[key])
            raise InvalidInput(f"{key} is a parameter of the estimator {owners}, not of {name}")
        PARAMETERS[key].check(value)
    whole = {key: int(value) for key, value in given.items() if PARAMETERS[key].whole}
    estimator: Estimator = ESTIMATORS[name](**{**given, **whole})
    return estimator


def _known() -> str:
    return ", ".join(PARAMETERS)
