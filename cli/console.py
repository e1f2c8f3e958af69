"""What the command line says and where: data on stdout, talk on stderr, errors on one line."""

import dataclasses
import json
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from trajkit.defaults import DEFAULT_FIT, DEFAULT_STORE
from trajkit.errors import TrajkitWarning
from trajkit.progress import Note, Progress, show_progress, silent
from trajkit.text import printable


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
        """What a person would run next: on stderr, and only where a person reads it."""
        if not self.quiet and not self.as_json and sys.stderr.isatty():
            click.echo("\nnext:", err=True)
            for line in lines:
                click.echo(f"  {printable(line)}", err=True)

    def warn(self, text: str) -> None:
        """A warning on stderr, even with -q."""
        click.echo(f"warning: {printable(text)}", err=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A subscriber for a verb's events: a bar on a terminal; with -v what each stage measured.

        It hears of kernels that are compiled, too, since that takes as long as a stage.
        """
        from trajkit.kernels import compiling

        shown = nullcontext(silent) if self.quiet else show_progress(summaries=self.verbose)
        with shown as subscriber:
            compiling.listen(lambda line: subscriber(Note(line)))
            try:
                yield subscriber
            finally:
                compiling.listen(None)

    @contextmanager
    def printing_warnings(self) -> Iterator[None]:
        """Print what the library warns of as lines, each once."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", TrajkitWarning)
            shown, said = warnings.showwarning, set()

            def show(message: Any, category: Any, *rest: Any, **more: Any) -> None:
                if not issubclass(category, TrajkitWarning):
                    shown(message, category, *rest, **more)
                elif str(message) not in said:
                    said.add(str(message))
                    self.warn(str(message))

            warnings.showwarning = show
            yield


def to_plain(result: Any) -> Any:
    """Dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return dataclasses.asdict(result)
    return result


def spell(
    command: str, *arguments: str | Path, store: Path | None = None, **options: str | None
) -> str:
    """A command as one would type it: options that are the default, or None, are left out.

    >>> spell("report", store=Path("my run.zarr"), fit="default", name=None)
    "trajkit report --store 'my run.zarr'"
    >>> spell("extrapolate", "--steps", "+500", "-o", "out", fit="early")
    'trajkit extrapolate --steps +500 -o out --fit early'
    """
    words = ["trajkit", command, *map(str, arguments)]
    if store is not None and store != Path(DEFAULT_STORE) and not _is_in_environment():
        words += ["--store", str(store)]
    for name, value in options.items():
        if value is not None and (name, value) not in (("fit", DEFAULT_FIT), ("name", DEFAULT_FIT)):
            words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def _is_in_environment() -> bool:
    """Whether the store was named by TRAJKIT_STORE, which is still there for the next command."""
    context = click.get_current_context(silent=True)
    source = None if context is None else context.get_parameter_source("store")
    return source is click.core.ParameterSource.ENVIRONMENT
