"""One tile of elements in scratch memory: set up, summed, folded into the state, written back.

The rows are those of :mod:`trajkit.kernels.cpu.frames`, which says what is summed about what.

Axis letters: N elements.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu.bits import (
    TILE,
    Layout,
    as_float,
    as_word,
    at_top,
    value_of,
    wide_vectors,
)
from trajkit.kernels.cpu.compile import compiled, compiled_fused, inlined

RUNS = 4
"""runs of equal frames that are decoded before they are added; add_runs is written for four"""

# Rows of the scratch tile of floats, in units of TILE; NEW is RUNS rows.
OLD, ORIGIN, SD, SUD, SDD, Q, P, V, MIN, MAX, NEW = (row * TILE for row in range(11))
FLOAT_ROWS = 10 + RUNS
# Rows of the scratch tile of words; RAW is RUNS rows.
START, FIRST, SLOT_A, SLOT_B, CHANGED, DISTINCT, RAW = (row * TILE for row in range(7))
WORD_ROWS = 6 + RUNS


class State(NamedTuple):
    """The arrays of :class:`~trajkit.kernels.state.Sums`, as compiled code takes them."""

    s_d: NDArray[np.float64]
    s_ud: NDArray[np.float64]
    s_dd: NDArray[np.float64]
    q: NDArray[np.float64]
    p: NDArray[np.float64]
    v: NDArray[np.float64]
    y_first: NDArray[Any]
    y_min: NDArray[Any]
    y_max: NDArray[Any]
    bits_last: NDArray[Any]
    changes: NDArray[np.uint16]
    distinct: NDArray[np.uint8]
    slot_1: NDArray[Any]
    slot_2: NDArray[Any]
    slot_3: NDArray[Any]
    invalid: NDArray[np.uint8]


@compiled
def repeat(k: int, words: Any, work: Any) -> None:
    """Fill the runs after ``k`` with its bits and numbers: no change, and no weight."""
    raw, new = np.uint64(RAW + k * TILE), np.uint64(NEW + k * TILE)
    for later in range(k + 1, RUNS):
        raw_later, new_later = np.uint64(RAW + later * TILE), np.uint64(NEW + later * TILE)
        for i in range(TILE):
            words[raw_later + np.uint64(i)] = words[raw + np.uint64(i)]
        for i in range(TILE):
            work[new_later + np.uint64(i)] = work[new + np.uint64(i)]


@compiled_fused
def add_runs(direct: bool, runs: Any, words: Any, work: Any) -> None:
    """Add RUNS runs of frames to the sums: frames, sum of u, Δu before and weight in V of each.

    The sums are read and written once for all of them, which is what this loop waits for.
    """
    inlined()
    wide_vectors()
    word, real = words.dtype.type, work.dtype.type
    n_0, n_1, n_2, n_3 = real(runs[0]), real(runs[1]), real(runs[2]), real(runs[3])
    u_0, u_1, u_2, u_3 = real(runs[4]), real(runs[5]), real(runs[6]), real(runs[7])
    du_0, du_1, du_2, du_3 = real(runs[8]), real(runs[9]), real(runs[10]), real(runs[11])
    v_0, v_1, v_2, v_3 = real(runs[12]), real(runs[13]), real(runs[14]), real(runs[15])
    for i in range(TILE):
        origin, y = work[ORIGIN + i], work[OLD + i]
        if direct:  # the word, moved up, is the number; LLVM makes two loops of this one
            y_0 = as_float(at_top(words[RAW + i]))
            y_1 = as_float(at_top(words[RAW + TILE + i]))
            y_2 = as_float(at_top(words[RAW + 2 * TILE + i]))
            y_3 = as_float(at_top(words[RAW + 3 * TILE + i]))
        else:
            y_0, y_1 = work[NEW + i], work[NEW + TILE + i]
            y_2, y_3 = work[NEW + 2 * TILE + i], work[NEW + 3 * TILE + i]
        d_0, d_1, d_2, d_3 = y_0 - origin, y_1 - origin, y_2 - origin, y_3 - origin
        w_0, w_1, w_2, w_3 = n_0 * d_0, n_1 * d_1, n_2 * d_2, n_3 * d_3
        work[SD + i] += (w_0 + w_1) + (w_2 + w_3)
        work[SUD + i] += (u_0 * d_0 + u_1 * d_1) + (u_2 * d_2 + u_3 * d_3)
        work[SDD + i] += (w_0 * d_0 + w_1 * d_1) + (w_2 * d_2 + w_3 * d_3)
        e_0, e_1, e_2, e_3 = y_0 - y, y_1 - y_0, y_2 - y_1, y_3 - y_2
        work[P + i] += (du_0 * e_0 + du_1 * e_1) + (du_2 * e_2 + du_3 * e_3)
        e_0, e_1, e_2, e_3 = e_0 * e_0, e_1 * e_1, e_2 * e_2, e_3 * e_3
        work[Q + i] += (e_0 + e_1) + (e_2 + e_3)
        work[V + i] += (v_0 * e_0 + v_1 * e_1) + (v_2 * e_2 + v_3 * e_3)
        low_0, low_1 = y_0 if y_0 < y_1 else y_1, y_2 if y_2 < y_3 else y_3
        high_0, high_1 = y_0 if y_0 > y_1 else y_1, y_2 if y_2 > y_3 else y_3
        low_0, high_0 = low_0 if low_0 < low_1 else low_1, high_0 if high_0 > high_1 else high_1
        low, high = work[MIN + i], work[MAX + i]
        work[MIN + i] = low_0 if low_0 < low else low
        work[MAX + i] = high_0 if high_0 > high else high
        changed = word(word(word(y_0 != y) + word(y_1 != y_0)) + word(y_2 != y_1))
        words[CHANGED + i] = word(words[CHANGED + i] + word(changed + word(y_3 != y_2)))
        work[OLD + i] = y_3


@compiled
def note_distinct(n: int, words: Any) -> bool:
    """Count values that are none of the last three distinct ones; True while some are below 4.

    Until four distinct values have been seen the last three are all there are.
    """
    wide_vectors()
    word = words.dtype.type
    one, zero, enough = word(1), word(0), word(4)
    for i in range(TILE):
        first, a, b = words[FIRST + i], words[SLOT_A + i], words[SLOT_B + i]
        distinct = words[DISTINCT + i]
        for k in range(RUNS):
            raw = words[RAW + k * TILE + i]
            raw = zero if word(raw << one) == zero else raw  # -0.0 is 0.0
            is_new = (raw != first) & (raw != a) & (raw != b)
            b = a if is_new else b
            a = raw if is_new else a
            distinct = word(distinct + word(is_new))
        words[SLOT_A + i], words[SLOT_B + i] = a, b
        words[DISTINCT + i] = distinct if distinct < enough else enough
    unsure = zero
    for i in range(n):
        unsure = word(unsure | word(words[DISTINCT + i] < enough))
    return bool(unsure != zero)


@compiled
def rounded(raw: Any, layout: Layout) -> Any:
    """The bits of a value rounded to bfloat16, in a word of its format's width; 0.0 for -0.0."""
    bits = np.uint32(as_word(np.float32(value_of(raw, layout))))
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    high = np.uint32(np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))
    return np.uint32(0) if np.uint32(high & np.uint32(0x7FFF)) == np.uint32(0) else high


@compiled
def note_rounded(n: int, layout: Layout, words: Any) -> bool:
    """As :func:`note_distinct`, of values rounded to bfloat16."""
    wide_vectors()
    word = words.dtype.type
    enough = word(4)
    unsure = False
    for i in range(n):
        first, a, b = words[FIRST + i], words[SLOT_A + i], words[SLOT_B + i]
        distinct = words[DISTINCT + i]
        for k in range(RUNS):
            raw = word(rounded(words[RAW + k * TILE + i], layout))
            if raw != first and raw != a and raw != b:
                a, b = raw, a
                distinct = word(distinct + word(1))
        words[SLOT_A + i], words[SLOT_B + i] = a, b
        words[DISTINCT + i] = distinct if distinct < enough else enough
        unsure = unsure or distinct < enough
    return unsure


@compiled
def begin(
    row: Any, fresh: bool, in_bfloat16: bool, lo: int, hi: int, layout: Layout, state: State,
    words: Any, work: Any,
) -> None:  # fmt: skip
    """Set up a tile: from the state, or from the first frame where there is none yet."""
    wide_vectors()
    word = words.dtype.type
    one, zero = word(1), word(0)
    last = row if fresh else state.bits_last[lo:hi]
    for i in range(len(last)):
        words[RAW + i] = last[i]
    for i in range(TILE):
        work[OLD + i] = value_of(words[RAW + i], layout)
    y_first, y_min, y_max = state.y_first[lo:hi], state.y_min[lo:hi], state.y_max[lo:hi]
    if fresh:
        for i in range(TILE):
            raw = words[RAW + i]
            raw = zero if word(raw << one) == zero else raw
            raw = word(rounded(raw, layout)) if in_bfloat16 else raw
            words[FIRST + i] = words[SLOT_A + i] = words[SLOT_B + i] = raw
            words[DISTINCT + i] = one
        for i in range(TILE):
            work[MIN + i] = work[MAX + i] = work[OLD + i]
        for i in range(hi - lo):
            y_first[i] = work[OLD + i]
        for sums in (state.s_d, state.s_ud, state.s_dd, state.q, state.p, state.v):
            sums[lo:hi] = 0.0
        state.changes[lo:hi] = 0
        invalid = state.invalid[lo:hi]
        for i in range(hi - lo):  # the sums find later NaN and Inf, but not in frames all alike
            invalid[i] = np.uint8(not np.isfinite(work[OLD + i]))
    else:
        slot_1, slot_2, slot_3 = state.slot_1[lo:hi], state.slot_2[lo:hi], state.slot_3[lo:hi]
        distinct = state.distinct[lo:hi]
        for i in range(hi - lo):
            words[FIRST + i] = slot_1[i]
            words[SLOT_B + i] = slot_2[i]
            words[SLOT_A + i] = slot_3[i]
            words[DISTINCT + i] = word(distinct[i])
        for i in range(hi - lo):
            work[MIN + i] = y_min[i]
            work[MAX + i] = y_max[i]


@compiled
def finish(src: int, lo: int, hi: int, layout: Layout, state: State, words: Any, work: Any) -> None:
    """Write back what is not a sum; the last bits are in the row ``src``."""
    wide_vectors()
    word = words.dtype.type
    enough = word(4)
    bits_last, y_min, y_max = state.bits_last[lo:hi], state.y_min[lo:hi], state.y_max[lo:hi]
    slot_1, slot_2, slot_3 = state.slot_1[lo:hi], state.slot_2[lo:hi], state.slot_3[lo:hi]
    distinct = state.distinct[lo:hi]
    for i in range(hi - lo):
        bits_last[i] = words[src + i]
    for i in range(hi - lo):
        y_min[i] = work[MIN + i]
    for i in range(hi - lo):
        y_max[i] = work[MAX + i]
    for i in range(hi - lo):
        distinct[i] = min(words[DISTINCT + i], enough)
    for i in range(hi - lo):
        slot_1[i] = words[FIRST + i]
    for i in range(hi - lo):  # a slot not taken repeats the one before
        a, b = words[SLOT_A + i], words[SLOT_B + i]
        slot_2[i] = a if words[DISTINCT + i] == word(2) else b
    for i in range(hi - lo):
        slot_3[i] = words[SLOT_A + i]


@compiled_fused
def fold(
    frames: int, c: float, per_du: float, lo: int, hi: int, state: State, words: Any, work: Any
) -> None:
    """Add the sums of a batch to the state; one array a loop, which LLVM can vectorise."""
    wide_vectors()
    count, n = np.float64(frames), hi - lo
    y_first, changes = state.y_first[lo:hi], state.changes[lo:hi]
    s_d, s_ud, s_dd = state.s_d[lo:hi], state.s_ud[lo:hi], state.s_dd[lo:hi]
    q, p, v = state.q[lo:hi], state.p[lo:hi], state.v[lo:hi]
    for i in range(n):
        shift = np.float64(work[ORIGIN + i]) - np.float64(y_first[i])
        s_d[i] += np.float64(work[SD + i]) + count * shift
    for i in range(n):
        shift = np.float64(work[ORIGIN + i]) - np.float64(y_first[i])
        s_ud[i] += np.float64(work[SUD + i]) + c * (np.float64(work[SD + i]) + count * shift)
    for i in range(n):
        shift = np.float64(work[ORIGIN + i]) - np.float64(y_first[i])
        both = 2.0 * np.float64(work[SD + i]) + count * shift
        s_dd[i] += np.float64(work[SDD + i]) + shift * both
    for i in range(n):
        q[i] += np.float64(work[Q + i])
    for i in range(n):
        p[i] += np.float64(work[P + i])
    for i in range(n):
        v[i] += np.float64(work[V + i]) * per_du
    for i in range(n):
        both_changes = np.uint32(np.uint32(changes[i]) + np.uint32(words[CHANGED + i]))
        changes[i] = np.uint16(min(both_changes, np.uint32(65535)))
