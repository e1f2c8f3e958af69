"""Floating-point bits rounded once to another dtype, as ``--dtype`` asks for on ingest."""

import numpy as np

from trajkit.arrays import DTYPES, Array, DType
from trajkit.checkpoints.checkpoint import TensorEntry


def stored_dtype(entry: TensorEntry, cast: str | None) -> str:
    """The dtype in which a tensor is kept: its own, or ``cast`` for floating-point ones."""
    return cast if cast and DTYPES[entry.dtype].is_float else entry.dtype


def convert_bits(bits: Array, source: DType, target: DType) -> Array:
    """Bits of one floating-point dtype as bits of another, rounded once, to nearest even.

    >>> halfway_up = np.array([1 + 2**-8 + 2**-40]).view("uint64")
    >>> hex(convert_bits(halfway_up, DTYPES["float64"], DTYPES["bfloat16"])[0])
    '0x3f81'
    """
    values: Array = bits.view(source.scalar)
    with np.errstate(over="ignore", invalid="ignore"):  # inf and nan are the cast asked for
        if source.name == "float64" and target.name.startswith(("bfloat", "float8")):
            values = _round_to_odd(values)  # ml_dtypes goes by float32, which would round twice
        return np.asarray(values.astype(target.scalar).view(target.bits))


def _round_to_odd(values: Array) -> Array:
    """float64 as float32, the last bit set where inexact: no later rounding sees a false tie."""
    near = values.astype(np.float32)
    inexact = (near != values) & ~np.isnan(values)
    too_far = inexact & (np.abs(near) > np.abs(values))
    return np.asarray((near.view(np.uint32) - too_far | inexact).view(np.float32))
