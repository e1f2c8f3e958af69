"""Chunks read by compiled code that holds no lock (:mod:`trajkit.kernels.cpu.read`).

It calls C functions of the system and of the libraries behind :mod:`trajkit.store.codecs`; here they are
looked up, where those libraries show them. Where they do not, and for codecs that have no such
function, nothing is read here, and :mod:`trajkit.store.array` reads every chunk through Python: the
same bytes, a little later.
"""

import ctypes
import functools
import sys

import google_crc32c
import numpy as np
from numcodecs import blosc

from trajkit.arrays import Array
from trajkit.kernels import api as kernels
from trajkit.parallel import Scratch
from trajkit.store.codecs import BloscCodec, Codec, PlainCodec

_scratch = Scratch()


@functools.cache
def find_calls() -> kernels.Calls | None:
    """The addresses of the C functions; None where one of them cannot be found."""
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
    return kernels.Calls(*(ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions))


def read_rows(codec: Codec, fds: list[int], places_T2: Array, out_TN: Array) -> int:
    """Fill rows with one chunk each; how many, up to the first that is not as it should be.

    Args:
        codec: of all of them.
        fds: descriptors of the files, [T].
        places_T2: (offset, bytes) in their files, integers [T, 2].
        out_TN: contiguous [T, C] of the array's dtype.

    Notes:
        Scratch, kept by the thread: one row and one coded chunk.
    """
    calls = find_calls()
    if calls is None or out_TN.size == 0:
        return 0
    scratch = None
    if isinstance(codec, BloscCodec):
        row_bytes = out_TN[0].nbytes
        longest = min(max(int(places_T2[:, 1].max()), 0), 2 * row_bytes + 1024)
        coded = _scratch.array("coded", longest, np.dtype("uint8"))
        scratch = coded, _scratch.array("planes", out_TN.shape[1:], out_TN.dtype)
    elif not isinstance(codec, PlainCodec):
        return 0
    return kernels.read_rows(calls, np.array(fds, np.int64), places_T2, scratch, out_TN)
