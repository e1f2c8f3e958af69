"""``trajkit drop``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, speaking, store_option
from trajkit.text import format_bytes


@click.command(
    "drop",
    short_help="Remove a fit from the store.",
    epilog=example("trajkit drop --fit early"),
)
@click.option("--fit", "name", required=True, metavar="NAME", help="The fit to remove.")
@store_option
@speaking
def drop_command(console: Console, name: str, store: Path) -> None:
    """Remove a fit: its record in one step, then its arrays.

    The checkpoints stay as they are, and 'trajkit fit' makes the fit again.
    """
    from trajkit.fits.commit import drop_fit
    from trajkit.store.store import Store

    freed = drop_fit(Store.open(store), name)
    console.data({"fit": name, "freed_bytes": freed})
    console.say(f"{store}: fit {name} removed, {format_bytes(freed)} freed")
