"""Where forecasts start, and how far they reach: decided from the step axis alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trajkit.errors import InvalidInput

MIN_WINDOW = 4
"""checkpoints that a line is fitted to, at the least"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A forecast made at one checkpoint of a later one."""

    origin: int
    """index of the last checkpoint that is known"""
    target: int
    """index of the checkpoint that is forecast"""
    horizon: int
    """which of the plan's horizons this is"""


@dataclass(frozen=True, slots=True)
class BacktestPlan:
    """Rolling origins and horizons on one step axis."""

    steps: tuple[int, ...]
    origins: tuple[int, ...]
    """indices of checkpoints, ascending"""
    horizons: tuple[int, ...]
    """training steps beyond the origin, ascending"""
    forecasts: tuple[Forecast, ...]

    def reach(self, forecast: Forecast) -> int:
        """Training steps from a forecast's origin to its target."""
        return self.steps[forecast.target] - self.steps[forecast.origin]


def plan_backtest(
    steps: Sequence[int], n_origins: int = 5, horizons: Sequence[int] | None = None
) -> BacktestPlan:
    """Origins spread evenly over the last two thirds of the run, horizons doubling up to a window.

    Horizons are 1, 2, 4, ... median spacings. A horizon's target is the checkpoint nearest to it, if
    it is within half a spacing; no forecast reaches further than its own window is long.

    Args:
        steps: training steps of the window, ascending.
        n_origins: how many origins, at most.
        horizons: training steps, in place of those above.

    Raises:
        InvalidInput: too few checkpoints, no origin, or a horizon that no checkpoint meets.

    >>> plan = plan_backtest(range(0, 340, 10))
    >>> [plan.steps[o] for o in plan.origins], plan.horizons
    ([110, 160, 210, 260, 320], (10, 20, 40, 80, 160))
    """
    axis = np.asarray(list(steps), np.int64)
    if len(axis) < MIN_WINDOW + 1:
        raise InvalidInput(
            f"a backtest needs {MIN_WINDOW + 1} checkpoints or more, the window has {len(axis)}"
        )
    if n_origins < 1:
        raise InvalidInput(f"a backtest needs one origin or more, not {n_origins}")
    spacing = max(int(np.median(np.diff(axis))), 1)
    first = max((len(axis) - 1) // 3, MIN_WINDOW - 1)
    last = len(axis) - 2
    origins = np.unique(np.linspace(first, last, n_origins).astype(int))
    span = int(axis[-1] - axis[first])
    wanted = list(horizons or ())
    if not wanted:
        wanted = [spacing << i for i in range(32) if spacing << i <= span]
    if any(h < 1 for h in wanted):
        raise InvalidInput(f"horizons are training steps from 1 on, not {min(wanted)}")
    wanted = sorted(set(wanted))
    found = []
    for origin in origins.tolist():
        for i, h in enumerate(wanted):
            target = int(np.abs(axis - (axis[origin] + h)).argmin())
            reach = int(axis[target] - axis[origin])
            if reach > axis[origin] - axis[0]:
                continue
            if target > origin and abs(reach - h) * 2 <= spacing:
                found.append(Forecast(origin, target, i))
    met = sorted({f.horizon for f in found})
    if not met:
        raise InvalidInput(
            f"no checkpoint lies at the horizons {wanted} beyond the origins "
            f"{axis[origins].tolist()}: give --horizons that the run's checkpoints meet"
        )
    names = {old: new for new, old in enumerate(met)}
    return BacktestPlan(
        tuple(axis.tolist()),
        tuple(origins.tolist()),
        tuple(wanted[i] for i in met),
        tuple(Forecast(f.origin, f.target, names[f.horizon]) for f in found),
    )
