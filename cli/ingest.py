"""``trajkit ingest``."""

from pathlib import Path

import click

from trajkit.cli.console import Console, spell
from trajkit.cli.options import (
    dry_run_option,
    example,
    memory_option,
    pattern_option,
    speaking,
    store_option,
)
from trajkit.text import count, format_bytes, format_rate, format_seconds


@click.command(
    "ingest",
    short_help="Append checkpoints to the store.",
    epilog=example(
        "trajkit ingest ckpts/",
        "trajkit ingest runs/grpo --base Qwen2.5-1.5B --store run.zarr",
        "trajkit ingest ckpts/ --watch",
        "trajkit ingest ckpts/ --watch --delete-ingested",
        r"trajkit ingest ckpts/ --pattern 'epoch_(\d+)'",
        "trajkit ingest 0=base/ 300=exports/late/",
    ),
)
@click.argument("ckpts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="The model before training: step 0.")
@pattern_option
@store_option
@click.option(
    "--codec",
    type=click.Choice(["zstd", "lz4", "sparse", "pcodec", "none"]),
    help="How frames are compressed (default zstd; lz4 is fastest, sparse smallest); fixed when "
    "the store is made.",
)
@click.option(
    "--keyframes",
    type=click.IntRange(min=1),
    metavar="K",
    help="A key frame every K checkpoints; by default where the changes since the last one cost eight "
    "times as much as it did. Fixed when the store is made.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Convert floating-point tensors, rounding once; recorded in the store. For a bf16 base "
    "with fp32 checkpoints: bfloat16 (smaller), or float32 (lossless).",
)
@memory_option
@click.option(
    "--watch", is_flag=True, help="Go on while training runs; interrupt (or SIGTERM) to end."
)
@click.option(
    "--delete-ingested",
    is_flag=True,
    help="With --watch: delete a checkpoint's own files (weights, index, config, tokenizer) once the "
    "store was decoded and compared with them, byte for byte. The last complete checkpoint stays, and "
    "so does whatever else lies in its folder.",
)
@click.option("--poll-seconds", type=click.FloatRange(min=0), default=5.0, hidden=True)
@click.option(
    "--replace-from",
    type=click.IntRange(min=0),
    metavar="STEP",
    help="Cut the store from this step on, and append what CKPTS has of it: for a run that was "
    "resumed and wrote these steps again.",
)
@dry_run_option
@speaking
def ingest_command(
    console: Console,
    ckpts: tuple[Path, ...],
    base: Path | None,
    pattern: str | None,
    store: Path,
    codec: str | None,
    keyframes: int | None,
    dtype: str | None,
    memory: str,
    watch: bool,
    delete_ingested: bool,
    poll_seconds: float,
    replace_from: int | None,
    dry_run: bool,
) -> int:
    """Append every complete checkpoint below CKPTS that the store does not hold yet.

    CKPTS is a folder of step folders (checkpoint-N, global_step_N, step_N, iter_N, ...), or step
    folders or .safetensors files themselves; STEP=PATH names a step by hand. Every checkpoint is
    kept bit for bit. Running it again adds what is new; a step earlier than the last one kept is
    refused, and so is a step that was written again since, unless --replace-from says where the new
    run begins.

    A folder of anchors/step_N.safetensors and deltas/step_N.safetensors, as trainers send them to
    rollout engines, is ingested step by step.

    PEFT adapters are kept as their own tensors, A and B, with their config. Mind that a line in A
    and B is not a line in their product BA.
    """
    import signal

    from trajkit.store.ingest import ingest, plan_ingest

    if delete_ingested and not watch:
        raise click.UsageError("--delete-ingested goes with --watch")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C

    if dry_run:
        plan = plan_ingest(
            ckpts,
            store,
            base=base,
            dtype=dtype,
            memory=memory,
            replace_from=replace_from,
            pattern=pattern,
        )
        console.data(plan)
        if plan.cut:
            console.say(
                f"would cut {count(len(plan.cut), 'step')}: {', '.join(map(str, plan.cut))}"
            )
        console.say(
            f"would append {count(len(plan.steps), 'checkpoint')}, "
            f"{format_bytes(plan.raw_bytes)} of tensors:"
        )
        console.say(f"  steps {', '.join(map(str, plan.steps)) or 'none'}")
        console.say(
            f"  {count(plan.workers, 'worker')}, {format_bytes(plan.memory_bytes)} of memory"
        )
        return 0
    with console.progress() as progress:
        result = ingest(
            ckpts,
            store,
            base=base,
            codec=codec,
            keyframes=keyframes,
            dtype=dtype,
            memory=memory,
            watch=watch,
            poll_seconds=poll_seconds,
            replace_from=replace_from,
            pattern=pattern,
            delete_ingested=delete_ingested,
            progress=progress,
        )
    console.data(result)
    ratio = result.raw_bytes / max(result.stored_bytes, 1)
    console.say(
        f"{result.store}: {count(result.ingested, 'checkpoint')} appended, "
        f"{result.skipped:,} already there"
    )
    console.say(
        f"  {count(result.steps, 'step')}, {format_bytes(result.raw_bytes)} of tensors in "
        f"{format_bytes(result.stored_bytes)} ({ratio:.1f} times smaller)"
    )
    if result.ingested:
        console.say(
            f"  {format_seconds(result.seconds)}, "
            f"{format_rate(result.bytes_per_second, 1)}; pace set by: {result.bottleneck}"
        )
    if result.deleted:
        freed = format_bytes(result.deleted_bytes)
        console.say(f"  deleted the files of {count(len(result.deleted), 'step')}, {freed}")
    if result.interrupted:
        return 130
    console.next_command(spell("fit", "--rsq-threshold", "0.7", store=store))
    return 0
