"""One chunk of the emitter's work: read the fit, evaluate every target, write the bits."""

from collections.abc import Mapping, Sequence
from threading import local
from typing import Any

import numpy as np

from trajkit.codecs import Array
from trajkit.estimators import Counts, Estimator
from trajkit.fits import Fit
from trajkit.lanes import Arithmetic, open_arithmetic
from trajkit.layout import FlatVector
from trajkit.shards import FolderWriter
from trajkit.store import Store

_GLANCE = 256
"""elements that mostly tell whether any of a chunk may move"""


class ChunkJob:
    """What is evaluated, a chunk at a time; safe to call from many threads at once.

    ``rules`` has a rule for every tensor; ``first`` and ``last`` are the frames of the estimator's
    two points, ``device`` is ``cpu`` or ``cuda``.
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
    ) -> None:
        self.store = store
        self.fit = fit
        self.estimator = estimator
        self.rules = rules
        self.first = first
        self.last = last
        self.device = device
        self._fit_has_last = fit is not None and fit.record.steps[-1] == store.steps[last]
        self._mine = local()

    def bytes_a_worker(self) -> int:
        """Scratch of one thread: arrays decoded, coded bytes on their way, and the bits."""
        vectors = self.store.vectors.values()
        return max((v.chunk * (28 + 5 * v.dtype.itemsize) for v in vectors), default=0)

    def run(
        self,
        vector: FlatVector,
        k: int,
        steps: Sequence[int],
        writers: Sequence[FolderWriter],
    ) -> tuple[list[Counts], int]:
        """Evaluate one chunk at every target step and write it: (counts a target, bytes written)."""
        dtype = vector.dtype.name
        start, stop = vector.chunk_span(k)
        pieces = self._pieces(vector, start, stop)
        moving = any(rule == "extrapolate" for _, _, rule in pieces)
        fit: dict[str, Array] = {}
        if moving and self.fit is not None:
            fit, moving = self._read_fit(self.fit, dtype, k, stop - start)
        if not moving:
            pieces = [(a, b, "hold" if rule == "extrapolate" else rule) for a, b, rule in pieces]
        first, last = self._read_points(vector, k, stop - start, fit, moving)
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

    def _read_fit(self, fit: Fit, dtype: str, k: int, n: int) -> tuple[dict[str, Array], bool]:
        """The fit's arrays that the estimator reads, [N] each, and whether any element may move.

        Where none may, only those are read that say so and what is held.
        """
        values: dict[str, Array] = {}
        moving = True
        for name in self.estimator.reads:
            if not moving and name != "last":
                continue
            array = fit.arrays[dtype][name]
            chunk = self._buffer(name, array.chunk, array.dtype)
            array.read_chunk(0, k, chunk)
            values[name] = chunk[:n]
            if name == "flags":
                moving = _may_move(values[name], np.uint8(self.estimator.held_flags))
        return values, moving

    def _arithmetic(self, dtype: str) -> Arithmetic:
        """The calling thread's own, opened on its first chunk of the dtype."""
        opened: dict[str, Arithmetic] = vars(self._mine).setdefault("arithmetic", {})
        if dtype not in opened:
            opened[dtype] = open_arithmetic(self.device, dtype)
        return opened[dtype]

    def _buffer(self, name: str, n: int, dtype: np.dtype[Any]) -> Array:
        """The calling thread's own scratch, kept from chunk to chunk: new memory costs faults."""
        buffers: dict[tuple[str, int, np.dtype[Any]], Array] = vars(self._mine).setdefault(
            "all", {}
        )
        key = name, n, dtype
        if key not in buffers:
            buffers[key] = np.empty(n, dtype)
        return buffers[key]

    def _read_points(
        self, vector: FlatVector, k: int, n: int, fit: dict[str, Array], moving: bool
    ) -> tuple[Array, Array]:
        """The bits of the checkpoints a and b; the same array twice where a is not needed."""
        dtype = vector.dtype.name
        if "last" in fit:
            return fit["last"], fit["last"]
        scratch, last, first = (
            self._buffer(name, vector.chunk, vector.dtype.bits)
            for name in ("scratch", "last", "first")
        )
        if self._fit_has_last and self.fit is not None and dtype in self.fit.arrays:
            self.fit.arrays[dtype]["last"].read_chunk(0, k, last)  # no frames to go through
        else:
            self.store.read_bits(dtype, self.last, k, last, scratch)
        if not (moving and self.estimator.is_pair):
            return last[:n], last[:n]
        self.store.read_bits(dtype, self.first, k, first, scratch)
        return first[:n], last[:n]

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
