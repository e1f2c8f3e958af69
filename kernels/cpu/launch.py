"""The CPU backend: launchers of the compiled kernels in the other files called cpu_*.

A launcher works out what depends on the steps alone, allocates a few tens of kB of scratch, and
calls one compiled function that holds no lock: call it from several threads on different arrays
to use several cores. Functions are compiled on first use for each width of element (seconds) and
kept on disk by numba, beside this file or in NUMBA_CACHE_DIR.

Axis letters: T checkpoints, N elements. What is computed is specified in reference.py.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu import coding as cpu_round
from trajkit.kernels.cpu import extrapolate as cpu_extrapolate
from trajkit.kernels.cpu import frames as cpu_frames
from trajkit.kernels.cpu import solve as cpu_solve
from trajkit.kernels.cpu import stats as cpu_stats
from trajkit.kernels.cpu import tile as cpu_tile
from trajkit.kernels.cpu.bits import TILE, flat, layout_of, scratch_tile
from trajkit.kernels.formats import Bits, Format, format_of
from trajkit.kernels.gate import Gate
from trajkit.kernels.noise import mix_seed
from trajkit.kernels.rounding import Rounding
from trajkit.kernels.state import DRIFT_T_BINS, DW_BINS, ULPS_BINS, Solution, Stats, Sums, new_sums
from trajkit.kernels.steps import span_units, take_steps, weigh_steps

__all__ = [
    "accumulate_frames",
    "decode_frame",
    "encode_frame",
    "extrapolate_line",
    "extrapolate_pair",
    "fit_frames",
    "solve",
    "summarise",
]


def accumulate_frames(
    codes_TN: Bits, is_key_T: NDArray[np.bool_], steps_T: NDArray[Any], sums: Sums
) -> None:
    """Decode a batch of frames and add it to ``sums``, in place."""
    form = format_of(sums.dtype)
    fresh = sums.count == 0
    window = _window(sums, is_key_T, steps_T)
    if len(is_key_T) == 0:
        return
    words = scratch_tile(cpu_tile.WORD_ROWS, form.bits)
    work = scratch_tile(cpu_tile.FLOAT_ROWS, form.work)
    cpu_frames.accumulate(
        flat(codes_TN),
        _stride(codes_TN),
        sums.size,
        fresh,
        window,
        layout_of(form),
        _state(sums),
        np.zeros(4 * cpu_tile.RUNS),
        words,
        work,
        _pad(codes_TN, sums.size),
    )


def solve(sums: Sums, *, min_range: float = 0.0, few: int = 4) -> Solution:
    """The solution of ``sums``."""
    form = format_of(sums.dtype)
    answer = _new_answer(sums.size)
    cpu_solve.solve(
        sums.size,
        _design(sums, min_range, few),
        layout_of(form),
        _state(sums),
        np.zeros(TILE, dtype=form.bits),
        scratch_tile(cpu_solve.ROWS, np.dtype(np.float64)),
        answer,
    )
    return Solution(*answer, bits_last=sums.bits_last.copy())


def fit_frames(
    codes_TN: Bits,
    is_key_T: NDArray[np.bool_],
    steps_T: NDArray[Any],
    dtype: str,
    *,
    min_range: float = 0.0,
    few: int = 4,
    distinct_in: str | None = None,
) -> Solution:
    """Accumulate and solve, tile by tile; the sums exist for one tile at a time."""
    form = format_of(dtype)
    n = codes_TN.shape[1]
    scratch = new_sums(TILE, dtype, *span_units(steps_T), distinct_in)
    window = _window(scratch, is_key_T, steps_T)
    answer, bits_last = _new_answer(n), np.empty(n, dtype=form.bits)
    cpu_solve.fit(
        flat(codes_TN),
        _stride(codes_TN),
        n,
        window,
        _design(scratch, min_range, few),
        layout_of(form),
        _state(scratch),
        np.zeros(4 * cpu_tile.RUNS),
        scratch_tile(cpu_tile.WORD_ROWS, form.bits),
        scratch_tile(cpu_tile.FLOAT_ROWS, form.work),
        _pad(codes_TN, n),
        scratch_tile(cpu_solve.ROWS, np.dtype(np.float64)),
        answer,
        bits_last,
    )
    return Solution(*answer, bits_last=bits_last)


def summarise(solution: Solution, threshold: float, steps_window: float, dtype: str) -> Stats:
    """Counts, moments and histograms of a solution."""
    counts, moments = np.zeros(10, dtype=np.int64), np.zeros(6)
    hist_rsq = np.zeros(2 * cpu_stats.KEPT, dtype=np.int64)
    hist_dw = np.zeros(DW_BINS + 1, dtype=np.int64)
    hist_drift_t = np.zeros(DRIFT_T_BINS + 1, dtype=np.int64)
    hist_ulps = np.zeros(ULPS_BINS + 1, dtype=np.int64)
    fields = (
        solution.slope,
        solution.mean,
        solution.rsq,
        solution.flags,
        solution.dw,
        solution.drift_t,
    )
    cpu_stats.summarise(
        cpu_solve.Answer(*map(flat, fields)),
        np.float32(threshold),
        layout_of(format_of(dtype)),
        counts,
        moments,
        hist_rsq,
        hist_dw,
        hist_drift_t,
        hist_ulps,
        scratch_tile(cpu_stats.ROWS, np.dtype(np.int32)),
    )
    hist_rest, hist_kept = (part[:-1] for part in hist_rsq.reshape(2, cpu_stats.KEPT))
    others = (hist[:-1] for hist in (hist_dw, hist_drift_t, hist_ulps))
    hists = [hist_rest + hist_kept, hist_kept, *others]
    numbers: list[Any] = [*counts.tolist(), *moments.tolist(), *hists]
    return Stats(threshold, steps_window, *numbers)


def encode_frame(bits_N: Bits, prev_N: Bits, out_N: Bits) -> None:
    """Write zigzag(bits - prev)."""
    scratch = np.empty(TILE, dtype=out_N.dtype)
    top = 8 * out_N.itemsize - 1
    cpu_round.encode(flat(bits_N), flat(prev_N), _writable(out_N), scratch, top)


def decode_frame(codes_N: Bits, prev_N: Bits, out_N: Bits) -> None:
    """Write prev + unzigzag(code)."""
    scratch = np.empty(TILE, dtype=out_N.dtype)
    cpu_round.decode(flat(codes_N), flat(prev_N), _writable(out_N), scratch)


def extrapolate_line(
    base: Literal["mean", "last"],
    last_bits: Bits,
    slope: NDArray[np.float32],
    mean: NDArray[np.float32],
    dtype: str,
    *,
    dx: float,
    gate: Gate,
    rounding: Rounding,
    out_bits: Bits,
) -> tuple[int, int, int]:
    """Write base + slope · dx; returns moved, held, unchanged."""
    form = format_of(dtype)
    counts = np.zeros(3, dtype=np.int64)
    score, flags = _gate_arrays(gate)
    cpu_extrapolate.line(
        base == "mean",
        flat(last_bits),
        flat(slope),
        flat(mean),
        score,
        flags,
        form.work.type(dx),
        *(*_rules(gate, rounding), layout_of(form), *_scratch(form), _writable(out_bits), counts),
    )
    return _three(counts)


def extrapolate_pair(
    bits_a: Bits,
    bits_b: Bits,
    beta: float,
    bits_hold: Bits,
    dtype: str,
    *,
    gate: Gate,
    rounding: Rounding,
    out_bits: Bits,
) -> tuple[int, int, int]:
    """Write a + beta · (b - a); returns moved, held, unchanged."""
    form = format_of(dtype)
    counts = np.zeros(3, dtype=np.int64)
    score, flags = _gate_arrays(gate)
    cpu_extrapolate.pair(
        flat(bits_a),
        flat(bits_b),
        form.work.type(beta),
        flat(bits_hold),
        score,
        flags,
        *(*_rules(gate, rounding), layout_of(form), *_scratch(form), _writable(out_bits), counts),
    )
    return _three(counts)


def _gate_arrays(gate: Gate) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Score and flags as the compiled kernels take them: empty where there are none."""
    score = np.empty(0, dtype=np.float32) if gate.score is None else flat(gate.score)
    return score, np.empty(0, dtype=np.uint8) if gate.flags is None else flat(gate.flags)


def _rules(gate: Gate, rounding: Rounding) -> tuple[Any, ...]:
    """Does the score count, which flags hold, the threshold; is there noise, and from where."""
    return (
        gate.by_score,
        np.uint8(gate.held_flags if gate.by_flags else 0),
        np.float32(0 if gate.threshold is None else gate.threshold),
        rounding.is_stochastic,
        mix_seed(rounding.seed),
        np.uint64(rounding.first_index % 2**64),
    )


def _window(sums: Sums, is_key_T: NDArray[np.bool_], steps_T: NDArray[Any]) -> cpu_frames.Window:
    """Enter the steps into the host scalars; the step axis for the compiled pass."""
    work = format_of(sums.dtype).work
    u_T, du_T = take_steps(sums, steps_T)
    starts = range(0, len(u_T), cpu_frames.BATCH)
    u_mean_G = np.array([u_T[s : s + cpu_frames.BATCH].mean() for s in starts], dtype=np.float64)
    u_T = u_T - np.repeat(u_mean_G, cpu_frames.BATCH)[: len(u_T)]
    weight_T, per_du_G = weigh_steps(du_T, cpu_frames.BATCH)
    return cpu_frames.Window(
        np.array(is_key_T, dtype=np.bool_),
        u_T.astype(work),
        du_T.astype(work),
        weight_T.astype(work),
        u_mean_G,
        per_du_G,
        sums.distinct_in != sums.dtype,
    )


def _design(sums: Sums, min_range: float, few: int) -> cpu_solve.Design:
    """What the solution needs of the step axis."""
    u_mean = sums.s_u / sums.count
    return cpu_solve.Design(
        sums.count,
        u_mean,
        sums.s_uu - sums.s_u * u_mean,
        sums.s_du2,
        (sums.x_last - sums.x_first) / sums.x_unit,
        sums.x_unit,
        float(min_range),
        few,
    )


def _state(sums: Sums) -> cpu_tile.State:
    """The arrays of ``sums`` for compiled code."""
    return cpu_tile.State(
        sums.s_d,
        sums.s_ud,
        sums.s_dd,
        sums.q,
        sums.p,
        sums.v,
        sums.y_first,
        sums.y_min,
        sums.y_max,
        sums.bits_last,
        sums.changes,
        sums.distinct,
        sums.slots[0],
        sums.slots[1],
        sums.slots[2],
        sums.invalid,
    )


def _new_answer(n: int) -> cpu_solve.Answer:
    """Uninitialised output arrays; the kernels write every element."""
    real, mask = np.float32, np.uint8
    return cpu_solve.Answer(
        np.empty(n, real),
        np.empty(n, real),
        np.empty(n, real),
        np.empty(n, mask),
        np.empty(n, real),
        np.empty(n, real),
    )


def _pad(codes_TN: Bits, n: int) -> Bits:
    """Scratch for the frames of a last tile that is not whole, zeros."""
    return np.zeros(len(codes_TN) * TILE if n % TILE else 0, dtype=codes_TN.dtype)


def _stride(codes_TN: Bits) -> int:
    """Elements from one frame to the next, in the array that :func:`flat` makes."""
    if codes_TN.shape[0] < 2 or codes_TN.size == 0:
        return int(codes_TN.shape[1])
    return int(codes_TN.strides[0] // codes_TN.itemsize)


def _scratch(form: Format) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """What :func:`cpu_extrapolate.line` and ``pair`` take as ``values``, ``words`` and ``wide``."""
    wide = np.dtype(np.uint64 if form.width == 64 else np.uint32)
    return (
        scratch_tile(2, form.work),
        scratch_tile(2, form.bits),
        scratch_tile(cpu_extrapolate.WIDE_ROWS, wide),
    )


def _writable(out_N: Bits) -> Bits:
    """The output as compiled code takes it; raises ValueError for a read-only array."""
    if not out_N.flags.writeable:
        raise ValueError("the output array is read-only")
    return flat(out_N)


def _three(counts: NDArray[np.int64]) -> tuple[int, int, int]:
    """Moved, held, unchanged as plain integers."""
    moved, held, unchanged = counts.tolist()
    return moved, held, unchanged
