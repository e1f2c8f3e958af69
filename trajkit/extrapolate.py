"""Extrapolate: checkpoints of training steps to come, in the run's own files.

Chunk by chunk: read the fit (and for ``two-point`` the two frames), evaluate every target, put the
bits where the source's layout has them. Nothing is held but chunks in work, whatever the model.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

import trajkit
from trajkit.codecs import Array
from trajkit.errors import InvalidInput
from trajkit.fits import DEFAULT_FIT, Fit, read_fit
from trajkit.kernels import api as kernels
from trajkit.layout import FlatVector, plan_workers
from trajkit.parallel import count_workers, map_in_order
from trajkit.progress import Advanced, Finished, Progress, Started, silent
from trajkit.restore import side_files
from trajkit.shards import FolderWriter, check_target, plan_files
from trajkit.source import SourceRecord
from trajkit.trajectory import Trajectory
from trajkit.units import DEFAULT_MEMORY_BYTES, format_bytes, format_rate, parse_bytes

ESTIMATORS = ("anchored", "line", "two-point")
COPIED = ("*norm*", "*.ln_?.*", "ln_f.*")
"""tensors copied from the last checkpoint, as in arXiv 2601.04537; names of normalisation layers"""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a target's elements."""

    moved: int = 0
    held: int = 0
    """kept at their last value: gated by R², static, invalid, copied, or integers"""
    unchanged: int = 0
    """passed the gate, but rounded back to their last value"""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.moved + other.moved, self.held + other.held, self.unchanged + other.unchanged
        )


@dataclass(frozen=True, slots=True)
class Target:
    """One checkpoint written."""

    step: int
    horizon: int
    """training steps beyond the last checkpoint of the window"""
    path: str
    moved: int = 0
    held: int = 0
    unchanged_after_rounding: int = 0


@dataclass(frozen=True, slots=True)
class ExtrapolateResult:
    """What was written."""

    targets: tuple[Target, ...]
    estimator: str
    last_step: int
    moved: int
    """over all targets"""
    held: int
    unchanged_after_rounding: int
    seconds: float
    warnings: tuple[str, ...]


def parse_steps(text: str, traj: Trajectory) -> list[int]:
    """Target steps from ``"1500,2000,+300"``; ``+`` counts from the last ingested step.

    Raises:
        InvalidInput: not whole numbers, or none.
    """
    targets = []
    for part in text.split(","):
        part = part.strip()
        digits = part.removeprefix("+")
        if not digits.isdecimal():
            raise InvalidInput(f"--steps takes whole numbers such as 1500,2000,+300, not {part!r}")
        targets.append(int(digits) + (int(traj.steps[-1]) if part.startswith("+") else 0))
    return targets


def extrapolate(
    traj: Trajectory,
    steps: int | Sequence[int],
    out: str | Path,
    *,
    estimator: str = "anchored",
    fit: str | Fit = DEFAULT_FIT,
    rsq_threshold: float | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    force: bool = False,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress = silent,
) -> ExtrapolateResult:
    """Write the checkpoints that the fitted lines give at training steps to come.

    With last the value at the window's last step x_T, h = x* - x_T, (mean, slope) the line about x̄:

        anchored    last + slope h
        line        mean + slope (x* - x̄)
        two-point   y_a + (x* - x_a)/(x_b - x_a) (y_b - y_a)      (arXiv 2601.04537, equation 4)

    in float32, rounded once, to nearest even, to the tensor's own dtype. An element whose R² is not
    above the threshold, that is static or invalid, keeps its last value. ``two-point`` uses no fit,
    as published, and is gated only where ``rsq_threshold`` is given. Normalisation tensors (names
    matching ``COPIED``) are copied from the last checkpoint, integers too.

    Args:
        traj: the trajectory.
        steps: target training steps; several are written in one pass.
        out: folder to write; with several targets, ``out/step_X`` each.
        estimator: ``anchored``, ``line`` or ``two-point``.
        fit: a fit's name, or the fit.
        rsq_threshold: in place of the fit's own.
        from_step: a of ``two-point`` (default: the first step of the fit's window).
        to_step: b of ``two-point`` (default: the last step of the fit's window).
        force: replace ``out``.
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        NotFound: no such fit or step. InvalidInput: estimator, steps or threshold make no sense.
        AlreadyExists: ``out`` is there already. OverBudget: the budget is too small.
    """
    started = time.perf_counter()
    out = Path(out)
    source = read_fit(traj.store, fit) if isinstance(fit, str) else fit
    job = _Job(traj, source, estimator, rsq_threshold, from_step, to_step)
    targets = job.targets([steps] if isinstance(steps, int) else list(steps), out)
    record = SourceRecord.read(traj.path, traj.store.commit.frames[job.last].source)
    vectors = traj.store.vectors
    a_worker = max((v.chunk * (24 + 4 * v.dtype.itemsize) for v in vectors.values()), default=0)
    plan = plan_workers("extrapolate", count_workers(), a_worker, parse_bytes(memory))
    n_bytes = len(targets) * sum(v.n_bytes for v in vectors.values())
    check_target(out, force)
    progress(Started(f"extrapolate to {', '.join(str(t.step) for t in targets)}", n_bytes))
    files = plan_files(record, vectors)
    with ExitStack() as stack:
        root = stack.enter_context(FolderWriter(out, vectors, force=force))
        writers = [root if len(targets) == 1 else root.subfolder(f"step_{t.step}") for t in targets]
        for writer in writers:
            writer.add_files(files)
            for name, content in side_files(traj.store, record).items():
                writer.write_side_file(name, content)
            if record.index is not None:
                writer.write_side_file(record.index[0], record.index[1].encode())
        pool = stack.enter_context(ThreadPoolExecutor(plan.workers))
        totals = [Counts()] * len(targets)
        for vector in vectors.values():

            def work(k: int, vector: FlatVector = vector) -> tuple[list[Counts], int]:
                return job.run_chunk(vector, k, targets, writers)

            for _, (counts, done) in map_in_order(
                pool, work, range(vector.n_chunks), 2 * plan.workers
            ):
                totals = [a + b for a, b in zip(totals, counts, strict=True)]
                progress(Advanced(done))
        targets = [
            replace(t, moved=c.moved, held=c.held, unchanged_after_rounding=c.unchanged)
            for t, c in zip(targets, totals, strict=True)
        ]
        for writer, target in zip(writers, targets, strict=True):
            provenance = json.dumps(job.provenance(target), indent=2) + "\n"
            writer.write_side_file("trajkit.json", provenance.encode())
        root.commit()
    seconds = time.perf_counter() - started
    progress(Finished(f"{format_bytes(n_bytes)} at {format_rate(n_bytes, seconds)}"))
    return ExtrapolateResult(
        targets=tuple(targets),
        estimator=estimator,
        last_step=job.last_step,
        moved=sum(c.moved for c in totals),
        held=sum(c.held for c in totals),
        unchanged_after_rounding=sum(c.unchanged for c in totals),
        seconds=seconds,
        warnings=tuple(job.warnings(targets)),
    )


class _Job:
    """One call of :func:`extrapolate`: what is evaluated, chunk by chunk."""

    def __init__(
        self,
        traj: Trajectory,
        fit: Fit,
        estimator: str,
        threshold: float | None,
        from_step: int | None,
        to_step: int | None,
    ) -> None:
        if estimator not in ESTIMATORS:
            raise InvalidInput(
                f"unknown estimator {estimator!r}: choose from {', '.join(ESTIMATORS)}"
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise InvalidInput(f"rsq_threshold must lie in [0, 1], not {threshold}")
        self.store = traj.store
        self.fit = fit
        self.estimator = estimator
        self.two_point = estimator == "two-point"
        self.threshold = threshold
        if threshold is None and not self.two_point:
            self.threshold = fit.rsq_threshold
        if not self.two_point and (from_step is not None or to_step is not None):
            raise InvalidInput("from_step and to_step select the points of the estimator two-point")
        self.a = self.store.index_of(from_step if from_step is not None else fit.record.steps[0])
        self.last = self.store.index_of(to_step if to_step is not None else fit.record.steps[-1])
        if self.two_point and self.a >= self.last:
            raise InvalidInput("two-point needs --from-step earlier than --to-step")
        self.last_step = int(self.store.steps[self.last])
        self.first_step = int(self.store.steps[self.a])

    def targets(self, steps: list[int], out: Path) -> list[Target]:
        """The targets, checked, with the folder each goes to."""
        if not steps:
            raise InvalidInput("no target step given")
        if len(set(steps)) != len(steps):
            raise InvalidInput("a target step is given twice")
        many = len(steps) > 1
        return [
            Target(x, x - self.last_step, str(out / f"step_{x}" if many else out)) for x in steps
        ]

    def warnings(self, targets: Sequence[Target]) -> list[str]:
        """What a reader of the outcome should know."""
        span = self.last_step - self.first_step
        far = [t for t in targets if t.horizon > span]
        back = [t for t in targets if t.horizon < 0]
        lines = []
        if far:
            lines.append(
                f"step {far[-1].step} is {far[-1].horizon} steps beyond a window of {span} steps: "
                "a line fitted over so short a window is not known to hold so far out"
            )
        if back:
            lines.append(f"step {back[0].step} lies before the last fitted step {self.last_step}")
        return lines

    def run_chunk(
        self,
        vector: FlatVector,
        k: int,
        targets: Sequence[Target],
        writers: Sequence[FolderWriter],
    ) -> tuple[list[Counts], int]:
        """Evaluate one chunk at every target and write it: (counts a target, bytes written)."""
        dtype = vector.dtype.name
        start, stop = vector.chunk_span(k)
        n = stop - start
        out = np.empty(n, vector.dtype.bits)
        fitted = dtype in self.fit.arrays
        values = self._read_fit(dtype, k, n) if fitted else {}
        if fitted and not self.two_point:
            first, last = out, values["last"]
        else:
            first, last = self._read_points(vector, k, n)
        pieces = self._pieces(vector, start, stop, fitted)
        counts = []
        for target, writer in zip(targets, writers, strict=True):
            total = Counts()
            for at, end, rule in pieces:
                piece = slice(at, end)
                if rule == "copy":
                    out[piece] = last[piece]
                    total += Counts(held=end - at)
                    continue
                part = {name: array[piece] for name, array in values.items()}
                total += self._evaluate(
                    dtype, target, part, first[piece], last[piece], start + at, out[piece]
                )
            writer.write(dtype, start, out)
            counts.append(total)
        return counts, n * vector.dtype.itemsize * len(targets)

    def _evaluate(
        self,
        dtype: str,
        target: Target,
        part: dict[str, Array],
        first: Array,
        last: Array,
        first_index: int,
        out: Array,
    ) -> Counts:
        if self.two_point:
            beta = (target.step - self.first_step) / (self.last_step - self.first_step)
            gated = self.threshold is not None
            return Counts(
                *kernels.extrapolate_pair(
                    first,
                    last,
                    beta,
                    last,
                    part["rsq"] if gated else None,
                    part["flags"] if gated else None,
                    self.threshold,
                    dtype,
                    first_index=first_index,
                    out_bits=out,
                )
            )
        from_mean = self.estimator == "line"
        return Counts(
            *kernels.extrapolate_line(
                "mean" if from_mean else "last",
                last,
                part["slope"],
                part["mean"],
                part["rsq"],
                part["flags"],
                dtype,
                dx=float(target.step - self.fit.x_mean) if from_mean else float(target.horizon),
                threshold=self.threshold,
                first_index=first_index,
                out_bits=out,
            )
        )

    def _read_fit(self, dtype: str, k: int, n: int) -> dict[str, Array]:
        names: tuple[str, ...] = ("slope", "mean", "rsq", "last", "flags")
        if self.two_point:
            names = () if self.threshold is None else ("rsq", "flags")
        values = {}
        for name in names:
            array = self.fit.arrays[dtype][name]
            chunk = np.empty(array.chunk, array.dtype)
            array.read_chunk(0, k, chunk)
            values[name] = chunk[:n]
        return values

    def _read_points(self, vector: FlatVector, k: int, n: int) -> tuple[Array, Array]:
        """The bits of the two points of ``two-point``; both the last one where nothing moves."""
        dtype = vector.dtype.name
        scratch = np.empty(vector.chunk, vector.dtype.bits)
        last = np.empty_like(scratch)
        self.store.read_bits(dtype, self.last, k, last, scratch)
        first = last
        if self.two_point and vector.dtype.is_float:
            first = np.empty_like(scratch)
            self.store.read_bits(dtype, self.a, k, first, scratch)
        return first[:n], last[:n]

    def _pieces(
        self, vector: FlatVector, start: int, stop: int, fitted: bool
    ) -> list[tuple[int, int, str]]:
        """Runs of elements under one rule: (from, to, rule), counted from the chunk's start."""
        pieces: list[tuple[int, int, str]] = []
        for span in vector.spans(start, stop):
            rule = "extrapolate" if fitted and not is_copied(span.tensor.name) else "copy"
            end = span.at + span.stop - span.start
            if pieces and pieces[-1][2] == rule:
                pieces[-1] = (pieces[-1][0], end, rule)
            else:
                pieces.append((span.at, end, rule))
        return pieces

    def provenance(self, target: Target) -> dict[str, Any]:
        """The content of ``trajkit.json``."""
        record = self.fit.record
        window = [self.first_step, self.last_step] if self.two_point else list(record.steps)
        return {
            "trajkit": trajkit.__version__,
            "made_by": "trajkit extrapolate",
            "target": asdict(target),
            "estimator": self.estimator,
            "rsq_threshold": self.threshold,
            "copied_tensors": list(COPIED),
            "fitted_steps": window,
            "fit": {"name": record.name, "frames_digest": record.frames_digest},
            "versions": dict(record.versions),
        }


def is_copied(name: str) -> bool:
    """Whether a tensor is copied from the last checkpoint by default.

    >>> is_copied("model.layers.0.input_layernorm.weight"), is_copied("model.embed_tokens.weight")
    (True, False)
    """
    return any(fnmatchcase(name.lower(), pattern) for pattern in COPIED)
