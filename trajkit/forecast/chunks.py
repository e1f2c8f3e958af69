"""A few chunks of the emitter's work: read the fit, evaluate every target, write the bits."""

from collections.abc import Mapping, Sequence
from threading import local
from typing import Any, Self

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.folder import FolderWriter
from trajkit.checkpoints.layout import FlatVector
from trajkit.fits.devices import Arithmetic, open_arithmetic
from trajkit.fits.estimators import Counts, Estimator
from trajkit.fits.kept import Fit
from trajkit.parallel import Plan, Scratch, count_workers, plan_batch
from trajkit.store.chunks import ChunkReader
from trajkit.store.store import Store

_GLANCE = 256
"""elements that mostly tell whether any of a chunk may move"""
GROUP_CHUNKS = 4
"""chunks evaluated together: a worker gives Python's lock away at each call, and waits for it"""


def plan_chunks(vectors: Mapping[str, FlatVector], budget: int) -> tuple[Plan, int]:
    """Workers, and chunks that each evaluates together: fewer chunks first, then fewer workers.

    Raises:
        OverBudget: one worker with one chunk does not fit.
    """
    # arrays decoded, coded bytes on their way, and the bits
    one = max((v.chunk * (28 + 5 * v.dtype.itemsize) for v in vectors.values()), default=0)
    workers = count_workers()
    return plan_batch("extrapolate", workers, GROUP_CHUNKS, 1, lambda n: n * one, budget)


class ChunkJob:
    """What is evaluated, a few chunks at a time; safe to call from many threads at once.

    Keeps the fit's files open; use it in a ``with`` block.

    ``rules`` has a rule for every tensor; ``first`` and ``last`` are the frames of the estimator's
    two points, ``device`` is ``cpu`` or ``cuda``, ``group`` is how many chunks go together.
    """

    def __init__(
        self,
        store: Store,
        fit: Fit | None,
        estimator: Estimator,
        rules: Mapping[str, str],
        first: int,
        last: int,
        device: str,
        group: int,
    ) -> None:
        self.store = store
        self.fit = fit
        self.estimator = estimator
        self.rules = rules
        self.first = first
        self.last = last
        self.device = device
        self.group = group
        self._fit_has_last = fit is not None and fit.record.steps[-1] == store.steps[last]
        self._of_thread = local()
        self._scratch = Scratch()
        arrays = {} if fit is None else fit.arrays
        self._fit_readers = {
            dtype: {name: ChunkReader(array) for name, array in of_dtype.items()}
            for dtype, of_dtype in arrays.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files that are open."""
        for readers in self._fit_readers.values():
            for reader in readers.values():
                reader.close()

    def groups(self, vector: FlatVector) -> list[range]:
        """A vector's chunks, as many together as one call of :meth:`run` takes."""
        starts = range(0, vector.n_chunks, self.group)
        return [range(k, min(k + self.group, vector.n_chunks)) for k in starts]

    def run(
        self,
        vector: FlatVector,
        chunks: range,
        steps: Sequence[int],
        writers: Sequence[FolderWriter],
    ) -> tuple[list[Counts], int]:
        """Evaluate some chunks at every target step and write them.

        Returns:
            Counts a target, and the bytes written.
        """
        dtype = vector.dtype.name
        start, stop = vector.chunk_span(chunks[0])[0], vector.chunk_span(chunks[-1])[1]
        pieces = self._pieces(vector, start, stop)
        moving = any(rule == "extrapolate" for _, _, rule in pieces)
        fit: dict[str, Array] = {}
        if moving and self.fit is not None:
            fit, moving = self._read_fit(dtype, chunks, stop - start)
        if not moving:
            pieces = [(a, b, "hold" if rule == "extrapolate" else rule) for a, b, rule in pieces]
        first, last = self._read_points(vector, chunks, stop - start, fit, moving)
        out = self._buffer("out", vector.chunk, vector.dtype.bits)[: stop - start]
        counts = []
        for step, writer in zip(steps, writers, strict=True):
            total = Counts()
            for begin, end, rule in pieces:
                piece = slice(begin, end)
                if rule != "extrapolate":
                    out[piece] = last[piece]
                    n = end - begin
                    total += Counts(held=n, copied=n if rule == "copy" else 0)
                    continue
                total += self.estimator.evaluate(
                    dtype,
                    step,
                    {name: array[piece] for name, array in fit.items()},
                    first[piece],
                    last[piece],
                    start + begin,
                    out[piece],
                    self._arithmetic(dtype),
                )
            writer.write(dtype, start, out)
            counts.append(total)
        return counts, last.nbytes * len(steps)

    def _read_fit(self, dtype: str, chunks: range, n: int) -> tuple[dict[str, Array], bool]:
        """The fit's arrays that the estimator reads, [N] each, and whether any element may move.

        Where none may, only those are read that say so and what is held.
        """
        values: dict[str, Array] = {}
        moving = True
        for name in self.estimator.reads:
            if not moving and name != "last":
                continue
            values[name] = self._read_array(dtype, name, chunks)[:n]
            if name == "flags":
                moving = _may_move(values[name], np.uint8(self.estimator.held_flags))
        return values, moving

    def _read_array(self, dtype: str, name: str, chunks: range) -> Array:
        """One of the fit's arrays, in the thread's own scratch."""
        reader = self._fit_readers[dtype][name]
        out = self._buffer(name, reader.array.chunk, reader.array.dtype)
        out = out[: len(chunks) * reader.array.chunk]
        assert self.fit is not None
        with self.fit.reading():
            reader.read_chunks(chunks, out)
        return out

    def _arithmetic(self, dtype: str) -> Arithmetic:
        """The calling thread's own, opened on its first chunk of the dtype."""
        opened: dict[str, Arithmetic] = vars(self._of_thread).setdefault("arithmetic", {})
        if dtype not in opened:
            opened[dtype] = open_arithmetic(self.device, dtype)
        return opened[dtype]

    def _buffer(self, name: str, chunk: int, dtype: np.dtype[Any]) -> Array:
        """The calling thread's own scratch for a group of chunks, kept: new memory costs faults."""
        return self._scratch.array(name, self.group * chunk, dtype)

    def _read_points(
        self, vector: FlatVector, chunks: range, n: int, fit: dict[str, Array], moving: bool
    ) -> tuple[Array, Array]:
        """The bits of the checkpoints a and b; the same array twice where a is not needed."""
        dtype = vector.dtype.name
        if "last" in fit:
            return fit["last"], fit["last"]
        if self._fit_has_last and dtype in self._fit_readers:
            last = self._read_array(dtype, "last", chunks)  # no frames to go through
        else:
            last = self._read_frame(vector, "last", self.last, chunks)
        if not (moving and self.estimator.is_pair):
            return last[:n], last[:n]
        return self._read_frame(vector, "first", self.first, chunks)[:n], last[:n]

    def _read_frame(self, vector: FlatVector, name: str, t: int, chunks: range) -> Array:
        """The bits of a checkpoint, in the thread's own scratch."""
        out = self._buffer(name, vector.chunk, vector.dtype.bits)
        scratch = self._buffer("scratch", vector.chunk, vector.dtype.bits)[: vector.chunk]
        for i, k in enumerate(chunks):
            bits = out[i * vector.chunk : (i + 1) * vector.chunk]
            self.store.read_bits(vector.dtype.name, t, k, bits, scratch)
        return out

    def _pieces(self, vector: FlatVector, start: int, stop: int) -> list[tuple[int, int, str]]:
        """Runs of elements under one rule: (from, to, rule), counted from the chunk's start."""
        pieces: list[tuple[int, int, str]] = []
        for span in vector.spans(start, stop):
            rule = self.rules[span.tensor.name]
            end = span.at + span.stop - span.start
            if pieces and pieces[-1][2] == rule:
                pieces[-1] = (pieces[-1][0], end, rule)
            else:
                pieces.append((span.at, end, rule))
        return pieces


def _may_move(flags: Array, held: np.uint8) -> bool:
    """Whether the gate is open for any element; if it is not, the last bits are all there is."""
    return any(((some & held) == 0).any() for some in (flags[:_GLANCE], flags[_GLANCE:]))
