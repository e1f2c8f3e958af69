"""The compiled solution of the sums; reference.py says what.

Axis letters: N elements. Final arithmetic in float64, in tiles of TILE elements.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu.bits import TILE, Layout, as_float, as_word, value_of, wide_vectors
from trajkit.kernels.cpu.compile import compiled
from trajkit.kernels.cpu.frames import accumulate_tile
from trajkit.kernels.cpu.tile import State
from trajkit.kernels.flags import (
    FLAG_BELOW_HALF_ULP,
    FLAG_FEW_DISTINCT,
    FLAG_INVALID,
    FLAG_SMALL_RANGE,
    FLAG_STATIC,
)
from trajkit.kernels.state import RESIDUAL_FLOOR

# Rows of the scratch tile of float64, in units of TILE. Outputs take the place of inputs.
SD, SUD, SDD, Q, P, V, YFIRST, YLAST, RANGE, MOVING, VALID, FEW, FLAGS = (
    row * TILE for row in range(13)
)
ROWS = 13
SLOPE, MEAN, RSQ, DW, DRIFT_T = SD, SUD, SDD, Q, P


class Design(NamedTuple):
    """The step axis of a window, and the filters, worked out once on the host."""

    count: int
    u_mean: float
    s_uu: float
    """centred"""
    s_du2: float
    u_span: float
    x_unit: float
    min_range: float
    few: int


class Answer(NamedTuple):
    """The arrays of :class:`~trajkit.kernels.state.Solution`."""

    slope: NDArray[np.float32]
    mean: NDArray[np.float32]
    rsq: NDArray[np.float32]
    flags: NDArray[np.uint8]
    dw: NDArray[np.float32]
    drift_t: NDArray[np.float32]


@compiled
def _gather(lo: int, n: int, design: Design, layout: Layout, state: State, tile: Any) -> None:
    """Bring the state of a tile into float64 rows; rows end on zeros beyond n."""
    wide_vectors()
    s_d, s_ud, s_dd = state.s_d[lo : lo + n], state.s_ud[lo : lo + n], state.s_dd[lo : lo + n]
    q, p, v = state.q[lo : lo + n], state.p[lo : lo + n], state.v[lo : lo + n]
    y_first = state.y_first[lo : lo + n]
    y_min, y_max = state.y_min[lo : lo + n], state.y_max[lo : lo + n]
    invalid, changes = state.invalid[lo : lo + n], state.changes[lo : lo + n]
    distinct = state.distinct[lo : lo + n]
    for i in range(n):
        tile[SD + i] = s_d[i]
    for i in range(n):
        tile[SUD + i] = s_ud[i]
    for i in range(n):
        tile[SDD + i] = s_dd[i]
    for i in range(n):
        tile[Q + i] = q[i]
    for i in range(n):
        tile[P + i] = p[i]
    for i in range(n):
        tile[V + i] = v[i]
    for i in range(n):
        tile[YFIRST + i] = np.float64(y_first[i])
    for i in range(n):
        tile[RANGE + i] = np.float64(y_max[i]) - np.float64(y_min[i])
    for i in range(n):
        tile[VALID + i] = np.float64(invalid[i] == 0)
    for i in range(n):
        tile[MOVING + i] = np.float64(changes[i] != 0) * np.float64(design.count > 1)
    for i in range(n):
        tile[FEW + i] = np.float64(distinct[i] < design.few)


@compiled
def _gather_last(lo: int, n: int, layout: Layout, state: State, words: Any, tile: Any) -> None:
    """YLAST: the values of bits_last."""
    wide_vectors()
    last = state.bits_last[lo : lo + n]
    for i in range(n):
        words[i] = last[i]
    for i in range(TILE):
        tile[YLAST + i] = np.float64(value_of(words[i], layout))


@compiled
def solve_tile(design: Design, layout: Layout, tile: Any) -> None:
    """From sums to the solution, in place, without a branch."""
    wide_vectors()
    nan, inf = np.nan, np.inf
    t_count = np.float64(design.count)
    per_checkpoint, per_s_uu = 1.0 / t_count, 1.0 / design.s_uu
    per_u_span, per_x_unit = 1.0 / design.u_span, 1.0 / design.x_unit
    curved = design.count > 2
    t_scale = design.u_span / max(t_count - 2.0, 1.0)
    lowest = max(layout.e_min, -1022 + layout.mantissa) + 1023
    for i in range(TILE):
        s_d, q, p, v = tile[SD + i], tile[Q + i], tile[P + i], tile[V + i]
        y_first = tile[YFIRST + i]
        valid = tile[VALID + i] != 0.0
        moving = valid & (tile[MOVING + i] != 0.0)
        s_cd = tile[SUD + i] - design.u_mean * s_d
        sst = tile[SDD + i] - s_d * s_d * per_checkpoint
        slope = s_cd * per_s_uu if moving else 0.0
        mean = y_first + s_d * per_checkpoint if moving else y_first
        explained = slope * s_cd
        rsq = explained / sst
        rsq = 0.0 if rsq < 0.0 else rsq
        rsq = 1.0 if rsq > 1.0 else rsq
        rsq = rsq if curved else 1.0
        sse = sst - explained
        dw = (q - 2.0 * slope * p + slope * slope * design.s_du2) / sse
        dw = dw if curved & moving & (sse > RESIDUAL_FLOOR * sst) else nan
        total = tile[YLAST + i] - y_first
        spread = v - total * per_u_span * total
        drift_t = total / np.sqrt(spread * t_scale)
        certain = inf if total > 0.0 else (-inf if total < 0.0 else nan)
        drift_t = drift_t if spread > RESIDUAL_FLOOR * v else certain
        drift_t = drift_t if curved & moving else nan
        field = np.int64(np.uint64(as_word(mean)) >> np.uint64(52)) & np.int64(0x7FF)
        field = max(field, lowest) - layout.mantissa
        half_ulp = 0.5 * as_float(np.uint64(np.uint64(field) << np.uint64(52)))
        move = abs(slope) * design.u_span
        few, value_range = tile[FEW + i], tile[RANGE + i]
        flags = few * FLAG_FEW_DISTINCT
        small = (value_range <= design.min_range) & (design.min_range > 0.0)
        flags += FLAG_SMALL_RANGE if small else 0.0
        flags += FLAG_BELOW_HALF_ULP if move < half_ulp else 0.0
        flags += 0.0 if moving | (design.count < 2) else FLAG_STATIC
        tile[FLAGS + i] = flags if valid else FLAG_INVALID
        tile[SLOPE + i] = slope * per_x_unit if valid else nan
        tile[MEAN + i] = mean if valid else nan
        tile[RSQ + i] = rsq if moving else nan
        tile[DW + i] = dw
        tile[DRIFT_T + i] = drift_t


@compiled
def scatter(lo: int, n: int, tile: Any, answer: Answer) -> None:
    """Round the solution of a tile into the output arrays."""
    wide_vectors()
    slope, mean, rsq = (
        answer.slope[lo : lo + n],
        answer.mean[lo : lo + n],
        answer.rsq[lo : lo + n],
    )
    dw, drift_t = answer.dw[lo : lo + n], answer.drift_t[lo : lo + n]
    flags = answer.flags[lo : lo + n]
    for i in range(n):
        slope[i] = np.float32(tile[SLOPE + i])
    for i in range(n):
        mean[i] = np.float32(tile[MEAN + i])
    for i in range(n):
        rsq[i] = np.float32(tile[RSQ + i])
    for i in range(n):
        dw[i] = np.float32(tile[DW + i])
    for i in range(n):
        drift_t[i] = np.float32(tile[DRIFT_T + i])
    for i in range(n):
        flags[i] = np.uint8(np.int32(tile[FLAGS + i]))


@compiled
def solve(
    n: int, design: Design, layout: Layout, state: State, words: Any, tile: Any, answer: Answer
) -> None:
    """The solution of N sums."""
    wide_vectors()
    for lo in range(0, n, TILE):
        size = min(TILE, n - lo)
        _gather(lo, size, design, layout, state, tile)
        _gather_last(lo, size, layout, state, words, tile)
        solve_tile(design, layout, tile)
        scatter(lo, size, tile, answer)


@compiled
def solve_block(
    lo: int, n: int, design: Design, layout: Layout, state: State, words: Any, tile: Any,
    answer: Answer, bits_last: Any,
) -> None:  # fmt: skip
    """The solution of the state's first N sums, which are of the elements from ``lo`` on."""
    wide_vectors()
    for i in range(n):
        bits_last[lo + i] = state.bits_last[i]
    for top in range(0, n, TILE):
        size = min(TILE, n - top)
        _gather(top, size, design, layout, state, tile)
        _gather_last(top, size, layout, state, words, tile)
        solve_tile(design, layout, tile)
        scatter(lo + top, size, tile, answer)


@compiled
def fit(
    codes: Any, stride: int, n: int, window: Any, design: Design, layout: Layout, state: State,
    runs: Any, words: Any, work: Any, pad: Any, tile: Any, answer: Answer, bits_last: Any,
) -> None:  # fmt: skip
    """Accumulate and solve tile by tile; ``state`` is scratch for one tile."""
    wide_vectors()
    top = np.int64(0)
    for lo in range(0, n, TILE):
        size = min(TILE, n - lo)
        fresh = size > 0
        accumulate_tile(
            codes, stride, lo, top, size, fresh, window, layout, state, runs, words, work, pad
        )
        solve_block(lo, size, design, layout, state, words, tile, answer, bits_last)
