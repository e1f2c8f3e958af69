"""Extrapolate: checkpoints of training steps to come, in the run's own files.

Chunk by chunk: read the fit (for ``two-point`` and ``expo``, two frames), evaluate every target,
put the bits where the layout has them. Nothing is held but chunks in work, whatever the model. The
arithmetic runs on the CPU unless a device is asked for: reading and writing set the pace, not it.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from trajkit.checkpoints.folder import FolderWriter
from trajkit.defaults import DEFAULT_ESTIMATOR, DEFAULT_FIT, DEFAULT_MEMORY_BYTES, DEFAULT_ROUNDING
from trajkit.errors import warn
from trajkit.fits.estimators.estimator import Counts
from trajkit.fits.estimators.gates import GateRule
from trajkit.fits.kept import Fit
from trajkit.forecast.cap import cap_jumps
from trajkit.forecast.cautions import describe_scale, find_cautions
from trajkit.forecast.chunks import ChunkTask, Evaluator, make_tasks
from trajkit.forecast.combine import weigh
from trajkit.forecast.modelcard import write_card
from trajkit.forecast.plan import Forecast, plan
from trajkit.forecast.provenance import describe_target
from trajkit.forecast.request import Request
from trajkit.forecast.result import ExtrapolatePlan, ExtrapolateResult, Target
from trajkit.parallel import map_in_order
from trajkit.progress import Advanced, Finished, Progress, Started, listening
from trajkit.store.tensors import Source
from trajkit.text import format_bytes, format_rate, parse_bytes

__all__ = ["ExtrapolatePlan", "ExtrapolateResult", "Target", "extrapolate", "plan_extrapolate"]

PROVENANCE = "trajkit.json"
_CARD = "README.md"


def extrapolate(
    traj: Source,
    steps: int | Sequence[int] | None,
    out: str | Path,
    *,
    estimator: str = DEFAULT_ESTIMATOR,
    fit: str | Fit = DEFAULT_FIT,
    rsq_threshold: float | None = None,
    gate: str | GateRule | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    tensors: Sequence[str] = (),
    rounding: str = DEFAULT_ROUNDING,
    seed: int = 0,
    like: str | Path | None = None,
    max_norm: float | None = None,
    device: str = "cpu",
    check: bool = False,
    force: bool = False,
    strict: bool = False,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress | bool = False,
    **parameters: float | None,
) -> ExtrapolateResult:
    """Write the checkpoints that the fitted lines give at training steps to come.

    :mod:`trajkit.fits.estimators` has the equations. An element whose R² is not above the threshold, or
    that is static or invalid, keeps its last value; ``two-point`` and ``expo`` move all elements,
    as published, unless a gate is given. Normalisation tensors and integers are copied from the
    last checkpoint used.

    Args:
        traj: the run: a store's path, a store, or a trajectory.
        steps: target training steps, written in one pass. ``expo`` with ``alpha`` takes one at
            most, as a label; by default the step that alpha amounts to.
        out: folder to write; with several targets, ``out/step_X`` each.
        estimator: ``anchored``, ``line``, ``two-point``, ``damped``, ``shrunk``, ``wiener``,
            ``mean``, ``ema``, ``rank-k``, ``rank-k-anchored`` or ``expo``; ``auto`` takes what the
            run's backtest says for the horizon.
        fit: a fit's name, or the fit.
        rsq_threshold: in place of the fit's own; the gate ``rsq:R``.
        gate: which elements may move: ``rsq:0.7``, or ``none``
            (:mod:`trajkit.fits.estimators.gates`).
        from_step: first point of ``two-point`` and ``expo``, first checkpoint of ``ema`` and
            ``rank-k`` (default: the first step of the fit's window, or of the store where there is
            no fit).
        to_step: their last one (default: the last step, likewise).
        tensors: rules ``PATTERN=RULE`` with a rule of ``extrapolate``, ``hold`` and ``copy``
            (:mod:`trajkit.forecast.rules`); where several match, the last one holds.
        rounding: ``nearest`` (ties to even), or ``stochastic``: up with the probability of the
            fraction cut off, so that drifts below half an ulp survive on average.
        seed: of the stochastic rounding; the noise depends on it and on an element's place alone.
        like: a checkpoint folder of the same model to take shard names, header order, index and
            side files from, in place of the run's last one.
        max_norm: a cap on the norm of the jump over that of the last checkpoint, of all floating-point
            elements before rounding: a jump beyond it is scaled down (:mod:`trajkit.forecast.cap`).
        device: ``cpu``, ``cuda`` or ``auto`` (``cuda`` where there is one). The CPU keeps up with
            reading and writing; a device only takes the arithmetic off it.
        check: load each folder with transformers on the meta device before it gets its name.
        force: replace what trajkit wrote at the output paths; nothing else is.
        strict: with ``auto``, refuse to go beyond the last horizon that beat the last checkpoint.
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.
        parameters: the estimator's own: ``damping`` (L of ``damped``, 0 to 2, default 0.3: the
            horizon is multiplied by it), ``decay`` (of ``ema``, default 0.5), ``rank`` (of
            ``rank-k``: how many directions, default 1), ``alpha`` (of ``expo``; default: what
            reaches the target's step).

    Raises:
        NotFound: no such fit or step. InvalidInput: options that make no sense, or a pattern that
            matches nothing. AlreadyExists: something is at an output path.
        Mismatch: the fit is of other checkpoints than the store holds now, ``like`` is of another
            model, or the check found missing or unexpected keys; nothing is left at ``out``.
        Locked: another process writes there. OverBudget: the budget is too small.

    Warns:
        TrajkitWarning: what a reader of the outcome should know; the result has it too.

    Notes:
        A folder is written beside its place, read back, and renamed; one that has its name is
        complete. Memory: a few chunks a worker, whatever the model and the number of targets; for
        ``ema`` and ``rank-k`` 8 bytes an element of a chunk and target more. ``rank-k`` goes over
        the window once more before it writes, ``max_norm`` over what it would write.
    """
    request = Request.make(
        traj, steps, out, estimator=estimator, fit=fit, rsq_threshold=rsq_threshold, gate=gate,
        from_step=from_step, to_step=to_step, tensors=tensors, rounding=rounding, seed=seed,
        like=like, max_norm=max_norm, device=device, check=check, force=force, strict=strict,
        memory=memory, **parameters,
    )  # fmt: skip
    with listening(progress) as subscriber:
        result = run(plan(request), subscriber)
    for line in result.warnings:
        warn(line)
    return result


def plan_extrapolate(
    traj: Source, steps: int | Sequence[int] | None, out: str | Path, **options: Any
) -> ExtrapolatePlan:
    """What :func:`extrapolate` would write, with bytes and memory; raises as it would.

    ``options`` are those of :func:`extrapolate`, but for ``progress``.
    """
    return plan(Request.make(traj, steps, out, **options)).summary


def run(forecast: Forecast, progress: Progress) -> ExtrapolateResult:
    """Write what was planned."""
    started = time.perf_counter()
    summary, targets = forecast.summary, list(forecast.targets)
    steps = tuple(t.step for t in targets)
    budget = parse_bytes(forecast.request.memory)
    evaluation = weigh(forecast.evaluation, steps, budget, progress)
    evaluation, norms = cap_jumps(
        evaluation, steps, forecast.request.max_norm, forecast.workers.workers, forecast.group,
        progress,
    )  # fmt: skip
    scales = dict(evaluation.rule.scales)
    forecast = replace(forecast, evaluation=evaluation)
    names = ", ".join(map(str, steps))
    progress(Started(f"extrapolate to {names}", summary.n_bytes))
    with ExitStack() as stack:
        writers = [
            stack.enter_context(FolderWriter(place, evaluation.store.vectors))
            for place in forecast.places
        ]
        _write_side_files(evaluation.template, writers)
        totals = _write_tensors(forecast, writers, progress)
        for i, (writer, total) in enumerate(zip(writers, totals, strict=True)):
            targets[i] = replace(
                targets[i],
                moved=total.moved,
                held=total.held,
                copied=total.copied,
                unchanged_after_rounding=total.unchanged,
                relative_norm=norms[i],
                scale=None if norms[i] is None else scales.get(targets[i].step, 1.0),
            )
            _finish(forecast, writer, targets[i])
        for writer in writers:
            writer.commit()
    seconds = time.perf_counter() - started
    progress(
        Finished(f"{format_bytes(summary.n_bytes)} at {format_rate(summary.n_bytes, seconds)}")
    )
    return ExtrapolateResult(
        targets=tuple(targets),
        estimator=summary.estimator,
        last_step=summary.last_step,
        moved=sum(c.moved for c in totals),
        held=sum(c.held for c in totals),
        copied=sum(c.copied for c in totals),
        unchanged_after_rounding=sum(c.unchanged for c in totals),
        n_bytes=summary.n_bytes,
        seconds=seconds,
        warnings=summary.warnings + tuple(filter(None, map(describe_scale, targets))),
    )


def _write_side_files(template: Any, writers: Sequence[FolderWriter]) -> None:
    """The shards' headers, and config, tokenizer and the like."""
    for writer in writers:
        writer.add_files(template.files)
    for name in template.side_files:
        content = template.read_side_file(name)
        for writer in writers:
            writer.write_side_file(name, content)


def _write_tensors(
    forecast: Forecast, writers: Sequence[FolderWriter], progress: Progress
) -> list[Counts]:
    """Every vector of every target; counts a target."""
    evaluation, workers = forecast.evaluation, forecast.workers.workers
    steps = tuple(t.step for t in forecast.targets)
    totals = [Counts()] * len(steps)
    with Evaluator.of(evaluation) as evaluator, ThreadPoolExecutor(workers) as pool:

        def work(task: ChunkTask) -> list[Counts]:
            return evaluator.run(
                task, lambda i, start, bits: writers[i].write(task.dtype, start, bits)
            )

        for vector in evaluation.store.vectors.values():
            tasks = make_tasks(evaluation.rule, vector, forecast.group, steps)
            for task, counts in map_in_order(pool, work, tasks, 2 * workers):
                totals = [a + b for a, b in zip(totals, counts, strict=True)]
                start, stop = (vector.chunk_span(task.chunks[i])[i] for i in (0, -1))
                progress(Advanced((stop - start) * vector.dtype.itemsize * len(steps)))
    return totals


def _finish(forecast: Forecast, writer: FolderWriter, target: Target) -> None:
    """Index, provenance and model card; the folder read back; loaded, where that was asked for."""
    evaluation, request = forecast.evaluation, forecast.request
    template = evaluation.template
    if template.index is not None:
        writer.write_side_file(*template.index)
    provenance = describe_target(evaluation, request, target)
    writer.write_side_file(PROVENANCE, (json.dumps(provenance, indent=2) + "\n").encode())
    cautions = find_cautions(evaluation, target)
    cautions += () if request.guide is None else request.guide.cautions
    card = write_card(
        provenance, template.read_json("config.json"), cautions,
        adapter=template.read_json("adapter_config.json"), guide=request.guide,
    )  # fmt: skip
    writer.write_side_file(_CARD, card.encode())
    writer.finish()
    writer.check()
    if request.check:
        from trajkit.forecast.loading import check_loads

        check_loads(writer.part, called=Path(target.path))
