"""A few chunks of the work: read the fit, evaluate every target, hand over the bits.

A task is a value: :func:`evaluate_chunks` does it in whatever process it lands in, and gives the same
bits. Threads of one process share an :class:`Evaluator`, which keeps files and scratch memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import local
from typing import Any, Self, TypeAlias

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.errors import Mismatch
from trajkit.fits.devices import Arithmetic, open_arithmetic
from trajkit.fits.estimators.estimator import Counts, Values
from trajkit.fits.kept import Fit, read_fit
from trajkit.forecast.combine import combine_bytes, combine_chunk
from trajkit.forecast.evaluation import Evaluation, Rule, fit_digest
from trajkit.kernels import api as kernels
from trajkit.kernels.gate import Gate
from trajkit.parallel import Plan, Scratch, count_workers, plan_batch
from trajkit.store.chunks import ChunkReader
from trajkit.store.store import Store

_GLANCE = 256
"""elements that mostly tell whether any of a chunk may move"""
GROUP_CHUNKS = 4
"""chunks evaluated together: a worker gives Python's lock away at each call, and waits for it"""

Kept: TypeAlias = dict[tuple[str, str | int, range], Array]
"""what was read once and is not read again: (dtype, array of the fit or frame, chunks) -> elements"""
Piece: TypeAlias = tuple[int, int, tuple[str, float]]
"""(from, to, (rule, factor)) of elements that go together"""
Emit = Callable[[int, int, Array], None]
"""takes (target, first element, bits [N]); the bits are the worker's scratch, used again after"""


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """Some chunks of one flat vector, to be evaluated at every target step."""

    rule: Rule
    dtype: str
    chunks: range
    steps: tuple[int, ...]


def plan_chunks(
    vectors: Mapping[str, FlatVector], budget: int, *, combined: int = 0, measured: bool = False
) -> tuple[Plan, int]:
    """Workers, and chunks that each evaluates together: fewer chunks first, then fewer workers.

    ``combined``: targets for which checkpoints are added up, a chunk at a time. ``measured``:
    whether jumps are, too.

    Raises:
        OverBudget: one worker with one chunk does not fit.
    """

    def of_chunk(v: FlatVector) -> int:
        # arrays decoded, coded bytes on their way, and the bits
        plain = v.chunk * (50 + 5 * v.dtype.itemsize)
        wide = 8 if v.dtype.itemsize == 8 else 4
        measuring = v.chunk * (3 * wide + 4 * 8) if measured else 0
        return plain + measuring + (combine_bytes(v, combined) if combined else 0)

    one = max(map(of_chunk, vectors.values()), default=0)
    most = 1 if combined else GROUP_CHUNKS
    return plan_batch("extrapolate", count_workers(), most, 1, lambda n: n * one, budget)


def make_tasks(
    rule: Rule, vector: FlatVector, group: int, steps: tuple[int, ...]
) -> list[ChunkTask]:
    """A vector's chunks, so many together."""
    spans = [range(k, min(k + group, vector.n_chunks)) for k in range(0, vector.n_chunks, group)]
    return [ChunkTask(rule, vector.dtype.name, chunks, steps) for chunks in spans]


def evaluate_chunks(task: ChunkTask) -> tuple[list[Array], list[Counts]]:
    """Do a task, wherever it has come to: bits [N] and counts a target.

    Raises:
        Mismatch: the fit of that name is another one by now.
    """
    pieces: list[Array] = []
    counts = _opened(task.rule).run(task, lambda i, start, bits: pieces.append(bits.copy()))
    return pieces, counts


@lru_cache(maxsize=1)
def _opened(rule: Rule) -> "Evaluator":
    """The evaluator of the process; its files are closed when another takes its place."""
    store = Store.open(rule.store_path)
    fit = None if rule.fit_name is None else read_fit(store, rule.fit_name)
    if fit is not None and fit_digest(fit) != rule.fit_digest:
        raise Mismatch(f"{fit.path}: the fit was replaced; extrapolate again")
    return Evaluator(rule, store, fit)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a task goes by."""

    start: int
    """first element"""
    pieces: list[Piece]
    """runs of elements under one rule, counted from there"""
    fit: Mapping[str, Array]
    """the fit's arrays that are read, by name, [N] each"""
    first: Array
    """bits of the checkpoint a, [N]; the same array as ``last`` where it is not needed"""
    last: Array
    """bits of the checkpoint b, [N]"""
    moves: Array | None
    """of a combination of checkpoints, float64 [targets, N]"""


class Evaluator:
    """Evaluates tasks of one rule; safe to call from many threads at once.

    Keeps the fit's files open; use it in a ``with`` block.
    """

    def __init__(self, rule: Rule, store: Store, fit: Fit | None, kept: Kept | None = None) -> None:
        self._fit_readers: dict[str, dict[str, ChunkReader]] = {}
        self._frame_readers: dict[str, ChunkReader] = {}
        self.rule = rule
        self.store = store
        self.fit = fit
        self._rules = dict(rule.tensors)
        self._factors = dict(rule.factors)
        self._kept = kept
        self._fit_has_last = fit is not None and fit.record.steps[-1] == store.steps[rule.last]
        self._of_thread = local()
        self._scratch = Scratch()
        if rule.estimator.combines:
            self._frame_readers = {d: ChunkReader(store.frames[d]) for d in store.vectors}
        arrays = {} if fit is None else fit.arrays
        self._fit_readers = {
            dtype: {name: ChunkReader(array) for name, array in of_dtype.items()}
            for dtype, of_dtype in arrays.items()
        }

    @classmethod
    def of(cls, evaluation: Evaluation, kept: Kept | None = None) -> Self:
        """The evaluator of what is open already."""
        return cls(evaluation.rule, evaluation.store, evaluation.fit, kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that are open."""
        for readers in (*self._fit_readers.values(), self._frame_readers):
            for reader in readers.values():
                reader.close()

    __del__ = close

    def run(self, task: ChunkTask, emit: Emit) -> list[Counts]:
        """Evaluate some chunks at every target step, and hand the bits over; counts a target."""
        vector, known = self.store.vectors[task.dtype], self._read(task)
        start, n = known.start, len(known.last)
        out = self._buffer("out", vector.chunk, vector.dtype.bits, len(task.chunks))[:n]
        counts = []
        for i in range(len(task.steps)):
            counts.append(self._evaluate(task, known, i, task.dtype, known.first, known.last, out))
            emit(i, start, out)
        return counts

    def measure(self, task: ChunkTask) -> list[Array]:
        """|y|² of each chunk, y the last checkpoint, and |ŷ - y|² a target; float64 [1 + S] each.

        ŷ is evaluated in float32 (float64 for float64), without rounding into the dtype. Elements
        that are not finite in both are left out.
        """
        vector, known = self.store.vectors[task.dtype], self._read(task)
        wide = "float64" if vector.dtype.itemsize == 8 else "float32"
        bits = DTYPES[wide].bits
        squares = np.zeros((len(task.chunks), 1 + len(task.steps)))
        with np.errstate(invalid="ignore", over="ignore"):
            last_N = kernels.values_of(known.last, task.dtype).astype(wide)
            first_N = last_N
            if known.first is not known.last:
                first_N = kernels.values_of(known.first, task.dtype).astype(wide)
            out = np.empty(len(last_N), bits)
            _add_squares(squares[:, 0], last_N.astype(np.float64), vector.chunk)
            for i in range(len(task.steps)):
                self._evaluate(task, known, i, wide, first_N.view(bits), last_N.view(bits), out)
                jump_N = out.view(wide).astype(np.float64) - last_N
                _add_squares(squares[:, 1 + i], jump_N, vector.chunk)
        return list(squares)

    def _evaluate(
        self, task: ChunkTask, known: "_Known", i: int, dtype: str, first: Array, last: Array,
        out: Array,
    ) -> Counts:  # fmt: skip
        """Write one target's bits of a dtype, which may be a wider one than the chunk's own."""
        rule, step, total = self.rule, task.steps[i], Counts()
        scale = dict(rule.scales).get(step, 1.0)
        for begin, end, (what, factor) in known.pieces:
            piece = slice(begin, end)
            if what != "extrapolate":
                out[piece] = last[piece]
                total += Counts(held=end - begin, copied=end - begin if what == "copy" else 0)
                continue
            of_piece = {name: array[piece] for name, array in known.fit.items()}
            move = None if known.moves is None else known.moves[i, piece]
            values = Values(dtype, of_piece, first[piece], last[piece], move)
            total += rule.estimator_by(factor).evaluate(
                values, rule.points, step, gate=self._gate(of_piece),
                rounding=rule.rounding.at(known.start + begin), out=out[piece],
                arithmetic=self._arithmetic(dtype), scale=scale,
            )  # fmt: skip
        return total

    def _read(self, task: ChunkTask) -> "_Known":
        """What is known of some chunks, in the thread's own scratch."""
        vector = self.store.vectors[task.dtype]
        chunks = task.chunks
        start, stop = vector.chunk_span(chunks[0])[0], vector.chunk_span(chunks[-1])[1]
        pieces = self._pieces(vector, start, stop)
        moving = any(what == "extrapolate" for _, _, (what, _) in pieces)
        fit: dict[str, Array] = {}
        if moving and self.fit is not None:
            fit, moving = self._read_fit(vector, chunks, stop - start)
        if not moving:
            pieces = [(a, b, (w if w == "copy" else "hold", 1.0)) for a, b, (w, _) in pieces]
        first, last = self._read_points(vector, chunks, stop - start, fit, moving)
        moves = self._combine(vector, chunks, task.steps) if moving else None
        return _Known(start, pieces, fit, first, last, moves)

    def _gate(self, fit: Mapping[str, Array]) -> Gate:
        """The gate of some elements, with what was read of the fit."""
        rule = self.rule
        if rule.gate is None:
            return Gate(None, fit.get("flags"), rule.held_flags)
        score = None if rule.by_flag else rule.gate.of(fit[rule.gate.array])
        return Gate(score, fit.get("flags"), rule.held_flags, rule.gate.threshold)

    def _combine(self, vector: FlatVector, chunks: range, steps: tuple[int, ...]) -> Array | None:
        """What combinations of checkpoints move by, float64 [targets, N]; None for other rules."""
        rule = self.rule
        if not rule.estimator.combines:
            return None
        frames = range(rule.first, rule.last + 1)
        weights_ST = np.array([dict(rule.weights)[step] for step in steps])
        reader = self._frame_readers[vector.dtype.name]
        parts = [combine_chunk(self.store, reader, vector, frames, k, weights_ST) for k in chunks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _read_fit(self, vector: FlatVector, chunks: range, n: int) -> tuple[dict[str, Array], bool]:
        """The fit's arrays that are read, [N] each, and whether any element may move.

        Where none may, only those are read that say so and what is held.
        """
        values: dict[str, Array] = {}
        moving = True
        for name in self.rule.reads:
            if not moving and name != "last":
                continue
            values[name] = self._read_array(vector.dtype.name, name, chunks)[:n]
            if name == "flags":
                moving = _may_move(values[name], np.uint8(self.rule.held_flags))
        return values, moving

    def _read_array(self, dtype: str, name: str, chunks: range) -> Array:
        """One of the fit's arrays, in the thread's own scratch, or from what is kept."""
        key = (dtype, name, chunks)
        if self._kept is not None and key in self._kept:
            return self._kept[key]
        reader = self._fit_readers[dtype][name]
        out = self._buffer(name, reader.array.chunk, reader.array.dtype, len(chunks))
        assert self.fit is not None
        with self.fit.reading():
            reader.read_chunks(chunks, out)
        if self._kept is not None:
            self._kept[key] = out.copy()
        return out

    def _arithmetic(self, dtype: str) -> Arithmetic:
        """The calling thread's own, opened on its first chunk of the dtype."""
        opened: dict[str, Arithmetic] = vars(self._of_thread).setdefault("arithmetic", {})
        if dtype not in opened:
            opened[dtype] = open_arithmetic(self.rule.device, dtype)
        return opened[dtype]

    def _buffer(self, name: str, chunk: int, dtype: np.dtype[Any], chunks: int) -> Array:
        """The calling thread's own scratch for some chunks, kept: new memory costs faults."""
        return self._scratch.array(name, chunks * chunk, dtype)

    def _read_points(
        self, vector: FlatVector, chunks: range, n: int, fit: dict[str, Array], moving: bool
    ) -> tuple[Array, Array]:
        """The bits of the checkpoints a and b; the same array twice where a is not needed."""
        dtype = vector.dtype.name
        with_first = moving and self.rule.estimator.reads_first
        if "last" in fit:
            last = fit["last"]
        elif self._fit_has_last and dtype in self._fit_readers:
            last = self._read_array(dtype, "last", chunks)  # no frames to go through
        else:
            last = self._read_frame(vector, "last", self.rule.last, chunks)
        if not with_first:
            return (same := last[:n]), same
        return self._read_frame(vector, "first", self.rule.first, chunks)[:n], last[:n]

    def _read_frame(self, vector: FlatVector, name: str, t: int, chunks: range) -> Array:
        """The bits of a checkpoint, in the thread's own scratch, or from what is kept."""
        key = (vector.dtype.name, t, chunks)
        if self._kept is not None and key in self._kept:
            return self._kept[key]
        out = self._buffer(name, vector.chunk, vector.dtype.bits, len(chunks))
        scratch = self._buffer("scratch", vector.chunk, vector.dtype.bits, 1)
        for i, k in enumerate(chunks):
            bits = out[i * vector.chunk : (i + 1) * vector.chunk]
            self.store.read_bits(vector.dtype.name, t, k, bits, scratch)
        if self._kept is not None:
            self._kept[key] = out.copy()
        return out

    def _pieces(self, vector: FlatVector, start: int, stop: int) -> list[Piece]:
        """Runs of elements under one rule, counted from the chunk's start."""
        pieces: list[Piece] = []
        for span in vector.spans(start, stop):
            what = self._rules[span.tensor.name], self._factors.get(span.tensor.name, 1.0)
            end = span.at + span.stop - span.start
            if pieces and pieces[-1][2] == what:
                pieces[-1] = (pieces[-1][0], end, what)
            else:
                pieces.append((span.at, end, what))
        return pieces


def _add_squares(sums: Array, values_N: Array, chunk: int) -> None:
    """Add Σ v² of each chunk's finite values to its place."""
    values_N[~np.isfinite(values_N)] = 0
    for j, at in enumerate(range(0, len(values_N), chunk)):
        part = values_N[at : at + chunk]
        sums[j] += float(np.square(part).sum())


def _may_move(flags: Array, held: np.uint8) -> bool:
    """Whether the gate is open for any element; if it is not, the last bits are all there is."""
    return any(((some & held) == 0).any() for some in (flags[:_GLANCE], flags[_GLANCE:]))
