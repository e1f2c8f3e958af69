"""Options that several commands share, and the way every command is run."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from trajkit.cli.console import Console
from trajkit.defaults import DEFAULT_FIT, DEFAULT_MEMORY_BYTES, DEFAULT_STORE

Command = Callable[..., Any]

store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    envvar="TRAJKIT_STORE",
    default=Path(DEFAULT_STORE),
    show_default=True,
    show_envvar=True,
    help="The trajectory store.",
)
memory_option = click.option(
    "--memory",
    default=f"{DEFAULT_MEMORY_BYTES >> 30}GiB",
    show_default=True,
    metavar="SIZE",
    help="Memory to use, above the interpreter and its libraries.",
)
force_option = click.option(
    "--force", is_flag=True, help="Replace what trajkit wrote at the output path; nothing else is."
)
pattern_option = click.option(
    "--pattern",
    metavar="REGEX",
    help="How the names of step folders or files look, where trajkit does not know the trainer: "
    r"'epoch_(\d+)', the step in parentheses.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
seed_range = click.IntRange(0, 2**64 - 1)


def fit_option(name: str, purpose: str) -> Callable[[Command], Command]:
    """Which of the store's fits."""
    return click.option("--fit", name, default=DEFAULT_FIT, show_default=True, help=purpose)


model_dtype_option = click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of the model's parameters (default: the checkpoint's own).",
)
model_device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where the model runs, as torch names it."
)


def measuring_options(verb: str, kept: str) -> Callable[[Command], Command]:
    """What the commands that put probes through every checkpoint share, with their own words."""
    options = (
        click.option(
            "--probes",
            required=True,
            type=click.Path(path_type=Path),
            metavar="P.jsonl",
            help='Lines with "prompt" or "messages", and "response".',
        ),
        click.option(
            "--name", default="default", show_default=True, help=f"The {kept}' name in the store."
        ),
        click.option("--steps", metavar="A,B,...", help=f"Steps to {verb.lower()} (default: all)."),
        click.option(
            "--checkpoints",
            multiple=True,
            type=click.Path(path_type=Path),
            metavar="CKPTS",
            help=f"{verb} these folders, not the store's steps (may be repeated).",
        ),
        click.option(
            "-o",
            "--out",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help=f"Keep the {kept} in this folder, not in the store.",
        ),
        model_dtype_option,
        model_device_option,
        click.option("--batch-tokens", default=4096, show_default=True, help="Tokens a batch."),
        force_option,
        memory_option,
    )
    return _all_of(options)


def device_option(default: str) -> Callable[[Command], Command]:
    """Where a command computes."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default=default,
        show_default=True,
        help="Where to compute.",
    )


def speaking(command: Command) -> Command:
    """Add -q, -v and --json, and hand the command a :class:`Console` as its first argument."""

    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and warnings.")
    @click.option("-v", "--verbose", is_flag=True, help="Say what each stage measured, too.")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
    @functools.wraps(command)
    def run(*args: Any, quiet: bool, verbose: bool, as_json: bool, **kwargs: Any) -> Any:
        console = Console(quiet, verbose, as_json)
        with console.printing_warnings():
            return command(console, *args, **kwargs)

    return run


def example(*lines: str) -> str:
    """The block of examples that ends a command's help, kept as it is by click."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def sampling_options(temperature: float, top_p: float) -> Callable[[Command], Command]:
    """What the commands that sample responses share, with their own defaults."""
    options = (
        click.option(
            "--prompts",
            required=True,
            type=click.Path(path_type=Path),
            metavar="P.jsonl",
            help='Lines with "prompt" or "messages".',
        ),
        click.option(
            "-o",
            "--out",
            required=True,
            type=click.Path(path_type=Path),
            metavar="OUT.jsonl",
            help="File to write.",
        ),
        click.option("-n", "--samples", default=1, show_default=True, help="Responses a prompt."),
        click.option("--temperature", default=temperature, show_default=True, help="0: greedy."),
        click.option("--top-p", default=top_p, show_default=True),
        click.option("--max-new-tokens", default=256, show_default=True, help="Longest response."),
        click.option("--batch", default=32, show_default=True, help="Responses made together."),
        click.option("--seed", default=0, show_default=True),
        model_dtype_option,
        model_device_option,
    )

    return _all_of(options)


def _all_of(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Several options as one decorator; help lists them in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def parse_steps(steps: str | None) -> list[int] | None:
    """The steps of ``0,100,200``.

    Raises:
        InvalidInput: they are no whole numbers.
    """
    from trajkit.errors import InvalidInput

    if steps is None:
        return None
    parts = [part.strip() for part in steps.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise InvalidInput(f"--steps takes whole numbers such as 0,100,200, not {steps!r}")
    return [int(part) for part in parts]
