"""The specification of every kernel, in numpy and float64, written to be read.

Axis letters: T checkpoints, N elements. What is rounded where: values are exact in float64 (every
format is narrower, or float64 itself); sums and the solution are float64 and rounded once when
stored, to float32; extrapolation is float32 operation by operation (float64 for float64), as any
tool that loads the checkpoint would compute it, and rounded once into the format.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels import flags as flag
from trajkit.kernels.formats import Bits, bits_of, format_of, round_to_bfloat16, ulp_of, values_of
from trajkit.kernels.gate import Gate
from trajkit.kernels.noise import uniform_noise
from trajkit.kernels.rounding import Rounding
from trajkit.kernels.state import (
    DRIFT_T_BINS,
    DW_BINS,
    MAX_CHANGES,
    RESIDUAL_FLOOR,
    RSQ_BINS,
    SLOTS,
    ULPS_BINS,
    ULPS_STEPS,
    Solution,
    Stats,
    Sums,
    new_stats,
    new_sums,
)
from trajkit.kernels.steps import span_units, take_steps

Floats = NDArray[np.floating[Any]]


def encode_frame(bits_N: Bits, prev_N: Bits, out_N: Bits) -> None:
    """Write zigzag(bits - prev), wrapping in the width w: (d << 1) ^ (0 - (d >> (w - 1)))."""
    word = bits_N.dtype.type
    delta_N = bits_N - prev_N
    sign_N = word(0) - (delta_N >> word(8 * bits_N.itemsize - 1))
    out_N[...] = (delta_N << word(1)) ^ sign_N


def decode_frame(codes_N: Bits, prev_N: Bits, out_N: Bits) -> None:
    """Write prev + unzigzag(code), wrapping in the width: (c >> 1) ^ (0 - (c & 1))."""
    word = codes_N.dtype.type
    out_N[...] = prev_N + ((codes_N >> word(1)) ^ (word(0) - (codes_N & word(1))))


def unshuffle(planes_N: Bits, block: int, out_N: Bits) -> None:
    """Write the codes of bit planes, block by block of B elements.

    Plane p holds bit p of every element of a block, in B / 8 bytes: bit p of element i is bit
    i % 8 of byte p B / 8 + i // 8 (c-blosc 1, bitshuffle; codes are little-endian).
    """
    width = 8 * planes_N.itemsize
    octets = planes_N.view(np.uint8).reshape(-1, width, block // 8)
    bits = np.unpackbits(octets, axis=2, bitorder="little")
    codes = np.packbits(bits.transpose(0, 2, 1), axis=2, bitorder="little")
    out_N[...] = codes.reshape(-1).view(planes_N.dtype)


def accumulate_frames(
    codes_TN: Bits, is_key_T: NDArray[np.bool_], steps_T: NDArray[Any], sums: Sums
) -> None:
    """Decode the frames in order and add each to ``sums``."""
    fresh = sums.count == 0
    u_T, du_T = take_steps(sums, steps_T)
    for t in range(len(u_T)):
        codes_N = codes_TN[t, : sums.size]
        before_N = values_of(sums.bits_last, sums.dtype).copy()  # it may be a view
        if is_key_T[t]:
            sums.bits_last[...] = codes_N
        else:
            decode_frame(codes_N, sums.bits_last, sums.bits_last)
        value_N = values_of(sums.bits_last, sums.dtype)
        if fresh and t == 0:
            before_N = value_N
            for array in (sums.y_first, sums.y_min, sums.y_max):
                array[...] = value_N
            sums.slots[...] = _distinct_bits(sums, value_N)
            sums.distinct[...] = 1
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf stay in their elements
            _add_checkpoint(sums, value_N, before_N, float(u_T[t]), float(du_T[t]))


def _add_checkpoint(sums: Sums, value_N: Floats, before_N: Floats, u: float, du: float) -> None:
    """One line of the sums, for one checkpoint."""
    d_N = value_N.astype(np.float64) - sums.y_first
    dd_N = value_N.astype(np.float64) - before_N
    sums.s_d += d_N
    sums.s_ud += u * d_N
    sums.s_dd += d_N * d_N
    sums.q += dd_N * dd_N
    sums.p += du * dd_N
    sums.v += dd_N * dd_N / du if du > 0 else 0.0
    np.fmin(sums.y_min, value_N, out=sums.y_min)
    np.fmax(sums.y_max, value_N, out=sums.y_max)
    sums.changes += (value_N != before_N) & (sums.changes < MAX_CHANGES)
    sums.invalid |= ~np.isfinite(value_N)
    _note_distinct(sums, _distinct_bits(sums, value_N), np.ones(sums.size, dtype=bool))


def _distinct_bits(sums: Sums, value_N: Floats) -> Bits:
    """Bit patterns that are equal where values count as equal: -0.0 becomes 0.0."""
    word = sums.bits_last.dtype
    if sums.distinct_in == sums.dtype:
        same: Bits = np.where(value_N == 0, word.type(0), sums.bits_last)
        return same
    rounded_N = round_to_bfloat16(value_N)
    rounded_N[rounded_N << np.uint16(1) == 0] = 0
    return rounded_N.astype(word)


def _note_distinct(sums: Sums, bits_N: Bits, present_N: NDArray[np.bool_]) -> None:
    """Count the values not seen before, and remember them while there are slots."""
    new_N = present_N & (sums.distinct <= SLOTS) & (sums.slots != bits_N).all(axis=0)
    sums.distinct += new_N
    for slot in range(1, SLOTS):  # slots not yet taken repeat the last one taken
        take_N = new_N & (sums.distinct <= slot + 1)
        sums.slots[slot] = np.where(take_N, bits_N, sums.slots[slot])


def merge_sums(a: Sums, b: Sums) -> Sums:
    """The sums of a window and a later one, as if accumulated in one pass.

    With D = y_first(b) - y_first(a) and u(a) = α u(b) + β (Chan, Golub and LeVeque 1979):

        S_d = S_d(a) + S_d(b) + n D           S_dd = S_dd(a) + S_dd(b) + 2 D S_d(b) + n D²
        S_ud = S_ud(a) + α S_ud(b) + β S_d(b) + D (α S_u(b) + n β)

    and one difference, from a's last checkpoint to b's first, enters Q, P, V and the changes; V is
    per unit of u, hence V(a) + V(b) / α.
    """
    alpha = b.x_unit / a.x_unit
    beta = (b.x_ref - a.x_ref) / a.x_unit
    n = b.count
    b_s_u = alpha * b.s_u + n * beta
    step_u = (b.x_first - a.x_last) / a.x_unit
    with np.errstate(invalid="ignore", over="ignore"):
        shift_N = b.y_first.astype(np.float64) - a.y_first
        seam_N = b.y_first.astype(np.float64) - values_of(a.bits_last, a.dtype)
        changes_N = a.changes.astype(np.int64) + b.changes + (seam_N != 0)
        merged = Sums(
            a.dtype,
            a.count + n,
            a.x_ref,
            a.x_unit,
            a.x_first,
            b.x_last,
            a.s_u + b_s_u,
            a.s_uu + alpha**2 * b.s_uu + 2 * alpha * beta * b.s_u + n * beta**2,
            a.s_du2 + alpha**2 * b.s_du2 + step_u**2,
            a.distinct_in,
            s_d=a.s_d + (b.s_d + n * shift_N),
            s_ud=a.s_ud + (alpha * b.s_ud + beta * b.s_d + shift_N * b_s_u),
            s_dd=a.s_dd + (b.s_dd + shift_N * (2 * b.s_d + n * shift_N)),
            q=a.q + b.q + seam_N**2,
            p=a.p + alpha * b.p + step_u * seam_N,
            v=a.v + b.v / alpha + seam_N**2 / step_u,
            y_first=a.y_first.copy(),
            y_min=np.fmin(a.y_min, b.y_min),
            y_max=np.fmax(a.y_max, b.y_max),
            bits_last=b.bits_last.copy(),
            changes=np.minimum(changes_N, MAX_CHANGES).astype(np.uint16),
            distinct=a.distinct.copy(),
            slots=a.slots.copy(),
            invalid=a.invalid | b.invalid,
        )
    for slot in range(SLOTS):
        _note_distinct(merged, b.slots[slot], b.distinct > slot)
    merged.distinct[b.distinct > SLOTS] = SLOTS + 1
    return merged


def solve(sums: Sums, *, min_range: float = 0.0, few: int = 4) -> Solution:
    """The line, its R² and what tells a drift from a random walk (DESIGN, section 4).

    With ū = S_u / T and S_uu centred, per element:

        S_cd = S_ud - ū S_d         slope = S_cd / S_uu       mean = y_first + S_d / T
        SST = S_dd - S_d² / T       SSE = SST - slope S_cd    R² = slope S_cd / SST
        DW = (Q - 2 slope P + slope² sum (Δu)²) / SSE
        drift = (y_T - y_1) / (u_T - u_1)
        s² = (V - drift² (u_T - u_1)) / (T - 2)
        t = drift sqrt(u_T - u_1) / s

    The differences of a walk with drift m and variance s² a unit of u have mean m Δu and variance
    s² Δu, so m's generalised least squares is the drift above, the residual sum of squares is
    sum (Δd - m Δu)² / Δu = V - m² (u_T - u_1), and t is Student's with T - 2 degrees of freedom.
    """
    t_count = sums.count
    u_mean = sums.s_u / t_count
    s_uu = sums.s_uu - sums.s_u * u_mean
    u_span = (sums.x_last - sums.x_first) / sums.x_unit
    valid_N = sums.invalid == 0
    moving_N = valid_N & (sums.changes > 0) & (t_count > 1)
    with np.errstate(all="ignore"):  # undefined ratios are NaN, and replaced where it matters
        s_cd = sums.s_ud - u_mean * sums.s_d
        sst = sums.s_dd - sums.s_d * sums.s_d / t_count
        slope = np.where(moving_N, s_cd / s_uu, 0.0)
        rsq = np.clip(slope * s_cd / sst, 0.0, 1.0) if t_count > 2 else np.ones_like(sst)
        sse = sst - slope * s_cd
        dw = (sums.q - 2 * slope * sums.p + slope**2 * sums.s_du2) / sse
        dw[sse <= RESIDUAL_FLOOR * sst] = np.nan
        total = values_of(sums.bits_last, sums.dtype).astype(np.float64) - sums.y_first
        drift = total / u_span
        spread = sums.v - drift * total
        certain = np.where(total == 0, np.nan, np.copysign(np.inf, total))
        drift_t = total / np.sqrt(spread / max(t_count - 2, 1) * u_span)
        drift_t = np.where(spread > RESIDUAL_FLOOR * sums.v, drift_t, certain)
        mean = np.where(moving_N, sums.y_first + sums.s_d / t_count, sums.y_first)
        value_range = sums.y_max.astype(np.float64) - sums.y_min
        flags_N = np.zeros(sums.size, dtype=np.uint8)
        flags_N |= _flag(flag.FLAG_STATIC, ~moving_N & (t_count > 1))
        flags_N |= _flag(flag.FLAG_FEW_DISTINCT, sums.distinct < few)
        flags_N |= _flag(flag.FLAG_SMALL_RANGE, (value_range <= min_range) & (min_range > 0))
        move = np.abs(slope) * u_span
        flags_N |= _flag(flag.FLAG_BELOW_HALF_ULP, move < 0.5 * ulp_of(mean, sums.dtype))
        flags_N[~valid_N] = flag.FLAG_INVALID
        rsq = np.where(moving_N, rsq, np.nan)
        slope, mean = (
            np.where(valid_N, slope / sums.x_unit, np.nan),
            np.where(valid_N, mean, np.nan),
        )
        curved_N = moving_N & (t_count > 2)
        return Solution(
            slope=slope.astype(np.float32),
            mean=mean.astype(np.float32),
            rsq=rsq.astype(np.float32),
            flags=flags_N,
            dw=np.where(curved_N, dw, np.nan).astype(np.float32),
            drift_t=np.where(curved_N, drift_t, np.nan).astype(np.float32),
            bits_last=sums.bits_last.copy(),
        )


def _flag(mask: int, where_N: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The flag's bit where the condition holds."""
    return where_N.astype(np.uint8) * np.uint8(mask)


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
    """Accumulate all frames and solve."""
    sums = new_sums(codes_TN.shape[1], dtype, *span_units(steps_T), distinct_in)
    accumulate_frames(codes_TN, is_key_T, steps_T, sums)
    return solve(sums, min_range=min_range, few=few)


def summarise(solution: Solution, threshold: float, steps_window: float, dtype: str) -> Stats:
    """Counts, moments and histograms; see :class:`~trajkit.kernels.state.Stats`."""
    stats = new_stats(threshold, steps_window)
    flags_N = solution.flags

    def has(mask: int) -> NDArray[np.bool_]:
        found_N: NDArray[np.bool_] = np.asarray(flags_N & np.uint8(mask)) != 0
        return found_N

    fitted_N = np.isfinite(solution.rsq)
    above_N = fitted_N & (solution.rsq > np.float32(threshold))
    small_N, few_N = has(flag.FLAG_SMALL_RANGE), has(flag.FLAG_FEW_DISTINCT)
    kept_N = fitted_N & ~few_N & ~small_N
    moving_N = ~has(flag.FLAG_STATIC | flag.FLAG_INVALID)
    stats.elements = len(flags_N)
    stats.static = int(has(flag.FLAG_STATIC).sum())
    stats.invalid = int(has(flag.FLAG_INVALID).sum())
    stats.fitted, stats.above_threshold = int(fitted_N.sum()), int(above_N.sum())
    stats.few_distinct = int((moving_N & few_N).sum())
    stats.small_range = int((moving_N & small_N).sum())
    stats.below_half_ulp = int((moving_N & has(flag.FLAG_BELOW_HALF_ULP)).sum())
    stats.kept, stats.kept_above = int(kept_N.sum()), int((kept_N & above_N).sum())
    rsq = solution.rsq[fitted_N].astype(np.float64)
    slope = np.abs(solution.slope[fitted_N].astype(np.float64))
    mean = solution.mean[fitted_N].astype(np.float64)
    stats.rsq_sum, stats.rsq_sumsq = float(rsq.sum()), float(rsq @ rsq)
    stats.abs_slope_sum, stats.slope_sumsq = float(slope.sum()), float(slope @ slope)
    stats.abs_mean_sum = float(np.abs(mean).sum())
    stats.max_abs_slope = float(slope.max(initial=0.0))
    stats.hist_rsq = _histogram(rsq, 0, 1, RSQ_BINS)
    stats.hist_rsq_kept = _histogram(solution.rsq[kept_N].astype(np.float64), 0, 1, RSQ_BINS)
    stats.hist_dw = _histogram(solution.dw[fitted_N].astype(np.float64), 0, 4, DW_BINS)
    drift_t = solution.drift_t[fitted_N].astype(np.float64)
    stats.hist_drift_t = _histogram(drift_t, -20, 20, DRIFT_T_BINS)
    with np.errstate(divide="ignore"):
        ulps = np.log2(slope * ULPS_STEPS / ulp_of(mean, dtype))
    stats.hist_ulps = _histogram(ulps, -16, 16, ULPS_BINS)
    return stats


def _histogram(values: Floats, low: float, high: float, bins: int) -> NDArray[np.int64]:
    """Counts of equal bins on [low, high], values beyond in the end bins, NaN nowhere."""
    known = values[~np.isnan(values)]
    index = np.floor((np.clip(known, low, high) - low) * (bins / (high - low))).astype(np.int64)
    return np.bincount(np.minimum(index, bins - 1), minlength=bins).astype(np.int64)


def extrapolate_line(
    base: Literal["mean", "last"],
    last_bits_N: Bits,
    slope_N: Floats,
    mean_N: Floats,
    dtype: str,
    *,
    dx: float,
    gate: Gate,
    rounding: Rounding,
    out_bits: Bits,
) -> tuple[int, int, int]:
    """Base + slope · dx, in the work dtype, one rounding an operation."""
    work = format_of(dtype).work.type
    base_N = mean_N.astype(work) if base == "mean" else values_of(last_bits_N, dtype)
    with np.errstate(all="ignore"):
        value_N = base_N + slope_N.astype(work) * work(dx)
    return _round_or_hold(value_N, _held(gate), last_bits_N, dtype, rounding, out_bits)


def extrapolate_pair(
    bits_a_N: Bits,
    bits_b_N: Bits,
    beta: float,
    bits_hold_N: Bits,
    dtype: str,
    *,
    gate: Gate,
    rounding: Rounding,
    out_bits: Bits,
) -> tuple[int, int, int]:
    """A + beta · (b - a), in the work dtype, one rounding an operation."""
    work = format_of(dtype).work.type
    a_N, b_N = values_of(bits_a_N, dtype), values_of(bits_b_N, dtype)
    with np.errstate(all="ignore"):
        value_N = a_N + work(beta) * (b_N - a_N)
    return _round_or_hold(value_N, _held(gate), bits_hold_N, dtype, rounding, out_bits)


def _held(gate: Gate) -> NDArray[np.bool_] | np.bool_:
    """Where the gate is closed: by a flag, or a score that is not above the threshold."""
    held_N: NDArray[np.bool_] | np.bool_ = np.bool_(False)
    if gate.flags is not None:
        held_N = np.asarray(gate.flags & np.uint8(gate.held_flags)) != 0
    if gate.score is not None and gate.threshold is not None:
        held_N = held_N | ~(gate.score > np.float32(gate.threshold))
    return held_N


def _round_or_hold(
    value_N: Floats,
    held_N: NDArray[np.bool_] | np.bool_,
    hold_N: Bits,
    dtype: str,
    rounding: Rounding,
    out_N: Bits,
) -> tuple[int, int, int]:
    """Round into the format, keep ``hold_N`` where the gate is closed or the result not finite."""
    seed, first = rounding.seed, rounding.first_index
    noise_N = uniform_noise(seed, first, len(out_N)) if rounding.is_stochastic else None
    bits_N, finite_N = bits_of(value_N, dtype, noise_N)
    held_N = held_N | ~finite_N
    bits_N = np.where(held_N, hold_N, bits_N)
    held, same = int(held_N.sum()), int((~held_N & (bits_N == hold_N)).sum())
    out_N[...] = bits_N
    return len(out_N) - held - same, held, same
