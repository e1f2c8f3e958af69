"""Compiled building blocks of the CPU kernels: reinterpreting bits, and the formats' values.

Everything compiled works on *tiles*: TILE elements held in flat scratch arrays, one row of TILE a
quantity, small enough for the first-level cache. One base pointer and constant row offsets let
LLVM prove that rows do not overlap, so every loop over a tile becomes vector code.

Words are the format's own unsigned integers, so that 16-bit codes are decoded and compared 32 at a
time; only a value is made of 32 bits, with the format's bits at their top, where a bfloat16 is its
own float32. No loop shifts by a number that is not a constant: numba computes integers in 64 bits,
and LLVM narrows such loops again only where it knows the shift.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from trajkit.kernels.cpu.compile import compiled
from trajkit.kernels.formats import Format

TILE = 256
CACHE_LINE = 64


class Layout(NamedTuple):
    """What compiled code must know of a format."""

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
    top = max(form.width, 32)
    down = 23 - (form.mantissa + top - form.width)  # negative: to the right
    rebias = (127 - form.bias) << 23
    field_all_ones = ((1 << (form.width - 1 - form.mantissa)) - 1) << 23
    special = field_all_ones | (7 << 20 if form.name == "float8_e4m3fn" else 0)
    direct = form.name in ("bfloat16", "float32", "float64")
    return Layout(
        direct,
        0 if direct else -down,
        0 if direct else rebias,
        0 if direct else special,
        form.mantissa,
        form.e_min,
        form.max_finite,
        form.width - 1,
    )


def scratch_tile(rows: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros for so many rows of a tile, beginning on a cache line: vectors must not straddle two."""
    memory = np.zeros(rows * TILE * dtype.itemsize + CACHE_LINE, dtype=np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + rows * TILE * dtype.itemsize].view(dtype)


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


def memory_of(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """Inside an intrinsic: the address of an array's memory, a pointer to bytes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(data, ir.IntType(8).as_pointer())


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


@intrinsic  # type: ignore[untyped-decorator]
def at_top(typingctx: Any, word: Any) -> Any:
    """The bits of a format of 8 or 16 moved to the top of a word of 32; wider ones as they are."""
    result = word if word.bitwidth >= 32 else types.uint32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0].bitwidth >= 32:
            return args[0]
        wide = builder.zext(args[0], ir.IntType(32))
        return builder.shl(wide, ir.Constant(ir.IntType(32), 32 - signature.args[0].bitwidth))

    return result(word), codegen


@intrinsic  # type: ignore[untyped-decorator]
def wide_vectors(typingctx: Any) -> Any:
    """Let LLVM use vectors of 512 bits in the function that calls this, where there are any."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic  # type: ignore[untyped-decorator]
def prefetch_tile(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache lines of TILE elements from ``array[index]`` on, to be read soon.

    They may lie beyond the array's end.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width = signature.args[0].dtype.bitwidth // 8
        at_bytes = builder.mul(args[1], ir.Constant(ir.IntType(64), width))
        first = builder.gep(memory_of(context, builder, signature.args[0], args[0]), [at_bytes])
        byte_ptr, i32 = first.type, ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_ptr, i32, i32, i32])
        name = "llvm.prefetch.p0i8"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        read, near, data_cache = (ir.Constant(i32, value) for value in (0, 2, 1))
        for at in range(0, TILE * width, CACHE_LINE):
            place = builder.gep(first, [ir.Constant(ir.IntType(64), at)])
            builder.call(function, [place, read, near, data_cache])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@compiled
def value_of(word: Any, layout: Layout) -> Any:
    """The number a word stands for.

    float16 and both float8: move the exponent field to float32's place and add the difference of
    the biases (twice for Inf and NaN, which brings the field to 255); subnormals get the field of
    the smallest normal number, which is then subtracted.
    """
    top = at_top(word)
    if layout.direct:
        return as_float(top)
    u = np.uint32(top)
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
