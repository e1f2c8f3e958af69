"""Extrapolate: checkpoints of training steps to come, in the run's own files.

Chunk by chunk: read the fit (for ``two-point`` and ``expo``, two frames), evaluate every target,
put the bits where the layout has them. Nothing is held but chunks in work, whatever the model. The
arithmetic runs on the CPU unless a device is asked for: reading and writing set the pace, not it.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import trajkit
from trajkit.checkpoints.folder import FolderWriter, check_target
from trajkit.checkpoints.layout import FlatVector
from trajkit.defaults import DEFAULT_DAMPING, DEFAULT_FIT, DEFAULT_MEMORY_BYTES
from trajkit.errors import AlreadyExists, InvalidInput, Mismatch
from trajkit.fits.devices import choose_device
from trajkit.fits.estimators import Counts, Estimator, check_options, is_pair
from trajkit.fits.kept import Fit, fit_names, read_fit
from trajkit.fits.window import choose_window, window_digest
from trajkit.forecast.chunks import ChunkJob, plan_chunks
from trajkit.forecast.modelcard import write_card
from trajkit.forecast.result import ExtrapolatePlan, ExtrapolateResult, Target
from trajkit.forecast.rules import COPIED, assign_rules, is_copied, parse_rule
from trajkit.forecast.template import float_dtypes, template_like, template_of_step
from trajkit.kernels.rounding import Rounding
from trajkit.parallel import Plan, map_in_order
from trajkit.progress import Advanced, Finished, Progress, Started, silent
from trajkit.store.tensors import Source, as_store
from trajkit.units import format_bytes, format_rate, parse_bytes

__all__ = ["ExtrapolatePlan", "ExtrapolateResult", "Target", "extrapolate", "is_copied"]

PROVENANCE = "trajkit.json"
_CARD = "README.md"


def parse_steps(text: str, traj: Source) -> list[int]:
    """Target steps from ``"1500,2000,+300"``; ``+`` counts from the last ingested step.

    Raises:
        InvalidInput: not whole numbers, or none.
    """
    store = as_store(traj)
    targets = []
    for part in text.split(","):
        part = part.strip()
        digits = part.removeprefix("+")
        if not (digits.isascii() and digits.isdecimal()):
            raise InvalidInput(f"--steps takes whole numbers such as 1500,2000,+300, not {part!r}")
        if part.startswith("+") and not len(store.steps):
            raise InvalidInput(f"{store.path}: holds no step that {part!r} could count from")
        targets.append(int(digits) + (int(store.steps[-1]) if part.startswith("+") else 0))
    return targets


def extrapolate(
    traj: Source,
    steps: int | Sequence[int] | None,
    out: str | Path,
    *,
    estimator: str = "anchored",
    fit: str | Fit = DEFAULT_FIT,
    rsq_threshold: float | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    damping: float | None = None,
    alpha: float | None = None,
    tensors: Sequence[str] = (),
    rounding: str = "nearest",
    seed: int = 0,
    like: str | Path | None = None,
    device: str = "cpu",
    check: bool = False,
    force: bool = False,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress = silent,
) -> ExtrapolateResult:
    """Write the checkpoints that the fitted lines give at training steps to come.

    :mod:`trajkit.fits.estimators` has the equations. An element whose R² is not above the threshold, or
    that is static or invalid, keeps its last value; ``two-point`` and ``expo`` move all elements,
    as published, unless ``rsq_threshold`` is given. Normalisation tensors and integers are copied
    from the last checkpoint used.

    Args:
        traj: the trajectory.
        steps: target training steps, written in one pass. ``expo`` with ``alpha`` takes one at
            most, as a label; by default the step that alpha amounts to.
        out: folder to write; with several targets, ``out/step_X`` each.
        estimator: ``anchored``, ``line``, ``two-point``, ``damped`` or ``expo``.
        fit: a fit's name, or the fit.
        rsq_threshold: in place of the fit's own.
        from_step: first point of ``two-point`` and ``expo`` (default: the first step of the fit's
            window, or of the store where there is no fit).
        to_step: their last point (default: the last step, likewise).
        damping: L of ``damped``, 0 to 1 (default 0.3): the horizon is multiplied by it.
        alpha: of ``expo`` (default: what reaches the target's step).
        tensors: rules ``PATTERN=RULE`` with a rule of ``extrapolate``, ``hold`` and ``copy``
            (:mod:`trajkit.forecast.rules`); where several match, the last one holds.
        rounding: ``nearest`` (ties to even), or ``stochastic``: up with the probability of the
            fraction cut off, so that drifts below half an ulp survive on average.
        seed: of the stochastic rounding; the noise depends on it and on an element's place alone.
        like: a checkpoint folder of the same model to take shard names, header order, index and
            side files from, in place of the run's last one.
        device: ``cpu``, ``cuda`` or ``auto`` (``cuda`` where there is one). The CPU keeps up with
            reading and writing; a device only takes the arithmetic off it.
        check: load each folder with transformers on the meta device before it gets its name.
        force: replace what is at the output paths.
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        NotFound: no such fit or step. InvalidInput: options that make no sense, or a pattern that
            matches nothing. AlreadyExists: something is at an output path.
        Mismatch: the fit is of other checkpoints than the store holds now, ``like`` is of another
            model, or the check found missing or unexpected keys; nothing is left at ``out``.
        Locked: another process writes there. OverBudget: the budget is too small.

    Notes:
        A folder is written beside its place, read back, and renamed; one that has its name is
        complete. Memory: a few chunks a worker, whatever the model and the number of targets.
    """
    started = time.perf_counter()
    job = _Job(
        traj,
        estimator=estimator,
        fit=fit,
        rsq_threshold=rsq_threshold,
        from_step=from_step,
        to_step=to_step,
        damping=damping,
        alpha=alpha,
        tensors=tensors,
        rounding=rounding,
        seed=seed,
        like=like,
        device=device,
    )
    plan, workers, group = job.plan(steps, Path(out), force, memory)
    targets, template = list(plan.targets), job.template
    names = ", ".join(str(t.step) for t in targets)
    progress(Started(f"extrapolate to {names}", plan.n_bytes))
    with ExitStack() as stack:
        writers = [
            stack.enter_context(FolderWriter(Path(t.path), job.store.vectors, force=force))
            for t in targets
        ]
        for writer in writers:
            writer.add_files(template.files)
        for name in template.side_files:
            content = template.read_side_file(name)
            for writer in writers:
                writer.write_side_file(name, content)
        totals = [Counts()] * len(targets)
        chunks, target_steps = stack.enter_context(job.chunks(group)), [t.step for t in targets]
        pool = stack.enter_context(ThreadPoolExecutor(workers.workers))
        for vector in job.store.vectors.values():

            def work(group: range, vector: FlatVector = vector) -> tuple[list[Counts], int]:
                return chunks.run(vector, group, target_steps, writers)

            for _, (counts, done) in map_in_order(
                pool, work, chunks.groups(vector), 2 * workers.workers
            ):
                totals = [a + b for a, b in zip(totals, counts, strict=True)]
                progress(Advanced(done))
        for i, (writer, total) in enumerate(zip(writers, totals, strict=True)):
            targets[i] = replace(
                targets[i],
                moved=total.moved,
                held=total.held,
                copied=total.copied,
                unchanged_after_rounding=total.unchanged,
            )
            job.write_rest(writer, targets[i])
            writer.finish()
            writer.check()
            if check:
                from trajkit.forecast.loading import check_loads

                check_loads(writer.part, called=Path(targets[i].path))
        for writer in writers:
            writer.commit()
    seconds = time.perf_counter() - started
    progress(Finished(f"{format_bytes(plan.n_bytes)} at {format_rate(plan.n_bytes, seconds)}"))
    return ExtrapolateResult(
        targets=tuple(targets),
        estimator=estimator,
        last_step=job.estimator.last_step,
        moved=sum(c.moved for c in totals),
        held=sum(c.held for c in totals),
        copied=sum(c.copied for c in totals),
        unchanged_after_rounding=sum(c.unchanged for c in totals),
        n_bytes=plan.n_bytes,
        seconds=seconds,
        warnings=plan.warnings,
    )


def plan_extrapolate(
    traj: Source,
    steps: int | Sequence[int] | None,
    out: str | Path,
    *,
    force: bool = False,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    **options: Any,
) -> ExtrapolatePlan:
    """What :func:`extrapolate` would write, with bytes and memory; raises as it would.

    ``options`` are those of :func:`extrapolate`, but for ``check`` and ``progress``.
    """
    return _Job(traj, **options).plan(steps, Path(out), force, memory)[0]


class _Job:
    """One call of :func:`extrapolate`: what is evaluated, chunk by chunk."""

    def __init__(
        self,
        traj: Source,
        *,
        estimator: str = "anchored",
        fit: str | Fit = DEFAULT_FIT,
        rsq_threshold: float | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        damping: float | None = None,
        alpha: float | None = None,
        tensors: Sequence[str] = (),
        rounding: str = "nearest",
        seed: int = 0,
        like: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        check_options(
            estimator,
            damping=damping,
            alpha=alpha,
            from_step=from_step,
            to_step=to_step,
            rsq_threshold=rsq_threshold,
            rounding=rounding,
            seed=seed,
        )
        self.device = choose_device(device)
        self.store = as_store(traj)
        pair = is_pair(estimator)
        self.fit = self._find_fit(fit, not pair or rsq_threshold is not None)
        if self.fit is not None:
            self._check_fit(self.fit)
        if not len(self.store.steps):
            raise InvalidInput(f"{self.store.path}: holds no step yet; run trajkit ingest first")
        window = self.store.steps if self.fit is None else self.fit.steps
        self.first = self.store.index_of(int(window[0]) if from_step is None else from_step)
        self.last = self.store.index_of(int(window[-1]) if to_step is None else to_step)
        if pair and self.first >= self.last:
            raise InvalidInput(
                f"{estimator} needs a from_step earlier than its to_step, not "
                f"{self.store.steps[self.first]} and {self.store.steps[self.last]}"
            )
        threshold = rsq_threshold
        if threshold is None and not pair and self.fit is not None:
            threshold = self.fit.rsq_threshold
        self.estimator = Estimator(
            estimator,
            first_step=int(self.store.steps[self.first]),
            last_step=int(self.store.steps[self.last]),
            x_mean=0.0 if self.fit is None else self.fit.x_mean,
            threshold=threshold,
            by_flag=self.fit is not None and threshold == self.fit.rsq_threshold,
            damping=DEFAULT_DAMPING if damping is None else damping,
            alpha=alpha,
            rounding=Rounding("stochastic" if rounding == "stochastic" else "nearest", seed),
        )
        self.texts = tuple(tensors)
        self.template = (
            template_of_step(self.store, self.last)
            if like is None
            else template_like(Path(like), self.store, self.last)
        )
        self.rules = self._assign_rules()

    def _find_fit(self, fit: str | Fit, needed: bool) -> Fit | None:
        if isinstance(fit, Fit):
            return fit
        if not needed and fit == DEFAULT_FIT and fit not in fit_names(self.store):
            return None
        return read_fit(self.store, fit)

    def _check_fit(self, fit: Fit) -> None:
        """Raise :class:`Mismatch` unless the fit is of the checkpoints that the store holds."""
        steps = fit.record.steps
        window = choose_window(self.store, steps[0], steps[-1])
        if (
            window.axis.steps != steps
            or window_digest(self.store, window) != fit.record.frames_digest
        ):
            raise Mismatch(
                f"{self.store.path}: the fit {fit.record.name!r} is of other checkpoints than the "
                "store holds now; run trajkit fit again"
            )

    def _assign_rules(self) -> dict[str, str]:
        fitted = float_dtypes(self.store.vectors)
        if self.fit is not None and not self.estimator.is_pair:
            fitted = tuple(d for d in fitted if d in self.fit.arrays)
        rules = [parse_rule(text) for text in self.texts]
        return assign_rules(self.store.tensors, rules, fitted, self.template.tied)

    def plan(
        self, steps: int | Sequence[int] | None, out: Path, force: bool, memory: str | int
    ) -> tuple[ExtrapolatePlan, Plan, int]:
        """What will be written, checked as far as it can be without writing; chunks a task."""
        targets = self._targets(steps, out)
        self._check_place(out, targets, force)
        workers, group = plan_chunks(self.store.vectors, parse_bytes(memory))
        sizes = dict.fromkeys(("extrapolate", "hold", "copy"), 0)
        for name, rule in self.rules.items():
            sizes[rule] += self.store.tensors[name].size
        there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
        plan = ExtrapolatePlan(
            targets=tuple(targets),
            estimator=self.estimator.name,
            last_step=self.estimator.last_step,
            files=len(self.template.files),
            n_bytes=len(targets) * sum(f.n_bytes for f in self.template.files),
            free_bytes=shutil.disk_usage(there).free,
            extrapolated=sizes["extrapolate"],
            held=sizes["hold"],
            copied=sizes["copy"],
            workers=workers.workers,
            memory_bytes=workers.n_bytes,
            warnings=tuple(self._warnings(targets)),
        )
        return plan, workers, group

    def _targets(self, steps: int | Sequence[int] | None, out: Path) -> list[Target]:
        """The targets, checked, with the folder each goes to."""
        e = self.estimator
        if steps is None and e.alpha is not None:
            steps = e.last_step + round(e.alpha * (e.last_step - e.first_step))
        steps = [] if steps is None else [steps] if isinstance(steps, int) else list(steps)
        if not steps:
            raise InvalidInput("no target step given")
        if len(set(steps)) != len(steps):
            raise InvalidInput("a target step is given twice")
        if e.alpha is not None and len(steps) > 1:
            raise InvalidInput("expo with one alpha gives one checkpoint: give one step at most")
        many = len(steps) > 1
        return [
            Target(
                step=step,
                horizon=step - e.last_step,
                path=str(out / f"step_{step}" if many else out),
                alpha=e.coefficient(step) if e.name == "expo" else None,
            )
            for step in steps
        ]

    def _check_place(self, out: Path, targets: Sequence[Target], force: bool) -> None:
        if len(targets) > 1 and os.path.lexists(out) and not out.is_dir():
            raise AlreadyExists(f"{out}: is a file; several targets go to folders in {out}")
        store = self.store.path.resolve()
        for target in targets:
            place = Path(target.path).resolve()
            if place in (store, *store.parents) or store in place.parents:
                raise AlreadyExists(f"{target.path}: the store is there; choose another -o")
            check_target(Path(target.path), force)

    def _warnings(self, targets: Sequence[Target]) -> list[str]:
        """What a reader of the outcome should know."""
        return [line for target in targets for line in self._warn(target)]

    def _warn(self, target: Target) -> list[str]:
        e = self.estimator
        span = e.last_step - e.first_step
        found = []
        if target.horizon > span:
            found.append(
                f"step {target.step} is {target.horizon} steps beyond a window of {span} steps "
                f"({e.last_step - span} to {e.last_step}): a line over so short a window is not "
                "known to hold so far out"
            )
        elif target.horizon < 0:
            found.append(
                f"step {target.step} lies before step {e.last_step}, the last one used; trajkit "
                "restore gives checkpoints that were ingested"
            )
        if e.alpha is not None:
            meant = e.last_step + e.alpha * (e.last_step - e.first_step)
            if abs(meant - target.step) > 0.5:
                found.append(
                    f"step {target.step} is only the name: alpha {e.alpha:g} amounts to step "
                    f"{meant:g}"
                )
        return found

    def chunks(self, group: int) -> ChunkJob:
        """The work that is left for each chunk, so many together."""
        return ChunkJob(
            self.store,
            self.fit,
            self.estimator,
            self.rules,
            self.first,
            self.last,
            self.device,
            group,
        )

    def write_rest(self, writer: FolderWriter, target: Target) -> None:
        """Write the index, the provenance and the model card."""
        if self.template.index is not None:
            writer.write_side_file(*self.template.index)
        provenance = self.provenance(target)
        writer.write_side_file(PROVENANCE, (json.dumps(provenance, indent=2) + "\n").encode())
        card = write_card(provenance, self.template.read_config(), self._warn(target))
        writer.write_side_file(_CARD, card.encode())

    def provenance(self, target: Target) -> dict[str, Any]:
        """The content of ``trajkit.json``; the same for the same inputs, whenever and wherever."""
        e = self.estimator
        fit = None if self.fit is None else self.fit.record
        window = [e.first_step, e.last_step]
        if fit is not None and not e.is_pair:
            window = list(fit.steps)
        shown = {k: v for k, v in asdict(target).items() if k != "path" and v is not None}
        return {
            "made_by": "trajkit extrapolate",
            "trajkit": trajkit.__version__,
            "target": shown,
            "estimator": e.name,
            "parameters": e.parameters,
            "rsq_threshold": e.threshold,
            "fitted_steps": window,
            "last_step": e.last_step,
            "tensor_rules": [f"{pattern}=copy" for pattern in COPIED] + list(self.texts),
            "layout_from": self.template.like or f"step {e.last_step}",
            "fit": None
            if fit is None or not e.reads
            else {
                "name": fit.name,
                "steps": list(fit.steps),
                "rsq_threshold": fit.rsq_threshold,
                "frames_digest": fit.frames_digest,
                "versions": dict(fit.versions),
            },
            "versions": {
                "trajkit": trajkit.__version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
        }
