"""The command ``trajkit``: commands, exit codes, errors on one line.

Exit codes: 0; 1 for an error that trajkit reports; 2 for misuse; 130 for an interrupt.
"""

import os
import sys
import traceback

import click

from trajkit import __version__
from trajkit.cli.addresses import spare_address_space
from trajkit.cli.backtest import backtest_command
from trajkit.cli.drop import drop_command
from trajkit.cli.extrapolate import extrapolate_command
from trajkit.cli.fit import fit_command
from trajkit.cli.generate import generate_command
from trajkit.cli.info import info_command
from trajkit.cli.ingest import ingest_command
from trajkit.cli.logprobs import logprobs_command
from trajkit.cli.probes import probes_command
from trajkit.cli.report import report_command
from trajkit.cli.restore import restore_command
from trajkit.cli.verify import verify_command
from trajkit.errors import TrajkitError
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
    extrapolate_command,
    probes_command,
    logprobs_command,
    generate_command,
    report_command,
    restore_command,
    verify_command,
    info_command,
    drop_command,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with its code."""
    spare_address_space()
    debug = "--debug" in sys.argv[1:]
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (TrajkitError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        line = printable(" ".join(str(error).split())) or "out of memory"
        click.echo(f"error: {line}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
