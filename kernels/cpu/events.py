"""The compiled pass over change events: what a fit sums, from what changed alone.

Between two changes an element is constant, so a change by Δ at frame e (value d above the first before
it and d' after, steps u in units of the window, T frames in the call) is all that its sums are made of:

    S_d += Δ (T - e)      S_ud += Δ sum(u_t, t >= e)      S_dd += Δ (d + d') (T - e)
    Q += Δ²               P += Δ Δu_e                     V += Δ² / Δu_e

Events come frame after frame, and one after another they cost some hundred instructions each. So they
are laid out first by their *turn*, as an element's first, second, third: a turn is a row over a block
of elements, which is added at once, in vectors, LANES elements at a time, for as many turns as these
have. Where nothing is left of an element its code is zero, which changes nothing. An element whose
turns are full has its own added by itself (:func:`_drain`): few that change at every step must not
make a row of zeros of all others.

Each quantity of a block is a row of scratch, a few cache lines longer than the block: rows a power of
two apart fall into one set of the cache. All sums are float64 from the beginning: nothing is folded,
and no square leaves the range.

Axis letters: T checkpoints, N elements, E events.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu import solve as solving
from trajkit.kernels.cpu.bits import TILE, Layout, value_of, wide_vectors
from trajkit.kernels.cpu.compile import compiled, inlined
from trajkit.kernels.cpu.solve import Answer, Design, scatter, solve_tile
from trajkit.kernels.cpu.tile import State, rounded

BLOCK = 512
"""elements a block"""
ROW = BLOCK + 40
"""elements from row to row of a block's scratch"""
LANES = 64
"""elements that take their turns together; BLOCK is a multiple"""
TURNS = 16
"""events an element may have waiting"""
SD, SUD, SDD, Q, P, V, FIRST = (np.uint64(row * ROW) for row in range(7))
"""rows of sums, float64"""
BITS, SLOT_1, SLOT_2, SLOT_3, DISTINCT, TOLD = (np.uint64(row * ROW) for row in range(6))
"""rows of words, in the format's own"""
CHANGES, INVALID, WAITING = (np.uint64(row * ROW) for row in range(3))
"""rows of counts, uint32"""
LOW, HIGH, LAST, NEW = (np.uint64(row * ROW) for row in range(4))
"""rows of values, in the work dtype"""
SUM_ROWS, WORD_ROWS, COUNT_ROWS, VALUE_ROWS = 7, 6, 3, 4
AFTER, U_AFTER, DU, PER_DU = (np.uint64(row * ROW) for row in range(4))
FACTORS = 4
"""rows of a turn, float64: what a frame's events are multiplied with"""


class EventAxis(NamedTuple):
    """The step axis of one call, float64 [T]."""

    after_T: NDArray[np.float64]
    """frames from this one on"""
    u_after_T: NDArray[np.float64]
    """sum of u from this frame on"""
    du_T: NDArray[np.float64]
    """u minus the u before"""
    per_du_T: NDArray[np.float64]
    """1 over it; 0 for the first frame of all"""
    in_bfloat16: bool
    """whether distinct values are counted after rounding to bfloat16"""


class BlockScratch(NamedTuple):
    """Scratch of one block; codes are zero between blocks."""

    sums: NDArray[np.float64]
    words: NDArray[Any]
    counts: NDArray[np.uint32]
    values: NDArray[Any]
    codes: NDArray[Any]
    """of the events that wait, a row a turn"""
    factors: NDArray[np.float64]
    """of their frames, FACTORS rows a turn"""


@compiled
def _begin_fresh(first: Any, n: int, axis: EventAxis, layout: Layout, block: BlockScratch) -> None:
    """Set up a block from the first frame's bits."""
    wide_vectors()
    sums, words, counts, values, _, _ = block
    word = words.dtype.type
    sums[:FIRST] = 0.0
    for i in range(np.uint64(n)):
        words[BITS + i] = first[i]
    for i in range(np.uint64(n)):
        values[LAST + i] = value_of(words[BITS + i], layout)
    for i in range(np.uint64(n)):
        values[LOW + i] = values[HIGH + i] = values[LAST + i]
    for i in range(np.uint64(n)):
        sums[FIRST + i] = np.float64(values[LAST + i])
    for i in range(np.uint64(n)):
        counts[CHANGES + i] = counts[WAITING + i] = np.uint32(0)
        counts[INVALID + i] = np.uint32(not np.isfinite(values[LAST + i]))
    _tell(0, n, axis, layout, words)
    for i in range(np.uint64(n)):
        told = words[TOLD + i]
        words[SLOT_1 + i] = words[SLOT_2 + i] = words[SLOT_3 + i] = told
        words[DISTINCT + i] = word(1)


@compiled
def _begin(
    lo: int, n: int, axis: EventAxis, layout: Layout, state: State, block: BlockScratch
) -> None:
    """Set up a block from the state, where sums go on."""
    wide_vectors()
    sums, words, counts, values, _, _ = block
    top = np.uint64(lo)
    for i in range(np.uint64(n)):
        words[BITS + i] = state.bits_last[top + i]
        words[SLOT_1 + i] = state.slot_1[top + i]
        words[SLOT_2 + i] = state.slot_2[top + i]
        words[SLOT_3 + i] = state.slot_3[top + i]
        words[DISTINCT + i] = words.dtype.type(state.distinct[top + i])
    for i in range(np.uint64(n)):
        values[LAST + i] = value_of(words[BITS + i], layout)
        values[LOW + i], values[HIGH + i] = state.y_min[top + i], state.y_max[top + i]
    for i in range(np.uint64(n)):
        counts[CHANGES + i] = np.uint32(state.changes[top + i])
        counts[INVALID + i] = np.uint32(state.invalid[top + i])
        counts[WAITING + i] = np.uint32(0)
    for i in range(np.uint64(n)):
        y_first = np.float64(state.y_first[top + i])
        d = np.float64(values[LAST + i]) - y_first
        sums[FIRST + i] = y_first
        sums[SD + i] = state.s_d[top + i] + d * axis.after_T[0]
        sums[SUD + i] = state.s_ud[top + i] + d * axis.u_after_T[0]
        sums[SDD + i] = state.s_dd[top + i] + d * d * axis.after_T[0]
        sums[Q + i], sums[P + i] = state.q[top + i], state.p[top + i]
        sums[V + i] = state.v[top + i]


@compiled
def _tell(lo: int, n: int, axis: EventAxis, layout: Layout, words: Any) -> None:
    """TOLD: the words by which values are told apart; -0.0 is 0.0."""
    inlined()
    wide_vectors()
    word, base = words.dtype.type, np.uint64(lo)
    for k in range(n):
        i = base + np.uint64(k)
        raw = words[BITS + i]
        words[TOLD + i] = word(0) if word(raw << word(1)) == word(0) else raw
    if axis.in_bfloat16:
        for k in range(n):
            i = base + np.uint64(k)
            words[TOLD + i] = word(rounded(words[TOLD + i], layout))


@compiled
def _lay_out(
    places: Any, codes: Any, e: int, stop: int, lo: int, hi: int, t: int, axis: EventAxis,
    layout: Layout, block: BlockScratch,
) -> int:  # fmt: skip
    """Lay out the events of one frame that lie in the block; the first that does not."""
    inlined()
    counts, waiting_codes, factors = block.counts, block.codes, block.factors
    after, u_after = axis.after_T[t], axis.u_after_T[t]
    du, per_du = axis.du_T[t], axis.per_du_T[t]
    most = np.uint32(TURNS)
    while e < stop:
        place = np.int64(places[e])
        if place >= hi:
            break
        at = np.uint64(place - lo)
        turn = counts[at + WAITING]
        if turn == most:
            _drain(at, most, axis, layout, block)
            turn = np.uint32(0)
        counts[at + WAITING] = turn + np.uint32(1)
        waiting_codes[np.uint64(turn) * np.uint64(ROW) + at] = codes[e]
        row = np.uint64(turn) * np.uint64(FACTORS * ROW) + at
        factors[row + AFTER] = after
        factors[row + U_AFTER] = u_after
        factors[row + DU] = du
        factors[row + PER_DU] = per_du
        e += 1
    return e


@compiled
def _drain(at: int, turns: int, axis: EventAxis, layout: Layout, block: BlockScratch) -> None:
    """Add the events that wait of one element: a call, so that the loop around it stays small."""
    for turn in range(turns):
        _add_turn(turn, at, 1, axis, layout, block)


@compiled
def _add_turn(
    turn: int, lo: int, n: int, axis: EventAxis, layout: Layout, block: BlockScratch
) -> None:
    """Add a turn of the elements lo .. lo + n - 1 of the block."""
    inlined()
    wide_vectors()
    sums, words, counts, values, codes, factors = block
    word = words.dtype.type
    one, zero, enough = word(1), word(0), word(4)
    base, row = np.uint64(lo), np.uint64(turn * ROW)
    scale = np.uint64(turn * FACTORS * ROW)
    for k in range(n):
        i = base + np.uint64(k)
        code = codes[row + i]
        delta = word(word(code >> one) ^ word(zero - word(code & one)))
        words[BITS + i] = word(words[BITS + i] + delta)
    for k in range(n):
        i = base + np.uint64(k)
        codes[row + i] = zero
    for k in range(n):
        i = base + np.uint64(k)
        values[NEW + i] = value_of(words[BITS + i], layout)
    for k in range(n):
        i = base + np.uint64(k)
        before, after = np.float64(values[LAST + i]), np.float64(values[NEW + i])
        first, step = sums[FIRST + i], after - before
        weighted = step * factors[scale + AFTER + i]
        sums[SD + i] += weighted
        sums[SDD + i] += weighted * ((before - first) + (after - first))
        sums[SUD + i] += step * factors[scale + U_AFTER + i]
        sums[P + i] += step * factors[scale + DU + i]
        square = step * step
        sums[Q + i] += square
        sums[V + i] += square * factors[scale + PER_DU + i]
    for k in range(n):
        i = base + np.uint64(k)
        y, low, high = values[NEW + i], values[LOW + i], values[HIGH + i]
        values[LOW + i] = y if y < low else low
        values[HIGH + i] = y if y > high else high
    for k in range(n):
        i = base + np.uint64(k)
        y = values[NEW + i]
        counts[CHANGES + i] += np.uint32(y != values[LAST + i])
        counts[INVALID + i] |= np.uint32(not np.isfinite(y))
    for k in range(n):
        i = base + np.uint64(k)
        values[LAST + i] = values[NEW + i]
    _tell(lo, n, axis, layout, words)
    for k in range(n):
        i = base + np.uint64(k)
        told, distinct = words[TOLD + i], words[DISTINCT + i]
        a, b = words[SLOT_3 + i], words[SLOT_2 + i]
        is_new = (told != words[SLOT_1 + i]) & (told != a) & (told != b) & (distinct < enough)
        words[SLOT_2 + i] = a if is_new else b
        words[SLOT_3 + i] = told if is_new else a
        words[DISTINCT + i] = word(distinct + word(is_new))


@compiled
def _finish(lo: int, n: int, state: State, block: BlockScratch) -> None:
    """Write a block back to the state; one array a loop, which LLVM can vectorise."""
    wide_vectors()
    sums, words, counts, values, _, _ = block
    word = words.dtype.type
    _copy(sums, SD, n, state.s_d[lo : lo + n])
    _copy(sums, SUD, n, state.s_ud[lo : lo + n])
    _copy(sums, SDD, n, state.s_dd[lo : lo + n])
    _copy(sums, Q, n, state.q[lo : lo + n])
    _copy(sums, P, n, state.p[lo : lo + n])
    _copy(sums, V, n, state.v[lo : lo + n])
    _copy(sums, FIRST, n, state.y_first[lo : lo + n])
    _copy(values, LOW, n, state.y_min[lo : lo + n])
    _copy(values, HIGH, n, state.y_max[lo : lo + n])
    _copy(words, BITS, n, state.bits_last[lo : lo + n])
    _copy(words, SLOT_1, n, state.slot_1[lo : lo + n])
    _copy(words, SLOT_3, n, state.slot_3[lo : lo + n])
    _copy(words, DISTINCT, n, state.distinct[lo : lo + n])
    slot_2, changes = state.slot_2[lo : lo + n], state.changes[lo : lo + n]
    invalid = state.invalid[lo : lo + n]
    for i in range(np.uint64(n)):  # a slot not taken repeats the one before
        a, b = words[SLOT_3 + i], words[SLOT_2 + i]
        slot_2[i] = a if words[DISTINCT + i] == word(2) else b
    for i in range(np.uint64(n)):
        changes[i] = np.uint16(min(counts[CHANGES + i], np.uint32(65535)))
    for i in range(np.uint64(n)):
        invalid[i] = np.uint8(counts[INVALID + i] != np.uint32(0))


@compiled
def _copy(rows: Any, row: int, n: int, out: Any) -> None:
    """One row of a block."""
    inlined()
    wide_vectors()
    for i in range(np.uint64(n)):
        out[i] = out.dtype.type(rows[row + i])


@compiled
def _add_events(
    places: Any, codes: Any, starts: Any, cursors: Any, lo: int, n: int, axis: EventAxis,
    layout: Layout, block: BlockScratch,
) -> None:  # fmt: skip
    """All frames for the elements lo .. lo + n - 1, whose block is set up."""
    for t in range(len(axis.after_T)):
        cursors[t] = _lay_out(
            places, codes, cursors[t], starts[t + 1], lo, lo + n, t, axis, layout, block
        )
    for group in range(0, n, LANES):
        turns = np.uint32(0)
        for i in range(group, min(group + LANES, n)):
            turns = max(turns, block.counts[WAITING + np.uint64(i)])
        for turn in range(turns):
            _add_turn(turn, group, LANES, axis, layout, block)


@compiled
def accumulate(
    first: Any, places: Any, codes: Any, starts: Any, cursors: Any, n: int, fresh: bool,
    axis: EventAxis, layout: Layout, state: State, block: BlockScratch,
) -> None:  # fmt: skip
    """All frames of a call, for all N elements; ``first`` is read where ``fresh``."""
    for lo in range(0, n, BLOCK):
        size = min(BLOCK, n - lo)
        if fresh:
            _begin_fresh(first[lo : lo + size], size, axis, layout, block)
        else:
            _begin(lo, size, axis, layout, state, block)
        _add_events(places, codes, starts, cursors, lo, size, axis, layout, block)
        _finish(lo, size, state, block)


@compiled
def _fill_tile(
    at: int, n: int, design: Design, block: BlockScratch, tile: Any, bits_last: Any
) -> None:
    """Bring elements of a block into rows to be solved, and their last bits out."""
    wide_vectors()
    sums, words, counts, values, _, _ = block
    top = np.uint64(at)
    _copy(sums, SD + top, n, tile[solving.SD : solving.SUD])
    _copy(sums, SUD + top, n, tile[solving.SUD : solving.SDD])
    _copy(sums, SDD + top, n, tile[solving.SDD : solving.Q])
    _copy(sums, Q + top, n, tile[solving.Q : solving.P])
    _copy(sums, P + top, n, tile[solving.P : solving.V])
    _copy(sums, V + top, n, tile[solving.V : solving.YFIRST])
    _copy(sums, FIRST + top, n, tile[solving.YFIRST : solving.YLAST])
    _copy(values, LAST + top, n, tile[solving.YLAST : solving.RANGE])
    _copy(words, BITS + top, n, bits_last)
    ranges, moving = tile[solving.RANGE : solving.MOVING], tile[solving.MOVING : solving.VALID]
    valid, few = tile[solving.VALID : solving.FEW], tile[solving.FEW : solving.FLAGS]
    for i in range(np.uint64(n)):
        j = top + i
        ranges[i] = np.float64(values[HIGH + j]) - np.float64(values[LOW + j])
    for i in range(np.uint64(n)):
        moved = counts[CHANGES + top + i] != np.uint32(0)
        moving[i] = np.float64(moved) * np.float64(design.count > 1)
    for i in range(np.uint64(n)):
        valid[i] = np.float64(counts[INVALID + top + i] == np.uint32(0))
    for i in range(np.uint64(n)):
        few[i] = np.float64(words[DISTINCT + top + i] < design.few)


@compiled
def fit(
    first: Any, places: Any, codes: Any, starts: Any, cursors: Any, n: int, axis: EventAxis,
    design: Design, layout: Layout, block: BlockScratch, tile: Any, answer: Answer, bits_last: Any,
) -> None:  # fmt: skip
    """Accumulate and solve block by block."""
    for lo in range(0, n, BLOCK):
        size = min(BLOCK, n - lo)
        _begin_fresh(first[lo : lo + size], size, axis, layout, block)
        _add_events(places, codes, starts, cursors, lo, size, axis, layout, block)
        for at in range(0, size, TILE):
            few = min(TILE, size - at)
            _fill_tile(at, few, design, block, tile, bits_last[lo + at : lo + at + few])
            solve_tile(design, layout, tile)
            scatter(lo + at, few, tile, answer)
