"""The kernels as the rest of trajkit calls them: arguments are checked here, then dispatched.

    accumulate_frames, merge_sums, solve     a streaming fit: accumulate, merge, finalise
    fit_frames                               the same in one call, with no state left behind
    summarise                                counts, moments and histograms of a solution
    encode_frame, decode_frame               the store's frame coding
    extrapolate_line, extrapolate_pair       new checkpoints, rounded once

Backends: "cpu" (numba; what "auto" means) and "reference" (numpy, float64, slow), both of numpy
arrays. A request that cannot be met raises; nothing falls back. All functions may be called from
many threads at once on different arrays, and release the GIL. Tensors on a CUDA device are fitted by
:mod:`trajkit.kernels.gpu.launch` and :mod:`trajkit.kernels.gpu.worker`, chunks are read from files by
:mod:`trajkit.kernels.cpu.read`.

Axis letters: T checkpoints, B checkpoints of one batch, N elements.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.checks import (
    check_batch,
    check_codes,
    check_coding,
    check_extrapolation,
    check_filters,
)
from trajkit.kernels.dispatch import Backend, open_backend
from trajkit.kernels.flags import (
    FLAG_BELOW_HALF_ULP,
    FLAG_BELOW_THRESHOLD,
    FLAG_FEW_DISTINCT,
    FLAG_INVALID,
    FLAG_SMALL_RANGE,
    FLAG_STATIC,
    HELD_FLAGS,
)
from trajkit.kernels.formats import FORMATS, format_of, values_of
from trajkit.kernels.gate import OPEN, Gate
from trajkit.kernels.rounding import NEAREST, Rounding
from trajkit.kernels.state import Array, Solution, Stats, Sums, new_stats, new_sums
from trajkit.kernels.steps import span_units

__all__ = [
    "FLAG_BELOW_HALF_ULP",
    "FLAG_BELOW_THRESHOLD",
    "FLAG_FEW_DISTINCT",
    "FLAG_INVALID",
    "FLAG_SMALL_RANGE",
    "FLAG_STATIC",
    "FORMATS",
    "HELD_FLAGS",
    "NEAREST",
    "OPEN",
    "Gate",
    "Rounding",
    "Solution",
    "Stats",
    "Sums",
    "accumulate_frames",
    "decode_frame",
    "encode_frame",
    "extrapolate_line",
    "extrapolate_pair",
    "fit_frames",
    "merge_sums",
    "new_stats",
    "new_sums",
    "solve",
    "span_units",
    "summarise",
    "values_of",
]
Base: TypeAlias = Literal["mean", "last"]


def accumulate_frames(
    codes_TN: Array,
    is_key_T: NDArray[np.bool_],
    steps_T: NDArray[Any],
    sums: Sums,
    *,
    backend: Backend = "auto",
) -> None:
    """Decode a batch of frames and add it to ``sums``, in place, in one pass.

    Any split of a window into batches gives the same sums, to rounding. Decoding goes on from
    ``sums.bits_last``, so only the very first frame must be a key frame.

    Args:
        codes_TN: the dtype's unsigned integers [B, >= N], unit stride along N; rows in the order
            of the checkpoints; columns beyond N are not read.
        is_key_T: bool [B]; True where the row holds the bits themselves, not a delta.
        steps_T: training steps [B], increasing, after ``sums.x_last``.
        sums: from :func:`trajkit.kernels.state.new_sums`.
        backend: see the module.

    Raises:
        ValueError: shapes, dtypes or steps that do not fit together; a first frame that is no key.
        RuntimeError: the backend cannot run here.

    Notes:
        Float32 within 64 checkpoints, about the first of them and their mean step, then float64;
        squares outside float32's range are summed again in float64. float64 throughout for
        float64. Memory beyond the arguments: a few tens of kB.
    """
    is_key_T, steps_T = np.asarray(is_key_T, dtype=np.bool_), np.asarray(steps_T)
    check_batch(codes_TN, is_key_T, steps_T, sums.count == 0)
    if codes_TN.shape[1] < sums.size:
        raise ValueError(f"frames of {codes_TN.shape[1]} elements for sums of {sums.size}")
    check_codes(codes_TN, sums.dtype)
    open_backend(backend).accumulate_frames(codes_TN, is_key_T, steps_T, sums)


def merge_sums(a: Sums, b: Sums) -> Sums:
    """The sums of a window followed by a later one, as if accumulated in one pass.

    ``b`` may have its own first checkpoint, x_ref and x_unit; the result has those of ``a``.

    Raises:
        ValueError: other dtypes or sizes, or ``b`` does not start after ``a`` ends.

    >>> import numpy as np
    >>> a, b = (new_sums(1, "float32", 1, 1) for _ in "ab")
    >>> key = np.array([True])
    >>> accumulate_frames(np.float32([[1]]).view("u4"), key, [0], a, backend="reference")
    >>> accumulate_frames(np.float32([[3]]).view("u4"), key, [2], b, backend="reference")
    >>> solve(merge_sums(a, b), backend="reference").slope
    array([1.], dtype=float32)
    """
    if a.dtype != b.dtype or a.size != b.size:
        raise ValueError(
            f"sums of {a.size} {a.dtype} and of {b.size} {b.dtype} elements do not merge"
        )
    if a.distinct_in != b.distinct_in:
        raise ValueError(
            f"sums that tell values apart in {a.distinct_in} and in {b.distinct_in} do not merge"
        )
    if a.count == 0 or b.count == 0:
        return b if a.count == 0 else a
    if not b.x_first > a.x_last:
        raise ValueError(
            f"sums merge in the order of their steps: {b.x_first:g} is not after {a.x_last:g}"
        )
    merged: Sums = open_backend("reference").merge_sums(a, b)
    return merged


def solve(
    sums: Sums, *, min_range: float = 0.0, few: int = 4, backend: Backend = "auto"
) -> Solution:
    """Finalise: slope, mean, R², flags, Durbin-Watson and drift t of every element.

    Args:
        sums: at least one checkpoint; left as it is, more may be accumulated afterwards.
        min_range: FLAG_SMALL_RANGE where max - min is at most this; 0 for nowhere.
        few: FLAG_FEW_DISTINCT where fewer distinct values were seen, 1 to 4.
        backend: see the module.

    Raises:
        ValueError: no checkpoints, or ``few`` or ``min_range`` out of range.
    """
    check_filters(min_range, few)
    if sums.count == 0:
        raise ValueError("nothing to solve: no checkpoint has been accumulated")
    solution: Solution = open_backend(backend).solve(sums, min_range=min_range, few=few)
    return solution


def fit_frames(
    codes_TN: Array,
    is_key_T: NDArray[np.bool_],
    steps_T: NDArray[Any],
    dtype: str,
    *,
    min_range: float = 0.0,
    few: int = 4,
    distinct_in: str | None = None,
    backend: Backend = "auto",
) -> Solution:
    """Fit a whole window that is in memory: accumulate and solve in one pass.

    Arguments as in :func:`accumulate_frames` (B = T, N = all columns), :func:`solve` and
    :func:`trajkit.kernels.state.new_sums`; the sums themselves are never in memory. Raises as they do.
    """
    is_key_T, steps_T = np.asarray(is_key_T, dtype=np.bool_), np.asarray(steps_T)
    check_filters(min_range, few)
    check_batch(codes_TN, is_key_T, steps_T, True)
    if len(steps_T) == 0:
        raise ValueError("nothing to fit: no frames")
    check_codes(codes_TN, dtype)
    solution: Solution = open_backend(backend).fit_frames(
        codes_TN, is_key_T, steps_T, dtype,
        min_range=min_range, few=few, distinct_in=distinct_in,
    )  # fmt: skip
    return solution


def summarise(
    solution: Solution,
    threshold: float,
    steps_window: float,
    dtype: str,
    *,
    backend: Backend = "auto",
) -> Stats:
    """Reduce a solution to counts, moments and histograms; those of parts add up with ``+``.

    Args:
        solution: of N elements.
        threshold: an R² strictly above this (as float32) counts as above.
        steps_window: training steps from the first to the last checkpoint; kept with the counts,
            so that slopes can be read as movements.
        dtype: the elements' format, for movements in ulps.
        backend: see the module.

    Raises:
        NotImplementedError: a dtype no line is fitted to.
    """
    format_of(dtype)
    stats: Stats = open_backend(backend).summarise(
        solution, float(threshold), float(steps_window), dtype
    )
    return stats


def encode_frame(bits_N: Array, prev_N: Array, out_N: Array, *, backend: Backend = "auto") -> None:
    """Write the delta frame of ``bits_N`` after ``prev_N``: zigzag(bits - prev), wrapping.

    All three unsigned [N] of 8, 16, 32 or 64 bits; ``out_N`` may be either input.

    Raises:
        ValueError: other dtypes, or shapes that differ.

    >>> import numpy as np
    >>> out = np.empty(3, np.uint8)
    >>> encode_frame(np.uint8([1, 0, 255]), np.uint8([0, 1, 255]), out, backend="reference")
    >>> out
    array([2, 1, 0], dtype=uint8)
    """
    check_coding(bits_N, prev_N, out_N)
    open_backend(backend).encode_frame(bits_N, prev_N, out_N)


def decode_frame(codes_N: Array, prev_N: Array, out_N: Array, *, backend: Backend = "auto") -> None:
    """Write the bits of a delta frame: prev + unzigzag(code), wrapping; exact for all patterns.

    All three unsigned [N] of 8, 16, 32 or 64 bits; ``out_N`` may be either input.

    Raises:
        ValueError: other dtypes, or shapes that differ.
    """
    check_coding(codes_N, prev_N, out_N)
    open_backend(backend).decode_frame(codes_N, prev_N, out_N)


def extrapolate_line(
    base: Base,
    last_bits: Array,
    slope: Array,
    mean: Array,
    dtype: str,
    *,
    dx: float,
    gate: Gate = OPEN,
    rounding: Rounding = NEAREST,
    out_bits: Array,
    backend: Backend = "auto",
) -> tuple[int, int, int]:
    """Write base + slope · dx, each operation and the result rounded once.

    Args:
        base: "mean": the line itself, dx = x* - x̄; "last": through the last checkpoint,
            dx = the horizon (times a damping).
        last_bits: the last checkpoint, unsigned [N].
        slope: a training step, float32 [N].
        mean: at x̄, float32 [N]; read for base "mean" only.
        dtype: the elements' format.
        dx: training steps.
        gate: which elements may move.
        rounding: into the dtype.
        out_bits: unsigned [N], written; may be ``last_bits``.
        backend: see the module.

    Returns:
        moved, held, unchanged: elements that got new bits; that keep their last bits because the
        gate is closed (R², flags) or the result is not finite in the dtype; and that
        the gate let through, but whose rounded result is the last bits.

    Raises:
        ValueError: shapes or dtypes that do not fit together, an unknown base.
    """
    if base not in ("mean", "last"):
        raise ValueError(f"base must be 'mean' or 'last', got {base!r}")
    check_extrapolation(dtype, (last_bits, out_bits), (slope, mean), gate)
    counts: tuple[int, int, int] = open_backend(backend).extrapolate_line(
        base,
        last_bits,
        slope,
        mean,
        dtype,
        dx=float(dx),
        gate=gate,
        rounding=rounding,
        out_bits=out_bits,
    )
    return counts


def extrapolate_pair(
    bits_a: Array,
    bits_b: Array,
    beta: float,
    bits_hold: Array,
    dtype: str,
    *,
    gate: Gate = OPEN,
    rounding: Rounding = NEAREST,
    out_bits: Array,
    backend: Backend = "auto",
) -> tuple[int, int, int]:
    """Write a + beta · (b - a) (arXiv 2601.04537, equation 4), rounded like the line.

    Args:
        bits_a: the earlier checkpoint, unsigned [N].
        bits_b: the later one, unsigned [N].
        beta: (x* - x_a) / (x_b - x_a).
        bits_hold: what held elements keep, unsigned [N].
        dtype: the elements' format.
        gate: which elements may move.
        rounding: into the dtype.
        out_bits: unsigned [N], written; may be any of the inputs.
        backend: see the module.

    Returns:
        moved, held, unchanged; as in :func:`extrapolate_line`.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    check_extrapolation(dtype, (bits_a, bits_b, bits_hold, out_bits), (), gate)
    counts: tuple[int, int, int] = open_backend(backend).extrapolate_pair(
        bits_a,
        bits_b,
        float(beta),
        bits_hold,
        dtype,
        gate=gate,
        rounding=rounding,
        out_bits=out_bits,
    )
    return counts
