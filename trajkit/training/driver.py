"""Periodic re-grounding between a trainer's runs: real steps, a jump, and the trainer again.

In the work folder, for segment k:

    segment-k/        the trainer's own output (segment-k-2 where the first attempt was cut short)
    segment-k.log     what it printed
    start-k/          what it started from, where that is no checkpoint of its own
    sums-k/           what the rule keeps after it; the one before is removed
    reground.json     how far all of it is, written whole after each step
    jumps.jsonl       the ledger

A kill loses at most the segment whose trainer was running: what it left stays, and the same command
begins that segment anew in another folder. Nothing of a trainer's is ever removed.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.target import find_sign
from trajkit.disk import disk_errors, remove_path
from trajkit.errors import InvalidInput, Locked
from trajkit.progress import Finished, Progress, Started, as_subscriber, shows_progress
from trajkit.text import shown
from trajkit.training.advance import Settings, advance, train
from trajkit.training.progress import Origin, State
from trajkit.training.reground import OptimizerPolicy
from trajkit.training.stream import GUIDED, RuleSpec
from trajkit.training.template import Template


@dataclass(frozen=True, slots=True)
class RegroundResult:
    """What was done, this call and those before."""

    model: str
    """folder of the last weights: after the last jump, where one was made"""
    segments: int
    real_steps: int
    virtual_steps: float
    """real steps and steps jumped, what was taken back left out"""
    lines: tuple[dict[str, Any], ...]
    """the ledger"""
    seconds: float


@shows_progress
def reground(
    start: str | Path,
    work: str | Path,
    command: str,
    segments: int,
    *,
    every: int = 15,
    jump: int = 150,
    rule: str = "pooled",
    optimizer: OptimizerPolicy = "reset",
    max_norm: float | None = None,
    adapt: bool = False,
    progress: Progress | bool = False,
    **options: Any,
) -> RegroundResult:
    """Run a trainer segment by segment, with a jump after each.

    Args:
        start: folder of the model to train.
        work: folder for everything that is made; the same call continues there.
        command: the trainer, with places to fill: see :mod:`trajkit.training.template`.
        segments: how many there are to be, those of earlier calls included.
        every: m, real steps of a segment.
        jump: n, training steps of a jump.
        rule: ``pooled``, ``two-point``, ``rsq`` or ``guided``, with ``options``.
        optimizer: ``reset``: the trainer starts anew from the weights after a jump; ``keep``: it
            resumes from a folder with its own state and the moved weights (HF Trainer, TRL), for
            which the command needs ``{resume}``.
        max_norm: cap of a jump's norm over that of the parameters.
        adapt: let the trainer's logged reward change ``jump``, and take jumps back.
        progress: takes events; True shows them.
        options: of the rule.

    Raises:
        InvalidInput: a command without a place that is needed, or options that do not fit.
        TrainerFailed: the trainer ended with an error, or without the checkpoint asked for.
        Mismatch: it wrote another model's checkpoint; or ``work`` was begun with other options.
        Locked: another process, or a trainer that outlived one, works there.
        StorageError: the disk refused.
    """
    began, progress = time.perf_counter(), as_subscriber(progress)
    settings = Settings(
        Path(os.path.abspath(work)),  # noqa: PTH100 - links are kept
        Template.parse(command), every, RuleSpec(rule, options), optimizer, max_norm, adapt,
    )  # fmt: skip
    _check(settings, segments)
    model = os.path.abspath(start)  # noqa: PTH100
    asked = {
        "start": model, "every": every, "jump": jump, "rule": rule, "options": options,
        "optimizer": optimizer, "max_norm": max_norm, "adapt": adapt,
    }  # fmt: skip
    with _holding(settings.work) as held:
        state = State.read(settings.work)
        if state is None:
            open_checkpoint(Path(model))
            state = State(asked, Origin(model), jump)
            state.write(settings.work)
        state.check_settings(asked, settings.work)
        while state.segment <= segments:
            progress(Started(f"segment {state.segment} of {segments}", every, "steps"))
            if state.trained is None:
                state = train(settings, state, held)
                state.write(settings.work)
            state = advance(settings, state, progress)
            state.write(settings.work)
            _remove_old_sums(settings.work, state.sums)
            progress(Finished(_describe(state.lines[-1])))
    return RegroundResult(
        state.origin.model, state.segment - 1, state.real_steps, state.virtual_steps,
        tuple(state.lines), time.perf_counter() - began,
    )  # fmt: skip


def _check(settings: Settings, segments: int) -> None:
    """Raise InvalidInput where what is asked for cannot be."""
    if settings.every < 1 or segments < 1:
        raise InvalidInput("a run has one segment or more, and a segment one real step or more")
    if settings.optimizer not in ("keep", "reset"):
        raise InvalidInput(f"the optimizer's state is kept or reset, not {settings.optimizer!r}")
    if settings.optimizer == "keep" and not settings.template.resumes:
        raise InvalidInput(
            "to keep the optimizer's state the command needs {resume}, such as "
            "--resume_from_checkpoint {resume}; or use --optimizer reset"
        )
    settings.rule.after(None, [settings.every])
    if settings.rule.name == GUIDED and (settings.optimizer == "keep" or settings.max_norm):
        raise InvalidInput(
            "rule guided: starts anew from the weights, and knows no cap of the norm"
        )


@contextmanager
def _holding(work: Path) -> Iterator[int]:
    """The work folder, ours alone: until we end, and until a trainer that outlives us does."""
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(
                    f"{shown(work)}: another trajkit reground works here, or a trainer that outlived "
                    "one; wait for it, or end it"
                ) from None
            yield fd
        finally:
            os.close(fd)


def _remove_old_sums(work: Path, now: str | None) -> None:
    """Remove what the rule kept after earlier segments: ours by its sign, and of no use any more."""
    with disk_errors(work):
        for path in work.glob("sums-*"):
            if path.name != now and path.is_dir() and find_sign(path) is not None:
                remove_path(path)


def _describe(line: dict[str, Any]) -> str:
    """What a segment came to, for people."""
    reward = "" if line["reward"] is None else f", reward {line['reward']:.4f}"
    if line["rolled_back"]:
        return f"the last jump is taken back{reward}; next {line['next_n']} steps"
    if not line["n"]:
        return f"no jump yet{reward}"
    return (
        f"jumped {line['n']:g} steps, {line['share_moved']:.1%} of the elements moved, by "
        f"{line['relative_norm']:.2e} of their norm{reward}"
    )
