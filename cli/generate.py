"""``trajkit generate``."""

from pathlib import Path

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, force_option, sampling_options, speaking, store_option
from trajkit.text import format_seconds


@click.command(
    "generate",
    short_help="Decode with the logits of a step to come.",
    epilog=example(
        "trajkit generate --base 0 --second 400 --steps 1000 --prompts p.jsonl -o out.jsonl",
        "trajkit generate --base base/ --second rl/ --alpha 1.5 --prompts p.jsonl -o out.jsonl",
    ),
)
@store_option
@click.option(
    "--base", required=True, metavar="STEP|DIR", help="The earlier model: a step, or a folder."
)
@click.option(
    "--second", required=True, metavar="STEP|DIR", help="The later model: a step, or a folder."
)
@click.option("--steps", "step", type=int, metavar="X", help="The training step to stand for.")
@click.option("--alpha", type=float, metavar="A", help="In place of --steps.")
@sampling_options(temperature=0.6, top_p=0.95)
@force_option
@speaking
def generate_command(
    console: Console,
    store: Path,
    base: str,
    second: str,
    step: int | None,
    alpha: float | None,
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
    """Write responses decoded with l0 + alpha (l1 - l0), the logits of two models of a run.

    alpha is (X - base) / (second - base). A command that was killed goes on where it was when it is
    run again.
    """
    if (step is None) == (alpha is None):
        raise click.UsageError("give one of --steps and --alpha")
    from trajkit.outputs.generate import generate
    from trajkit.outputs.sampling import Sampling
    from trajkit.outputs.weights import open_store

    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        samples=samples,
        batch=batch,
        seed=seed,
    )
    with console.progress() as progress:
        result = generate(
            open_store(store, [base, second]),
            base,
            second,
            prompts,
            out,
            step=step,
            alpha=alpha,
            sampling=sampling,
            dtype=dtype,
            device=device,
            force=force,
            progress=progress,
        )
    console.data(result)
    stands = "" if result.step is None else f", step {result.step}"
    console.say(
        f"{result.path}: {result.responses} responses to {result.prompts} prompts, alpha "
        f"{result.alpha:g}{stands}"
    )
    console.say(
        f"  {result.tokens:,} tokens in {format_seconds(result.seconds)}, "
        f"{result.tokens_per_second:,.0f} tokens/s"
    )
