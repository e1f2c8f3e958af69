"""The compiled way from sparse chunks on disk to rows of codes; see :mod:`trajkit.kernels.cpu.read`.

    shard file  --pread-->  coded [bytes]   crc32c of the body, compared with its last 4 bytes
    coded       --fill-->   row of out_TN   zeros, and a code where an element changed

A chunk that begins with a zero goes blosc's way. What does not fit ends the call at that row. Or no row
is written at all, and changes are added to events, for as long as chunks are sparse and there is room.

Axis letters: T rows, E events.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajkit.kernels.cpu.bits import flat
from trajkit.kernels.cpu.compile import compiled
from trajkit.kernels.cpu.read import CRC_BYTES, Calls, RowReader, expand_blosc, read_checked
from trajkit.kernels.cpu.sparse import PAD_BYTES, append_changes, count_changes, fill, read_changes
from trajkit.kernels.sparse import SPARSE


@compiled
def _read_rows(
    calls: Calls, fds_T: Any, offsets_T: Any, sizes_T: Any, coded: Any, planes: Any, places: Any,
    codes: Any, out: Any, width: int,
) -> int:  # fmt: skip
    """Fill rows of ``width`` elements, end to end in ``out``; how many, up to the first failure."""
    for t in range(len(fds_T)):
        row = out[t * width : (t + 1) * width]
        n_body = sizes_T[t] - CRC_BYTES
        if sizes_T[t] + PAD_BYTES > len(coded):
            return t
        if not read_checked(calls, fds_T[t], offsets_T[t], sizes_T[t], coded):
            return t
        if coded[0] == SPARSE:
            if not fill(coded, n_body, places, codes, row):
                return t
        elif coded[0] != 0 or not expand_blosc(calls, coded[1:], n_body - 1, planes, row):
            return t
    return len(fds_T)


def read_rows(
    reader: RowReader,
    fds_T: NDArray[np.int64],
    places_T2: NDArray[Any],
    scratch: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
    out_TN: NDArray[Any],
) -> int:
    """Fill rows, up to the first that is not as it should be; how many.

    Args:
        reader: has the C functions.
        fds_T: descriptors open for reading, int64 [T].
        places_T2: offset and bytes of each chunk, integers [T, 2].
        scratch: uint8, PAD_BYTES longer than the longest chunk (a longer one is not read); a row like
            ``out_TN``'s; an int32 and a code an element.
        out_TN: unsigned [T, N], contiguous, written.
    """
    width = out_TN.shape[1]
    offsets_T, sizes_T = (np.ascontiguousarray(places_T2[:, i], np.int64) for i in (0, 1))
    files = flat(fds_T), flat(offsets_T), flat(sizes_T)
    out = flat(out_TN.reshape(-1))
    return int(_read_rows(reader.calls, *files, *map(flat, scratch), out, width))


@compiled
def _read_events(
    calls: Calls, fds_T: Any, offsets_T: Any, sizes_T: Any, coded: Any, places: Any, codes: Any,
    starts: Any, width: int,
) -> int:  # fmt: skip
    """Add the changes of rows to events; how many rows, up to the first that is another thing."""
    for t in range(len(fds_T)):
        at, n_body = starts[t], sizes_T[t] - CRC_BYTES
        if sizes_T[t] + PAD_BYTES > len(coded):
            return t
        if not read_checked(calls, fds_T[t], offsets_T[t], sizes_T[t], coded):
            return t
        n = count_changes(coded, n_body, np.int64(width), np.int64(codes.itemsize))
        if n < 0 or at + n > len(places):
            return t
        if not read_changes(
            coded, n_body, np.int64(width), places[at : at + n], codes[at : at + n]
        ):
            return t
        starts[t + 1] = at + n
    return len(fds_T)


def read_events(
    reader: RowReader,
    fds_T: NDArray[np.int64],
    places_T2: NDArray[Any],
    coded: NDArray[np.uint8],
    events: tuple[NDArray[np.int32], NDArray[Any], NDArray[np.int64]],
    width: int,
) -> int:
    """Add the changes of rows to events, up to the first that is not sparse or has no room.

    Args:
        reader: has the C functions.
        fds_T: descriptors open for reading, int64 [T].
        places_T2: offset and bytes of each chunk, integers [T, 2].
        coded: scratch, PAD_BYTES longer than the longest chunk (a longer one is not read).
        events: places and codes, written from ``starts[0]`` on; starts [T + 1], written from the second.
        width: elements of a row.
    """
    places, codes, starts = events
    offsets_T, sizes_T = (np.ascontiguousarray(places_T2[:, i], np.int64) for i in (0, 1))
    files = flat(fds_T), flat(offsets_T), flat(sizes_T)
    arrays = flat(coded), flat(places), flat(codes), flat(starts)
    return int(_read_events(reader.calls, *files, *arrays, width))


def append_row(row: NDArray[Any], places: NDArray[np.int32], codes: NDArray[Any], at: int) -> int:
    """Add the changes of a row of codes to events, from ``at`` on; the end, or -1 without room."""
    return int(append_changes(flat(row), flat(places), flat(codes), at))
