"""Many chunks of one array, read in one call that holds no lock."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock

import numpy as np

from trajkit.arrays import Array
from trajkit.remote.source import ByteSource
from trajkit.store.array import ZArray, refusals
from trajkit.store.native import read_event_rows, read_rows

KEPT_OPEN = 256
"""shard files a reader keeps open at most: a process may open 1,024 files, mostly"""


class ChunkReader:
    """Reads many chunks of one array in one call that holds no lock.

    Keeps up to ``kept_open`` shard files open, for all threads together, and opens up to ``at_once``
    besides for each thread that reads; use it in a ``with`` block. Safe to call from many threads at
    once.
    """

    def __init__(self, array: ZArray, kept_open: int = KEPT_OPEN, at_once: int = KEPT_OPEN) -> None:
        self.array = array
        self.kept_open = kept_open
        self.at_once = at_once
        self._open: dict[tuple[int, int], ByteSource] = {}
        self._lock = Lock()

    def __enter__(self) -> "ChunkReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a read opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def read_rows(self, rows: range, k: int, out_TN: Array) -> None:
        """Fill ``out_TN`` [T, C], contiguous, with chunk ``k`` of T rows.

        Raises as :meth:`ZArray.read_chunk`.
        """
        self._read([(row, k) for row in rows], out_TN)

    def read_chunks(self, chunks: range, out: Array) -> None:
        """Fill ``out`` [chunks * C], contiguous, with chunks of the first row; raises likewise."""
        self._read([(0, k) for k in chunks], out.reshape(len(chunks), -1))

    def _read(self, cells: Sequence[tuple[int, int]], out_TN: Array) -> None:
        """Fill a row of ``out_TN`` for each (row, chunk)."""
        for start in range(0, len(cells), self.at_once):
            some = slice(start, start + self.at_once)
            self._read_together(cells[some], out_TN[some])

    def _read_together(self, cells: Sequence[tuple[int, int]], out_TN: Array) -> None:
        """Fill rows from files that are open at the same time."""
        array = self.array
        with self._opened(cells) as (fds, places_T2):
            done = 0
            while done < len(cells):
                done += read_rows(array.codec, fds[done:], places_T2[done:], out_TN[done:])
                if done < len(cells):  # it says what is wrong, if anything is
                    array.read_chunk(*cells[done], out_TN[done])
                    done += 1

    def read_events(self, rows: range, k: int, places: Array, codes: Array, starts: Array) -> int:
        """Add the changes of chunk ``k`` of rows to events, up to a row that is not sparse.

        Args:
            rows: which.
            k: the chunk.
            places: int32, written from ``starts[0]`` on.
            codes: unsigned, likewise.
            starts: int64 [rows + 1], written from the second on.

        Returns:
            How many rows: fewer where one is not sparse, is damaged or has more changes than there is
            room for.

        Raises:
            FormatError: a file or its index is missing or damaged.
        """
        for begin in range(0, len(rows), self.at_once):
            some = rows[begin : begin + self.at_once]
            with self._opened([(row, k) for row in some]) as (fds, places_T2):
                events = places, codes, starts[begin : begin + len(some) + 1]
                done = read_event_rows(self.array.codec, fds, places_T2, events, self.array.chunk)
            if done < len(some):
                return begin + done
        return len(rows)

    @contextmanager
    def _opened(self, cells: Sequence[tuple[int, int]]) -> Iterator[tuple[list[int | None], Array]]:
        """Descriptors of the files of (row, chunk) pairs, and the chunks' places in them."""
        array = self.array
        places_T2 = np.empty((len(cells), 2), np.int64)
        sources: list[ByteSource] = []
        with ExitStack() as stack:
            for t, (row, k) in enumerate(cells):
                s, inner = divmod(k, array.shard_chunks)
                sources.append(self._source(row, s, stack))
                path = array._shard_path(row, s)
                places_T2[t] = array._index(sources[t], path, row, s)[inner].view(np.int64)
            yield [source.fd for source in sources], places_T2

    def _source(self, row: int, s: int, stack: ExitStack) -> ByteSource:
        """A shard file: kept open, or until the stack is left."""
        path = self.array._shard_path(row, s)
        with self._lock:
            source = self._open.get((row, s))
            if source is None and len(self._open) < self.kept_open:
                with refusals(path):
                    source = self._open[row, s] = self.array.open_source(path)
        return stack.enter_context(self.array.reading(path)) if source is None else source
