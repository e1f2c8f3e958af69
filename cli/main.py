"""The command ``trajkit``: commands, exit codes, errors on one line.

Exit codes: 0; 1 for an error that trajkit reports; 2 for misuse; 130 for an interrupt.
"""

import os
import sys
import traceback
from contextlib import suppress

import click

from trajkit import __version__
from trajkit.cli.activations import activations_command
from trajkit.cli.addresses import spare_address_space
from trajkit.cli.backtest import backtest_command
from trajkit.cli.convert import convert_command
from trajkit.cli.drop import drop_command
from trajkit.cli.evidence import evidence_command
from trajkit.cli.export import export_command
from trajkit.cli.extrapolate import extrapolate_command
from trajkit.cli.fit import fit_command
from trajkit.cli.generate import generate_command
from trajkit.cli.info import info_command
from trajkit.cli.ingest import ingest_command
from trajkit.cli.logprobs import logprobs_command
from trajkit.cli.probes import probes_command
from trajkit.cli.reground import reground_command
from trajkit.cli.report import report_command
from trajkit.cli.restore import restore_command
from trajkit.cli.verify import verify_command
from trajkit.errors import TrajkitError, missing_library
from trajkit.text import printable


class _InOrder(click.Group):
    """A group that lists its commands in the order in which people run them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="trajkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Every checkpoint of a training run kept, every weight fitted, checkpoints to come written.

    \b
    Examples:
      trajkit ingest ckpts/
      trajkit fit --rsq-threshold 0.7
      trajkit extrapolate --steps 2000 -o out/
      trajkit report
    """
    del debug  # read in main(), which sees errors that no context outlives


for _command in (
    ingest_command,
    fit_command,
    backtest_command,
    evidence_command,
    extrapolate_command,
    probes_command,
    logprobs_command,
    activations_command,
    generate_command,
    reground_command,
    report_command,
    restore_command,
    export_command,
    convert_command,
    verify_command,
    info_command,
    drop_command,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with its code."""
    spare_address_space()
    code = _run("--debug" in sys.argv[1:])
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        code = _stop_writing(error)
    sys.exit(code)


def _run(debug: bool) -> int:
    """Run the command line; its exit code, errors said."""
    try:
        code = cli.main(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return 130
    except click.ClickException as error:
        _show_misuse(error)
        return error.exit_code
    except (TrajkitError, MemoryError, ModuleNotFoundError) as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and not isinstance(error, TrajkitError):
            if (error.name or "trajkit").startswith("trajkit"):
                raise
            error = missing_library(error)
        _complain(f"error: {' '.join(str(error).split()) or 'out of memory'}")
        return 1
    except OSError as error:
        if debug:
            traceback.print_exc()
        if traceback.extract_tb(error.__traceback__)[-1].name == "echo":
            return _stop_writing(error)
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"error: {where}{error.strerror or error}")
        return 1


def _show_misuse(error: click.ClickException) -> None:
    """A wrong argument on one line, with where to read on; the whole help where nothing was given."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        with suppress(OSError):
            error.show()
        return
    context = getattr(error, "ctx", None)
    command = "trajkit" if context is None else context.command_path
    message = " ".join(error.format_message().split()).rstrip(".")
    _complain(f"error: {message}; see '{command} --help'")


def _complain(line: str) -> None:
    """A line on stderr, if anybody takes it."""
    with suppress(OSError):
        click.echo(printable(line), err=True)


def _stop_writing(error: OSError) -> int:
    """Let what is buffered for stdout go nowhere; the exit code. ``| head`` needs no message."""
    if not isinstance(error, BrokenPipeError):
        _complain(f"error: cannot write to stdout: {error.strerror or error}")
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
