"""Change events: what differs from frame to frame, in place of the frames; and fits from them.

Axis letters: T checkpoints, N elements, E events.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels import api
from trajkit.kernels.dispatch import Backend
from trajkit.kernels.state import Solution, Sums

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Events:
    """All changes of a chunk over a window of frames.

    >>> events = Events(np.uint16([7, 7]), np.int32([1]), np.uint16([2]), np.int64([0, 0, 1]))
    >>> events.frames().tolist()
    [[7, 7], [0, 2]]
    """

    first: Array | None
    """bits of the window's first frame, unsigned [N]; None where sums go on that have seen one"""
    places: NDArray[np.int32]
    """elements that changed, ascending within each frame, int32 [E]"""
    codes: Array
    """zigzag of their bits less those before, unsigned [E]"""
    starts: NDArray[np.int64]
    """where each frame's events begin, and the end of all, int64 [T + 1]; a first frame has none"""

    @property
    def n_frames(self) -> int:
        """T."""
        return len(self.starts) - 1

    def of_frame(self, t: int) -> tuple[NDArray[np.int32], Array]:
        """Places and codes of a frame's events."""
        where = slice(int(self.starts[t]), int(self.starts[t + 1]))
        return self.places[where], self.codes[where]

    def frames(self, n: int | None = None) -> Array:
        """The coded frames [T, N] that these are the changes of, a first one as a key."""
        n = len(self.first) if self.first is not None else n
        assert n is not None
        frames_TN = np.zeros((self.n_frames, n), self.codes.dtype)
        for t in range(self.n_frames):
            places, codes = self.of_frame(t)
            frames_TN[t, places] = codes
        if self.first is not None:
            frames_TN[0] = self.first
        return frames_TN

    def sampled(self, where: slice) -> Array:
        """As :meth:`frames`, of every ``where.step``-th element from ``where.start`` on."""
        n = len(range(where.start, where.stop, where.step))
        frames_TM = np.zeros((self.n_frames, n), self.codes.dtype)
        is_sampled = np.zeros(max(where.stop, int(self.places.max(initial=0)) + 1), bool)
        is_sampled[where] = True
        chosen = np.flatnonzero(is_sampled[self.places])
        frames = np.searchsorted(self.starts, chosen, side="right") - 1
        among = (self.places[chosen] - where.start) // where.step
        frames_TM[frames, among] = self.codes[chosen]
        if self.first is not None:
            frames_TM[0] = self.first[where]
        return frames_TM


def check_events(events: Events, n: int, dtype: np.dtype[Any]) -> None:
    """Raise ValueError unless the arrays fit together; places are believed to ascend.

    The compiled pass reads events as they are: whoever makes them has checked what came from a file.
    """
    places, starts = events.places, events.starts
    if events.codes.dtype != dtype or (events.first is not None and events.first.dtype != dtype):
        raise ValueError(f"events of {dtype} codes expected, got {events.codes.dtype}")
    if events.first is not None and len(events.first) != n:
        raise ValueError(f"{len(events.first)} elements in the first frame, expected {n}")
    if places.shape != events.codes.shape or starts[0] != 0 or starts[-1] != len(places):
        raise ValueError("places, codes and starts of the events do not fit together")
    if (np.diff(starts) < 0).any():
        raise ValueError("frames of the events must follow one another")
    if len(places) and not (places.min() >= 0 and places.max() < n):
        raise ValueError(f"an event beyond the {n} elements")


def accumulate_events(
    events: Events, steps_T: Array, sums: Sums, *, backend: Backend = "auto"
) -> None:
    """Add a window of changes to ``sums``, in place: what ``accumulate_frames`` adds of its frames.

    Args:
        events: of the elements of ``sums``; with a first frame exactly where ``sums`` are of none.
        steps_T: training steps, ascending, after those of ``sums``.
        sums: updated.
        backend: see :mod:`trajkit.kernels.api`.

    Raises:
        ValueError: arrays that do not fit together, or steps that do not ascend.
    """
    if (sums.count == 0) != (events.first is not None):
        raise ValueError("events have a first frame exactly where sums begin with it")
    check_events(events, sums.size, sums.bits_last.dtype)
    if events.n_frames != len(steps_T):
        raise ValueError(f"{events.n_frames} frames at {len(steps_T)} steps")
    match backend:
        case "reference":
            frames_TN, is_key_T = _as_frames(events, sums.size)
            api.accumulate_frames(frames_TN, is_key_T, steps_T, sums, backend="reference")
        case _:
            _compiled().accumulate_events(events, steps_T, sums)


def fit_events(
    events: Events,
    steps_T: Array,
    dtype: str,
    *,
    min_range: float = 0.0,
    few: int = 4,
    distinct_in: str | None = None,
    backend: Backend = "auto",
) -> Solution:
    """The lines over a window of changes: what ``fit_frames`` finds in its frames.

    Args:
        events: with a first frame.
        steps_T: training steps, ascending.
        dtype: the elements' format.
        min_range: see ``fit_frames``.
        few: likewise.
        distinct_in: likewise.
        backend: see :mod:`trajkit.kernels.api`.

    Raises:
        ValueError: arrays that do not fit together, or steps that do not ascend.

    Notes:
        Sums are float64 from the beginning; they differ from those of the frames by what float32
        rounds there.
    """
    if events.first is None:
        raise ValueError("a fit from events needs the bits of their first frame")
    check_events(events, len(events.first), events.first.dtype)
    if events.n_frames != len(steps_T):
        raise ValueError(f"{events.n_frames} frames at {len(steps_T)} steps")
    options: dict[str, Any] = {"min_range": min_range, "few": few, "distinct_in": distinct_in}
    match backend:
        case "reference":
            frames_TN, is_key_T = _as_frames(events, len(events.first))
            return api.fit_frames(
                frames_TN, is_key_T, steps_T, dtype, **options, backend="reference"
            )
        case _:
            solution: Solution = _compiled().fit_events(events, steps_T, dtype, **options)
            return solution


def append_changes(row_N: Array, places: NDArray[np.int32], codes: Array, at: int) -> int:
    """Add the changes of a row of codes to places and codes, from ``at`` on.

    Returns:
        Where they end, or -1 where there is no room.
    """
    from trajkit.kernels.cpu.read_sparse import append_row

    return append_row(row_N, places, codes, at)


def _as_frames(events: Events, n: int) -> tuple[Array, NDArray[np.bool_]]:
    """The frames that the changes are of, and which are keys: what the specification takes."""
    is_key_T = np.arange(events.n_frames) == (0 if events.first is not None else -1)
    return events.frames(n), is_key_T


def _compiled() -> Any:
    """The compiled pass, imported now."""
    from trajkit.kernels.cpu import launch_events

    return launch_events
