"""Compiled building blocks of the CPU kernels: reinterpreting bits, and the formats' values.

Everything compiled works on *tiles*: TILE elements held in flat scratch arrays, one row of TILE a
quantity, small enough for the first-level cache. One base pointer and constant row offsets let
LLVM prove that rows do not overlap, so every loop over a tile becomes vector code.

The bits of every format lie at the top of the word (uint32, or uint64 for float64), zeros below.
A float32 and a bfloat16 are then their own float32, and the wrapping arithmetic of delta frames
needs no mask.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from trajkit.kernels.formats import Format

TILE = 256

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on first use, for each combination of types; keep the code between processes."""
    options = {"nogil": True, "cache": True, "error_model": "numpy"}
    return cast(Function, numba.njit(**options)(function))


def compiled_fused(function: Function) -> Function:
    """As :func:`compiled`, but a * b + c may be rounded once: for sums, not for extrapolation."""
    options = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}
    return cast(Function, numba.njit(**options)(function))


class Layout(NamedTuple):
    """What compiled code must know of a format."""

    shift: int
    """from the format's width to the word's"""
    direct: bool
    """the word is the value's own bit pattern"""
    down: int
    """otherwise: moves the exponent field to float32's place"""
    rebias: int
    """the difference of the exponent biases, in float32's place"""
    special: int
    """Inf and NaN from here on, in float32's place, before rebiasing"""
    mantissa: int
    """stored bits of the significand"""
    e_min: int
    """exponent of the smallest normal number"""
    max_finite: int
    """bit pattern of the largest finite number"""
    sign: int
    """position of the sign bit"""


def layout_of(form: Format) -> Layout:
    """The layout of a format."""
    word = 64 if form.width == 64 else 32
    down = 23 - (form.mantissa + word - form.width)  # negative: to the right
    rebias = (127 - form.bias) << 23
    field_all_ones = ((1 << (form.width - 1 - form.mantissa)) - 1) << 23
    special = field_all_ones | (7 << 20 if form.name == "float8_e4m3fn" else 0)
    direct = form.name in ("bfloat16", "float32", "float64")
    return Layout(
        word - form.width,
        direct,
        0 if direct else -down,
        0 if direct else rebias,
        0 if direct else special,
        form.mantissa,
        form.e_min,
        form.max_finite,
        form.width - 1,
    )


def word_of(form: Format) -> np.dtype[np.unsignedinteger[Any]]:
    """The word that holds a format's bits at its top."""
    return np.dtype(np.uint64 if form.width == 64 else np.uint32)


class _Whole:
    """A piece of memory as one array; keeps what owns it alive."""

    def __init__(self, array: NDArray[Any], size: int) -> None:
        self.owner = array
        self.__array_interface__ = {
            "data": (array.__array_interface__["data"][0], False),
            "shape": (size,),
            "typestr": array.dtype.str,
            "version": 3,
        }


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """The memory of an array [N] or [T, N] of unit stride as one writable array.

    Compiled code is specialised by layout and writability; this way one specialisation serves
    whole arrays, slices of wider rows, and read-only maps (which it does not write to).
    """
    if array.size == 0:
        return np.empty(0, dtype=array.dtype)
    rows = array.shape[0] - 1 if array.ndim == 2 else 0
    width = array.shape[-1]
    if (width > 1 and array.strides[-1] != array.itemsize) or (
        rows and array.strides[0] % array.itemsize
    ):
        array = np.ascontiguousarray(array)
    stride = array.strides[0] // array.itemsize if rows else 0
    return np.asarray(_Whole(array, rows * stride + width))


@intrinsic  # type: ignore[untyped-decorator]
def as_float(typingctx: Any, word: Any) -> Any:
    """The floating-point number with the bits of a word."""
    result = types.float64 if word == types.uint64 else types.float32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return result(word), codegen


@intrinsic  # type: ignore[untyped-decorator]
def as_word(typingctx: Any, value: Any) -> Any:
    """The bits of a floating-point number as a word."""
    result = types.uint64 if value == types.float64 else types.uint32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return result(value), codegen


@compiled
def value_of(word: Any, layout: Layout) -> Any:
    """The number a word stands for.

    float16 and both float8: move the exponent field to float32's place and add the difference of
    the biases (twice for Inf and NaN, which brings the field to 255); subnormals get the field of
    the smallest normal number, which is then subtracted.
    """
    if layout.direct:
        return as_float(word)
    u = np.uint32(word)
    size = np.uint32(u & np.uint32(0x7FFFFFFF)) >> np.uint32(layout.down)
    rebias = np.uint32(layout.rebias)
    moved = np.uint32(size + rebias)
    if size >= np.uint32(layout.special):
        moved = np.uint32(moved + rebias)
    smallest = np.uint32(rebias + np.uint32(0x00800000))
    if size < np.uint32(0x00800000):
        number = as_float(np.uint32(moved + np.uint32(0x00800000))) - as_float(smallest)
    else:
        number = as_float(moved)
    return as_float(np.uint32(as_word(number) | (u & np.uint32(0x80000000))))
