"""``trajkit export``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, memory_option, speaking, store_option
from trajkit.text import count, format_bytes


@click.command(
    "export",
    short_help="Write the run as a stream of weight deltas.",
    epilog=example("trajkit export --deltas -o stream/"),
)
@click.option(
    "--deltas",
    is_flag=True,
    required=True,
    help="As anchors/step_N.safetensors and deltas/step_N.safetensors.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write."
)
@click.option(
    "--anchor-every",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Every so many steps all tensors are written whole.",
)
@store_option
@memory_option
@speaking
def export_command(
    console: Console, deltas: bool, out: Path, anchor_every: int, store: Path, memory: str
) -> None:
    """Write every step of a store in the form in which TRL sends weights to its rollout engine.

    Anchors hold every tensor; deltas hold indices and values of the elements that changed since the
    step before. 'trajkit ingest' reads such a folder.
    """
    from trajkit.store.export import export_deltas

    with console.progress() as progress:
        result = export_deltas(
            store, out, anchor_every=anchor_every, memory=memory, progress=progress
        )
    console.data(result)
    console.say(
        f"{result.path}: {count(result.steps, 'step')}, {count(result.anchors, 'anchor')}, "
        f"{format_bytes(result.n_bytes)}; whole they are {format_bytes(result.raw_bytes)}"
    )
