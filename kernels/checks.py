"""What every backend may take for granted: shapes, dtypes and options, checked once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.formats import format_of
from trajkit.kernels.gate import Gate
from trajkit.kernels.state import SLOTS, Array


def check_filters(min_range: float, few: int) -> None:
    """Raise ValueError for filters that mean nothing."""
    if not min_range >= 0:
        raise ValueError(f"min_range must be 0 or more, got {min_range}")
    if not 1 <= few <= SLOTS + 1:
        raise ValueError(f"few must lie in 1..{SLOTS + 1}, got {few}")


def check_batch(
    codes_TN: Array, is_key_T: NDArray[np.bool_], steps_T: NDArray[Any], first: bool
) -> None:
    """Raise ValueError unless frames, key marks and steps belong together."""
    if len(codes_TN.shape) != 2 or not len(codes_TN) == len(is_key_T) == len(steps_T):
        raise ValueError(
            f"frames of shape {tuple(codes_TN.shape)} need as many key marks and steps, "
            f"got {len(is_key_T)} and {len(steps_T)}"
        )
    if first and len(is_key_T) and not is_key_T[0]:
        raise ValueError("the first frame is a delta, but nothing comes before it")


def check_codes(codes_TN: NDArray[Any], dtype: str) -> None:
    """Raise ValueError unless the frames are the dtype's unsigned integers, side by side."""
    bits = format_of(dtype).bits
    if codes_TN.dtype != bits:
        raise ValueError(f"{dtype} frames must be {bits}, got {codes_TN.dtype}")
    if codes_TN.size and codes_TN.strides[1] != bits.itemsize and codes_TN.shape[1] > 1:
        raise ValueError("frames must have unit stride along the elements")


def check_coding(*arrays: Array) -> None:
    """Raise ValueError unless all are one unsigned dtype and one shape [N]."""
    first = arrays[0]
    for array in arrays:
        if len(array.shape) != 1 or array.shape != first.shape:
            raise ValueError(f"frames must be [N] alike, got {[tuple(a.shape) for a in arrays]}")
        if array.dtype != first.dtype or "uint" not in str(array.dtype):
            raise ValueError(f"frames must be unsigned alike, got {[str(a.dtype) for a in arrays]}")


def check_extrapolation(
    dtype: str, bits: tuple[NDArray[Any], ...], floats: tuple[NDArray[Any], ...], gate: Gate
) -> None:
    """Raise ValueError unless bits, float32 numbers and the gate's arrays are all [N]."""
    expected: list[tuple[Any, Any]] = [(array, format_of(dtype).bits) for array in bits]
    expected += [(array, np.dtype(np.float32)) for array in floats]
    expected += [] if gate.score is None else [(gate.score, np.dtype(np.float32))]
    expected += [] if gate.flags is None else [(gate.flags, np.dtype(np.uint8))]
    for array, wanted in expected:
        if array.shape != bits[0].shape or array.ndim != 1:
            raise ValueError(f"arrays must be [N] alike, got {array.shape} and {bits[0].shape}")
        if array.dtype != wanted:
            raise ValueError(f"expected {wanted} for {dtype} elements, got {array.dtype}")
