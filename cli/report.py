"""``trajkit report``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, fit_option, force_option, speaking, store_option
from trajkit.defaults import DEFAULT_OUT


def parse_formats(ctx: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    """``"png,pdf"`` as a tuple; which formats there are is the library's to say."""
    del ctx, option
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


@click.command(
    "report",
    short_help="Write the page about a fit.",
    epilog=example(
        "trajkit report",
        "trajkit report --metrics eval.csv",
        "trajkit report --beside control.zarr -o report/ --force",
        "trajkit report --format pdf,svg",
    ),
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path(DEFAULT_OUT),
    show_default=True,
    help="Folder to write.",
)
@store_option
@fit_option("fit_name", "Which fit to show.")
@click.option(
    "--format",
    "formats",
    callback=parse_formats,
    metavar="F[,F...]",
    help="Write the figures alone too, into figures/: png, pdf, svg.",
)
@click.option(
    "--rewards",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Columns step and reward, drawn beside the drift of the outputs.",
)
@click.option(
    "--metrics",
    type=click.Path(path_type=Path),
    help="CSV, JSONL or parquet with a column 'step', or TensorBoard events, to draw over movement.",
)
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    metavar="OTHER.zarr",
    help="Another run, ingested and fitted, to set beside this one.",
)
@force_option
@speaking
def report_command(
    console: Console,
    out: Path,
    store: Path,
    fit_name: str,
    formats: tuple[str, ...],
    rewards: Path | None,
    metrics: Path | None,
    beside: Path | None,
    force: bool,
) -> None:
    """Write a self-contained page about a fit: index.html, summary.json and tensors.jsonl."""
    from trajkit.reports.report import report

    with console.progress() as progress:
        result = report(
            store,
            out,
            fit=fit_name,
            force=force,
            formats=formats,
            rewards=rewards,
            metrics=metrics,
            beside=beside,
            progress=progress,
        )
    console.data(result)
    console.say(result.finding)
    console.say(Path(result.path).absolute().as_uri())
