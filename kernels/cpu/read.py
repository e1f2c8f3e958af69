"""The compiled way from chunks on disk to rows of codes, without Python in between.

Two threads that decompress small chunks spend a fifth of their time on Python's lock: every system
call gives it away, and has to win it back. So a worker reads all frames of a chunk in one call,
which holds no lock. What is called are the C functions of the system and of the libraries that
Python code calls as well: ``pread``, ``crc32c_value`` (google-crc32c) and ``blosc_decompress_ctx``
(c-blosc 1); their addresses are handed in, and nothing is computed here that they compute.

The way of one chunk, of bf16 from zstd or lz4 say; each step is one pass over 512 KiB or less:

    shard file  --pread-->  coded [bytes]          crc32c of the body, compared with its last 4 bytes
    coded       --blosc_decompress_ctx-->  planes  told by its header that nothing was shuffled
    planes      --unshuffle-->  row of out_TN      bits of 16 planes to codes, 32 at a time

A chunk that blosc did not shuffle by bits, or in blocks that are no multiple of 256 elements, is
decompressed straight into its row. A chunk of plain bytes goes from the file into its row, and its
crc32c into 4 bytes beside it. `coded` and `planes` are the thread's own and are used for every row,
so that of T rows only out_TN is new memory.

Whatever is not as it should be (a read cut short, a checksum that differs, a header that does not
fit) ends the call at that row; the caller reads it once more in the ordinary way, which knows how
to say what is wrong.

Axis letters: T rows.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from trajkit.kernels.cpu.bits import flat, memory_of
from trajkit.kernels.cpu.compile import compiled
from trajkit.kernels.cpu.shuffle import can_unshuffle, unshuffle

CRC_BYTES = 4
HEADER_BYTES = 16
"""of a blosc chunk: versions, flags, itemsize; then the bytes it holds, a block, and of itself"""
STORED, BITSHUFFLED = np.uint8(2), np.uint8(4)
"""flags in a blosc header: as it was, neither shuffled nor compressed; shuffled by bits"""


class Calls(NamedTuple):
    """Addresses of C functions in this process."""

    pread: int
    """POSIX pread, with offsets of 64 bits"""
    crc32c: int
    """crc32c_value of google-crc32c"""
    blosc_decompress: int
    """blosc_decompress_ctx of c-blosc 1"""


def _call(builder: Any, address: Any, result: Any, arguments: list[tuple[Any, Any]]) -> Any:
    """Call the C function at an address with (LLVM type, value) pairs."""
    kind = ir.FunctionType(result, [t for t, _ in arguments])
    function = builder.inttoptr(address, kind.as_pointer())
    return builder.call(function, [value for _, value in arguments])


_BYTES = ir.IntType(8).as_pointer()
_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def _pread(typingctx: Any, call: Any, fd: Any, out: Any, n_bytes: Any, offset: Any) -> Any:
    """``pread(fd, out, n_bytes, offset)``: bytes read, negative on an error."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = memory_of(context, builder, signature.args[2], args[2])
        arguments = [(_I32, builder.trunc(args[1], _I32)), (_BYTES, start)]
        arguments += [(_I64, args[3]), (_I64, args[4])]
        return _call(builder, args[0], _I64, arguments)

    return types.int64(types.int64, types.int64, out, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _crc32c(typingctx: Any, call: Any, data: Any, n_bytes: Any) -> Any:
    """``crc32c_value(data, n_bytes)``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = memory_of(context, builder, signature.args[1], args[1])
        return _call(builder, args[0], _I32, [(_BYTES, start), (_I64, args[2])])

    return types.uint32(types.int64, data, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _blosc(typingctx: Any, call: Any, data: Any, out: Any, n_bytes: Any) -> Any:
    """``blosc_decompress_ctx(data, out, n_bytes, 1)``: bytes written, negative on an error."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = memory_of(context, builder, signature.args[1], args[1])
        target = memory_of(context, builder, signature.args[2], args[2])
        arguments = [(_BYTES, start), (_BYTES, target), (_I64, args[3]), (_I32, _I32(1))]
        return _call(builder, args[0], _I32, arguments)

    return types.int32(types.int64, data, out, types.int64), codegen


@compiled
def _word(octets: Any, at: int) -> int:
    """The little-endian uint32 at a place."""
    word = np.int64(0)
    for i in range(4):
        word |= np.int64(octets[at + i]) << (8 * i)
    return word


@compiled
def _read_plain(calls: Calls, fd: int, offset: int, n_coded: int, crc: Any, out: Any) -> bool:
    """Fill ``out`` (uint8) with a chunk: its bytes and their crc32c."""
    n_bytes = np.int64(len(out))
    if n_coded != n_bytes + CRC_BYTES or _pread(calls.pread, fd, out, n_bytes, offset) != n_bytes:
        return False
    if _pread(calls.pread, fd, crc, np.int64(CRC_BYTES), offset + n_bytes) != CRC_BYTES:
        return False
    return np.int64(_crc32c(calls.crc32c, out, n_bytes)) == _word(crc, 0)


@compiled
def _read_blosc(
    calls: Calls, fd: int, offset: int, n_coded: int, coded: Any, planes: Any, out: Any
) -> bool:
    """Fill ``out`` with a chunk: blosc's bytes and their crc32c."""
    if not read_checked(calls, fd, offset, n_coded, coded):
        return False
    return expand_blosc(calls, coded, n_coded - CRC_BYTES, planes, out)


@compiled
def read_checked(calls: Calls, fd: int, offset: int, n_coded: int, coded: Any) -> bool:
    """Read a chunk's bytes and their crc32c, and compare."""
    n_body = n_coded - CRC_BYTES
    if n_body < 1 or n_coded > len(coded):
        return False
    if _pread(calls.pread, fd, coded, n_coded, offset) != n_coded:
        return False
    return np.int64(_crc32c(calls.crc32c, coded, n_body)) == _word(coded, n_body)


@compiled
def expand_blosc(calls: Calls, coded: Any, n_body: int, planes: Any, out: Any) -> bool:
    """Fill ``out`` from the first ``n_body`` bytes, which are blosc's."""
    n_bytes, itemsize = np.int64(out.size * out.itemsize), np.int64(out.itemsize)
    if n_body < HEADER_BYTES:
        return False
    if _word(coded, 4) != n_bytes or _word(coded, 12) != n_body:
        return False
    flags, block = coded[2], _word(coded, 8) // itemsize
    in_planes = (flags & (STORED | BITSHUFFLED)) == BITSHUFFLED and coded[3] == itemsize
    if not (in_planes and can_unshuffle(block, out.size)):
        return np.int64(_blosc(calls.blosc_decompress, coded, out, n_bytes)) == n_bytes
    coded[2] = flags ^ BITSHUFFLED
    if np.int64(_blosc(calls.blosc_decompress, coded, planes, n_bytes)) != n_bytes:
        return False
    unshuffle(planes, block, out)
    return True


@compiled
def read_blosc_rows(
    calls: Calls, fds_T: Any, offsets_T: Any, sizes_T: Any, coded: Any, planes: Any, out: Any,
    width: int,
) -> int:  # fmt: skip
    """Fill rows of ``width`` elements, end to end in ``out``; how many, up to the first failure."""
    for t in range(len(fds_T)):
        row = out[t * width : (t + 1) * width]
        if not _read_blosc(calls, fds_T[t], offsets_T[t], sizes_T[t], coded, planes, row):
            return t
    return len(fds_T)


@compiled
def read_plain_rows(
    calls: Calls, fds_T: Any, offsets_T: Any, sizes_T: Any, crc: Any, out: Any, row_bytes: int
) -> int:
    """The same of chunks that are not compressed; ``out`` and ``crc`` (4 bytes) are uint8."""
    for t in range(len(fds_T)):
        row = out[t * row_bytes : (t + 1) * row_bytes]
        if not _read_plain(calls, fds_T[t], offsets_T[t], sizes_T[t], crc, row):
            return t
    return len(fds_T)


class RowReader:
    """Fills rows from one chunk of a file each, its crc32c checked, without holding the GIL.

    Args:
        pread: address of POSIX pread, with offsets of 64 bits.
        crc32c: address of crc32c_value of google-crc32c.
        blosc_decompress: address of blosc_decompress_ctx of c-blosc 1.
    """

    def __init__(self, pread: int, crc32c: int, blosc_decompress: int) -> None:
        self.calls = Calls(pread, crc32c, blosc_decompress)

    def read(
        self,
        fds_T: NDArray[np.int64],
        places_T2: NDArray[Any],
        scratch: tuple[NDArray[Any], NDArray[Any]] | None,
        out_TN: NDArray[Any],
    ) -> int:
        """Fill rows, up to the first that is not as it should be.

        Args:
            fds_T: descriptors open for reading, int64 [T].
            places_T2: offset and bytes of each chunk, integers [T, 2].
            scratch: for chunks that blosc has coded: uint8 as long as the longest chunk (a longer
                one is not read), and one row like ``out_TN``'s; None for chunks of plain bytes.
            out_TN: [T, N], contiguous, written; unsigned where blosc has coded it.

        Returns:
            How many rows were filled (T if all are); those from there on are not to be used.

        Raises:
            ValueError: rows, scratch and places that do not fit together, or read-only rows.
        """
        n_rows, width = out_TN.shape
        if not (out_TN.flags.c_contiguous and out_TN.flags.writeable):
            raise ValueError("rows must lie end to end, and be writable")
        if fds_T.shape != (n_rows,) or places_T2.shape != (n_rows, 2):
            raise ValueError(f"{n_rows} rows from {len(fds_T)} files and {len(places_T2)} places")
        if scratch is not None and (len(scratch[1]) < width or scratch[1].dtype != out_TN.dtype):
            raise ValueError("the second scratch must be like a row")
        offsets_T, sizes_T = (np.ascontiguousarray(places_T2[:, i], np.int64) for i in (0, 1))
        files = flat(fds_T), flat(offsets_T), flat(sizes_T)
        out = flat(out_TN.reshape(-1))
        if scratch is None:
            crc, row_bytes = np.empty(CRC_BYTES, np.uint8), width * out.itemsize
            octets = flat(out.view(np.uint8))
            return int(read_plain_rows(self.calls, *files, crc, octets, row_bytes))
        coded, planes = scratch
        return int(read_blosc_rows(self.calls, *files, flat(coded), flat(planes), out, width))
