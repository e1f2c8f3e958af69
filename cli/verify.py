"""``trajkit verify``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trajkit.cli.console import Console
from trajkit.cli.options import example, memory_option, pattern_option, speaking, store_option
from trajkit.text import format_bytes

if TYPE_CHECKING:
    from trajkit.reports.verify import VerifyResult


@click.command(
    "verify",
    short_help="Check every byte of the store.",
    epilog=example("trajkit verify", "trajkit verify --against ckpts/"),
)
@store_option
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="CKPTS",
    help="Prove that the store holds these checkpoints bit for bit (may be repeated).",
)
@click.option("--base", type=click.Path(path_type=Path), help="With --against: the step 0 model.")
@pattern_option
@memory_option
@speaking
def verify_command(
    console: Console,
    store: Path,
    against: tuple[Path, ...],
    base: Path | None,
    pattern: str | None,
    memory: str,
) -> int:
    """Check every chunk and digest of the store; exit 1 when anything is damaged or differs.

    With --against, prove besides that 'trajkit restore' gives these checkpoints back byte for byte:
    tensors, safetensors headers, index, config and tokenizer files.
    """
    from trajkit.reports.verify import verify

    with console.progress() as progress:
        result = verify(
            store,
            against=against or None,
            base=base,
            pattern=pattern,
            memory=memory,
            progress=progress,
        )
    console.data(result)
    for damage in result.bad:
        console.say(f"bad: {damage.what}")
    if result.ok:
        console.say(f"{store}: {result.steps} steps, all intact")
        if against:
            _say_compared(console, result)
    else:
        console.say(f"{store}: {len(result.bad)} things are damaged or differ")
    return 0 if result.ok else 1


def _say_compared(console: Console, result: "VerifyResult") -> None:
    """Say what the store holds of the checkpoints on disk, and what it does not."""
    if result.converted:
        steps = ", ".join(map(str, result.converted[:5]))
        more = ", ..." if len(result.converted) > 5 else ""
        console.say(
            f"  {len(result.converted)} were converted by --dtype (steps {steps}{more}): the "
            "store holds what they convert to, not these files"
        )
    console.say(
        f"  the store gives back byte for byte: {result.held_files:,} files, "
        f"{format_bytes(result.held_bytes)}, of {result.compared:,} checkpoints"
    )
    if not result.lost_files:
        console.say("  nothing else lies there: safe to delete")
        return
    names = ", ".join(result.not_held[:8])
    more = f" and {len(result.not_held) - 8} more names" if result.not_held[8:] else ""
    console.say(
        f"  lost if these folders are deleted: {result.lost_files:,} files, "
        f"{format_bytes(result.lost_bytes)}: {names}{more}"
    )
