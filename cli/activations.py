"""``trajkit activations``."""

from pathlib import Path
from typing import Any

import click

from trajkit.cli.console import Console, spell, to_plain
from trajkit.cli.options import (
    example,
    measuring_options,
    parse_steps,
    speaking,
    store_option,
)
from trajkit.text import format_seconds


@click.command(
    "activations",
    short_help="Measure chosen layers' mean activations under every checkpoint.",
    epilog=example(
        "trajkit activations --probes probes.jsonl",
        "trajkit activations --probes probes.jsonl --layers 'model.layers.*.mlp.down_proj'",
        "trajkit activations --probes probes.jsonl --layers '*.mlp' --where all --name mlp",
    ),
)
@store_option
@measuring_options("Measure", "activations")
@click.option(
    "--layers",
    multiple=True,
    metavar="PATTERN",
    help="Modules by name, with * and ?, such as 'model.layers.*.mlp.down_proj' (may be repeated; "
    "default: what attention and MLP add to the residual stream).",
)
@click.option(
    "--where",
    type=click.Choice(["response", "all"]),
    default="response",
    show_default=True,
    help="Tokens: the places that predict response tokens, or those of prompts, too.",
)
@click.option(
    "--per",
    type=click.Choice(["neuron", "position"]),
    default="neuron",
    show_default=True,
    help="The mean over tokens of every neuron, or over neurons of every token.",
)
@click.option(
    "--places",
    default=1024,
    show_default=True,
    type=click.IntRange(0),
    help="Most tokens at which a linear layer's change is taken apart; 0: it is not.",
)
@click.option("--rsq-threshold", default=0.7, show_default=True, type=click.FloatRange(0, 1))
@speaking
def activations_command(
    console: Console,
    store: Path,
    rsq_threshold: float,
    steps: str | None,
    checkpoints: tuple[Path, ...],
    out: Path | None,
    **options: Any,
) -> None:
    """Mean activations of chosen modules under every checkpoint, a line through each of them.

    Kept in the store as log-probabilities are: a command that was killed goes on after the last
    checkpoint, and checkpoints that came since are added. R² stands beside that of driftless random
    walks: of independent ones, and of 999 made of the layer's own changes with their signs by chance,
    since neurons move together; the verdict is by both. For linear modules, the change of the output
    since the first checkpoint is taken apart into that of the input, that of the weights, and their
    product.
    """
    from trajkit.errors import InvalidInput
    from trajkit.outputs.activations import activations
    from trajkit.outputs.activations_fit import fit_activations, shares_by_module
    from trajkit.outputs.activations_kept import read_activations
    from trajkit.outputs.weights import open_store

    apart = bool(checkpoints) and out is not None
    traj = open_store(store, ["folder"] if apart else [None])
    with console.progress() as progress:
        result = activations(
            traj,
            steps=parse_steps(steps),
            checkpoints=checkpoints,
            out=out,
            progress=progress,
            **options,
        )
    kept = read_activations(Path(result.path))
    fit, no_fit = None, ""
    try:
        fit = fit_activations(kept, rsq_threshold)
    except InvalidInput as error:  # one checkpoint only
        no_fit = str(error)
    shares = {name: s.describe() for name, s in shares_by_module(kept).items()}
    console.data(
        {
            "activations": to_plain(result),
            "fit": None if fit is None else fit.describe(),
            "parts_of_last_change": shares,
        }
    )
    console.say(
        f"{result.path}: {result.columns:,} {result.per}s of {len(result.layers)} layers at "
        f"{result.tokens:,} tokens under {len(result.steps)} checkpoints, {result.measured} of them "
        f"now, in {format_seconds(result.seconds)}"
    )
    console.say(
        f"  two passes of one checkpoint differ by up to {result.noise_floor:.2g}: smaller differences "
        "mean nothing"
    )
    if fit is None:
        console.say(f"  {no_fit}")
        return
    _say_fit(console, fit.modules, fit.whole, rsq_threshold)
    if shares and len(result.steps) > 1:
        _say_parts(console, shares, result.steps)
    if out is None:
        console.next_command(spell("report", store=store))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _say_fit(console: Console, modules: Any, whole: Any, threshold: float) -> None:
    """A line a module, layers folded, and one of all."""
    above = f"R² > {threshold:g}"
    titles = (("columns", 9), ("median R²", 11), ("walk", 7), ("its own walks", 15), ("p", 7))
    head = "".join(title.rjust(n) for title, n in (*titles, (above, 10), ("walk", 7)))
    console.say(f"  {'module, layers folded':34}{head}  verdict")
    names = [(row["module"], row["elements"], row) for row in modules]
    for name, columns, row in [*names, ("all", whole["columns"], whole)]:
        low, high = row["own_walks_low"], row["own_walks_high"]
        between = "none" if low is None else f"{low:.2f} to {high:.2f}"
        console.say(
            f"  {name:34}{columns:>9,}{_number(row['median_rsq']):>11}"
            f"{_number(row['null_median_rsq']):>7}{between:>15}{_number(row['own_walks_p']):>7}"
            f"{_number(row['share_above_threshold']):>10}{_number(row['null_above_threshold']):>7}  "
            f"{row['verdict'] or 'none'}"
        )


def _say_parts(console: Console, shares: Any, steps: tuple[int, ...]) -> None:
    """What changed each linear module's output from the first checkpoint to the last."""
    console.say(
        f"  change of the output, step {steps[0]} to {steps[-1]}: along it (and mean length over its)"
    )
    console.say(f"  {'module, layers folded':34}{'input':>16}{'weights':>16}{'product':>16}")
    for name, part in shares.items():
        cells = "".join(
            f"{_number(part[f'along_{key}']):>9} ({_number(part[key])})".rjust(16)
            for key in ("input", "weight", "product")
        )
        console.say(f"  {name:34}{cells}")
