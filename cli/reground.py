"""``trajkit reground``."""

from pathlib import Path
from typing import Any

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, speaking
from trajkit.text import count


@click.command(
    "reground",
    short_help="Train by segments of real steps, with a jump after each.",
    epilog=example(
        "trajkit reground base/ --segments 12 --command 'python train.py --model {model} "
        "--output_dir {output} --max_steps {steps} --save_steps 1'",
        "trajkit reground base/ --segments 12 --optimizer keep --command 'python train.py "
        "--model {model} --output_dir {output} --max_steps {total} --resume_from_checkpoint {resume}'",
        "trajkit reground base/ --segments 20 --every 20 --jump 100 --rule two-point --command '...'",
    ),
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--command",
    required=True,
    metavar="TEXT",
    help="The trainer, with {model}, {output} and {steps} where they belong; also {total}, {resume} "
    "and {segment}. Split as a shell would, and run without one.",
)
@click.option(
    "--segments", required=True, type=click.IntRange(1), help="How many, earlier calls' included."
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("reground"),
    show_default=True,
    help="Folder for all that is made; the same command continues there.",
)
@click.option(
    "--every", type=click.IntRange(1), default=15, show_default=True, help="Real steps a segment."
)
@click.option(
    "--jump", type=click.IntRange(0), default=150, show_default=True, help="Steps of a jump."
)
@click.option(
    "--rule",
    type=click.Choice(["pooled", "two-point", "rsq", "guided"]),
    default="pooled",
    show_default=True,
    help="Which drift a jump follows.",
)
@click.option("--keep", type=float, help="pooled: weight of earlier segments (default: 0.8).")
@click.option("--limit", type=float, help="pooled: t² above which an element moves (default: 16).")
@click.option("--wait", type=int, help="pooled: segments before the first jump (default: 4).")
@click.option(
    "--threshold", type=float, help="rsq: R² above which an element moves (default: 0.7)."
)
@click.option(
    "--probes",
    type=click.Path(path_type=Path),
    metavar="P.jsonl",
    help="guided: prompts and responses whose outputs choose; see trajkit probes.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["reset", "keep"]),
    default="reset",
    show_default=True,
    help="Its state after a jump; keep needs {resume}, and the HF Trainer's or TRL's checkpoints.",
)
@click.option(
    "--max-norm", type=float, metavar="R", help="Cap of a jump's norm over that of the parameters."
)
@click.option(
    "--adapt", is_flag=True, help="Let the logged reward change --jump, and take jumps back."
)
@speaking
def reground_command(
    console: Console, model: Path, work: Path, command: str, segments: int, **options: Any
) -> None:
    """Train MODEL by segments of real steps, each followed by a jump along the run's drift.

    For any trainer that is told on its command line what to start from, where to save and when to
    stop. The command is yours and runs as you; what it prints goes to a file beside its checkpoints.
    After a kill, an error or a full disk the same command continues. docs/reground.md has the flags
    of TRL, verl, OpenRLHF, prime-rl, NeMo-RL and slime.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "probes" in given:
        given["probes"] = str(given["probes"].absolute())
    from trajkit.training.driver import reground

    with console.progress() as progress:
        result = reground(model, work, command, segments, progress=progress, **given)
    console.data(result)
    done = count(result.segments, "segment")
    console.say(f"{result.model}: after {done}, {result.real_steps} real steps and jumps")
    console.say(f"  {result.virtual_steps:g} steps in all; {work / 'jumps.jsonl'} has a line each")
