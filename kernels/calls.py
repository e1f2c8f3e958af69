"""The C functions that compiled code reads chunks with; see :mod:`trajkit.kernels.cpu.read`."""

from typing import NamedTuple


class Calls(NamedTuple):
    """Their addresses in this process."""

    pread: int
    """POSIX pread, with offsets of 64 bits"""
    crc32c: int
    """crc32c_value of google-crc32c"""
    blosc_decompress: int
    """blosc_decompress_ctx of c-blosc 1"""
