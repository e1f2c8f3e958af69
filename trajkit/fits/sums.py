"""Sums that are kept, and the fit that goes on from them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trajkit.errors import FormatError, NotFound
from trajkit.fits.kept import Fit, read_fit
from trajkit.fits.window import Window, window_digest
from trajkit.kernels import api as kernels
from trajkit.kernels.state import Sums
from trajkit.kernels.steps import take_steps
from trajkit.store.store import Store

KEEP_SUMS_FRAMES = 256
"""windows of so many checkpoints keep their sums: below, reading the frames again costs less"""


def find_prior(store: Store, name: str, window: Window) -> Fit | None:
    """The fit of that name, where it can be continued: sums kept, and of the window's beginning."""
    try:
        prior = read_fit(store, name)
    except (NotFound, FormatError):
        return None
    steps = prior.record.steps
    if prior.record.sums is None or len(steps) > window.n_frames:
        return None
    begun = replace(window, stop=window.first + len(steps))
    if steps != window.axis.steps[: len(steps)]:
        return None
    return prior if prior.record.frames_digest == window_digest(store, begun) else None


def sums_scalars(window: Window) -> dict[str, float]:
    """The scalars of the sums over a whole window."""
    return _scalars_of(_counted_sums(window.axis.steps, window.axis.mean, window.axis.unit))


_SCALARS = ("count", "x_ref", "x_unit", "x_first", "x_last", "s_u", "s_uu", "s_du2")


def _scalars_of(sums: Sums) -> dict[str, float]:
    return {name: getattr(sums, name) for name in _SCALARS}


def _counted_sums(steps: Sequence[int], x_ref: float, x_unit: float) -> Sums:
    """Sums of no elements that have counted these steps: their scalars are those of the window."""
    sums = kernels.new_sums(0, "float32", x_ref, x_unit)
    take_steps(sums, np.asarray(steps, np.float64))
    return sums
