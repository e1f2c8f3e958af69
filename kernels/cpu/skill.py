"""The compiled sums of forecasts' errors; :mod:`trajkit.kernels.skill` says what is computed.

A tile at a time: first the errors and moves of its elements into scratch, then a sum over the tile
for each gate, in loops that become vector code. float64 throughout.

Axis letters: N elements, S sums.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu.bits import TILE, flat, wide_vectors
from trajkit.kernels.cpu.compile import compiled_reordered, inlined
from trajkit.kernels.flags import FLAG_INVALID
from trajkit.kernels.skill import LINE_LEVELS, PLAIN, RSQ_LEVELS, SUMS, T_LEVELS, Horizon

_N_RSQ, _N_LINE, _N_T = len(RSQ_LEVELS), len(LINE_LEVELS), len(T_LEVELS)
_FIRST = len(PLAIN)
_ROWS = 13
_E, _P, _L, _R, _T, _Q, _W, _K, _M, _IID, _WALK, _NEAR, _OFF = (r * TILE for r in range(_ROWS))


@compiled_reordered
def _dot(work: Any, a: int, b: int) -> Any:
    """Σ a b over a tile."""
    wide_vectors()
    inlined()
    total = 0.0
    for i in range(TILE):
        total += work[a + i] * work[b + i]
    return total


@compiled_reordered
def _add_above(
    work: Any, a: int, b: int, key: int, level: float, sums: Any, at: int, n: int
) -> None:
    """Add Σ a b to one sum and Σ b b to another, over the elements whose key is above a level."""
    wide_vectors()
    inlined()
    cross, square = 0.0, 0.0
    for i in range(TILE):
        value = work[b + i] if work[key + i] > level else 0.0
        cross += work[a + i] * value
        square += value * value
    sums[at] += cross
    sums[at + n] += square


@compiled_reordered
def _add_line(work: Any, level: float, sums: Any, at: int) -> None:
    """Add Σ l² where R² is above a level, and Σ e² where it is not."""
    wide_vectors()
    inlined()
    line, held = 0.0, 0.0
    for i in range(TILE):
        is_open = work[_R + i] > level
        line += work[_L + i] * work[_L + i] if is_open else 0.0
        held += 0.0 if is_open else work[_E + i] * work[_E + i]
    sums[at] += line
    sums[at + _N_LINE] += held


@compiled_reordered
def _load(part: Any, work: Any, row: int) -> None:
    """Some elements into a row of scratch, as float64."""
    wide_vectors()
    inlined()
    for i in range(len(part)):
        work[row + i] = np.float64(part[i])


@compiled_reordered
def _load_invalid(flags: Any, work: Any, row: int) -> None:
    """1 where an element is invalid, else 0."""
    wide_vectors()
    inlined()
    for i in range(len(flags)):
        work[row + i] = np.float64(flags[i] & np.uint8(FLAG_INVALID))


@compiled_reordered
def _compare(work: Any, m: int) -> Any:
    """Errors of a tile from its values, what is invalid as zeros; how many of m are valid.

    The rows E, Q and M hold y, y_1 and the mean before, IID the last value and WALK what is invalid.
    """
    wide_vectors()
    inlined()
    valid = 0.0
    for i in range(TILE):
        y, y_o = work[_E + i], work[_IID + i]
        r, s = work[_R + i], abs(work[_T + i])
        ok = (work[_WALK + i] == 0.0) & (abs(y) < np.inf) & (abs(y_o) < np.inf)
        work[_R + i] = r if ok & (r == r) else -1.0
        work[_T + i] = s if ok & (s == s) else 0.0
        work[_E + i] = y - y_o if ok else 0.0
        work[_P + i] = work[_P + i] if ok else 0.0
        work[_Q + i] = y_o - work[_Q + i] if ok else 0.0
        work[_M + i] = y - work[_M + i] if ok else 0.0
        valid += 1.0 if ok else 0.0
    return valid - (TILE - m)


@compiled_reordered
def _forecast(work: Any, horizon: Horizon, spread: float, reach: float) -> None:
    """Errors, moves and variances of a tile: slope and y_o - y_1 in the rows P and Q before."""
    wide_vectors()
    inlined()
    ahead, lift = horizon.h / horizon.span, 1.0 / (1.0 - horizon.null)
    for i in range(TILE):
        slope, d, r, s = work[_P + i], work[_Q + i], work[_R + i], work[_T + i]
        p, q = slope * horizon.h, d * ahead
        per_t = 1.0 / max(s * s, 1e-300)
        work[_P + i], work[_Q + i] = p, q
        work[_L + i] = work[_M + i] - slope * horizon.dx
        work[_W + i] = q * (1.0 - min(per_t, 1.0))
        work[_K + i] = p * max(r - horizon.null, 0.0) * lift
        work[_IID + i] = slope * slope * max(1.0 / max(r, 1e-300) - 1.0, 0.0) * spread
        work[_WALK + i] = d * d * per_t * reach


@compiled_reordered
def _count_covered(work: Any, z: float, sums: Any) -> None:
    """How many elements of a tile have intervals, and lie in them."""
    wide_vectors()
    inlined()
    counted, iid, walk = 0.0, 0.0, 0.0
    for i in range(TILE):
        has = (work[_R + i] > 0.0) & (work[_T + i] > 0.0) & (work[_T + i] < np.inf)
        off_line = max(abs(work[_L + i]) - work[_OFF + i], 0.0)
        off_walk = max(abs(work[_E + i] - work[_Q + i]) - work[_OFF + i], 0.0)
        in_iid = off_line * off_line <= z * z * work[_IID + i]
        in_walk = off_walk * off_walk <= z * z * work[_WALK + i]
        counted += 1.0 if has else 0.0
        iid += 1.0 if has & in_iid else 0.0
        walk += 1.0 if has & in_walk else 0.0
    sums[9] += counted
    sums[10] += iid
    sums[11] += walk


@compiled_reordered
def _tally(
    n: int,
    real: Any,
    last: Any,
    first: Any,
    slope: Any,
    mean: Any,
    rsq: Any,
    t: Any,
    margin: Any,
    flags: Any,
    horizon: Horizon,
    rsq_levels: Any,
    line_levels: Any,
    t_levels: Any,
    work: Any,
    sums: Any,
) -> None:
    """Add the sums of N elements."""
    ahead = horizon.h / horizon.span
    spread = (
        1.0 + 1.0 / horizon.checkpoints + horizon.dx * horizon.dx / horizon.s_xx
    ) * horizon.s_xx
    spread = spread / max(horizon.checkpoints - 2.0, 1.0)
    reach = horizon.h * (1.0 + ahead) / horizon.span
    for lo in range(0, n, TILE):
        m = min(TILE, n - lo)
        if m < TILE:
            work[:] = 0.0
        tile = slice(lo, lo + m)
        _load(real[tile], work, _E)
        _load(last[tile], work, _IID)
        _load(first[tile], work, _Q)
        _load(slope[tile], work, _P)
        _load(mean[tile], work, _M)
        _load(rsq[tile], work, _R)
        _load(t[tile], work, _T)
        _load(margin[tile], work, _OFF)
        _load_invalid(flags[tile], work, _WALK)
        sums[0] += _compare(work, m)
        _forecast(work, horizon, spread, reach)
        sums[1] += _dot(work, _E, _E)
        sums[2] += _dot(work, _E, _Q)
        sums[3] += _dot(work, _Q, _Q)
        sums[4] += _dot(work, _E, _W)
        sums[5] += _dot(work, _W, _W)
        sums[6] += _dot(work, _E, _K)
        sums[7] += _dot(work, _K, _K)
        sums[8] += _dot(work, _M, _M)
        _count_covered(work, horizon.z, sums)
        at = _FIRST
        for g in range(_N_RSQ):
            _add_above(work, _E, _P, _R, rsq_levels[g], sums, at + g, _N_RSQ)
        at += 2 * _N_RSQ
        for g in range(_N_LINE):
            _add_line(work, line_levels[g], sums, at + g)
        at += 2 * _N_LINE
        for g in range(_N_T):
            _add_above(work, _E, _P, _T, t_levels[g], sums, at + g, _N_T)


def tally_errors(
    values: dict[str, NDArray[Any]], flags_N: NDArray[np.uint8], horizon: Horizon
) -> NDArray[np.float64]:
    """The sums of N elements, float64 [S]; arguments as the specification has them."""
    sums = np.zeros(len(SUMS))
    names = ("real", "last", "first", "slope", "mean", "rsq", "t", "margin")
    _tally(
        len(flags_N),
        *(flat(values[name]) for name in names),
        flat(flags_N),
        Horizon(*map(float, horizon)),
        np.array(RSQ_LEVELS, np.float32).astype(np.float64),
        np.array(LINE_LEVELS, np.float32).astype(np.float64),
        np.array(T_LEVELS, np.float32).astype(np.float64),
        np.empty(_ROWS * TILE),
        sums,
    )
    return sums
