"""The compiled pass over change events: what a fit sums, from what changed alone.

Between two changes an element is constant, so a change by Δ at frame e (value y after it, steps u in
units of the window, T frames in the call) is all that its sums are made of:

    S_d += Δ (T - e)      S_ud += Δ sum(u_t, t >= e)      Q += Δ²      P += Δ Δu_e      V += Δ² / Δu_e
    S_dd += d² times the frames that the value before, d above the first, has lasted

A block of elements stays in the first- or second-level cache for all frames. Each quantity of it is a
row of scratch, a few cache lines longer than the block: rows a power of two apart fall into one set of
the cache. All sums are float64 from the beginning: nothing is folded, and no square leaves the range.

Axis letters: T checkpoints, N elements, E events.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu.bits import Layout, value_of, wide_vectors
from trajkit.kernels.cpu.compile import compiled, inlined
from trajkit.kernels.cpu.solve import Answer, Design, solve_block
from trajkit.kernels.cpu.tile import State, rounded

BLOCK = 512
"""elements a block; 256 to 2,048 are no faster"""
ROW = BLOCK + 40
"""elements from row to row of a block's scratch"""
SD, SUD, SDD, Q, P, V, FIRST, LAST = range(8)
"""rows of sums, float64"""
BITS, SLOT_1, SLOT_2, SLOT_3, DISTINCT, CHANGES, SINCE, INVALID = range(8)
"""rows of counts, uint32 (uint64 for float64)"""


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
    """Scratch of one block."""

    sums: NDArray[np.float64]
    """[8 ROW]"""
    counts: NDArray[Any]
    """[8 ROW]"""
    ends: NDArray[Any]
    """least and largest value, [2 ROW], in the work dtype"""


@compiled
def _begin_fresh(first: Any, n: int, axis: EventAxis, layout: Layout, block: BlockScratch) -> None:
    """Set up a block from the first frame's bits."""
    wide_vectors()
    sums, counts, ends = block
    kind, word = counts.dtype.type, first.dtype.type
    sums[: ROW * LAST] = 0.0
    for i in range(n):
        ends[i] = value_of(first[i], layout)
    for i in range(n):
        ends[ROW + i] = ends[i]
    for i in range(n):
        sums[FIRST * ROW + i] = np.float64(ends[i])
    for i in range(n):
        sums[LAST * ROW + i] = np.float64(ends[i])
    for i in range(n):
        counts[INVALID * ROW + i] = kind(not np.isfinite(ends[i]))
    for i in range(n):
        raw = first[i]
        counts[BITS * ROW + i] = kind(raw)
        told = word(0) if word(raw << word(1)) == word(0) else raw
        counts[SLOT_1 * ROW + i] = kind(told)
    if axis.in_bfloat16:
        for i in range(n):
            told = word(counts[SLOT_1 * ROW + i])
            counts[SLOT_1 * ROW + i] = kind(word(rounded(told, layout)))
    for i in range(n):
        told = counts[SLOT_1 * ROW + i]
        counts[SLOT_2 * ROW + i] = told
        counts[SLOT_3 * ROW + i] = told
    counts[DISTINCT * ROW : DISTINCT * ROW + n] = kind(1)
    counts[CHANGES * ROW : CHANGES * ROW + n] = kind(0)


@compiled
def _begin(
    lo: int, n: int, axis: EventAxis, layout: Layout, state: State, block: BlockScratch
) -> None:
    """Set up a block from the state, where sums go on."""
    wide_vectors()
    sums, counts, ends = block
    kind = counts.dtype.type
    for i in range(n):
        y_first = np.float64(state.y_first[lo + i])
        y = np.float64(value_of(state.bits_last[lo + i], layout))
        d = y - y_first
        sums[FIRST * ROW + i], sums[LAST * ROW + i] = y_first, y
        sums[SD * ROW + i] = state.s_d[lo + i] + d * axis.after_T[0]
        sums[SUD * ROW + i] = state.s_ud[lo + i] + d * axis.u_after_T[0]
        sums[SDD * ROW + i] = state.s_dd[lo + i]
        sums[Q * ROW + i] = state.q[lo + i]
        sums[P * ROW + i] = state.p[lo + i]
        sums[V * ROW + i] = state.v[lo + i]
        ends[i], ends[ROW + i] = state.y_min[lo + i], state.y_max[lo + i]
    for i in range(n):
        counts[BITS * ROW + i] = kind(state.bits_last[lo + i])
        counts[SLOT_1 * ROW + i] = kind(state.slot_1[lo + i])
        counts[SLOT_2 * ROW + i] = kind(state.slot_2[lo + i])
        counts[SLOT_3 * ROW + i] = kind(state.slot_3[lo + i])
        counts[DISTINCT * ROW + i] = kind(state.distinct[lo + i])
        counts[CHANGES * ROW + i] = kind(state.changes[lo + i])
        counts[INVALID * ROW + i] = kind(state.invalid[lo + i])


@compiled
def _take(
    places: Any, codes: Any, e: int, stop: int, lo: int, hi: int, t: int, axis: EventAxis,
    layout: Layout, block: BlockScratch,
) -> int:  # fmt: skip
    """The events of one frame that lie in the block; the first that does not."""
    inlined()
    sums, counts, ends = block
    kind, word = counts.dtype.type, codes.dtype.type
    one, zero = word(1), word(0)
    after, u_after = axis.after_T[t], axis.u_after_T[t]
    du, per_du = axis.du_T[t], axis.per_du_T[t]
    while e < stop:
        place = np.int64(places[e])
        if place >= hi:
            break
        at = np.uint64(place - lo)
        code = codes[e]
        e += 1
        delta = word(word(code >> one) ^ word(zero - word(code & one)))
        raw = word(word(counts[at + np.uint64(BITS * ROW)]) + delta)
        counts[at + np.uint64(BITS * ROW)] = kind(raw)
        y = value_of(raw, layout)
        y_before, y_after = sums[at + np.uint64(LAST * ROW)], np.float64(y)
        d, step = y_before - sums[at + np.uint64(FIRST * ROW)], y_after - y_before
        lasted = np.float64(np.int64(t) - np.int64(counts[at + np.uint64(SINCE * ROW)]))
        square = step * step
        sums[at + np.uint64(SD * ROW)] += step * after
        sums[at + np.uint64(SUD * ROW)] += step * u_after
        sums[at + np.uint64(SDD * ROW)] += d * d * lasted
        sums[at + np.uint64(Q * ROW)] += square
        sums[at + np.uint64(P * ROW)] += du * step
        sums[at + np.uint64(V * ROW)] += per_du * square
        sums[at + np.uint64(LAST * ROW)] = y_after
        counts[at + np.uint64(SINCE * ROW)] = kind(t)
        counts[at + np.uint64(CHANGES * ROW)] += kind(y_after != y_before)
        counts[at + np.uint64(INVALID * ROW)] |= kind(not np.isfinite(y))
        low, high = at, at + np.uint64(ROW)
        ends[low] = y if y < ends[low] else ends[low]
        ends[high] = y if y > ends[high] else ends[high]
        told = zero if word(raw << one) == zero else raw
        told = kind(word(rounded(told, layout))) if axis.in_bfloat16 else kind(told)
        a, b = counts[at + np.uint64(SLOT_3 * ROW)], counts[at + np.uint64(SLOT_2 * ROW)]
        distinct = counts[at + np.uint64(DISTINCT * ROW)]
        is_new = (told != counts[at + np.uint64(SLOT_1 * ROW)]) & (told != a) & (told != b)
        is_new &= distinct < kind(4)
        counts[at + np.uint64(SLOT_2 * ROW)] = a if is_new else b
        counts[at + np.uint64(SLOT_3 * ROW)] = told if is_new else a
        counts[at + np.uint64(DISTINCT * ROW)] = distinct + kind(is_new)
    return e


@compiled
def _finish(lo: int, n: int, frames: int, state: State, block: BlockScratch) -> None:
    """Write a block back to the state; one array a loop, which LLVM can vectorise."""
    wide_vectors()
    sums, counts, ends = block
    word = state.bits_last.dtype.type
    s_dd, bits_last = state.s_dd[lo : lo + n], state.bits_last[lo : lo + n]
    for i in range(n):
        d = sums[LAST * ROW + i] - sums[FIRST * ROW + i]
        lasted = np.float64(frames) - np.float64(counts[SINCE * ROW + i])
        s_dd[i] = sums[SDD * ROW + i] + d * d * lasted
    for i in range(n):
        bits_last[i] = word(counts[BITS * ROW + i])
    _copy(sums, SD, n, state.s_d[lo : lo + n])
    _copy(sums, SUD, n, state.s_ud[lo : lo + n])
    _copy(sums, Q, n, state.q[lo : lo + n])
    _copy(sums, P, n, state.p[lo : lo + n])
    _copy(sums, V, n, state.v[lo : lo + n])
    _copy(sums, FIRST, n, state.y_first[lo : lo + n])
    _copy(ends, 0, n, state.y_min[lo : lo + n])
    _copy(ends, 1, n, state.y_max[lo : lo + n])
    _copy(counts, SLOT_1, n, state.slot_1[lo : lo + n])
    _copy(counts, SLOT_3, n, state.slot_3[lo : lo + n])
    _copy(counts, DISTINCT, n, state.distinct[lo : lo + n])
    slot_2, changes = state.slot_2[lo : lo + n], state.changes[lo : lo + n]
    invalid = state.invalid[lo : lo + n]
    for i in range(n):  # a slot not taken repeats the one before
        a, b = counts[SLOT_3 * ROW + i], counts[SLOT_2 * ROW + i]
        slot_2[i] = word(a) if counts[DISTINCT * ROW + i] == 2 else word(b)
    for i in range(n):
        most = counts.dtype.type(65535)
        found = counts[CHANGES * ROW + i]
        changes[i] = np.uint16(found if found < most else most)
    for i in range(n):
        invalid[i] = np.uint8(counts[INVALID * ROW + i] != 0)


@compiled
def _copy(rows: Any, row: int, n: int, out: Any) -> None:
    """One row of a block."""
    inlined()
    wide_vectors()
    for i in range(n):
        out[i] = out.dtype.type(rows[row * ROW + i])


@compiled
def _sum_block(
    first: Any, places: Any, codes: Any, starts: Any, cursors: Any, lo: int, n: int, at: int,
    fresh: bool, axis: EventAxis, layout: Layout, state: State, block: BlockScratch,
) -> None:  # fmt: skip
    """All frames for the elements lo .. lo + n - 1; their state begins at ``at``."""
    frames = np.int64(len(axis.after_T))
    if fresh:
        _begin_fresh(first[lo : lo + n], n, axis, layout, block)
    else:
        _begin(at, n, axis, layout, state, block)
    block.counts[SINCE * ROW : (SINCE + 1) * ROW] = block.counts.dtype.type(0)
    for t in range(frames):
        cursors[t] = _take(
            places, codes, cursors[t], starts[t + 1], lo, lo + n, t, axis, layout, block
        )
    _finish(at, n, frames, state, block)


@compiled
def accumulate(
    first: Any, places: Any, codes: Any, starts: Any, cursors: Any, n: int, fresh: bool,
    axis: EventAxis, layout: Layout, state: State, block: BlockScratch,
) -> None:  # fmt: skip
    """All frames of a call, for all N elements; ``first`` is read where ``fresh``."""
    for lo in range(0, n, BLOCK):
        size = min(BLOCK, n - lo)
        _sum_block(
            first, places, codes, starts, cursors, lo, size, lo, fresh, axis, layout, state, block
        )


@compiled
def fit(
    first: Any, places: Any, codes: Any, starts: Any, cursors: Any, n: int, axis: EventAxis,
    design: Design, layout: Layout, state: State, block: BlockScratch, words: Any, tile: Any,
    answer: Answer, bits_last: Any,
) -> None:  # fmt: skip
    """Accumulate and solve block by block; ``state`` is scratch for one block."""
    for lo in range(0, n, BLOCK):
        size = min(BLOCK, n - lo)
        _sum_block(
            first, places, codes, starts, cursors, lo, size, np.int64(0), True, axis, layout,
            state, block,
        )  # fmt: skip
        solve_block(lo, size, design, layout, state, words, tile, answer, bits_last)
