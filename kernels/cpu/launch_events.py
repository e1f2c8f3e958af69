"""Launchers of the pass over change events; see :mod:`trajkit.kernels.cpu.launch`.

Axis letters: T checkpoints, N elements, E events.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu import events as cpu_events
from trajkit.kernels.cpu import launch
from trajkit.kernels.cpu.bits import TILE, flat, layout_of, scratch_tile
from trajkit.kernels.cpu.solve import ROWS
from trajkit.kernels.events import Events
from trajkit.kernels.formats import Format, format_of
from trajkit.kernels.state import Solution, Sums, new_sums
from trajkit.kernels.steps import span_units, take_steps


def accumulate_events(events: Events, steps_T: NDArray[Any], sums: Sums) -> None:
    """Add a window of changes to ``sums``, in place."""
    form = format_of(sums.dtype)
    fresh = sums.count == 0
    axis = _axis(sums, steps_T)
    if not len(steps_T):
        return
    first, places, codes, starts, cursors = _arrays(events, form)
    cpu_events.accumulate(
        first,
        places,
        codes,
        starts,
        cursors,
        sums.size,
        fresh,
        axis,
        layout_of(form),
        launch._state(sums),
        _block(form),
    )


def fit_events(
    events: Events,
    steps_T: NDArray[Any],
    dtype: str,
    *,
    min_range: float = 0.0,
    few: int = 4,
    distinct_in: str | None = None,
) -> Solution:
    """Accumulate and solve, block by block; the sums exist for one block at a time."""
    form = format_of(dtype)
    assert events.first is not None
    n = len(events.first)
    scratch = new_sums(1, dtype, *span_units(steps_T), distinct_in)
    axis = _axis(scratch, steps_T)
    answer, bits_last = launch._new_answer(n), np.empty(n, dtype=form.bits)
    first, places, codes, starts, cursors = _arrays(events, form)
    cpu_events.fit(
        first,
        places,
        codes,
        starts,
        cursors,
        n,
        axis,
        launch._design(scratch, min_range, few),
        layout_of(form),
        _block(form),
        scratch_tile(ROWS, np.dtype(np.float64)),
        answer,
        bits_last,
    )
    return Solution(*answer, bits_last=bits_last)


def _axis(sums: Sums, steps_T: NDArray[Any]) -> cpu_events.EventAxis:
    """Enter the steps into the host scalars; the step axis for the compiled pass."""
    u_T, du_T = take_steps(sums, steps_T)
    return cpu_events.EventAxis(
        np.arange(len(u_T), 0, -1, dtype=np.float64),
        np.cumsum(u_T[::-1])[::-1].copy(),
        np.ascontiguousarray(du_T),
        np.divide(1.0, du_T, out=np.zeros_like(du_T), where=du_T > 0),
        sums.distinct_in != sums.dtype,
    )


def _arrays(events: Events, form: Format) -> tuple[NDArray[Any], ...]:
    """The events for compiled code, and where it has got to in each frame."""
    first = np.empty(0, form.bits) if events.first is None else events.first
    starts = flat(np.ascontiguousarray(events.starts, np.int64))
    return flat(first), flat(events.places), flat(events.codes), starts, starts[:-1].copy()


def _block(form: Format) -> cpu_events.BlockScratch:
    """Scratch of one block, on cache lines."""
    per_row = -(-cpu_events.ROW // TILE)
    double = np.dtype(np.float64)
    return cpu_events.BlockScratch(
        sums=scratch_tile(cpu_events.SUM_ROWS * per_row, double),
        words=scratch_tile(cpu_events.WORD_ROWS * per_row, form.bits),
        counts=scratch_tile(cpu_events.COUNT_ROWS * per_row, np.dtype(np.uint32)),
        values=scratch_tile(cpu_events.VALUE_ROWS * per_row, form.work),
        codes=scratch_tile(cpu_events.TURNS * per_row, form.bits),
        factors=scratch_tile(cpu_events.TURNS * cpu_events.FACTORS * per_row, double),
    )
