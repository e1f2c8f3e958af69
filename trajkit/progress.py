"""What a long operation tells whoever listens: plain events; and a way to show them.

A verb takes ``progress``, a function of one event, and calls it from its own thread; ``True`` shows
the events on stderr as the command line does: bars on a terminal, a line a stage otherwise. A
notebook or a log can do what it likes with them.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from trajkit.text import format_bytes, format_rate, format_seconds, printable


@dataclass(frozen=True, slots=True)
class Started:
    """A stage begins; ``total`` is its work in ``unit`` (bytes, checkpoints, tensors)."""

    stage: str
    total: int
    unit: str = "B"


@dataclass(frozen=True, slots=True)
class Advanced:
    """Some of the stage's work is done."""

    amount: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage is over; ``summary`` is one line for a log."""

    summary: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a line: a skipped checkpoint, a stripped prefix."""

    text: str


Event = Started | Advanced | Finished | Note
Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The subscriber of those who want none."""
    del event


def as_subscriber(progress: Progress | bool) -> Progress:
    """The subscriber itself; none for False."""
    return progress if callable(progress) else silent


@contextmanager
def listening(progress: Progress | bool) -> Iterator[Progress]:
    """The subscriber; for True one that shows the events on stderr until the block is left."""
    if progress is not True:
        yield as_subscriber(progress)
    else:
        with show_progress(summaries=True) as subscriber:
            yield subscriber


P = ParamSpec("P")
R = TypeVar("R")


def shows_progress(verb: Callable[P, R]) -> Callable[P, R]:
    """Let a verb's ``progress=True`` show its events, and take them down however it ends."""

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        progress: Any = kwargs.get("progress", False)
        if progress is not True:
            return verb(*args, **kwargs)
        with listening(progress) as subscriber:
            kwargs["progress"] = subscriber
            return verb(*args, **kwargs)

    return call


class PlainLines:
    """Progress for a log: one line when a stage ends, and one now and then in a long stage."""

    def __init__(self, *, summaries: bool = True, every_seconds: float = 30.0) -> None:
        self.summaries = summaries
        self.every_seconds = every_seconds
        self.stage = Started("", 0)
        self.done = 0
        self.begun = self.spoke = time.monotonic()

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self.stage, self.done = event, 0
                self.begun = self.spoke = time.monotonic()
            case Advanced(amount):
                self.done += amount
                now = time.monotonic()
                if now - self.spoke > self.every_seconds:
                    self.spoke = now
                    _say(f"{self.stage.stage}: {self._state(now)}")
            case Finished(summary):
                if self.summaries:
                    _say(f"{self.stage.stage}: {summary}")
            case Note(text):
                _say(text)

    def _state(self, now: float) -> str:
        spent = now - self.begun
        left = spent * (self.stage.total - self.done) / max(self.done, 1)
        return f"{describe_state(self.stage, self.done, spent)}, {format_seconds(left)} left"


def describe_state(stage: Started, done: int, seconds: float) -> str:
    """How much of a stage is done.

    >>> describe_state(Started("guide", 86, "forwards"), 12, 3.0)
    '12 of 86 forwards'
    >>> describe_state(Started("fit", 4_000_000), 1_000_000, 0.5)
    '1 MB of 4 MB, 2 MB/s'
    """
    if stage.unit != "B":
        return f"{done:,} of {stage.total:,} {stage.unit}"
    of = f"{format_bytes(done)} of {format_bytes(stage.total)}"
    return f"{of}, {format_rate(done, seconds)}"


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201 - it was asked for


@contextmanager
def show_progress(*, summaries: bool) -> Iterator[Progress]:
    """Bars on a terminal, a line a stage otherwise; ``summaries``: what each stage measured."""
    if sys.stderr.isatty():
        with _bars(summaries) as subscriber:
            yield subscriber
    else:
        yield PlainLines(summaries=summaries)


@contextmanager
def _bars(summaries: bool) -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=RichConsole(stderr=True), transient=True) as bars:
        now: dict[str, Any] = {}

        def subscriber(event: Event) -> None:
            match event:
                case Started():
                    now["task"] = bars.add_task(printable(event.stage), total=event.total, state="")
                    now.update({"stage": event, "done": 0, "begun": time.monotonic()})
                case Advanced(amount):
                    now["done"] += amount
                    spent = time.monotonic() - now["begun"]
                    text = describe_state(now["stage"], now["done"], spent)
                    bars.update(now["task"], advance=amount, state=text)
                case Finished(summary):
                    bars.remove_task(now["task"])
                    if summaries:
                        line = f"{now['stage'].stage}: {summary}"
                        bars.console.print(printable(line), highlight=False, markup=False)
                case Note(text):
                    bars.console.print(printable(text), highlight=False, markup=False)

        yield subscriber
