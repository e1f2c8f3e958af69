"""A segment's checkpoints through a rule, range by range: the sums go on, the weights jump.

The arithmetic is that of a jump in the trainer's own memory (:mod:`trajkit.training.pooled`,
:mod:`trajkit.training.jump`), called on a range of elements at a time, so that both give the same
bits where the checkpoints hold what the trainer's memory held. Memory: one range, some 60 bytes an
element; nothing grows with the model or with the number of checkpoints.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.checkpoint import Checkpoint
from trajkit.checkpoints.layout import FlatVector, Span, TensorInfo, lay_out, tensors_of
from trajkit.checkpoints.reader import FlatReader, lay_out_checkpoint
from trajkit.errors import InvalidInput, Mismatch, Unsupported
from trajkit.forecast.rules import is_copied
from trajkit.training.jump import Jump, describe, measure, move, shorten
from trajkit.training.rules import ENDS_ONLY, KEPT, Resumable, Rule, make_rule

RANGE_ELEMENTS = 1 << 20
"""elements that are worked on together"""
MOST_OPEN_FILES = 256
"""with more of them, each is closed after a range of it was read"""
MOVABLE = ("bfloat16", "float16", "float32", "float64")
"""dtypes that a jump moves; tensors of others are the last checkpoint's"""

GUIDED = "guided"
"""the rule that is searched for segment by segment (:mod:`trajkit.training.guided`)"""

Write = Callable[[str, int, Array], None]
"""takes (dtype, first element, bits [N]) of a flat vector"""


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule by name, with its options."""

    name: str
    options: Mapping[str, Any]

    def after(
        self, counts: Sequence[float] | None, spacing: Sequence[int]
    ) -> tuple[bool, list[float] | None]:
        """Whether the rule can be trusted after one more segment, and what it has counted then.

        Raises:
            InvalidInput: no such rule, or an option that it does not take.
        """
        if self.name == GUIDED:
            if self.options.keys() != {"probes"}:
                raise InvalidInput("rule guided: takes probes, a JSONL of prompts and responses")
            return True, None
        rule = make_rule(self.name, {"": torch.zeros(1)}, **self.options)
        if isinstance(rule, Resumable) and counts is not None:
            zeros = {f"{kind}.": torch.zeros(1) for kind in KEPT[self.name]}
            rule.load({"": torch.tensor(counts, dtype=torch.float64), **zeros})
        rule.begin()
        for steps in self.looks(spacing):
            rule.observe(steps)
        counted = rule.state()[""].tolist() if isinstance(rule, Resumable) else None
        return rule.is_ready, counted

    def looks(self, spacing: Sequence[int]) -> Sequence[int]:
        """Real steps between the checkpoints that the rule looks at."""
        return [sum(spacing)] if self.name in ENDS_ONLY else spacing


class SegmentFiles:
    """A segment's checkpoints, open as the flat vectors of the last one; use it in a ``with`` block.

    Args:
        start: what the trainer started from.
        written: what it wrote, in order.
        spacing: real steps between them.

    Raises:
        Mismatch: one is not of the model that the segment started from.
        Unsupported: an adapter.
    """

    def __init__(
        self, start: Checkpoint, written: Sequence[Checkpoint], spacing: Sequence[int]
    ) -> None:
        self.last = written[-1]
        self.spacing = spacing
        if self.last.adapter:
            raise Unsupported(f"{self.last.root}: an adapter; jumps need whole models")
        self.vectors = lay_out_checkpoint(self.last, None, RANGE_ELEMENTS)
        self._readers = [_open(c, self.vectors, start) for c in (start, *written)]
        self._crowded = sum(len(r.checkpoint.files) for r in self._readers) > MOST_OPEN_FILES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.close()

    @property
    def reader(self) -> FlatReader:
        """Of the last checkpoint."""
        return self._readers[-1]

    def looked_at(self, rule: RuleSpec) -> tuple[list[FlatReader], Sequence[int]]:
        """The checkpoints that a rule looks at, the start first, and real steps between them."""
        if rule.name in ENDS_ONLY:
            return [self._readers[0], self._readers[-1]], rule.looks(self.spacing)
        return self._readers, self.spacing

    def read(self, reader: FlatReader, dtype: str, start: int, stop: int) -> Array:
        """Bits [stop - start] of a flat vector."""
        bits = np.empty(stop - start, self.vectors[dtype].dtype.bits)
        reader.fill(dtype, start, stop, bits)
        if self._crowded:
            reader.close()
        return bits

    def check_unchanged(self) -> None:
        """Raise where a file was written to since it was opened."""
        for reader in self._readers:
            reader.check_unchanged()


def _open(
    checkpoint: Checkpoint, vectors: Mapping[str, FlatVector], start: Checkpoint
) -> FlatReader:
    """A reader; what the trainer started from may be of another precision than what it writes."""
    floats = [name for name in vectors if DTYPES[name].is_float]
    cast = floats[0] if checkpoint is start and len(floats) == 1 else None
    try:
        return FlatReader(checkpoint, vectors, cast)
    except Mismatch as error:
        first = str(error).split("; ")[0].removeprefix(f"{checkpoint.root}: ")
        raise Mismatch(
            f"{checkpoint.root}: not of the model that the segment ends with: {first}"
        ) from None


def movable_tensors(vectors: Mapping[str, FlatVector]) -> list[TensorInfo]:
    """The tensors that a jump may move: floating point, normalisation left out."""
    return [
        t
        for v in vectors.values()
        if v.dtype.name in MOVABLE
        for t in v.tensors
        if not is_copied(t.name)
    ]


def sums_layout(vectors: Mapping[str, FlatVector], rule: RuleSpec) -> dict[str, FlatVector]:
    """The flat vectors of what a rule keeps of each movable tensor; none where it keeps nothing."""
    movable = movable_tensors(vectors)
    kinds = KEPT.get(rule.name, ())
    return lay_out((f"{kind}.{t.name}", "float32", t.shape) for kind in kinds for t in movable)


@dataclass(frozen=True, slots=True)
class Sums:
    """What a rule has kept up to a segment, and where it goes after it."""

    layout: Mapping[str, FlatVector]
    """of :func:`sums_layout`"""
    counts: Sequence[float] | None
    """of the segments before; None before the first"""
    before: FlatReader | None = None
    """the sums of the segments before; None before the first"""
    write: Write | None = None
    """takes the sums of this segment too"""


def follow(
    files: SegmentFiles,
    rule: RuleSpec,
    sums: Sums,
    n: float,
    max_norm: float | None = None,
    write: Write | None = None,
) -> Jump:
    """Take a segment into the rule's sums, and write the weights ``n`` steps on.

    Args:
        files: the segment.
        rule: what the jump follows.
        sums: the rule's.
        n: training steps to jump; 0: no weights are moved.
        max_norm: cap of the move's norm over that of the parameters, which costs a pass more.
        write: takes the weights; None: none are computed.

    Returns:
        What was done.
    """
    elements = sum(t.size for t in movable_tensors(files.vectors))
    if max_norm is not None and n:
        parts = [measure(p, r) for *_, p, r in _walk(files, rule, sums)]
        n = shorten(n, sum(d for d, _ in parts), sum(s for _, s in parts), max_norm)
    moved, squares, size = 0, 0.0, 0.0
    for dtype, start, bits, spans, parameters, through in _walk(files, rule, sums):
        if sums.write is not None and isinstance(through, Resumable):
            _write_sums(sums, through, spans)
        if n and parameters:
            size += sum(float(p.double().square().sum()) for p in parameters.values())
            did = move(parameters, through, n)
            moved, squares = moved + did[0], squares + did[1]
        if write is not None:
            write(dtype, start, bits)
    files.check_unchanged()
    return describe(n, moved, elements, squares, size)


def _walk(
    files: SegmentFiles, rule: RuleSpec, sums: Sums
) -> Iterator[tuple[str, int, Array, list[Span], dict[str, Tensor], Rule]]:
    """Every range after the segment: (dtype, first element, bits, movable parts, the same, rule)."""
    looked_at, looks = files.looked_at(rule)
    for dtype, vector in files.vectors.items():
        for k in range(vector.n_chunks):
            start, stop = vector.chunk_span(k)
            spans = [s for s in vector.spans(start, stop) if _moves(vector, s)]
            if not spans:
                bits = files.read(files.reader, dtype, start, stop)
                yield dtype, start, bits, [], {}, make_rule(rule.name, {}, **rule.options)
                continue
            bits = files.read(looked_at[0], dtype, start, stop)
            values = as_values(bits, dtype)
            parameters = {s.tensor.name: values[s.at : s.at + s.stop - s.start] for s in spans}
            through = make_rule(rule.name, parameters, **rule.options)
            if isinstance(through, Resumable) and sums.counts is not None:
                through.load(_read_sums(sums, rule, spans))
            through.begin()
            for reader, steps in zip(looked_at[1:], looks, strict=True):
                bits[:] = files.read(reader, dtype, start, stop)
                through.observe(steps)
            yield dtype, start, bits, spans, parameters, through


def _moves(vector: FlatVector, span: Span) -> bool:
    return vector.dtype.name in MOVABLE and not is_copied(span.tensor.name)


def as_values(bits: Array, dtype: str) -> Tensor:
    """The numbers that bits are, in the same memory."""
    signed = torch.from_numpy(bits.view(f"i{bits.itemsize}"))
    return signed.view(getattr(torch, dtype))


def _read_sums(sums: Sums, rule: RuleSpec, spans: Sequence[Span]) -> dict[str, Tensor]:
    """What the rule has kept of some tensors' parts, as its ``load`` takes it."""
    assert sums.before is not None
    assert sums.counts is not None
    table = tensors_of(sums.layout)
    state = {"": torch.tensor(sums.counts, dtype=torch.float64)}
    for kind in KEPT[rule.name]:
        for span in spans:
            name = f"{kind}.{span.tensor.name}"
            first = table[name].offset + span.start
            bits = np.empty(span.stop - span.start, np.uint32)
            sums.before.fill("float32", first, first + len(bits), bits)
            state[name] = as_values(bits, "float32")
    return state


def _write_sums(sums: Sums, through: Resumable, spans: Sequence[Span]) -> None:
    """Hand over what the rule keeps of some tensors' parts."""
    assert sums.write is not None
    table = tensors_of(sums.layout)
    begins = {span.tensor.name: span.start for span in spans}
    for name, kept in through.state().items():
        if name:
            first = table[name].offset + begins[name.split(".", 1)[1]]
            sums.write("float32", first, kept.numpy().view(np.uint32))
