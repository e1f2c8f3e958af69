"""What the command line says and where: data on stdout, talk on stderr, errors on one line."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from trajkit.progress import Advanced, Event, Finished, Note, Progress, Started, silent
from trajkit.text import printable
from trajkit.units import format_bytes, format_rate, format_seconds


class Console:
    """One command's voice: quiet (-q), plain, or verbose (-v); bars only on a terminal."""

    def __init__(self, quiet: bool, verbose: bool, as_json: bool) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.as_json = as_json

    def say(self, text: str = "") -> None:
        """A line of the result for people; with --json it is left out."""
        if not self.quiet and not self.as_json:
            click.echo(printable(text))

    def data(self, result: Any) -> None:
        """The result as JSON on stdout, when --json asked for it."""
        if self.as_json:
            click.echo(json.dumps(to_plain(result), indent=2))

    def next_command(self, *lines: str) -> None:
        """What a person would run next."""
        if not self.quiet and not self.as_json:
            click.echo("\nnext:")
            for line in lines:
                click.echo(f"  {line}")

    def warn(self, text: str) -> None:
        """A warning on stderr, even with -q."""
        click.echo(f"warning: {printable(text)}", err=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A subscriber for a verb's events: a bar on a terminal, a line a stage otherwise.

        It hears of kernels that are compiled, too, since that takes as long as a stage.
        """
        from trajkit.kernels import compiling

        with self._subscriber() as subscriber:
            compiling.listen(lambda line: subscriber(Note(line)))
            try:
                yield subscriber
            finally:
                compiling.listen(None)

    @contextmanager
    def _subscriber(self) -> Iterator[Progress]:
        if self.quiet:
            yield silent
        elif sys.stderr.isatty():
            with _bars() as subscriber:
                yield subscriber
        else:
            yield _PlainLines()


def to_plain(result: Any) -> Any:
    """Dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return dataclasses.asdict(result)
    return result


class _PlainLines:
    """Progress for a log: one line when a stage ends, and one now and then in a long stage."""

    def __init__(self, every_seconds: float = 30.0) -> None:
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
                    click.echo(f"{self.stage.stage}: {self._state(now)}", err=True)
            case Finished(summary):
                click.echo(f"{self.stage.stage}: {summary}", err=True)
            case Note(text):
                click.echo(text, err=True)

    def _state(self, now: float) -> str:
        spent = now - self.begun
        left = spent * (self.stage.total - self.done) / max(self.done, 1)
        return (
            f"{format_bytes(self.done)} of {format_bytes(self.stage.total)}, "
            f"{format_rate(self.done, spent)}, {format_seconds(left)} left"
        )


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=RichConsole(stderr=True), transient=True) as bars:
        state: dict[str, Any] = {}

        def subscriber(event: Event) -> None:
            match event:
                case Started(stage, total):
                    state["task"] = bars.add_task(stage, total=total)
                    state["stage"] = stage
                case Advanced(amount):
                    bars.advance(state["task"], amount)
                case Finished(summary):
                    bars.remove_task(state["task"])
                    bars.console.print(f"{state['stage']}: {summary}", highlight=False)
                case Note(text):
                    bars.console.print(text, highlight=False)

        yield subscriber
