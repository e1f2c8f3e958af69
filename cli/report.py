"""``trajkit report``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, force_option, speaking, store_option


@click.command(
    "report",
    short_help="Write the page about a fit.",
    epilog=example("trajkit report", "trajkit report -o report/ --force"),
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report"),
    show_default=True,
    help="Folder to write.",
)
@store_option
@click.option("--fit", "fit_name", default="default", show_default=True, help="Which fit to show.")
@force_option
@speaking
def report_command(console: Console, out: Path, store: Path, fit_name: str, force: bool) -> None:
    """Write a self-contained page about a fit: index.html, summary.json and tensors.parquet."""
    from trajkit.report import report

    from trajkit.trajectory import Trajectory

    with console.progress() as progress:
        result = report(Trajectory.open(store), out, fit=fit_name, force=force, progress=progress)
    console.data(result)
    console.say(f"{result.finding}")
    console.next_command(f"open {result.path}")
