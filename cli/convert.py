"""``trajkit convert``."""

from pathlib import Path

import click

from trajkit.cli.console import Console, spell
from trajkit.cli.options import example, memory_option, speaking, store_option
from trajkit.text import count, format_bytes


@click.command(
    "convert",
    short_help="Write the store anew with another codec.",
    epilog=example("trajkit convert --codec sparse", "trajkit convert --codec zstd -o plain.zarr"),
)
@click.option(
    "--codec",
    required=True,
    type=click.Choice(["zstd", "lz4", "sparse", "pcodec", "none"]),
    help="How frames are compressed in the new store.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The new store (default: beside the store, with the codec in its name).",
)
@click.option(
    "--keyframes",
    type=click.IntRange(min=1),
    metavar="K",
    help="A key frame every K checkpoints; by default by cost, as in ingest.",
)
@store_option
@memory_option
@speaking
def convert_command(
    console: Console,
    codec: str,
    out: Path | None,
    keyframes: int | None,
    store: Path,
    memory: str,
) -> None:
    """Write the store's checkpoints anew with another codec, bit for bit, in a store beside it.

    Every chunk is verified. The store itself stays as it is; its fits and outputs are copied. Run it
    again where it was interrupted: it goes on with the next checkpoint.
    """
    from trajkit.store.convert import convert

    with console.progress() as progress:
        result = convert(store, codec, out, keyframes=keyframes, memory=memory, progress=progress)
    console.data(result)
    console.say(
        f"{result.store}: {count(result.steps, 'checkpoint')}, {result.converted:,} converted now; "
        f"{format_bytes(result.stored_bytes)} in {result.codec}, "
        f"{format_bytes(result.stored_bytes_before)} before"
    )
    console.next_command(spell("verify", store=Path(result.store)))
