"""``trajkit backtest``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from trajkit.cli.console import Console, spell
from trajkit.cli.options import example, memory_option, speaking, store_option


def parse_horizons(
    ctx: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """``"50,100"`` as whole numbers."""
    del ctx, option
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 16 for part in parts):
        raise click.BadParameter(f"whole numbers such as 50,100,200, not {text!r}")
    return tuple(int(part) for part in parts)


@click.command(
    "backtest",
    short_help="Judge extrapolation on the run's own later checkpoints.",
    epilog=example(
        "trajkit backtest",
        "trajkit backtest --origins 8 --horizons 50,100,200",
        "trajkit backtest --fail-below 0.1",
    ),
)
@store_option
@click.option("--origins", type=int, default=5, show_default=True, help="Where forecasts start.")
@click.option(
    "--horizons",
    callback=parse_horizons,
    metavar="H[,H...]",
    help="Training steps beyond them.  [default: doubling, up to a window's length]",
)
@click.option("--from-step", type=int, help="First training step of the window.")
@click.option("--to-step", type=int, help="Last training step of the window.")
@click.option(
    "--fail-below",
    type=float,
    metavar="S",
    help="Exit with 1 where the best skill (1 - error²/holding²) chosen beforehand is below S.",
)
@memory_option
@speaking
def backtest_command(
    console: Console,
    store: Path,
    origins: int,
    horizons: tuple[int, ...] | None,
    from_step: int | None,
    to_step: int | None,
    fail_below: float | None,
    memory: str,
) -> None:
    """Forecast the run's later checkpoints from its earlier ones, by every rule.

    Errors are relative to holding the last checkpoint known (1: no better). The rule 'chosen' at a
    horizon is the one that was best on forecasts whose outcome was known before.
    """
    from trajkit.evidence.backtest import backtest

    with console.progress() as progress:
        found = backtest(
            store,
            origins=origins,
            horizons=horizons,
            from_step=from_step,
            to_step=to_step,
            memory=memory,
            progress=progress,
        )
    record = found.record
    console.data({"store": str(store), **record})
    for line in table_lines(record):
        console.say(line)
    console.say(found.sentence)
    console.next_command(
        spell("report", store=store),
        spell("extrapolate", "--estimator", "auto", "--steps", "+N", "-o", "out/", store=store),
    )
    if fail_below is not None:
        ratios = [c["honest_ratio"] for c in record["best"] if c["honest_ratio"] is not None]
        skill = max((1 - r * r for r in ratios), default=0.0)
        if skill < fail_below:
            console.say(f"skill {skill:.3f} is below {fail_below:g}")
            raise SystemExit(1)


def table_lines(record: Mapping[str, Any]) -> list[str]:
    """The table: a row a rule, a column a horizon."""
    best = record["best"]
    lines = ["error over holding".ljust(24) + "".join(f"{f'+{h}':>9}" for h in record["horizons"])]
    shown = [
        name
        for name in record["ratio"]
        if name.startswith(("ema", "rank-k")) and name not in record["defaults"]
    ]
    rows = [(name, record["ratio"][name]) for name in (*record["defaults"], *shown)]
    rows.append(("chosen beforehand", [choice["honest_ratio"] for choice in best]))
    for name, row in rows:
        cells = ["-" if r is None else f"{r:.3f}" for r in row]
        lines.append(name.ljust(24) + "".join(f"{cell:>9}" for cell in cells))
    return lines + [f"best at +{choice['horizon']}: {choice['rule']}" for choice in best]
