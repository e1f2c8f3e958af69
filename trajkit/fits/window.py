"""The window of a fit: which committed checkpoints it is of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from trajkit.errors import InvalidInput, Mismatch
from trajkit.fits.fields import LARGEST_STEP
from trajkit.stats.axis import StepAxis
from trajkit.store.commit import Frame
from trajkit.store.store import Store

if TYPE_CHECKING:
    from trajkit.fits.kept import Fit


@dataclass(frozen=True, slots=True)
class Window:
    """The frames a fit uses."""

    first: int
    """frame index"""
    stop: int
    """frame index after the last"""
    axis: StepAxis

    @property
    def n_frames(self) -> int:
        """T, checkpoints."""
        return self.stop - self.first


def choose_window(store: Store, from_step: int | None, to_step: int | None) -> Window:
    """The committed frames with ``from_step`` <= step <= ``to_step``."""
    steps = store.steps
    inside = np.ones(len(steps), bool)
    if from_step is not None:
        inside &= steps >= from_step
    if to_step is not None:
        inside &= steps <= to_step
    chosen = np.flatnonzero(inside)
    if len(chosen) < 2:
        held = f"{steps[0]} to {steps[-1]}" if len(steps) else "none"
        raise InvalidInput(
            f"{store.path}: a line needs 2 checkpoints or more, the window has {len(chosen)} "
            f"(steps in the store: {held}); ingest more, or widen --from-step and --to-step"
        )
    first, stop = int(chosen[0]), int(chosen[-1]) + 1
    for step in (int(steps[first]), int(steps[stop - 1])):
        if abs(step) > LARGEST_STEP:
            raise InvalidInput(
                f"{store.path}: step {step} is beyond 2^53, and steps are numbers of float64 in a "
                "fit; leave it out with --from-step and --to-step"
            )
    return Window(first, stop, StepAxis.of(steps[first:stop]))


def window_digest(store: Store, window: Window) -> str:
    """xxh3-128 over the frames' digests: which bits a fit is of."""
    return digest_of(store.commit.frames[window.first : window.stop])


def digest_of(frames: Sequence[Frame]) -> str:
    """xxh3-128 over the digests of these frames."""
    return xxhash.xxh3_128_hexdigest("".join(f.digest for f in frames).encode())


def check_unchanged(store: Store, window: Window) -> None:
    """Raise :class:`Mismatch` unless the disk still holds the window that ``store`` was opened with.

    To be called under the lock: checkpoints that came since do no harm, replaced ones do.
    """
    now = Store.open(store.path)
    frames = slice(window.first, window.stop)
    if now.commit.frames[frames] != store.commit.frames[frames] or now.codec != store.codec:
        raise Mismatch(f"{store.path}: its checkpoints were replaced meanwhile; run it again")


def check_fit_is_current(store: Store, fit: "Fit") -> None:
    """Raise :class:`Mismatch` unless a fit is of the checkpoints that the store holds now."""
    steps = fit.record.steps
    inside = [f.step for f in store.commit.frames if steps[0] <= f.step <= steps[-1]]
    if inside == list(steps):
        window = choose_window(store, steps[0], steps[-1])
        if window_digest(store, window) == fit.record.frames_digest:
            return
    raise Mismatch(
        f"{store.path}: the fit {fit.record.name!r} is of other checkpoints than the store "
        "holds now; run trajkit fit again"
    )
