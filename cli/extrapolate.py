"""``trajkit extrapolate``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trajkit.cli.console import Console
from trajkit.cli.guide import guide_options, guided_options, refuse_guide_options, run_guided
from trajkit.cli.options import (
    Command,
    device_option,
    dry_run_option,
    example,
    fit_option,
    force_option,
    memory_option,
    seed_range,
    speaking,
    store_option,
)
from trajkit.defaults import DEFAULT_ESTIMATOR, DEFAULT_ROUNDING
from trajkit.fits.estimators.table import ESTIMATORS, OWNERS, PARAMETERS
from trajkit.text import count, format_bytes, format_rate, format_seconds

if TYPE_CHECKING:
    from trajkit.forecast.result import ExtrapolatePlan, ExtrapolateResult


def parameter_options(command: Command) -> Command:
    """An option for every parameter that an estimator takes."""
    for name, parameter in reversed(PARAMETERS.items()):
        option: Callable[[Command], Command] = click.option(
            f"--{name.replace('_', '-')}",
            type=int if parameter.whole else float,
            metavar=parameter.metavar,
            help=f"{', '.join(OWNERS[name])}: {parameter.help}.",
        )
        command = option(command)
    return command


def _describe_estimators() -> str:
    return "; ".join(f"{name}: {e.formula}" for name, e in ESTIMATORS.items())


@click.command(
    "extrapolate",
    short_help="Write checkpoints of steps to come.",
    epilog=example(
        "trajkit extrapolate --steps 2000 -o out/",
        "trajkit extrapolate --steps 1500,2000,+500 -o out/",
        "trajkit extrapolate --steps 2000 --guide probes.jsonl -o out/",
        "trajkit extrapolate --steps 2000 --estimator two-point -o out/",
        "trajkit extrapolate --steps +500 --tensors '*.mlp.*=hold' --check -o out/",
        "trajkit extrapolate --estimator expo --alpha 0.3 -o out/",
    ),
)
@click.option(
    "--steps",
    multiple=True,
    metavar="X[,X...]",
    help="Target training steps; +X counts from the last ingested step; repeatable. With --guide, "
    "auto: the furthest that the outputs bear out.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write."
)
@store_option
@click.option(
    "--estimator",
    type=click.Choice([*ESTIMATORS, "auto"]),
    default=DEFAULT_ESTIMATOR,
    show_default=True,
    help=f"How a value is extended beyond the window: {_describe_estimators()}; auto: what --guide's "
    "outputs choose, or what the run's backtest says for the horizon.",
)
@parameter_options
@click.option(
    "--rsq-threshold",
    type=click.FloatRange(0, 1),
    metavar="R",
    help="Hold elements with R² not above this (default: the fit's own with anchored, line and "
    "damped; none with others).",
)
@click.option(
    "--gate",
    metavar="SCORE:T",
    help="Which elements may move: rsq:0.7, as --rsq-threshold 0.7; t:3, by the drift's t; none: all "
    "that can.",
)
@fit_option("fit", "Which fit to use.")
@click.option(
    "--from-step", type=int, metavar="A", help="two-point, expo, ema, rank-k: the first checkpoint."
)
@click.option(
    "--to-step", type=int, metavar="B", help="two-point, expo, ema, rank-k: the last one."
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
    default=DEFAULT_ROUNDING,
    show_default=True,
    help="How values enter the tensors' dtype.",
)
@click.option("--seed", type=seed_range, default=0, metavar="N", help="Of stochastic rounding.")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Take shard layout, config and tokenizer from this checkpoint folder.",
)
@click.option(
    "--max-norm",
    type=float,
    metavar="R",
    help="Scale a jump down that is larger in norm than R times the last checkpoint.",
)
@guide_options
@device_option("cpu")
@click.option("--check", is_flag=True, help="Load the result with transformers, without weights.")
@click.option(
    "--strict", is_flag=True, help="auto: refuse to go beyond what the backtest bears out."
)
@force_option
@memory_option
@dry_run_option
@speaking
def extrapolate_command(
    console: Console,
    steps: tuple[str, ...],
    out: Path,
    store: Path,
    dry_run: bool,
    guide: Path | None,
    guide_budget: int | None,
    guide_depth: str,
    guide_share: float,
    force_guide: bool,
    **options: Any,
) -> None:
    """Write the checkpoint that a training step to come would have, in the run's own layout.

    One target goes to the output folder itself, several to step_X folders in it. The estimators
    anchored, line and damped follow the fitted lines; two-point and expo go through two
    checkpoints; shrunk and wiener weigh each element; ema and rank-k add up all checkpoints, the
    latter along the few directions that the run moved most in; auto goes by the run's backtest.
    Elements that the fit does not explain keep their last value.

    With --guide, the logits of the window's first and last checkpoint are extrapolated to the target on
    the probes, and of some sixty rules for weights that one is written whose outputs come nearest on
    half of the probes; KL on the other half is reported beside that of holding the last checkpoint.
    """
    if guide is not None:
        searching = {
            "budget": guide_budget,
            "depth": guide_depth,
            "share": guide_share,
            "force_guide": force_guide,
        }
        run_guided(console, steps, out, store, guide, dry_run, searching | guided_options(options))
        return
    refuse_guide_options()
    if not steps and not any(options[name] is not None for name in ("alpha",)):
        own = ESTIMATORS.get(options["estimator"])
        asked = "--steps" if own is None else own.asks_for
        raise click.UsageError(f"Missing option '{asked}'.")
    from trajkit.forecast.extrapolate import extrapolate, plan_extrapolate
    from trajkit.forecast.request import parse_steps
    from trajkit.store.store import Store

    run = Store.open(store)
    wanted = parse_steps(",".join(steps), run) if steps else None
    if dry_run:
        plan = plan_extrapolate(run, wanted, out, **options)
        console.data(plan)
        say_plan(console, plan)
        return
    with console.progress() as progress:
        result = extrapolate(run, wanted, out, progress=progress, **options)
    console.data(result)
    say_result(console, result, options["check"])
    console.next_command(*uses(Path(result.targets[-1].path)))


def say_plan(console: Console, plan: "ExtrapolatePlan") -> None:
    """What would be written."""
    for warning in plan.warnings:
        console.warn(warning)
    for target in plan.targets:
        console.say(
            f"would write {target.path}: step {target.step}, {target.horizon:+} from step "
            f"{plan.last_step}"
        )
    console.say(
        f"  {count(plan.files, 'safetensors file')} each, {format_bytes(plan.n_bytes)} in all; "
        f"{format_bytes(plan.free_bytes)} free"
    )
    console.say(
        f"  {plan.extrapolated:,} elements extrapolated, {plan.held:,} held by a rule, "
        f"{plan.copied:,} copied"
    )
    workers = count(plan.workers, "worker")
    console.say(f"  {workers}, {format_bytes(plan.memory_bytes)} of memory")


def say_result(console: Console, result: "ExtrapolateResult", checked: bool) -> None:
    """What was written."""
    for target in result.targets:
        console.say(
            f"{target.path}: step {target.step}, {target.horizon:+} from step {result.last_step}"
        )
        console.say(
            f"  {target.moved:,} elements moved, {target.held:,} held at their last value "
            f"({target.copied:,} of them copied), "
            f"{target.unchanged_after_rounding:,} unchanged after rounding"
        )
    loads = "; transformers loads it" if checked else ""
    console.say(
        f"  {format_bytes(result.n_bytes)} in {format_seconds(result.seconds)}, "
        f"{format_rate(result.n_bytes, result.seconds)}{loads}"
    )


def uses(out: Path) -> tuple[str, ...]:
    """What one does with a checkpoint; an adapter needs its base model beside it."""
    import shlex

    place = shlex.quote(str(out))
    if (out / "adapter_config.json").is_file():
        return (
            f"lm_eval --model hf --model_args pretrained=BASE,peft={place} --tasks gsm8k"
            "    # evaluate it",
        )
    return (
        f"lm_eval --model hf --model_args pretrained={place} --tasks gsm8k    # evaluate it",
        f"vllm serve {place}    # serve it",
    )
