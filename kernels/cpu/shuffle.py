"""The compiled way from bit planes back to codes; reference.py says what bit planes are.

A vector of 512 bits holds as many codes as fit, and plane p is 1 << p in the lanes whose bit is
set: with a mask register that is one instruction a plane. Of a delta frame the high planes are
nearly all zeros; where they are zeros all through a tile, half of the planes or three quarters are
passed over.

The intrinsic writes LLVM's intermediate code itself, since nothing that numba compiles comes out
as "spread the bits of a word over the lanes of a vector".
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from trajkit.kernels.cpu.bits import TILE, memory_of, wide_vectors
from trajkit.kernels.cpu.compile import compiled
from trajkit.kernels.formats import has_whole_blocks

_VECTOR_BITS = 512
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_PART = ir.VectorType(_I64, TILE // 64)
"""a tile's bits of one plane"""


@intrinsic  # type: ignore[untyped-decorator]
def _spread_tile(
    typingctx: Any, planes: Any, at_bytes: Any, plane_bytes: Any, out: Any, at: Any
) -> Any:
    """Write the codes of a tile to ``out[at : at + TILE]``; its plane 0 begins at ``at_bytes``.

    The planes' parts are brought together first: where planes lie a power of two apart they fall
    into one set of the first-level cache, which does not hold all of them.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width = signature.args[0].dtype.bitwidth
        half, quarter = width // 2, width // 4
        base = builder.gep(memory_of(context, builder, signature.args[0], args[0]), [args[1]])
        begin = builder.mul(args[4], _I64(width // 8))
        target = builder.gep(memory_of(context, builder, signature.args[3], args[3]), [begin])
        here = cgutils.alloca_once(builder, _PART, size=width)
        high = middle = ir.Constant(_PART, [0] * (TILE // 64))
        for plane in range(width):
            place = builder.gep(base, [builder.mul(args[2], _I64(plane))])
            part = _load(builder, place, _PART)
            builder.store(part, builder.gep(here, [_I64(plane)]))
            if plane >= half:
                high = builder.or_(high, part)
            elif plane >= quarter:
                middle = builder.or_(middle, part)
        # LLVM would take the words from the vectors just stored, one by one
        parts = builder.inttoptr(_hidden(builder, builder.ptrtoint(here, _I64)), _I8.as_pointer())
        with builder.if_else(_is_any(builder, high)) as (all_of_them, fewer):
            with all_of_them:
                _spread(builder, parts, width, target, width)
            with fewer, builder.if_else(_is_any(builder, middle)) as (a_half, a_quarter):
                with a_half:
                    _spread(builder, parts, half, target, width)
                with a_quarter:
                    _spread(builder, parts, quarter, target, width)
        return context.get_dummy_value()

    return types.void(planes, types.int64, types.int64, out, types.int64), codegen


def _spread(builder: Any, parts: Any, planes: int, target: Any, width: int) -> None:
    """Write TILE words whose bits are in the first so many parts; all other bits are zero."""
    lanes = _VECTOR_BITS // width
    kind, word = ir.IntType(width), ir.IntType(lanes)
    vector, mask = ir.VectorType(kind, lanes), ir.VectorType(ir.IntType(1), lanes)
    one = _hidden(builder, kind(1))
    amounts = [_splat(builder, builder.shl(one, kind(plane)), lanes) for plane in range(planes)]
    with cgutils.for_range(builder, _I64(TILE // lanes)) as loop:
        mine = builder.gep(parts, [builder.mul(loop.index, _I64(lanes // 8))])
        codes = ir.Constant(vector, [0] * lanes)
        for plane in range(planes):
            bits = _load(builder, builder.gep(mine, [_I64(plane * TILE // 8)]), word)
            more = builder.add(codes, amounts[plane])
            codes = builder.select(builder.bitcast(bits, mask), more, codes)
        place = builder.gep(target, [builder.mul(loop.index, _I64(_VECTOR_BITS // 8))])
        store = builder.store(codes, builder.bitcast(place, vector.as_pointer()))
        store.align = width // 8


def _hidden(builder: Any, value: Any) -> Any:
    """The value, out of an empty piece of assembly: LLVM cannot tell what it is.

    Told that planes are disjoint LLVM joins them by OR, for which there is no masked instruction
    of 16 bits: it takes two, and twice the time.
    """
    kind = ir.FunctionType(value.type, [value.type])
    return builder.asm(kind, "", "=r,0", [value], False)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one value."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, value, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, nothing, zeros)


def _is_any(builder: Any, part: Any) -> Any:
    """Whether a bit is set."""
    whole = ir.IntType(TILE)
    return builder.icmp_unsigned("!=", builder.bitcast(part, whole), whole(0))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    """A value of an LLVM type from any address."""
    value = builder.load(builder.bitcast(address, kind.as_pointer()))
    value.align = 1
    return value


can_unshuffle = compiled(has_whole_blocks)


@compiled
def unshuffle(planes: Any, block: int, out: Any) -> None:
    """Codes from bit planes, where :func:`has_whole_blocks` says that it can be done."""
    wide_vectors()
    for start in range(0, len(out), block):
        for i in range(0, block, TILE):
            at_bytes = start * out.itemsize + i // 8
            _spread_tile(planes, at_bytes, block // 8, out, start + i)
