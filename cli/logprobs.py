"""``trajkit logprobs``."""

from pathlib import Path

import click

from trajkit.cli.console import Console, spell
from trajkit.cli.options import (
    example,
    measuring_options,
    parse_steps,
    speaking,
    store_option,
)
from trajkit.text import format_seconds


@click.command(
    "logprobs",
    short_help="Score fixed responses under every checkpoint.",
    epilog=example(
        "trajkit logprobs --probes probes.jsonl",
        "trajkit logprobs --probes probes.jsonl --steps 0,100,200 --name few",
        "trajkit logprobs --probes probes.jsonl --checkpoints ckpts/ -o scores/",
    ),
)
@store_option
@measuring_options("Score", "outputs")
@click.option(
    "--kl-places",
    default=1024,
    show_default=True,
    help="Most tokens whose whole distributions are compared.",
)
@speaking
def logprobs_command(
    console: Console,
    store: Path,
    probes: Path,
    name: str,
    steps: str | None,
    checkpoints: tuple[Path, ...],
    out: Path | None,
    dtype: str | None,
    device: str,
    batch_tokens: int,
    kl_places: int,
    force: bool,
    memory: str,
) -> None:
    """Score every response token, teacher-forced, under every checkpoint, and keep it in the store.

    Log p, entropy and rank of each token; KL of the whole next-token distributions. One checkpoint
    is scored twice: differences below what the two passes differ by mean nothing. A command that
    was killed goes on after the last checkpoint when it is run again.
    """
    from trajkit.outputs.drift import measure_drift
    from trajkit.outputs.kept import read_outputs
    from trajkit.outputs.logprobs import logprobs
    from trajkit.outputs.weights import open_store

    apart = checkpoints and out is not None
    traj = open_store(store, ["folder"] if apart else [None])
    with console.progress() as progress:
        result = logprobs(
            traj,
            probes,
            name=name,
            steps=parse_steps(steps),
            checkpoints=checkpoints,
            out=out,
            dtype=dtype,
            device=device,
            batch_tokens=batch_tokens,
            divergence_places=kl_places,
            memory=memory,
            force=force,
            progress=progress,
        )
    console.data(result)
    console.say(
        f"{result.path}: {result.tokens:,} tokens of {result.responses} responses under "
        f"{len(result.steps)} checkpoints, {result.scored} of them now, in "
        f"{format_seconds(result.seconds)}"
    )
    console.say(
        f"  two passes of one checkpoint differ by up to {result.noise_floor:.2g} in log p: smaller "
        "differences mean nothing"
    )
    last = measure_drift(read_outputs(Path(result.path)))[-1]
    console.say(
        f"  step {last.step} against step {result.steps[0]}: KL {last.kl_to_base:.3g} nats a token, "
        f"mean |Δ log p| {last.change_to_base:.3g}, likeliest token changed for "
        f"{last.argmax_changed_to_base:.1%}"
    )
    if out is None:
        console.next_command(
            spell("fit", "--outputs", result.name, store=store), spell("report", store=store)
        )
