"""What every launch of a CUDA kernel needs: tensors, block sizes, layouts, tables, checks.

Axes: B frames of a batch, T checkpoints in all, N elements, G groups of 64 frames.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trajkit.kernels.formats import format_of
from trajkit.kernels.noise import mix_seed
from trajkit.kernels.state import SLOTS, Solution, Sums, check_axis, choose_distinct
from trajkit.kernels.steps import weigh_steps

GROUP_FRAMES = 64  # frames summed in float32 before they are folded into float64
ROW_BYTES = 64  # rows that are a multiple of this long are read 16 bytes a thread
NUM_WARPS = 4  # 128 threads; the sums of 8 elements a thread fill the registers of two such blocks


def block_elements(dtype: str) -> int:
    """Elements a program: 16 bytes of codes for each of its threads, at most 8 of them.

    >>> [block_elements(dtype) for dtype in ("bfloat16", "float32", "float8_e5m2")]
    [1024, 512, 1024]
    """
    return 32 * NUM_WARPS * min(8, 128 // format_of(dtype).width)


def max_registers(dtype: str) -> int | None:
    """Registers a thread may take, where ptxas must be told lest it spills to fit more blocks.

    Four elements a thread (float32) leave room for three blocks an SM; eight, for two, by
    themselves.
    """
    return 168 if format_of(dtype).width == 32 else None


def rows_are_wide(codes: torch.Tensor, n: int) -> bool:
    """Whether rows of codes can be read 16 bytes a thread, the first N elements of each.

    That is so where each begins on 64 bytes and has memory up to the next multiple of 64 bytes
    beyond N. Otherwise the same kernel reads them element by element, several times slower.
    """
    n_bytes = codes.element_size()
    stride = codes.stride(0) * n_bytes if codes.shape[0] > 1 else 0
    end = (codes.shape[0] - 1) * stride + -(-n * n_bytes // ROW_BYTES) * ROW_BYTES
    held = codes.untyped_storage().nbytes() - codes.storage_offset() * n_bytes
    return codes.data_ptr() % ROW_BYTES == 0 and stride % ROW_BYTES == 0 and end <= held


def new_sums(
    n: int,
    dtype: str,
    x_ref: float,
    x_unit: float,
    device: torch.device | str = "cuda",
    distinct_in: str | None = None,
) -> Sums:
    """Sums of no checkpoints on a device, uninitialised: the first batch fills them.

    Raises:
        NotImplementedError: a dtype the GPU does not fit.
        ValueError: ``x_unit`` not positive and finite, ``x_ref`` not finite, or another
            ``distinct_in`` than None, the dtype and "bfloat16".
    """
    bits = bits_dtype(dtype)
    check_axis(x_ref, x_unit)
    distinct_in = choose_distinct(dtype, distinct_in)
    arrays = [
        *(torch.empty(n, dtype=torch.float64, device=device) for _ in range(6)),
        *(torch.empty(n, dtype=torch.float32, device=device) for _ in range(3)),
        torch.empty(n, dtype=bits, device=device),
        torch.empty(n, dtype=torch.uint16, device=device),
        torch.empty(n, dtype=torch.uint8, device=device),
        torch.empty((SLOTS, n), dtype=bits, device=device),
        torch.empty(n, dtype=torch.uint8, device=device),
    ]
    nan = float("nan")
    scalars = (float(x_ref), float(x_unit), nan, nan, 0.0, 0.0, 0.0)
    return Sums(dtype, 0, *scalars, distinct_in, *arrays)


def new_solution(n: int, dtype: str, device: torch.device | str = "cuda") -> Solution:
    """A solution on a device, uninitialised, for :func:`solve` and :func:`fit_frames` to fill."""
    slope, mean, rsq, dw, drift_t = (
        torch.empty(n, dtype=torch.float32, device=device) for _ in range(5)
    )
    flags = torch.empty(n, dtype=torch.uint8, device=device)
    bits = torch.empty(n, dtype=bits_dtype(dtype), device=device)
    return Solution(slope, mean, rsq, flags, dw, drift_t, bits)


def is_rounded(sums: Sums) -> bool:
    """Whether values are rounded to bfloat16 before they are told apart, where that is a change.

    Both float8 are exact in bfloat16.
    """
    return sums.distinct_in != sums.dtype


class Layout(NamedTuple):
    """How a kernel walks over rows of codes."""

    paired: bool
    """two 16-bit codes are read as one word; the next two count words then"""
    row_stride: int
    """from one row to the next"""
    n_load: int
    """how much of a row may be read: N, or N rounded up to 64 bytes"""


def row_layout(codes: torch.Tensor, n: int) -> Layout:
    """The widest way to read these rows."""
    stride = codes.stride(0) if codes.shape[0] > 1 else 0
    if not rows_are_wide(codes, n):
        return Layout(False, stride, n)
    row = ROW_BYTES // codes.element_size()
    per_unit = 2 if codes.element_size() == 2 else 1
    return Layout(per_unit == 2, stride // per_unit, -(-n // row) * row // per_unit)


def bits_dtype(dtype: str) -> torch.dtype:
    """The unsigned torch dtype of a format's bits; raises NotImplementedError for float64."""
    width = format_of(dtype).width
    if width > 32:
        raise NotImplementedError(f"the CUDA backend has no kernels for {dtype}; use the CPU")
    return {8: torch.uint8, 16: torch.uint16, 32: torch.uint32}[width]


def check_flat(out: torch.Tensor, dtype: str, inputs: tuple[torch.Tensor | None, ...]) -> None:
    """Refuse what a kernel would misread: other lengths, strides, devices or bits."""
    bits = bits_dtype(dtype)
    if out.dtype != bits:
        raise ValueError(f"bits of {dtype} must be {bits}, got {out.dtype}")
    for array in (out, *(array for array in inputs if array is not None)):
        if array.shape != out.shape or not array.is_contiguous() or array.device != out.device:
            raise ValueError(
                f"arrays must be [{out.shape[0]}], contiguous and on {out.device}, "
                f"got {tuple(array.shape)} on {array.device}"
            )


def check_codes(
    codes: torch.Tensor, is_key_T: NDArray[np.bool_], steps_T: NDArray[Any], dtype: str, n: int
) -> None:
    """Refuse codes that a kernel would misread."""
    bits = bits_dtype(dtype)
    if codes.dtype != bits:
        raise ValueError(f"codes of {dtype} must be {bits}, got {codes.dtype}")
    if codes.ndim != 2 or codes.shape[1] < n or (n > 1 and codes.stride(1) != 1):
        raise ValueError(
            f"codes must be [frames, >= {n}] with adjacent elements, "
            f"got shape {tuple(codes.shape)} and strides {codes.stride()}"
        )
    if not codes.shape[0] == len(is_key_T) == len(steps_T):
        raise ValueError(
            f"{codes.shape[0]} frames, {len(is_key_T)} key marks and {len(steps_T)} steps differ"
        )


def step_tables(
    u_T: NDArray[np.float64],
    du_T: NDArray[np.float64],
    is_key_T: NDArray[np.bool_],
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The small tables a kernel reads along with the frames: int32 [B, 4], float64 [G, 3].

    A frame: bits of float32 u about its group's mean, bits of float32 du, key or not, bits of V's
    float32 weight (:func:`trajkit.kernels.steps.weigh_steps`). A group: the mean of u, its sum, and
    what V's sum is to be multiplied by.
    """
    starts = np.arange(0, len(u_T), GROUP_FRAMES)
    sum_G = np.add.reduceat(u_T, starts)
    mean_G = sum_G / np.diff(starts, append=len(u_T))
    frames = np.zeros((len(u_T), 4), dtype=np.int32)
    local_T = u_T - np.repeat(mean_G, GROUP_FRAMES)[: len(u_T)]
    frames[:, 0] = local_T.astype(np.float32).view(np.int32)
    frames[:, 1] = du_T.astype(np.float32).view(np.int32)
    frames[:, 2] = is_key_T
    weight_T, per_du_G = weigh_steps(du_T, GROUP_FRAMES)
    frames[:, 3] = weight_T.astype(np.float32).view(np.int32)
    groups = np.stack([mean_G, sum_G, per_du_G], axis=1)
    return torch.from_numpy(frames).to(device), torch.from_numpy(groups).to(device)


def step_design(sums: Sums, min_range: float, device: torch.device) -> torch.Tensor:
    """What a solution needs of the steps: float64 [7].

    T, mean u, sum (u - mean u)^2, sum (du)^2, u_T - u_1, training steps a unit of u, min_range.
    """
    u_mean = sums.s_u / sums.count
    s_uu = sums.s_uu - sums.s_u * u_mean
    u_span = (sums.x_last - sums.x_first) / sums.x_unit
    design = [float(sums.count), u_mean, s_uu, sums.s_du2, u_span, sums.x_unit, min_range]
    return torch.tensor(design, dtype=torch.float64).to(device)


def float32_factor(factor: float, device: torch.device) -> torch.Tensor:
    """A number rounded to float32, as the float64 [1] in which extrapolation multiplies by it."""
    return torch.tensor([float(np.float32(factor))], dtype=torch.float64).to(device)


def noise_start(seed: int, first_index: int) -> tuple[int, int]:
    """The counter of element 0 as two signed 32-bit halves, which Triton takes as int32."""
    start = (int(mix_seed(seed)) + first_index * 0x9E3779B97F4A7C15) % 2**64
    halves = np.array([start & 0xFFFFFFFF, start >> 32], dtype=np.uint32).view(np.int32)
    return int(halves[0]), int(halves[1])


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """That CUDA device current, so that Triton launches there; nothing for the interpreter."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
