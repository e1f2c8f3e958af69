"""``trajkit extrapolate --guide``: the options, and what is said of the search."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trajkit.cli.console import Console
from trajkit.cli.options import Command
from trajkit.text import count, format_bytes

if TYPE_CHECKING:
    from trajkit.outputs.guide.guided import GuidedPlan, GuidedResult

_WRITING = ("fit", "tensors", "rounding", "seed", "like", "device", "check", "force", "memory")
"""what a guide leaves to the command's other options"""
_OWN = ("guide_budget", "guide_depth", "guide_share", "force_guide")
_SHOWN = 5
"""rules that are named, of those tried"""


def guide_options(command: Command) -> Command:
    """The options of a guide."""
    options: tuple[Callable[[Command], Command], ...] = (
        click.option(
            "--guide",
            type=click.Path(path_type=Path),
            metavar="P.jsonl",
            help="Let outputs on these probes choose the rule: prompts and responses, as trajkit probes "
            "makes them; needs 'trajkit[models]'.",
        ),
        click.option(
            "--guide-budget",
            type=click.IntRange(1),
            metavar="F",
            help="Most forwards over half of the probes, a target (default: what all rules take).",
        ),
        click.option(
            "--guide-depth",
            type=click.Choice(["rules", "families"]),
            default="rules",
            show_default=True,
            help="families: after that, factors for attention, MLP, embeddings and head, one by one; "
            "a third of the probes must agree with each.",
        ),
        click.option(
            "--guide-share",
            type=click.FloatRange(0, 1, min_open=True),
            default=0.5,
            show_default=True,
            metavar="S",
            help="--steps auto: the most that the KL of the choice may be of that of holding.",
        ),
        click.option(
            "--force-guide",
            is_flag=True,
            help="Write the best rule though its outputs are no nearer than the last checkpoint's.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def guided_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a guide takes of the command's other options; misuse where others are given."""
    context = click.get_current_context()
    for name in options:
        given = context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
        if name in _WRITING or not given or (name, options[name]) == ("estimator", "auto"):
            continue
        raise click.UsageError(
            f"--guide chooses the rule itself: leave out --{name.replace('_', '-')}, or --guide."
        )
    return {name: options[name] for name in _WRITING}


def refuse_guide_options() -> None:
    """Misuse where a guide's options are given without one."""
    context = click.get_current_context()
    for name in _OWN:
        if context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT):
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --guide P.jsonl.")


def run_guided(
    console: Console,
    steps: tuple[str, ...],
    out: Path,
    store: Path,
    probes: Path,
    dry_run: bool,
    options: dict[str, Any],
) -> None:
    """Search, write, and say what came of it."""
    if not steps:
        raise click.UsageError("Missing option '--steps'.")
    from trajkit.cli.extrapolate import say_plan, say_result, uses
    from trajkit.forecast.request import parse_steps
    from trajkit.outputs.guide.guided import AUTO_STEPS, extrapolate_guided, plan_guided
    from trajkit.store.store import Store

    run = Store.open(store)
    text = ",".join(steps)
    wanted = AUTO_STEPS if text == AUTO_STEPS else parse_steps(text, run)
    plan = plan_guided(run, wanted, out, probes, **options)
    if dry_run:
        console.data(plan)
        say_plan(console, plan)
    _say_forwards(console, plan)
    if dry_run:
        return
    with console.progress() as progress:
        result = extrapolate_guided(run, wanted, out, probes, progress=progress, **options)
    console.data(result)
    _say_search(console, result)
    say_result(console, result, options["check"])
    console.next_command(*uses(Path(result.targets[-1].path)))


def _say_forwards(console: Console, plan: "GuidedPlan") -> None:
    guide = plan.guide
    assert guide is not None
    fit = "held in memory" if guide.fit_in_memory else "read anew for every rule"
    each = "a target looked at" if not plan.targets else "in all"
    console.say(
        f"guide: {count(plan.forwards, 'forward')} {each}, each over a part of "
        f"{count(guide.probes, 'probe')} ({guide.tokens:,} tokens): {guide.reference} for the "
        f"reference, {guide.candidates + guide.families} rules, {guide.judging} to judge, {guide.curve} "
        "at other horizons"
    )
    few = f" of {guide.responses:,}" if guide.places < guide.responses else ""
    console.say(
        f"  KL over {guide.places:,}{few} response tokens; the fit, "
        f"{format_bytes(guide.fit_bytes)}, is {fit}"
    )


def _say_search(console: Console, result: "GuidedResult") -> None:
    if result.horizon is not None:
        sentence = str(result.horizon["sentence"])
        console.say(f"{sentence[0].upper()}{sentence[1:]}.")
    for found in result.guides:
        sentence = str(found["sentence"])
        console.say(f"{sentence[0].upper()}{sentence[1:]}.")
        for tried in found["candidates"][:_SHOWN]:
            console.say(f"  {tried['kl']:.3g}  {tried['rule']}")
        left = len(found["candidates"]) - _SHOWN
        if left > 0:
            console.say(f"  and {count(left, 'rule')} more, of larger KL on the probes that chose")
