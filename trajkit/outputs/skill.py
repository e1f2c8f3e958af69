"""Skill of outputs: log-probabilities forecast from earlier checkpoints, judged on later ones.

At each origin a line is fitted to every token's log p over the checkpoints up to there; nothing after
is looked at. Skill = 1 - SSE / SSE_hold, over all tokens and the origins that meet a horizon; 0 is no
better than holding the origin's value. Estimators are those of :mod:`trajkit.fits.estimators`, without
a gate.

Axis letters: T checkpoints, N response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trajkit.arrays import Array
from trajkit.errors import InvalidInput
from trajkit.fits.estimators.estimator import Points
from trajkit.fits.estimators.table import make_estimator
from trajkit.outputs.kept import Outputs
from trajkit.outputs.linearity import fit_lines

ESTIMATORS = ("anchored", "line", "two-point", "damped")
LEAST = 3
"""checkpoints that a forecast is made from"""
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Skill:
    """One estimator at one horizon."""

    estimator: str
    horizon: int
    """training steps beyond the origin"""
    origins: tuple[int, ...]
    """training steps that forecasts were made at"""
    skill: float | None
    """None where nothing moved"""


def measure_skill(
    outputs: Outputs, *, origins: int = 5, horizons: Sequence[int] | None = None
) -> list[Skill]:
    """The skill of each estimator at each horizon, over the last ``origins`` that meet it.

    Args:
        outputs: scored at four checkpoints or more.
        origins: most checkpoints that forecasts start from, a horizon.
        horizons: training steps (default: doubling from the spacing, up to the window's length).

    Raises:
        InvalidInput: too few checkpoints, or no two of them are a horizon apart.
        FormatError: the outputs are damaged.

    Memory: 65,536 tokens at all checkpoints.
    """
    steps = outputs.record.steps
    pairs = choose_pairs(steps, origins, horizons)
    errors = {(e, h): np.zeros(2) for h in pairs for e in ESTIMATORS}
    for start in range(0, outputs.record.tokens, _BLOCK):
        stop = min(start + _BLOCK, outputs.record.tokens)
        y_TN = outputs.rows("log_p", start, stop).astype(np.float64)
        for horizon, chosen in pairs.items():
            for origin, target in chosen:
                truth, last = y_TN[target], y_TN[origin]
                hold = float(((last - truth) ** 2).sum())
                guesses = forecast(y_TN[: origin + 1], steps[: origin + 1], steps[target])
                for name, guess in guesses.items():
                    errors[name, horizon] += (float(((guess - truth) ** 2).sum()), hold)
    return [
        Skill(
            name,
            horizon,
            tuple(steps[origin] for origin, _ in pairs[horizon]),
            float(1 - found[0] / found[1]) if found[1] else None,
        )
        for (name, horizon), found in errors.items()
    ]


def forecast(y_TN: Array, steps: tuple[int, ...], target: int) -> dict[str, Array]:
    """What each estimator says of a later step, float64 [N], from the checkpoints given.

    >>> found = forecast(np.array([[0.0], [1.0], [2.0]]), (0, 10, 20), 30)
    >>> {name: float(v[0]) for name, v in found.items()}
    {'anchored': 3.0, 'line': 3.0, 'two-point': 3.0, 'damped': 2.3}
    """
    lines = fit_lines(y_TN, steps)
    first, last = y_TN[0], y_TN[-1]
    points = Points(steps[0], steps[-1], float(np.mean(steps)))
    found: dict[str, Array] = {}
    for name in ESTIMATORS:
        factor = make_estimator(name, {}).coefficient(points, target)
        match name:
            case "two-point":
                found[name] = first + factor * (last - first)
            case "line":
                found[name] = lines.mean + factor * lines.slope
            case _:
                found[name] = last + factor * lines.slope
    return found


def choose_pairs(
    steps: tuple[int, ...], origins: int, horizons: Sequence[int] | None
) -> dict[int, list[tuple[int, int]]]:
    """(origin, target) as places in ``steps``, by horizon: checkpoints exactly so far apart.

    >>> choose_pairs((0, 10, 20, 30, 40), 2, None)
    {10: [(2, 3), (3, 4)], 20: [(2, 4)]}
    """
    if len(steps) <= LEAST:
        raise InvalidInput(
            f"skill needs {LEAST + 1} checkpoints or more: {LEAST} to forecast from, one to judge by"
        )
    place = {step: i for i, step in enumerate(steps)}
    if horizons is None:
        spacing = min(b - a for a, b in pairwise(steps))
        horizons = [spacing << i for i in range(64) if spacing << i <= steps[-1] - steps[0]]
    pairs: dict[int, list[tuple[int, int]]] = {}
    for horizon in horizons:
        met = [
            (i, place[step + horizon])
            for i, step in enumerate(steps)
            if i + 1 >= LEAST and step + horizon in place
        ]
        if met and horizon > 0:
            pairs[horizon] = met[-origins:]
    if not pairs:
        raise InvalidInput("no two scored checkpoints are one of the horizons apart")
    return pairs
