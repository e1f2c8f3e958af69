"""The arrays of a fit in the store: one value an element."""

from pathlib import Path
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.kernels.state import SLOTS
from trajkit.store.array import ZArray
from trajkit.store.codecs import BloscCodec, Codec, PlainCodec

ARRAYS = ("slope", "mean", "rsq", "last", "flags", "drift_t")
LATER = ("drift_t",)
"""those that fits of an earlier trajkit have not"""
SUMS = (
    *("s_d", "s_ud", "s_dd", "q", "p", "v", "y_first", "y_min", "y_max"),
    *("changes", "distinct", "invalid", "slot_0", "slot_1", "slot_2"),
)
"""the arrays of the sums, which are those of :class:`trajkit.kernels.state.Sums`"""
FIT_CODEC: Codec = PlainCodec()
"""most bits of slopes and means are noise: lz4 and zstd make them 1.1 to 1.2 times smaller, and take
longer than all else that writing and reading a fit needs"""
SUMS_CODEC: Codec = BloscCodec("lz4", 1, "bitshuffle")


def fit_arrays(path: Path, vector: FlatVector) -> dict[str, ZArray]:
    """The arrays of one vector's fit, by name.

    The drift's t is a score that gates and weights are made of: float16, 2 bytes an element, has 11
    bits of it, and what is beyond 65,504 is infinite.
    """
    dtypes = {
        "last": vector.dtype.bits,
        "flags": np.dtype("uint8"),
        "drift_t": np.dtype("float16"),
    }
    return {
        name: _element_array(path / vector.dtype.name / name, dtypes.get(name), vector, FIT_CODEC)
        for name in ARRAYS
    }


def sums_arrays(path: Path, vector: FlatVector) -> dict[str, ZArray]:
    """The arrays of one vector's sums (``bits_last`` is the fit's ``last``), by name.

    Floats are kept as they are in memory, so that going on from them equals never having stopped.
    """
    bits = vector.dtype.bits
    value = np.dtype("float64" if vector.dtype.name == "float64" else "float32")
    double = np.dtype("float64")
    dtypes = {
        **dict.fromkeys(("s_d", "s_ud", "s_dd", "q", "p", "v"), double),
        **dict.fromkeys(("y_first", "y_min", "y_max"), value),
        "changes": np.dtype("uint16"),
        "distinct": np.dtype("uint8"),
        "invalid": np.dtype("uint8"),
        **{f"slot_{i}": bits for i in range(SLOTS)},
    }
    folder = path / vector.dtype.name / "sums"
    return {
        name: _element_array(folder / name, dtype, vector, SUMS_CODEC)
        for name, dtype in dtypes.items()
    }


def _element_array(
    path: Path, dtype: np.dtype[Any] | None, vector: FlatVector, codec: Codec
) -> ZArray:
    """An array [N] chunked like the vector's frames; float32 unless said otherwise."""
    return ZArray(path, dtype or np.dtype("float32"), vector.size, vector.chunk, codec)


def read_elements(array: ZArray, start: int, stop: int) -> Array:
    """Elements [start, stop) of a 1-D array."""
    if stop - start > array.chunk:
        array.check_extent(0)
    out = np.empty(stop - start, array.dtype)
    chunk = np.empty(array.chunk, array.dtype)
    for k in range(start // array.chunk, -(-stop // array.chunk) if stop > start else 0):
        array.read_chunk(0, k, chunk)
        lo, hi = array.span(k)
        a, b = max(lo, start), min(hi, stop)
        out[a - start : b - start] = chunk[a - lo : b - lo]
    return out
