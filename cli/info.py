"""``trajkit info``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, speaking, store_option
from trajkit.text import count, format_bytes


@click.command(
    "info",
    short_help="What the store holds.",
    epilog=example("trajkit info", "trajkit info --json"),
)
@store_option
@speaking
def info_command(console: Console, store: Path) -> None:
    """Say what the store holds: steps, tensors, bytes and fits."""
    from trajkit.reports.info import describe_store
    from trajkit.store.store import Store

    info = describe_store(Store.open(store))
    console.data(info)
    ratio = info.raw_bytes / max(info.stored_bytes, 1)
    span = f"{info.steps[0]} to {info.steps[-1]}" if info.steps else "none"
    keys = count(info.keys, "key frame")
    console.say(f"{info.path}: codec {info.codec}, {keys}")
    console.say(f"  steps     {len(info.steps)} ({span})")
    console.say(f"  tensors   {len(info.tensors)}")
    for dtype, n in info.elements.items():
        console.say(f"  elements  {n:,} {dtype}")
    console.say(
        f"  bytes     {format_bytes(info.raw_bytes)} of tensors in "
        f"{format_bytes(info.stored_bytes)} ({ratio:.1f} times smaller)"
    )
    if info.density is not None:
        console.say(f"  density   {100 * info.density:.3g} % of elements change a checkpoint")
    for name, steps in info.fits.items():
        console.say(
            f"  fit       {name}: {count(len(steps), 'checkpoint')}, steps {steps[0]} to {steps[-1]}, "
            f"{format_bytes(info.fit_bytes[name])}"
        )
    for name, held in info.outputs.items():
        if "damaged" in held:
            console.warn(held["damaged"])
            continue
        console.say(
            f"  outputs   {name}: {len(held['steps'])} checkpoints, {held['tokens']:,} tokens of "
            f"{held['responses']} responses"
        )
    for name, held in info.activations.items():
        if "damaged" in held:
            console.warn(held["damaged"])
            continue
        console.say(
            f"  activations {name}: {len(held['steps'])} checkpoints, {held['columns']:,} columns of "
            f"{len(held['layers'])} layers"
        )
    for name in info.stale_fits:
        console.say(f"  fit {name} is of other checkpoints than the store holds now")
    for line in info.unreadable_fits:
        console.warn(line)
    if console.verbose:
        for tensor in info.tensors:
            console.say(f"  {tensor['name']}  {tensor['dtype']} {tensor['shape']}")
