"""Chunks read by compiled code that holds no lock (:mod:`trajkit.kernels.cpu.read`).

It calls C functions of the system and of the libraries behind :mod:`trajkit.store.codecs`; here they
are looked up, where those libraries show them, and called once on what is known. Where a library
hides its function, where one does something else than is known of it, and for codecs that have no
such function, nothing is read here, and :mod:`trajkit.store.array` reads every chunk through Python:
the same bytes, a little later.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc

from trajkit.arrays import Array
from trajkit.parallel import Scratch
from trajkit.store.codecs import BloscCodec, Codec, PlainCodec, SparseCodec

if TYPE_CHECKING:
    from trajkit.kernels.cpu.read import RowReader

_scratch = Scratch()


_KNOWN = (b"123456789", 0xE3069283)
"""the check value of crc32c (RFC 3720 and everybody since)"""
_CODED = bytes.fromhex(
    "020120010001000000010000e300000014000000cb000000ffb1000102030405060708090a0b0c0d"
    "0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435"
    "363738393a3b3c3d3e3f000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d"
    "1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f000102030405"
    "060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d"
    "2e2f303132333435363738393a3b3c3d3e3fc00028503b3c3d3e3f"
)
"""the bytes 0 to 63 four times over, as blosc compressed them with lz4"""


class Functions(NamedTuple):
    """The C functions, as ctypes has them."""

    pread: Any
    crc32c: Any
    blosc_decompress: Any
    file: str
    """a file that pread is tried on"""


@functools.cache
def find_reader() -> "RowReader | None":
    """The compiled reader; None where one of the C functions is missing, or is not what it was."""
    functions = look_up_functions()
    if functions is None or not all(prove(functions)):
        return None
    from trajkit.kernels.cpu.read import RowReader

    addresses = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions[:3])
    return RowReader(*addresses)


def look_up_functions() -> Functions | None:
    """The C functions of the system, of google-crc32c and of numcodecs; None where one is hidden."""
    if google_crc32c.implementation != "c" or sys.byteorder != "little" or sys.maxsize < 2**32:
        return None
    from google_crc32c import _crc32c

    try:
        system, crc, decompress = (
            ctypes.CDLL(path) for path in (None, _crc32c.__file__, blosc.__file__)
        )
        functions = (system.pread, crc.crc32c_value, decompress.blosc_decompress_ctx)
    except (OSError, AttributeError, TypeError):
        return None
    return Functions(*functions, _crc32c.__file__)


def prove(functions: Functions) -> tuple[bool, bool, bool]:
    """Whether pread, crc32c and blosc each do on something known what they are called for."""
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    pread = _typed(functions.pread, ctypes.c_ssize_t, ctypes.c_int, pointer, size, ctypes.c_int64)
    out = ctypes.create_string_buffer(256)
    fd = os.open(functions.file, os.O_RDONLY)
    try:
        n_bytes = pread(fd, out, 64, 32)
        reads = n_bytes == 64 and out.raw[:64] == os.pread(fd, 64, 32)
    finally:
        os.close(fd)
    crc32c = _typed(functions.crc32c, ctypes.c_uint32, pointer, size)
    checks = crc32c(_KNOWN[0], len(_KNOWN[0])) == _KNOWN[1]
    decompress = _typed(
        functions.blosc_decompress, ctypes.c_int, pointer, pointer, size, ctypes.c_int
    )
    n_bytes = decompress(_CODED, out, 256, 1)
    return reads, checks, n_bytes == 256 and out.raw == bytes(range(64)) * 4


def _typed(function: Any, result: Any, *arguments: Any) -> Any:
    """The C function with its types, whatever ctypes holds of it elsewhere."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def read_rows(codec: Codec, fds: Sequence[int | None], places_T2: Array, out_TN: Array) -> int:
    """Fill rows with one chunk each; how many, up to the first that is not as it should be.

    Args:
        codec: of all of them.
        fds: descriptors of the files, [T]; where one has none, nothing is read here.
        places_T2: (offset, bytes) in their files, integers [T, 2].
        out_TN: contiguous [T, C] of the array's dtype.

    Notes:
        Scratch, kept by the thread: one row and one coded chunk.
    """
    reader = find_reader()
    if reader is None or out_TN.size == 0 or None in fds:
        return 0
    scratch = None
    if isinstance(codec, BloscCodec):
        row_bytes = out_TN[0].nbytes
        longest = min(max(int(places_T2[:, 1].max()), 0), 2 * row_bytes + 1024)
        coded = _scratch.array("coded", longest, np.dtype("uint8"))
        scratch = coded, _scratch.array("planes", out_TN.shape[1:], out_TN.dtype)
    elif isinstance(codec, SparseCodec):
        return _read_sparse(reader, np.array(fds, np.int64), places_T2, out_TN)
    elif not isinstance(codec, PlainCodec):
        return 0
    return reader.read(np.array(fds, np.int64), places_T2, scratch, out_TN)


def _read_sparse(reader: "RowReader", fds_T: Array, places_T2: Array, out_TN: Array) -> int:
    """As :func:`read_rows`, of chunks of the sparse codec."""
    from trajkit.kernels.cpu.read_sparse import read_rows as read

    width, dtype = out_TN.shape[1], out_TN.dtype
    coded = _scratch.array("coded", longest_sparse(places_T2, out_TN[0].nbytes), np.dtype("uint8"))
    scratch = (
        coded,
        _scratch.array("planes", width, dtype),
        _scratch.array("places", width, np.dtype("int32")),
        _scratch.array("codes", width, dtype),
    )
    return read(reader, fds_T, places_T2, scratch, out_TN)


def longest_sparse(places_T2: Array, row_bytes: int) -> int:
    """Bytes for the longest of some chunks, and some that may be read beyond its end.

    A place that claims more than any chunk can have is left to the ordinary way, which refuses it.
    """
    return min(max(int(places_T2[:, 1].max()), 0), 2 * row_bytes + 1024) + 64


def read_event_rows(
    codec: Codec,
    fds: Sequence[int | None],
    places_T2: Array,
    events: tuple[Array, Array, Array],
    width: int,
) -> int:
    """Add the changes of one chunk a row to events; how many rows, up to one that is another thing.

    Args:
        codec: of all of them; only the sparse one's chunks are read.
        fds: descriptors of the files, [T].
        places_T2: (offset, bytes) in their files, integers [T, 2].
        events: places, codes and starts, as :class:`trajkit.kernels.events.Events` has them.
        width: elements a chunk.
    """
    reader = find_reader()
    if reader is None or not isinstance(codec, SparseCodec) or None in fds or not len(fds):
        return 0
    from trajkit.kernels.cpu.read_sparse import read_events

    longest = longest_sparse(places_T2, width * events[1].itemsize)
    coded = _scratch.array("coded", longest, np.dtype("uint8"))
    return read_events(reader, np.array(fds, np.int64), places_T2, coded, events, width)
