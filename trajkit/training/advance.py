"""One segment: the trainer's real steps, then the jump, or the jump before it taken back."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from trajkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trajkit.checkpoints.metrics import read_trainer_state
from trajkit.checkpoints.reader import FlatReader
from trajkit.checkpoints.series import find_series
from trajkit.disk import disk_errors
from trajkit.errors import TrajkitError
from trajkit.progress import Note, Progress
from trajkit.text import shown
from trajkit.training.horizon import Horizon
from trajkit.training.jump import Jump
from trajkit.training.progress import Origin, State
from trajkit.training.reground import OptimizerPolicy
from trajkit.training.restart import (
    can_resume,
    facts_of,
    stands_alone,
    writing_model,
    writing_sums,
)
from trajkit.training.stream import GUIDED, RuleSpec, SegmentFiles, Sums, follow, sums_layout
from trajkit.training.template import Template
from trajkit.training.trainer import TrainerFailed, run_trainer

REWARD = "reward"
"""the metric that a trainer's log calls so"""

COUNTING_FROM_ZERO = ("slime",)
"""trainers whose first step's checkpoint is called 0"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What every segment has in common."""

    work: Path
    template: Template
    every: int
    """m, real steps of a segment"""
    rule: RuleSpec
    optimizer: OptimizerPolicy
    max_norm: float | None
    adapt: bool


def train(settings: Settings, state: State, held: int) -> State:
    """Let the trainer make a segment's real steps.

    Args:
        settings: of the run.
        state: of the run, at a segment that is not trained.
        held: descriptor of the work folder's lock, which lives as long as the trainer.

    Raises:
        TrainerFailed: it ended with an error, or without the checkpoint asked for.
    """
    output, origin = _new_output(settings.work, state.segment), state.origin
    total = origin.step + settings.every
    values = {
        "model": origin.model,
        "output": str(output),
        "steps": str(settings.every),
        "total": str(total),
        "segment": str(state.segment),
        **({"resume": origin.model} if origin.resumes else {}),
    }
    log = _log_of(output)
    run_trainer(settings.template.fill(values), log, held)
    try:
        find_written(output, origin.step, total)
    except TrajkitError as error:
        raise TrainerFailed(
            f"{error} ({shown(log)} has the trainer's output; the same command begins the segment anew)"
        ) from error
    return replace(state, trained=output.name)


def _new_output(work: Path, segment: int) -> Path:
    """An empty folder; where an attempt was cut short, another one beside it."""
    with disk_errors(work):
        attempt = 1
        while True:
            tail = "" if attempt == 1 else f"-{attempt}"
            output = work / f"segment-{segment:04d}{tail}"
            try:
                output.mkdir()
                return output
            except FileExistsError:
                attempt += 1


def _log_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.log")


def find_written(output: Path, first: int, last: int) -> list[Checkpoint]:
    """The checkpoints of a segment after its step `first`, complete up to `last`.

    Raises:
        TrainerFailed: there is none, or not that of the last step.
    """
    with disk_errors(output):
        empty = not any(output.iterdir())
    if empty:
        raise TrainerFailed(f"{output}: the trainer wrote no checkpoint")
    series = find_series([output])
    found = series.found
    if found[-1].layout in COUNTING_FROM_ZERO and found[-1].step == last - 1:
        found = tuple(replace(f, step=f.step + 1) for f in found)
    found = tuple(f for f in found if first < f.step)
    steps = [f.step for f in found]
    if not steps or steps[-1] != last:
        have = ", ".join(map(str, steps[-5:])) or "none"
        why = "".join(f"; {shown(i.path)}: {i.reason}" for i in series.incomplete[-1:])
        raise TrainerFailed(f"{output}: expected a checkpoint of step {last}, found {have}{why}")
    return [open_checkpoint(f.path, f.step) for f in found]


def advance(settings: Settings, state: State, progress: Progress) -> State:
    """Take a trained segment in; then jump, or take the jump before it back.

    Raises:
        Mismatch: the trainer's checkpoints are not of the model it started from.
        Unsupported: an optimizer's state to be kept that holds the weights too.
        StorageError: the disk refused; nothing is lost.
    """
    assert state.trained is not None
    origin, output = state.origin, settings.work / state.trained
    written = find_written(output, origin.step, origin.step + settings.every)
    spacing = [c.step - a for c, a in zip(written, [origin.step, *(c.step for c in written)])]  # noqa: B905
    rewards = _rewards(written[-1], origin.step)
    if settings.adapt and not rewards:
        progress(Note(f"{output}: no {REWARD} in a trainer_state.json; nothing judges the jump"))
    horizon = Horizon(state.n, settings.adapt)
    stands = state.undo is None or horizon.judge(state.rewards, rewards)
    ready, counts = settings.rule.after(state.counts, spacing)
    n: float = horizon.n if ready and stands else 0
    start = open_checkpoint(Path(origin.model))
    guided: Jump | None = None
    said: dict[str, str] = {}
    if settings.rule.name == GUIDED and n:
        guided, said = _guide(settings, state, written, n)
        n = guided.n
    with SegmentFiles(start, written, spacing) as files:
        done, sums, after = _write(settings, state, files, start, n, guided)
    real, virtual = state.real_steps + settings.every, state.virtual_steps
    if stands:
        virtual += settings.every + done.n
    else:
        assert state.undo is not None
        after, virtual = state.undo, virtual - state.jumped
    return replace(
        state, origin=after, n=horizon.n, segment=state.segment + 1, trained=None, sums=sums,
        counts=counts, rewards=rewards if stands else state.rewards, jumped=done.n,
        undo=_without_jump(settings, written[-1]) if n and settings.adapt else None,
        real_steps=real, virtual_steps=virtual,
    ).noted(
        segment=state.segment, real_steps=real, virtual_steps=virtual,
        reward=fmean(rewards) if rewards else None, next_n=horizon.n, rolled_back=not stands,
        **asdict(done), share_moved=done.share_moved, model=after.model, **said,
    )  # fmt: skip


def _rewards(last: Checkpoint, first: int) -> list[float]:
    """The rewards that the trainer logged for the segment's steps, if it did."""
    metrics = read_trainer_state(last.root)
    curve = () if metrics is None else metrics.curves.get(REWARD, ())
    return [value for step, value in curve if first < step <= last.step]


def _guide(
    settings: Settings, state: State, written: list[Checkpoint], n: float
) -> tuple[Jump, dict[str, str]]:
    """Let the segment's outputs choose the jump; what was done, and why."""
    from trajkit.training.guided import jump_guided  # models; other rules need none

    out, probes = _next_start(settings, state), Path(settings.rule.options["probes"])
    origin = state.origin
    done, said = jump_guided(Path(origin.model), written, origin.step, n, probes, out)
    return done, {"guide": said}


def _next_start(settings: Settings, state: State) -> Path:
    return settings.work / f"start-{state.segment + 1:04d}"


def _write(
    settings: Settings,
    state: State,
    files: SegmentFiles,
    start: Checkpoint,
    n: float,
    guided: Jump | None,
) -> tuple[Jump, str | None, Origin]:
    """Write what the rule keeps, and the folder to start from; (jump, sums, origin).

    Where a guided jump is there already, only a start without one is left to be written.
    """
    work, k = settings.work, state.segment
    if guided is not None and guided.n:
        return guided, None, Origin(str(_next_start(settings, state)))
    layout = sums_layout(files.vectors, settings.rule)
    after = _without_jump(settings, files.last)
    if n:
        resumes = settings.optimizer == "keep"
        after = Origin(after.model, resumes, files.last.step if resumes else 0)
    facts = facts_of(files.last, segment=k, jumped=n)
    sums_name = f"sums-{k:04d}" if layout else None
    with ExitStack() as stack:
        before = sums_writer = model_writer = None
        if state.sums is not None:
            kept = open_checkpoint(work / state.sums)
            before = stack.enter_context(FlatReader(kept, layout))
        if sums_name is not None:
            sums_writer = stack.enter_context(writing_sums(work / sums_name, layout, facts))
        if n or not stands_alone(files.last, start):
            out = _next_start(settings, state)
            after = replace(after, model=str(out))
            model_writer = stack.enter_context(
                writing_model(out, files, start, facts, resumes=after.resumes)
            )
        sums = Sums(
            layout, state.counts, before, None if sums_writer is None else sums_writer.write
        )
        write = None if model_writer is None else model_writer.write
        rule = RuleSpec("two-point", {}) if settings.rule.name == GUIDED else settings.rule
        done = follow(files, rule, sums, n, settings.max_norm, write)
    return done, sums_name, after


def _without_jump(settings: Settings, last: Checkpoint) -> Origin:
    """Where a trainer goes on as if there had been no jump: with its own state, if it has one."""
    resumes = settings.template.resumes and can_resume(last)
    return Origin(str(last.root), resumes, last.step if resumes else 0)
