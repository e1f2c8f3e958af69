"""The compiled pass over frames: decode, and add to the sums, tile by tile.

A tile stays in the first-level cache for all frames of a call. Within a batch of at most BATCH
frames its sums are of the work dtype (float32; float64 for float64), about the batch's first value
(d') and the batch's mean step (u'); then they are folded into the float64 state about y_first.
With D the batch's first value minus y_first, c its mean u and n its frames:

    S_d += S_d' + n D
    S_dd += S_dd' + D (2 S_d' + n D)
    S_ud += S_ud' + c S_d' + D sum(u)
    Q += Q'    P += P'    V += V' / h

V' = sum (h / Δu) (Δd)², h the batch's least Δu, is no larger than Q'. So rounding grows neither
with T, nor with the distance of the window from step 0, nor with an outlying first checkpoint.
Elements whose squares left float32's range are summed again, one by one, in float64. A frame in
which no bit of the tile changes costs one look at its codes.

Axis letters: T checkpoints, N elements, G batches.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu.bits import TILE, Layout, prefetch_tile, value_of, wide_vectors
from trajkit.kernels.cpu.compile import compiled, inlined
from trajkit.kernels.cpu.tile import (
    CHANGED,
    NEW,
    OLD,
    ORIGIN,
    RAW,
    RUNS,
    SD,
    SDD,
    START,
    SUD,
    P,
    Q,
    State,
    V,
    add_runs,
    begin,
    finish,
    fold,
    note_distinct,
    note_rounded,
    repeat,
)

BATCH = 64
"""frames summed in the work dtype before they are folded"""
TINY, HUGE = 2.0**-110, 2.0**110
"""sums of squares beyond these may have lost terms to underflow, or overflowed, in float32"""
LOOK = 8
"""frames between two looks at whether a busy tile has come to rest"""


class Window(NamedTuple):
    """The step axis of one call, worked out once on the host."""

    is_key_T: NDArray[np.bool_]
    u_T: NDArray[Any]
    """u about the mean of its batch, in the work dtype"""
    du_T: NDArray[Any]
    """u minus the u before, in the work dtype"""
    weight_T: NDArray[Any]
    """the least Δu of the batch over this one, in the work dtype; 0 for the first frame of all"""
    u_mean_G: NDArray[np.float64]
    """mean u of each batch"""
    per_du_G: NDArray[np.float64]
    """1 over the least Δu of each batch; 0 where it has none"""
    rounded: bool
    """whether distinct values are counted after rounding to bfloat16"""


@compiled
def _is_changed(codes: Any, at: Any, is_key: bool, src: int, words: Any) -> bool:
    """Whether a frame's codes, from ``at`` on, change a bit of the tile in the row ``src``."""
    inlined()
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
    inlined()
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
    codes: Any, stride: int, column: int, start: int, stop: int, c: float, per_du: float, lo: int,
    i: int, window: Window, layout: Layout, state: State, words: Any, work: Any,
) -> None:  # fmt: skip
    """Sum one element over a batch in float64 into the state; mark it invalid if it is.

    Zeroes the element's sums in the tile, so that the fold after it adds the shift alone.
    """
    word = words.dtype.type
    one, zero = word(1), word(0)
    raw = words[START + i]
    origin = np.float64(work[ORIGIN + i])
    old = origin
    s_d = s_ud = s_dd = q = p = v = 0.0
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
        v += np.float64(window.weight_T[t]) * (step * step)
        old = y
    for row in (SD, SUD, SDD, Q, P, V):
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
    state.v[lo + i] += v * per_du


@compiled
def _flush(
    n: int, runs: Any, words: Any, work: Any, layout: Layout, unsure: bool, rounded: bool
) -> bool:
    """Add the runs to the sums; whether some element still has fewer than four distinct values."""
    inlined()
    wide_vectors()
    add_runs(layout.direct, runs, words, work)
    if not unsure:
        return False
    return note_rounded(n, layout, words) if rounded else note_distinct(n, words)


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
        # rows lie too far apart for the processor to guess what comes next
        prefetch_tile(codes, t * stride + column + TILE)
        # a tile that just changed will mostly change again: then it is looked at now and then
        busy = (busy and t % LOOK != 0) or _is_changed(codes, at, window.is_key_T[t], src, words)
        if not busy:
            if k > 0:  # before the first change d is 0
                runs[k - 1] += 1.0
                runs[RUNS + k - 1] += window.u_T[t]
            continue
        if k == RUNS:
            unsure = _flush(n, runs, words, work, layout, unsure, window.rounded)
            k = np.int64(0)
        _decode(codes, at, window.is_key_T[t], src, k, layout, words, work)
        src = np.int64(RAW + k * TILE)
        runs[k], runs[RUNS + k] = 1.0, window.u_T[t]
        runs[2 * RUNS + k], runs[3 * RUNS + k] = window.du_T[t], window.weight_T[t]
        k += 1
    if k > 0:
        repeat(k - 1, words, work)
        runs[k:RUNS] = runs[RUNS + k : 2 * RUNS] = 0.0
        runs[2 * RUNS + k : 3 * RUNS] = runs[3 * RUNS + k :] = 0.0
        unsure = _flush(n, runs, words, work, layout, unsure, window.rounded)
    return src, unsure


@compiled
def accumulate_tile(
    codes: Any, stride: int, column: int, lo: int, n: int, fresh: bool, window: Window,
    layout: Layout, state: State, runs: Any, words: Any, work: Any, pad: Any,
) -> None:  # fmt: skip
    """All frames of a call, for the elements lo .. lo + n - 1 of the state (n <= TILE).

    Their codes begin at ``codes[t * stride + column]``. Loops run over whole tiles: the codes of a
    shorter one are brought to ``pad`` first, scratch of a tile a frame.
    """
    wide_vectors()
    word, real = words.dtype.type, work.dtype.type
    tiny, huge = real(TINY), real(HUGE)
    if words.itemsize == 8:
        tiny, huge = real(0.0), real(1e300)
    frames, hi = len(window.is_key_T), lo + n
    if n < TILE:
        for t in range(frames):
            for i in range(n):
                pad[t * TILE + i] = codes[t * stride + column + i]
        codes, stride, column = pad, np.int64(TILE), np.int64(0)
    begin(codes[column : column + n], fresh, window.rounded, lo, hi, layout, state, words, work)
    unsure, src = n > 0, np.int64(RAW)
    for start in range(0, frames, BATCH):
        stop = min(start + BATCH, frames)
        c, per_du = window.u_mean_G[start // BATCH], window.per_du_G[start // BATCH]
        for i in range(TILE):
            words[START + i] = words[src + i]
        words[CHANGED : CHANGED + TILE] = word(0)
        for i in range(TILE):
            work[ORIGIN + i] = work[OLD + i]
        work[SD : V + TILE] = real(0.0)
        src, unsure = _sum_batch(
            codes, stride, column, n, start, stop, src, window, layout, runs, words, work, unsure
        )
        if _any_suspect(n, tiny, huge, words, work):
            for i in range(n):
                suspect = _is_suspect(words[CHANGED + i], work[SDD + i], work[Q + i], tiny, huge)
                if suspect and state.invalid[lo + i] == 0:
                    _sum_again(
                        codes, stride, column, start, stop, c, per_du, lo, i,
                        window, layout, state, words, work,
                    )  # fmt: skip
        fold(stop - start, c, per_du, lo, hi, state, words, work)
    finish(src, lo, hi, layout, state, words, work)


@compiled
def accumulate(
    codes: Any, stride: int, n: int, fresh: bool, window: Window, layout: Layout, state: State,
    runs: Any, words: Any, work: Any, pad: Any,
) -> None:  # fmt: skip
    """All frames of a call, for all N elements."""
    wide_vectors()
    for lo in range(0, n, TILE):
        size = min(TILE, n - lo)
        accumulate_tile(
            codes, stride, lo, lo, size, fresh, window, layout, state, runs, words, work, pad
        )
