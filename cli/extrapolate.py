"""``trajkit extrapolate``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, force_option, memory_option, speaking, store_option


@click.command(
    "extrapolate",
    short_help="Write checkpoints of steps to come.",
    epilog=example(
        "trajkit extrapolate --steps 2000 -o out/",
        "trajkit extrapolate --steps 1500,2000,+500 -o out/",
        "trajkit extrapolate --steps 2000 --estimator two-point -o out/",
    ),
)
@click.option(
    "--steps",
    required=True,
    metavar="X[,X...]",
    help="Target training steps; +X counts from the last ingested step.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write."
)
@store_option
@click.option(
    "--estimator",
    type=click.Choice(["anchored", "line", "two-point"]),
    default="anchored",
    show_default=True,
    help="How a value is extended beyond the window.",
)
@click.option(
    "--rsq-threshold",
    type=click.FloatRange(0, 1),
    metavar="R",
    help="Hold elements with R² not above this (default: the fit's own; two-point: move all).",
)
@click.option("--fit", "fit_name", default="default", show_default=True, help="Which fit to use.")
@click.option("--from-step", type=int, metavar="A", help="two-point: its first step.")
@click.option("--to-step", type=int, metavar="B", help="two-point: its second step.")
@force_option
@memory_option
@speaking
def extrapolate_command(
    console: Console,
    steps: str,
    out: Path,
    store: Path,
    estimator: str,
    rsq_threshold: float | None,
    fit_name: str,
    from_step: int | None,
    to_step: int | None,
    force: bool,
    memory: str,
) -> None:
    """Write the checkpoint that a training step to come would have, in the run's own layout.

    One target goes to the output folder itself, several to step_X folders in it.
    """
    from trajkit.extrapolate import extrapolate, parse_steps
    from trajkit.trajectory import Trajectory

    traj = Trajectory.open(store)
    with console.progress() as progress:
        result = extrapolate(
            traj,
            parse_steps(steps, traj),
            out,
            estimator=estimator,
            rsq_threshold=rsq_threshold,
            fit=fit_name,
            from_step=from_step,
            to_step=to_step,
            force=force,
            memory=memory,
            progress=progress,
        )
    console.data(result)
    for warning in result.warnings:
        console.warn(warning)
    for target in result.targets:
        console.say(
            f"{target.path}: step {target.step}, {target.horizon:+} from step {result.last_step}"
        )
        console.say(
            f"  {target.moved:,} elements moved, {target.held:,} held at their last value, "
            f"{target.unchanged_after_rounding:,} unchanged after rounding"
        )
    console.next_command("trajkit report")
