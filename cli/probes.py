"""``trajkit probes``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, force_option, sampling_options, speaking, store_option
from trajkit.text import format_seconds


@click.command(
    "probes",
    short_help="Sample fixed responses from a model of the run.",
    epilog=example(
        "trajkit probes --prompts prompts.jsonl -n 8 -o probes.jsonl",
        "trajkit probes --model 400 --prompts prompts.jsonl -o probes.jsonl",
    ),
)
@store_option
@click.option(
    "--model",
    metavar="DIR|STEP",
    help="A checkpoint folder or a step of the store (default: the store's first step).",
)
@sampling_options(temperature=1.0, top_p=1.0)
@force_option
@speaking
def probes_command(
    console: Console,
    store: Path,
    model: str | None,
    prompts: Path,
    out: Path,
    samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch: int,
    seed: int,
    dtype: str | None,
    device: str,
    force: bool,
) -> None:
    """Sample responses to prompts, and write a probe set: a JSON object a line.

    A line of the prompts has "prompt" (text as it stands) or "messages" (for the chat template).
    A command that was killed goes on where it was when it is run again.
    """
    from trajkit.outputs.generate import identify
    from trajkit.outputs.models import build_model, load_tokenizer
    from trajkit.outputs.sampling import Sampling, sample_file
    from trajkit.outputs.weights import open_store, parse_weights

    traj = open_store(store, [model])
    weights = parse_weights(model or str(traj.steps[0] if traj else 0), traj)
    tokenizer = load_tokenizer(weights)
    loaded = build_model(weights, dtype=dtype, device=device)
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        samples=samples,
        batch=batch,
        seed=seed,
    )
    request = {"model": identify(weights), "dtype": str(loaded.dtype)}
    with console.progress() as progress:
        result = sample_file(
            loaded, tokenizer, prompts, out, sampling, request, force=force, progress=progress
        )
    console.data(result)
    console.say(
        f"{result.path}: {result.responses} responses to {result.prompts} prompts by "
        f"{weights.label}, {result.tokens:,} tokens in {format_seconds(result.seconds)}"
    )
    console.next_command(f"trajkit logprobs --probes {out}")
