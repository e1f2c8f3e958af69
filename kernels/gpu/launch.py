"""The CUDA backend: what launches the Triton kernels, on torch tensors that lie on the device.

    new_sums, accumulate_frames, solve   a streaming fit: state, batches [B, N], finished lines
    fit_frames                           a whole window [T, N] at once, up to 64 frames in registers
    extrapolate_line, extrapolate_pair   new checkpoints, gated and rounded once

The kernels themselves, from the inside out: gpu_bits (one value), gpu_sums (one group of frames),
gpu_frames, gpu_solve and gpu_extrapolate; gpu_launch prepares what they take. Frames are bfloat16,
float16, float32 or one of two float8; float64 raises NotImplementedError. Launches go to torch's
current stream; host tables of a few kilobytes go up with them, and only what returns counts or
statistics waits for the device.

Axes: B frames of a batch, T checkpoints in all, N elements, G groups of 64 frames.

How fast it can be: a frame's codes are read once, 16 bytes a thread and four frames ahead of their
use (eight for bfloat16), and about 26 instructions an element follow for 16-bit codes (read from
the SASS for sm_90), so that reading and computing take about the same time there; for float32
memory decides.
The state costs 144 bytes an element and batch to read and write, so batches of 64 frames or more
are worth waiting for. In a longer batch the float64 sums are folded every 64 frames, in memory
(which the cache absorbs): kept in registers they spilled.
"""

from typing import Any, Literal

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from trajkit.kernels.formats import format_of
from trajkit.kernels.gate import Gate
from trajkit.kernels.gpu.extrapolate import _extrapolate_line_kernel, _extrapolate_pair_kernel
from trajkit.kernels.gpu.frames import _accumulate_frames_kernel, _fit_frames_kernel
from trajkit.kernels.gpu.prepare import (
    GROUP_FRAMES,
    NUM_WARPS,
    block_elements,
    check_codes,
    check_flat,
    float32_factor,
    is_rounded,
    max_registers,
    new_solution,
    new_sums,
    noise_start,
    on_device,
    row_layout,
    rows_are_wide,
    step_design,
    step_tables,
)
from trajkit.kernels.gpu.solve import _solve_kernel
from trajkit.kernels.rounding import Rounding
from trajkit.kernels.state import Solution, Sums
from trajkit.kernels.steps import span_units, take_steps

__all__ = [
    "accumulate_frames",
    "extrapolate_line",
    "extrapolate_pair",
    "fit_frames",
    "new_solution",
    "new_sums",
    "rows_are_wide",
    "solve",
]

MAX_LAUNCH_FRAMES = 32_768  # two counters of a launch share 32 bits, 16 each
BLOCK = 1024  # elements a program of the kernels that walk over no frames


def accumulate_frames(
    codes_TN: torch.Tensor, is_key_T: NDArray[np.bool_], steps_T: NDArray[Any], sums: Sums
) -> None:
    """Decode a batch of frames and add them to `sums`, in place.

    Float32 sums of at most 64 frames are folded into float64. State is read and written once a
    64 frames; 144 bytes an element for bfloat16.

    Args:
        codes_TN: unsigned codes [B, >= N] on the device, elements adjacent.
        is_key_T: bool [B] on the host; the first frame ever must be a key.
        steps_T: training steps [B] on the host, ascending.
        sums: state of N elements on the same device, see :func:`new_sums`.

    Raises:
        NotImplementedError: a dtype the GPU does not fit.
        ValueError: codes of another dtype, length or memory order; steps that do not increase; a
            first frame that is no key.
    """
    check_codes(codes_TN, is_key_T, steps_T, sums.dtype, sums.size)
    if sums.count == 0 and len(is_key_T) and not is_key_T[0]:
        raise ValueError("the first frame of a fit must be a key frame")
    fresh = sums.count == 0
    u_T, du_T = take_steps(sums, steps_T)
    if sums.size == 0:
        return
    block = block_elements(sums.dtype)
    for start in range(0, len(u_T), MAX_LAUNCH_FRAMES):
        part = slice(start, start + MAX_LAUNCH_FRAMES)
        codes = codes_TN[part]
        frames, groups = step_tables(u_T[part], du_T[part], is_key_T[part], codes.device)
        layout = row_layout(codes, sums.size)
        with on_device(codes.device):
            _accumulate_frames_kernel[(triton.cdiv(sums.size, block),)](
                codes, layout.row_stride, frames, groups,
                sums.s_d, sums.s_ud, sums.s_dd, sums.q, sums.p, sums.v,
                sums.y_first, sums.y_min, sums.y_max, sums.bits_last,
                sums.changes, sums.distinct, sums.slots, sums.slots.stride(0), sums.invalid,
                sums.size, layout.n_load, codes.shape[0],
                FRESH=fresh and start == 0, GROUP=GROUP_FRAMES, BLOCK=block,
                DTYPE=sums.dtype, SHIFT=32 - format_of(sums.dtype).width, PAIRED=layout.paired,
                ROUNDED=is_rounded(sums),
                num_warps=NUM_WARPS, maxnreg=max_registers(sums.dtype), enable_fp_fusion=True,
            )  # fmt: skip


def solve(
    sums: Sums, *, min_range: float = 0.0, few: int = 4, out: Solution | None = None
) -> Solution:
    """The fitted line of `sums`, formulas and float64 arithmetic as in the reference.

    Args:
        sums: at least one checkpoint.
        min_range: elements that move no more than this in all are flagged, if positive.
        few: elements with fewer distinct values are flagged.
        out: written and returned; by default a new solution.

    Raises:
        ValueError: no checkpoint has been accumulated.
    """
    if sums.count == 0:
        raise ValueError("nothing to solve: no checkpoint has been accumulated")
    device, form = sums.s_d.device, format_of(sums.dtype)
    out = new_solution(sums.size, sums.dtype, device) if out is None else out
    if sums.size == 0:
        return out
    design = step_design(sums, min_range, device)
    with on_device(device):
        _solve_kernel[(triton.cdiv(sums.size, BLOCK // 2),)](
            sums.s_d, sums.s_ud, sums.s_dd, sums.q, sums.p, sums.v,
            sums.y_first, sums.y_min, sums.y_max, sums.bits_last,
            sums.changes, sums.distinct, sums.invalid, design, few,
            out.slope, out.mean, out.rsq, out.flags, out.dw, out.drift_t, out.bits_last,
            sums.size,
            BLOCK=BLOCK // 2, DTYPE=sums.dtype, SHIFT=32 - form.width,
            E_MIN=form.e_min, MANTISSA=form.mantissa,
            num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def fit_frames(
    codes_TN: torch.Tensor,
    is_key_T: NDArray[np.bool_],
    steps_T: NDArray[Any],
    dtype: str,
    *,
    min_range: float = 0.0,
    few: int = 4,
    distinct_in: str | None = None,
    out: Solution | None = None,
) -> Solution:
    """The lines fitted to a whole window of frames.

    Up to 64 frames the sums never leave the registers. More go through :func:`accumulate_frames`
    and :func:`solve`, with a state of about 70 bytes an element allocated in between.

    Args:
        codes_TN: unsigned codes [T, N] on the device; frame 0 is a key.
        is_key_T: bool [T] on the host.
        steps_T: training steps [T] on the host, ascending.
        dtype: what the codes are codes of.
        min_range: as for :func:`solve`.
        few: as for :func:`solve`.
        distinct_in: as for :func:`new_sums`.
        out: written and returned; its N may be less than the rows are long (padded rows, see
            :func:`rows_are_wide`). By default a new solution.

    Raises:
        NotImplementedError: a dtype the GPU does not fit.
        ValueError: as :func:`accumulate_frames`, or no frames.
    """
    device, form = codes_TN.device, format_of(dtype)
    out = new_solution(codes_TN.shape[1], dtype, device) if out is None else out
    n, n_frames = int(out.slope.shape[0]), len(is_key_T)
    in_registers = n_frames <= GROUP_FRAMES
    size = 0 if in_registers else n
    sums = new_sums(size, dtype, *span_units(steps_T), device, distinct_in)
    if not in_registers:
        accumulate_frames(codes_TN, is_key_T, steps_T, sums)
        return solve(sums, min_range=min_range, few=few, out=out)
    check_codes(codes_TN, is_key_T, steps_T, dtype, n)
    if n_frames == 0 or not is_key_T[0]:
        raise ValueError("the first frame of a fit must be a key frame")
    u_T, du_T = take_steps(sums, steps_T)
    if n == 0:
        return out
    frames, groups = step_tables(u_T, du_T, is_key_T, device)
    design = step_design(sums, min_range, device)
    block, layout = block_elements(dtype), row_layout(codes_TN, n)
    with on_device(device):
        _fit_frames_kernel[(triton.cdiv(n, block),)](
            codes_TN, layout.row_stride, frames, groups, design, few,
            out.slope, out.mean, out.rsq, out.flags, out.dw, out.drift_t, out.bits_last,
            n, layout.n_load, n_frames,
            BLOCK=block, DTYPE=dtype, SHIFT=32 - form.width, PAIRED=layout.paired,
            ROUNDED=is_rounded(sums), E_MIN=form.e_min, MANTISSA=form.mantissa,
            num_warps=NUM_WARPS, maxnreg=max_registers(dtype), enable_fp_fusion=True,
        )  # fmt: skip
    return out


def extrapolate_line(
    base: Literal["mean", "last"],
    last_bits: torch.Tensor,
    slope: torch.Tensor,
    mean: torch.Tensor,
    dtype: str,
    *,
    dx: float,
    gate: Gate,
    rounding: Rounding,
    out_bits: torch.Tensor,
) -> tuple[int, int, int]:
    """Write base + slope * dx, rounded once into the dtype, bit for bit as the reference.

    Args:
        base: "mean", or "last": the last checkpoint's value.
        last_bits: unsigned [N]; also what held elements keep.
        slope: float32 [N], per training step.
        mean: float32 [N]; read for base "mean" only.
        dtype: the checkpoint's.
        dx: training steps from the base to the target.
        gate: which elements may move.
        rounding: into the dtype.
        out_bits: unsigned [N]; may be `last_bits`.

    Returns:
        moved, held, unchanged; the call waits for the device.
    """
    check_flat(out_bits, dtype, (last_bits, slope, mean, gate.score, gate.flags))
    n, counts = out_bits.shape[0], torch.zeros(3, dtype=torch.int64, device=out_bits.device)
    low, high = noise_start(rounding.seed, rounding.first_index)
    with on_device(out_bits.device):
        _extrapolate_line_kernel[(max(triton.cdiv(n, BLOCK), 1),)](
            last_bits, slope, mean, *_gate_arrays(gate, out_bits), out_bits, counts,
            float32_factor(dx, out_bits.device), gate.held_flags,
            0.0 if gate.threshold is None else float(gate.threshold), low, high, n,
            FROM_MEAN=base == "mean", BY_RSQ=gate.by_score, BY_FLAGS=gate.by_flags,
            STOCHASTIC=rounding.is_stochastic, BLOCK=BLOCK, DTYPE=dtype,
            SHIFT=32 - format_of(dtype).width, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    moved, held, unchanged = counts.tolist()
    return moved, held, unchanged


def extrapolate_pair(
    bits_a: torch.Tensor,
    bits_b: torch.Tensor,
    beta: float,
    bits_hold: torch.Tensor,
    dtype: str,
    *,
    gate: Gate,
    rounding: Rounding,
    out_bits: torch.Tensor,
) -> tuple[int, int, int]:
    """Write a + beta * (b - a), rounded once into the dtype, bit for bit as the reference.

    Arguments and counts as :func:`extrapolate_line`.
    """
    check_flat(out_bits, dtype, (bits_a, bits_b, bits_hold, gate.score, gate.flags))
    n, counts = out_bits.shape[0], torch.zeros(3, dtype=torch.int64, device=out_bits.device)
    low, high = noise_start(rounding.seed, rounding.first_index)
    with on_device(out_bits.device):
        _extrapolate_pair_kernel[(max(triton.cdiv(n, BLOCK), 1),)](
            bits_a, bits_b, bits_hold,
            *_gate_arrays(gate, out_bits), out_bits, counts,
            float32_factor(beta, out_bits.device), gate.held_flags,
            0.0 if gate.threshold is None else float(gate.threshold), low, high, n,
            BY_RSQ=gate.by_score, BY_FLAGS=gate.by_flags,
            STOCHASTIC=rounding.is_stochastic, BLOCK=BLOCK, DTYPE=dtype,
            SHIFT=32 - format_of(dtype).width, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    moved, held, unchanged = counts.tolist()
    return moved, held, unchanged


def _gate_arrays(gate: Gate, unread: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score and flags; any tensor stands in for what the kernel does not read."""
    return (
        unread if gate.score is None else gate.score,
        unread if gate.flags is None else gate.flags,
    )
