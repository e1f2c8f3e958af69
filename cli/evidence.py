"""``trajkit evidence``."""

from dataclasses import asdict
from pathlib import Path

import click

from trajkit.cli.console import Console, spell
from trajkit.cli.options import example, memory_option, speaking, store_option


@click.command(
    "evidence",
    short_help="How the weights moved, and when they turned.",
    epilog=example("trajkit evidence", "trajkit evidence --metrics eval.csv --json"),
)
@store_option
@click.option("--from-step", type=int, metavar="A", help="First training step of the window.")
@click.option("--to-step", type=int, metavar="B", help="Last training step of the window.")
@click.option(
    "--metrics",
    "metrics_path",
    type=click.Path(path_type=Path),
    help="CSV, JSONL or parquet with a column 'step', or TensorBoard events.",
)
@memory_option
@speaking
def evidence_command(
    console: Console,
    store: Path,
    from_step: int | None,
    to_step: int | None,
    metrics_path: Path | None,
    memory: str,
) -> None:
    """Tell drift from diffusion by how all weights moved together, and when the run turned.

    One pass over the store; kept there for the report and for fit --from-step auto.
    """
    from trajkit.checkpoints.metrics import read_metrics
    from trajkit.evidence.metrics import judge_metrics
    from trajkit.evidence.movement import measure_evidence
    from trajkit.store.metrics import read_kept_metrics
    from trajkit.store.store import Store

    opened = Store.open(store)
    given = None if metrics_path is None else read_metrics(metrics_path)
    metrics = given or read_kept_metrics(opened)
    with console.progress() as progress:
        found = measure_evidence(
            opened, from_step=from_step, to_step=to_step, memory=memory, progress=progress
        )
    judged = () if metrics is None else judge_metrics(metrics, found.steps, found.overall["speed"])
    console.data({**asdict(found), "metrics": [asdict(m) for m in judged]})
    o = found.overall

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.3f}"

    n = len(found.steps) - 1
    console.say(f"{len(found.steps)} checkpoints, steps {found.steps[0]} to {found.steps[-1]}")
    console.say(f"  {'':34}{'this run':>10}{'walk':>8}{'line':>8}")
    for name, key, walk in (
        ("net displacement over path", "net_over_path", n**-0.5),
        ("growth exponent of |W - W0|^2", "growth", 1.0),
        ("cosine of successive changes", "successive_cosine", 0.0),
        ("part of displacement that is drift", "drift_part", 0.0),
        ("first component's share", "first_component", o["walk_first_component"]),
    ):
        line = 2.0 if key == "growth" else 1.0
        console.say(f"  {name:34}{number(o[key]):>10}{walk:8.3f}{line:8.3f}")
    for b in o["breaks"]:
        console.say(
            f"  turned at step {b['step']} (p {b['p_value']:.3f}, cosine of the mean rates before "
            f"and after {number(b['cosine'])})"
        )
    if o["breaks"]:
        console.say(f"  longest piece: steps {o['linear_from']} to {o['linear_to']}")
    for m in judged:
        fell = "" if m.peak_step is None else f"; fell after step {m.peak_step}"
        console.say(f"  best step by {m.name}: {m.best_step} ({m.best:.4g}){fell}")
    console.next_command(spell("report", store=store))
