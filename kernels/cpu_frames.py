"""The compiled pass over frames: decode, and add to the sums, tile by tile.

A tile stays in the first-level cache for all frames of a call. Within a batch of at most BATCH
frames its sums are of the work dtype (float32; float64 for float64), about the batch's first value
(d') and the batch's mean step (u'); then they are folded into the float64 state about y_first.
With D the batch's first value minus y_first, c its mean u and n its frames:

    S_d += S_d' + n D
    S_dd += S_dd' + D (2 S_d' + n D)
    S_ud += S_ud' + c S_d' + D sum(u)
    Q += Q'    P += P'

so rounding grows neither with T, nor with the distance of the window from step 0, nor with an
outlying first checkpoint. Elements whose squares left float32's range are summed again, one by
one, in float64. A frame in which no bit of the tile changes costs one look at its codes.

Axis letters: T checkpoints, N elements, G batches.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu_bits import (
    TILE,
    Layout,
    as_float,
    at_top,
    compiled,
    compiled_fused,
    prefetch,
    value_of,
    wide_vectors,
)

BATCH = 64
"""frames summed in the work dtype before they are folded"""
TINY, HUGE = 2.0**-110, 2.0**110
"""sums of squares beyond these may have lost terms to underflow, or overflowed, in float32"""

LOOK = 8
"""frames between two looks at whether a busy tile has come to rest"""
RUNS = 4
"""runs of equal frames that are decoded before they are added; _add_runs is written for four"""

# Rows of the scratch tile of floats, in units of TILE; NEW is RUNS rows.
OLD, ORIGIN, SD, SUD, SDD, Q, P, MIN, MAX, NEW = (row * TILE for row in range(10))
FLOAT_ROWS = 9 + RUNS
# Rows of the scratch tile of words; RAW is RUNS rows.
START, FIRST, SLOT_A, SLOT_B, CHANGED, DISTINCT, RAW = (row * TILE for row in range(7))
WORD_ROWS = 6 + RUNS


class State(NamedTuple):
    """The arrays of :class:`~trajkit.kernels.sums.Sums`, as compiled code takes them."""

    s_d: NDArray[np.float64]
    s_ud: NDArray[np.float64]
    s_dd: NDArray[np.float64]
    q: NDArray[np.float64]
    p: NDArray[np.float64]
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


class Window(NamedTuple):
    """The step axis of one call, worked out once on the host."""

    is_key_T: NDArray[np.bool_]
    u_T: NDArray[Any]
    """u about the mean of its batch, in the work dtype"""
    du_T: NDArray[Any]
    """u minus the u before, in the work dtype"""
    u_mean_G: NDArray[np.float64]
    """mean u of each batch"""


@compiled
def fetch_ahead(codes: Any, at: int) -> None:
    """Ask for the codes of the next tile: rows lie too far apart for the processor to guess."""
    line = 64 // codes.itemsize
    for j in range(at, min(at + TILE, len(codes)), line):
        prefetch(codes, j)


@compiled
def _is_changed(codes: Any, at: Any, is_key: bool, src: int, words: Any) -> bool:
    """Whether a frame's codes, from ``at`` on, change a bit of the tile in the row ``src``."""
    wide_vectors()
    word = words.dtype.type
    before = np.uint64(src)
    changed = word(0)
    if is_key:
        for i in range(TILE):
            j = np.uint64(i)
            changed = word(changed | word(codes[at + j] ^ words[before + j]))
    else:
        for i in range(TILE):
            changed = word(changed | codes[at + np.uint64(i)])
    return bool(changed != word(0))


@compiled
def _decode(
    codes: Any, at: Any, is_key: bool, src: int, k: int, layout: Layout, words: Any, work: Any
) -> None:
    """Bits of run ``k`` from its codes and the bits before, in the row ``src``; numbers if need be.

    Unsigned offsets and a constant length keep the loops free of checks.
    """
    wide_vectors()
    word = words.dtype.type
    one, zero = word(1), word(0)
    before, now = np.uint64(src), np.uint64(RAW + k * TILE)
    if is_key:
        for i in range(TILE):
            words[now + np.uint64(i)] = codes[at + np.uint64(i)]
    else:
        for i in range(TILE):
            j = np.uint64(i)
            code = codes[at + j]
            delta = word(word(code >> one) ^ word(zero - word(code & one)))
            words[now + j] = word(words[before + j] + delta)
    if not layout.direct:
        new = np.uint64(NEW + k * TILE)
        for i in range(TILE):
            j = np.uint64(i)
            work[new + j] = value_of(words[now + j], layout)


@compiled
def _repeat(k: int, words: Any, work: Any) -> None:
    """Fill the runs after ``k`` with its bits and numbers: no change, and no weight."""
    raw, new = np.uint64(RAW + k * TILE), np.uint64(NEW + k * TILE)
    for later in range(k + 1, RUNS):
        raw_later, new_later = np.uint64(RAW + later * TILE), np.uint64(NEW + later * TILE)
        for i in range(TILE):
            words[raw_later + np.uint64(i)] = words[raw + np.uint64(i)]
        for i in range(TILE):
            work[new_later + np.uint64(i)] = work[new + np.uint64(i)]


@compiled_fused
def _add_runs(direct: bool, runs: Any, words: Any, work: Any) -> None:
    """Add RUNS runs of frames to the sums: each its frames, its sum of u, and the Δu before it.

    The sums are read and written once for all of them, which is what this loop waits for.
    """
    wide_vectors()
    word, real = words.dtype.type, work.dtype.type
    n_0, n_1, n_2, n_3 = real(runs[0]), real(runs[1]), real(runs[2]), real(runs[3])
    u_0, u_1, u_2, u_3 = real(runs[4]), real(runs[5]), real(runs[6]), real(runs[7])
    du_0, du_1, du_2, du_3 = real(runs[8]), real(runs[9]), real(runs[10]), real(runs[11])
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
        work[Q + i] += (e_0 * e_0 + e_1 * e_1) + (e_2 * e_2 + e_3 * e_3)
        work[P + i] += (du_0 * e_0 + du_1 * e_1) + (du_2 * e_2 + du_3 * e_3)
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
def _note_distinct(n: int, words: Any) -> bool:
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
def _begin(
    row: Any, fresh: bool, lo: int, hi: int, layout: Layout, state: State, words: Any, work: Any
) -> None:
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
            words[FIRST + i] = words[SLOT_A + i] = words[SLOT_B + i] = raw
            words[DISTINCT + i] = one
        for i in range(TILE):
            work[MIN + i] = work[MAX + i] = work[OLD + i]
        for i in range(hi - lo):
            y_first[i] = work[OLD + i]
        for sums in (state.s_d, state.s_ud, state.s_dd, state.q, state.p):
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
def _finish(
    src: int, lo: int, hi: int, layout: Layout, state: State, words: Any, work: Any
) -> None:
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
def _fold(frames: int, c: float, lo: int, hi: int, state: State, words: Any, work: Any) -> None:
    """Add the sums of a batch to the state; one array a loop, which LLVM can vectorise."""
    wide_vectors()
    count, n = np.float64(frames), hi - lo
    y_first, changes = state.y_first[lo:hi], state.changes[lo:hi]
    s_d, s_ud, s_dd = state.s_d[lo:hi], state.s_ud[lo:hi], state.s_dd[lo:hi]
    q, p = state.q[lo:hi], state.p[lo:hi]
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
        both_changes = np.uint32(np.uint32(changes[i]) + np.uint32(words[CHANGED + i]))
        changes[i] = np.uint16(min(both_changes, np.uint32(65535)))


@compiled
def _is_suspect(changed: Any, s_dd: Any, q: Any, tiny: Any, huge: Any) -> bool:
    """Whether the squares of an element may have left the range of the work dtype, or are NaN."""
    in_range = (s_dd <= huge) & (q <= huge)
    lost = (changed != 0) & ((s_dd < tiny) | (q < tiny))
    return lost | (not in_range)


@compiled
def _any_suspect(n: int, tiny: Any, huge: Any, words: Any, work: Any) -> bool:
    """Whether any element of the tile is suspect."""
    found = np.uint32(0)
    for i in range(n):
        suspect = _is_suspect(words[CHANGED + i], work[SDD + i], work[Q + i], tiny, huge)
        found = np.uint32(found | np.uint32(suspect))
    return found != 0


@compiled
def _sum_again(
    codes: Any, stride: int, column: int, start: int, stop: int, c: float, lo: int, i: int,
    window: Window, layout: Layout, state: State, words: Any, work: Any,
) -> None:  # fmt: skip
    """Sum one element over a batch in float64 into the state; mark it invalid if it is.

    Zeroes the element's sums in the tile, so that the fold after it adds the shift alone.
    """
    word = words.dtype.type
    one, zero = word(1), word(0)
    raw = words[START + i]
    origin = np.float64(work[ORIGIN + i])
    old = origin
    s_d = s_ud = s_dd = q = p = 0.0
    valid = True
    for t in range(start, stop):
        code = word(codes[t * stride + column + i])
        if window.is_key_T[t]:
            raw = code
        else:
            delta = word(word(code >> one) ^ word(zero - word(code & one)))
            raw = word(raw + delta)
        y = np.float64(value_of(raw, layout))
        valid = valid and np.isfinite(y)
        d, step = y - origin, y - old
        s_d += d
        s_ud += np.float64(window.u_T[t]) * d
        s_dd += d * d
        q += step * step
        p += np.float64(window.du_T[t]) * step
        old = y
    for row in (SD, SUD, SDD, Q, P):
        work[row + i] = 0.0
    if not valid:
        state.invalid[lo + i] = 1
        return
    from_first = origin - np.float64(state.y_first[lo + i])
    state.s_d[lo + i] += s_d
    state.s_ud[lo + i] += s_ud + c * s_d
    state.s_dd[lo + i] += s_dd + 2.0 * from_first * s_d
    state.q[lo + i] += q
    state.p[lo + i] += p


@compiled
def _flush(n: int, runs: Any, words: Any, work: Any, layout: Layout, unsure: bool) -> bool:
    """Add the runs to the sums; whether some element still has fewer than four distinct values."""
    wide_vectors()
    _add_runs(layout.direct, runs, words, work)
    return _note_distinct(n, words) if unsure else False


@compiled
def _sum_batch(
    codes: Any, stride: int, column: int, n: int, start: int, stop: int, src: int, window: Window,
    layout: Layout, runs: Any, words: Any, work: Any, unsure: bool,
) -> tuple[int, bool]:  # fmt: skip
    """Decode the frames of a batch and add them to the tile's sums.

    Returns the row of the last bits, and whether some element has fewer than four distinct values.
    """
    wide_vectors()
    k, busy = np.int64(0), start > stop
    for t in range(start, stop):
        at = np.uint64(t * stride + column)
        fetch_ahead(codes, t * stride + column + TILE)
        # a tile that just changed will mostly change again: then it is looked at now and then
        busy = (busy and t % LOOK != 0) or _is_changed(codes, at, window.is_key_T[t], src, words)
        if not busy:
            if k > 0:  # before the first change d is 0
                runs[k - 1] += 1.0
                runs[RUNS + k - 1] += window.u_T[t]
            continue
        if k == RUNS:
            unsure = _flush(n, runs, words, work, layout, unsure)
            k = np.int64(0)
        _decode(codes, at, window.is_key_T[t], src, k, layout, words, work)
        src = np.int64(RAW + k * TILE)
        runs[k], runs[RUNS + k], runs[2 * RUNS + k] = 1.0, window.u_T[t], window.du_T[t]
        k += 1
    if k > 0:
        _repeat(k - 1, words, work)
        runs[k:RUNS] = runs[RUNS + k : 2 * RUNS] = runs[2 * RUNS + k :] = 0.0
        unsure = _flush(n, runs, words, work, layout, unsure)
    return src, unsure


@compiled
def _pad(codes: Any, stride: int, column: int, n: int, frames: int) -> Any:
    """The codes of a last, shorter tile, in rows of a whole one: loops run over whole tiles."""
    padded = np.zeros(frames * TILE, dtype=codes.dtype)
    for t in range(frames):
        for i in range(n):
            padded[t * TILE + i] = codes[t * stride + column + i]
    return padded


@compiled
def accumulate_tile(
    codes: Any, stride: int, column: int, lo: int, n: int, fresh: bool, window: Window,
    layout: Layout, state: State, runs: Any, words: Any, work: Any,
) -> None:  # fmt: skip
    """All frames of a call, for the elements lo .. lo + n - 1 of the state (n <= TILE).

    Their codes begin at ``codes[t * stride + column]``.
    """
    wide_vectors()
    word, real = words.dtype.type, work.dtype.type
    tiny, huge = real(TINY), real(HUGE)
    if words.itemsize == 8:
        tiny, huge = real(0.0), real(1e300)
    frames, hi = len(window.is_key_T), lo + n
    if n < TILE:
        codes = _pad(codes, stride, column, n, frames)
        stride, column = np.int64(TILE), np.int64(0)
    _begin(codes[column : column + n], fresh, lo, hi, layout, state, words, work)
    unsure, src = n > 0, np.int64(RAW)
    for start in range(0, frames, BATCH):
        stop = min(start + BATCH, frames)
        c = window.u_mean_G[start // BATCH]
        for i in range(TILE):
            words[START + i] = words[src + i]
        words[CHANGED : CHANGED + TILE] = word(0)
        for i in range(TILE):
            work[ORIGIN + i] = work[OLD + i]
        work[SD : P + TILE] = real(0.0)
        src, unsure = _sum_batch(
            codes, stride, column, n, start, stop, src, window, layout, runs, words, work, unsure
        )
        if _any_suspect(n, tiny, huge, words, work):
            for i in range(n):
                suspect = _is_suspect(words[CHANGED + i], work[SDD + i], work[Q + i], tiny, huge)
                if suspect and state.invalid[lo + i] == 0:
                    _sum_again(
                        codes, stride, column, start, stop, c, lo, i,
                        window, layout, state, words, work,
                    )  # fmt: skip
        _fold(stop - start, c, lo, hi, state, words, work)
    _finish(src, lo, hi, layout, state, words, work)


@compiled
def accumulate(
    codes: Any, stride: int, n: int, fresh: bool, window: Window, layout: Layout, state: State,
    runs: Any, words: Any, work: Any,
) -> None:  # fmt: skip
    """All frames of a call, for all N elements."""
    wide_vectors()
    for lo in range(0, n, TILE):
        size = min(TILE, n - lo)
        accumulate_tile(
            codes, stride, lo, lo, size, fresh, window, layout, state, runs, words, work
        )
