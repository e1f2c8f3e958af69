"""``trajkit extrapolate``."""

from pathlib import Path
from typing import Any

import click

from trajkit.cli.console import Console
from trajkit.cli.options import (
    device_option,
    dry_run_option,
    example,
    force_option,
    memory_option,
    speaking,
    store_option,
)
from trajkit.units import format_bytes, format_rate, format_seconds


@click.command(
    "extrapolate",
    short_help="Write checkpoints of steps to come.",
    epilog=example(
        "trajkit extrapolate --steps 2000 -o out/",
        "trajkit extrapolate --steps 1500,2000,+500 -o out/",
        "trajkit extrapolate --steps 2000 --estimator two-point -o out/",
        "trajkit extrapolate --steps +500 --tensors '*.mlp.*=hold' --check -o out/",
        "trajkit extrapolate --estimator expo --alpha 0.3 -o out/",
    ),
)
@click.option(
    "--steps",
    metavar="X[,X...]",
    help="Target training steps; +X counts from the last ingested step.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write."
)
@store_option
@click.option(
    "--estimator",
    type=click.Choice(["anchored", "line", "two-point", "damped", "expo"]),
    default="anchored",
    show_default=True,
    help="How a value is extended beyond the window.",
)
@click.option(
    "--rsq-threshold",
    type=click.FloatRange(0, 1),
    metavar="R",
    help="Hold elements with R² not above this (default: the fit's own; two-point, expo: none).",
)
@click.option("--fit", default="default", show_default=True, help="Which fit to use.")
@click.option("--from-step", type=int, metavar="A", help="two-point, expo: the first point.")
@click.option("--to-step", type=int, metavar="B", help="two-point, expo: the last point.")
@click.option(
    "--damping",
    type=click.FloatRange(0, 1),
    metavar="L",
    help="damped: the horizon is multiplied by this (default 0.3).",
)
@click.option(
    "--alpha", type=float, metavar="F", help="expo: last + F (last - first); takes no --steps."
)
@click.option(
    "--tensors",
    multiple=True,
    metavar="PATTERN=RULE",
    help="extrapolate, hold or copy tensors by name; repeatable, the last match holds "
    "(default: normalisation is copied).",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "stochastic"]),
    default="nearest",
    show_default=True,
    help="How values enter the tensors' dtype.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of stochastic rounding.")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Take shard layout, config and tokenizer from this checkpoint folder.",
)
@device_option("cpu")
@click.option("--check", is_flag=True, help="Load the result with transformers, without weights.")
@force_option
@memory_option
@dry_run_option
@speaking
def extrapolate_command(
    console: Console,
    steps: str | None,
    out: Path,
    store: Path,
    check: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Write the checkpoint that a training step to come would have, in the run's own layout.

    One target goes to the output folder itself, several to step_X folders in it. The estimators
    anchored, line and damped follow the fitted lines; two-point and expo go through two
    checkpoints. Elements that the fit does not explain keep their last value.
    """
    if steps is None and options["alpha"] is None:
        raise click.UsageError("Missing option '--steps'.")
    from trajkit.forecast.extrapolate import extrapolate, parse_steps, plan_extrapolate
    from trajkit.trajectory import Trajectory

    traj = Trajectory.open(store)
    wanted = None if steps is None else parse_steps(steps, traj)
    if dry_run:
        plan = plan_extrapolate(traj, wanted, out, **options)
        console.data(plan)
        for warning in plan.warnings:
            console.warn(warning)
        for target in plan.targets:
            console.say(
                f"would write {target.path}: step {target.step}, {target.horizon:+} from step "
                f"{plan.last_step}"
            )
        console.say(
            f"  {plan.files} safetensors files each, {format_bytes(plan.n_bytes)} in all; "
            f"{format_bytes(plan.free_bytes)} free"
        )
        console.say(
            f"  {plan.extrapolated:,} elements extrapolated, {plan.held:,} held by a rule, "
            f"{plan.copied:,} copied"
        )
        console.say(f"  {plan.workers} workers, {format_bytes(plan.memory_bytes)} of memory")
        return
    with console.progress() as progress:
        result = extrapolate(traj, wanted, out, check=check, progress=progress, **options)
    console.data(result)
    for warning in result.warnings:
        console.warn(warning)
    for target in result.targets:
        console.say(
            f"{target.path}: step {target.step}, {target.horizon:+} from step {result.last_step}"
        )
        console.say(
            f"  {target.moved:,} elements moved, {target.held:,} held at their last value "
            f"({target.copied:,} of them copied), "
            f"{target.unchanged_after_rounding:,} unchanged after rounding"
        )
    checked = "; transformers loads it" if check else ""
    console.say(
        f"  {format_bytes(result.n_bytes)} in {format_seconds(result.seconds)}, "
        f"{format_rate(result.n_bytes, result.seconds)}{checked}"
    )
    console.next_command("trajkit report")
