"""``trajkit restore``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, force_option, memory_option, speaking, store_option
from trajkit.text import format_bytes


@click.command(
    "restore",
    short_help="Write an ingested checkpoint back.",
    epilog=example("trajkit restore --step 300 -o ckpt-300/"),
)
@click.option("--step", type=int, required=True, help="The training step.")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write."
)
@store_option
@force_option
@memory_option
@speaking
def restore_command(
    console: Console, step: int, out: Path, store: Path, force: bool, memory: str
) -> None:
    """Write the checkpoint of a step back, byte for byte, in its original files.

    Where the store was made with --dtype, the tensors are written in that dtype instead.
    """
    from trajkit.store.restore import restore

    with console.progress() as progress:
        result = restore(store, step, out, force=force, memory=memory, progress=progress)
    console.data(result)
    how = "in the original files, byte for byte"
    if result.converted:
        how = f"as {', '.join(result.dtypes)}, which --dtype of ingest converted them to"
    console.say(f"{result.path}: step {step}, {format_bytes(result.n_bytes)} of tensors, {how}")
