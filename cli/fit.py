"""``trajkit fit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trajkit.cli.console import Console, spell
from trajkit.cli.options import (
    device_option,
    dry_run_option,
    example,
    memory_option,
    speaking,
    store_option,
)
from trajkit.text import format_bytes

if TYPE_CHECKING:
    from trajkit.fits.paper import PaperStats
    from trajkit.fits.plan import FitPlan
    from trajkit.trajectory import Trajectory


def parse_from_step(
    ctx: click.Context, option: click.Parameter, text: str | None
) -> int | str | None:
    """A training step, or ``auto``."""
    del ctx, option
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a training step nor 'auto'") from None


@click.command(
    "fit",
    short_help="Fit a line to every element.",
    epilog=example(
        "trajkit fit --rsq-threshold 0.7",
        "trajkit fit --from-step 100 --to-step 1000 --name early",
        "trajkit fit --from-step auto",
        "trajkit fit --paper --sample 0.001",
        "trajkit fit --outputs default",
    ),
)
@store_option
@click.option(
    "--rsq-threshold",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    metavar="R",
    help="Elements with R² above this count as linear and are extrapolated.",
)
@click.option(
    "--from-step",
    callback=parse_from_step,
    metavar="A",
    help="First training step of the window; 'auto': where the longest piece without a turn begins.",
)
@click.option("--to-step", type=int, metavar="B", help="Last training step of the window.")
@device_option("auto")
@click.option("--name", help="The fit's name in the store (default: default; paper).")
@click.option(
    "--keep-sums/--no-keep-sums",
    default=None,
    help="Keep the sums, so that a later fit reads new checkpoints only (default: from 256 on).",
)
@click.option("--paper", is_flag=True, help="Apply the filters of arXiv 2601.04537.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="With --paper: look at this share of each tensor only; keeps no fit.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="With --sample.")
@click.option(
    "--outputs",
    metavar="NAME",
    help="Fit the log-probs of 'trajkit logprobs', not the weights; with --paper: those that changed "
    "by more than 0.2 only. Keeps no fit.",
)
@memory_option
@dry_run_option
@speaking
def fit_command(
    console: Console,
    store: Path,
    rsq_threshold: float,
    from_step: int | str | None,
    to_step: int | None,
    device: str,
    name: str | None,
    keep_sums: bool | None,
    paper: bool,
    sample: float | None,
    seed: int,
    outputs: str | None,
    memory: str,
    dry_run: bool,
) -> None:
    """Fit a least-squares line over the training steps to every element of every tensor.

    R² alone cannot tell a drift from a random walk, so the closing lines set it beside what a
    driftless walk scores on the same steps.
    """
    from trajkit.fits.fit import fit, plan_fit
    from trajkit.fits.paper import PaperStats, fit_sample
    from trajkit.fits.window import choose_window
    from trajkit.stats.verdict import SAY
    from trajkit.text import parse_bytes
    from trajkit.trajectory import Trajectory

    traj = Trajectory.open(store)
    if outputs is not None:
        if not (from_step is None and to_step is None and sample is None and name is None):
            raise click.UsageError("--outputs goes with --rsq-threshold and --paper alone")
        _fit_outputs(console, store, outputs, rsq_threshold, paper)
        return
    if isinstance(from_step, str):
        from_step = _find_start(console, traj, to_step, memory)
    if sample is not None:
        if not paper:
            raise click.UsageError("--sample goes with --paper")
        window = choose_window(traj.store, from_step, to_step)
        found = fit_sample(traj, window, sample, seed, rsq_threshold, parse_bytes(memory))
        console.data(found)
        _say_paper(console, found, rsq_threshold)
        return
    options: dict[str, Any] = {
        "from_step": from_step,
        "to_step": to_step,
        "name": name or ("paper" if paper else "default"),
        "device": device,
        "keep_sums": keep_sums,
        "paper": paper,
        "memory": memory,
    }
    if dry_run:
        _say_plan(console, plan_fit(traj, rsq_threshold, **options))
        return
    with console.progress() as progress:
        result = fit(traj, rsq_threshold, progress=progress, **options)
    numbers = result.describe()
    console.data({**numbers, "modules": [dict(row) for row in result.modules]})

    def number(key: str) -> str:
        return "none" if numbers[key] is None else f"{numbers[key]:.3f}"

    console.say(
        f"{numbers['elements']:,} elements over {len(result.steps)} checkpoints, steps "
        f"{result.steps[0]} to {result.steps[-1]}, on {numbers['device']}"
    )
    console.say(
        f"  {numbers['fitted']:,} fitted, {numbers['static']:,} static (never changed), "
        f"{numbers['invalid']:,} invalid (NaN or Inf)"
    )
    console.say(f"  {'':24}{'this run':>10}{'random walk':>14}")
    console.say(f"  {'median R²':24}{number('median_rsq'):>10}{number('null_median_rsq'):>14}")
    above = f"share with R² > {rsq_threshold:g}"
    console.say(
        f"  {above:24}{number('share_above_threshold'):>10}{number('null_above_threshold'):>14}"
    )
    if numbers["verdict"] is not None:
        share = "" if numbers["drift_share"] is None else f" ({number('drift_share')} drift)"
        console.say(f"verdict: {numbers['verdict']}{share}: {SAY[numbers['verdict']]}")
    if result.record.found.paper is not None:
        _say_paper(console, PaperStats(**result.record.found.paper), rsq_threshold)
    if numbers["invalid"]:
        names = [row["name"] for row in result.rows() if row["invalid"]]
        console.warn(f"NaN or Inf in {', '.join(names[:5])}{' and more' if names[5:] else ''}")
    last, span = int(result.steps[-1]), int(result.steps[-1] - result.steps[0])
    console.next_command(
        spell(
            "extrapolate",
            "--steps",
            str(last + max(span // 4, 1)),
            "-o",
            "out/",
            store=store,
            fit=name,
        ),
        spell("report", store=store, fit=name),
    )


def _say_plan(console: Console, plan: "FitPlan") -> None:
    """Print what a fit would do, and whether its disk has room."""
    console.data(plan)
    console.say(
        f"fit {plan.name}: {plan.elements:,} elements over {plan.checkpoints} checkpoints, steps "
        f"{plan.from_step} to {plan.to_step}, on {plan.device}"
    )
    if plan.replaces is not None:
        console.say(f"  replaces  {plan.replaces}")
    checkpoints = "1 checkpoint" if plan.frames_read == 1 else f"{plan.frames_read} checkpoints"
    console.say(f"  reads     {checkpoints}, {format_bytes(plan.n_bytes_read)} of elements")
    console.say(
        f"  writes    {format_bytes(plan.n_bytes_written)}, "
        f"{format_bytes(plan.free_bytes)} are free on the disk"
    )
    console.say(f"  memory    {format_bytes(plan.memory_bytes)}, {plan.workers} workers")
    if plan.n_bytes_written > plan.free_bytes:
        console.warn("the disk may not have room for it; 'trajkit drop' removes a fit")


def _fit_outputs(console: Console, store: Path, name: str, threshold: float, paper: bool) -> None:
    """Fit the outputs of a name, and say what came of it."""
    from trajkit.errors import InvalidInput
    from trajkit.outputs.kept import read_outputs
    from trajkit.outputs.linearity import PAPER_CHANGE, by_position, by_token, fit_outputs
    from trajkit.outputs.skill import CHOSEN, measure_skill
    from trajkit.store.store import Store

    outputs = read_outputs(Store.open(store), name)
    fit = fit_outputs(outputs, threshold, PAPER_CHANGE if paper else 0.0)
    numbers = fit.describe()
    skill, no_skill = None, ""
    try:
        skill = measure_skill(outputs)
    except InvalidInput as error:  # too few checkpoints, or steps that meet no horizon
        no_skill = str(error)
    console.data(
        {
            **numbers,
            "by_position": by_position(fit, outputs),
            "by_token": by_token(fit, outputs),
            "skill": None if skill is None else skill.describe(),
        }
    )

    def number(key: str) -> str:
        return "none" if numbers[key] is None else f"{numbers[key]:.3f}"

    console.say(
        f"{numbers['tokens']:,} response tokens over {numbers['checkpoints']} checkpoints, steps "
        f"{numbers['from_step']} to {numbers['to_step']}"
    )
    why = f"changed by more than {fit.min_change:g}" if paper else "changed at all"
    console.say(f"  kept {numbers['kept']:,} ({number('share_kept')}) whose log p {why}")
    console.say(f"  {'':24}{'this run':>10}{'random walk':>14}")
    console.say(f"  {'median R²':24}{number('median_rsq'):>10}{number('null_median_rsq'):>14}")
    above = f"share with R² > {threshold:g}"
    console.say(
        f"  {above:24}{number('share_above_threshold'):>10}{number('null_above_threshold'):>14}"
    )
    console.say(f"  median R² of sums a response: {number('median_rsq_of_sums')}")
    if skill is None:
        console.say(f"  no skill was measured: {no_skill}")
        return
    rows = [row for row in skill.rows if row.skill is not None]
    for horizon in skill.record["horizons"]:
        told = {row.rule: row.skill or 0.0 for row in rows if row.horizon == horizon}
        chosen = told.pop(CHOSEN, None)
        if chosen is not None:
            best = max(told, key=told.__getitem__)
            console.say(
                f"  skill {horizon} steps ahead, 1 - SSE/SSE of holding: rule {CHOSEN} {chosen:.3f}; "
                f"in hindsight {best} {told[best]:.3f}"
            )


def _find_start(console: Console, traj: "Trajectory", to_step: int | None, memory: str) -> int:
    """Where the longest piece without a turn begins, measured over the whole window."""
    from trajkit.evidence.movement import measure_evidence

    with console.progress() as progress:
        found = measure_evidence(traj, to_step=to_step, memory=memory, progress=progress)
    console.say(f"--from-step auto: the longest piece without a turn begins at {found.linear_from}")
    return found.linear_from


def _say_paper(console: Console, stats: "PaperStats", threshold: float) -> None:
    """Print the paper's statistics, and what its filters leave of the elements."""

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.3f}"

    console.say("with the filters of arXiv 2601.04537 (.weight tensors, range, distinct values):")
    console.say(
        f"  kept {stats.kept:,} of {stats.elements:,} elements ({number(stats.share_kept)})"
    )
    console.say(f"  mean R² {number(stats.mean_rsq)}, median R² {number(stats.median_rsq)}")
    console.say(f"  share of kept with R² > {threshold:g}: {number(stats.share_above)}")
