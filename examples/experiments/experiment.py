"""What the controlled experiments share: many runs, their results kept, intervals over seeds, a figure.

Every run is a line of the results as soon as it is done; the same command goes on where it was stopped.
Intervals are Student's t over seeds at 95 %: mean ± t(.975, n - 1) s / √n.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from path_figures import BASE, PROBES

Runs = list[dict[str, Any]]
RATE = 2e-5
"""the learning rate of ``data/``"""
COLOURS = {  # (light, dark)
    "blue": ("#1f5fc4", "#7fb0ff"),
    "orange": ("#b3541e", "#ee9a68"),
    "green": ("#0f7b5f", "#5fd3b1"),
    "violet": ("#6f42c1", "#b79bf0"),
    "pink": ("#a3195b", "#f07fb2"),
    "grey": ("#5d636d", "#9aa1ac"),
}
ROLES = {
    "ink": ("#1a1c20", "#e7e9ed"),
    "surface": ("#ffffff", "#15171b"),
    "axis": ("#b9bec6", "#4a505a"),
}


def parser_for(name: str, about: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The options that every experiment has."""
    parser = argparse.ArgumentParser(
        description=about.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("out"), help="folder of the results and the figure")
    add("--seeds", type=int, nargs="+", default=list(seeds))
    add("--workers", type=int, default=2, help="runs at a time, a thread each")
    add("--model", type=Path, default=BASE, help="folder of the checkpoint started from")
    add("--device", default="cpu", help="as torch names it")
    add("--probes", type=Path, default=PROBES, help="fixed responses of that checkpoint")
    add("--largest", type=int, default=99, help="largest number that is added")
    add("--completion-tokens", type=int, default=5)
    add("--rows-a-pass", type=int, default=512, help="rows of one forward and backward pass")
    add("--table", action="store_true", help="run nothing: the table of the results in --out")
    parser.set_defaults(name=name)
    return parser


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; results at another learning rate are of another name."""
    options = parser.parse_args()
    if (rate := getattr(options, "learning_rate", RATE)) != RATE:
        options.name += f"-{rate:g}"
    return options


def versions() -> dict[str, str]:
    """With what the results were made."""
    names = ("trajkit", "torch", "transformers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def run_all(
    options: argparse.Namespace, run: Callable[[dict[str, Any]], dict[str, Any]],
    jobs: Iterable[dict[str, Any]],
) -> list[dict[str, Any]]:  # fmt: skip
    """The results of all jobs, in their order; those that are kept already are not run again.

    ``run`` is a function of a module, so that another process finds it; a job is plain JSON.
    """
    path = options.out / f"{options.name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {"runs": []}
    done = {json.dumps(r["job"], sort_keys=True): r for r in kept["runs"]}
    keys = {json.dumps(job, sort_keys=True): job for job in jobs}
    if options.table:
        return list(done.values())
    options.out.mkdir(parents=True, exist_ok=True)
    todo = [key for key in keys if key not in done]
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        waiting = {pool.submit(run, keys[key]): key for key in todo}
        for i, future in enumerate(as_completed(waiting), 1):
            key = waiting[future]
            done[key] = {"job": keys[key], **future.result()}
            write_results(path, [done[k] for k in keys if k in done])
            print(f"{i} of {len(todo)}: {key}", flush=True)
    return [done[key] for key in keys]


def write_results(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write the file whole or not at all, a line a run."""
    lines = ",\n".join(json.dumps(run) for run in runs)
    content = f'{{"versions": {json.dumps(versions())},\n"runs": [\n{lines}\n]}}\n'
    partial = path.with_suffix(".partial")
    partial.write_text(content)
    partial.replace(path)


def job_options(options: argparse.Namespace) -> dict[str, Any]:
    """What a job says only where it is not the default, so that results name no path of a machine."""
    found: dict[str, Any] = {}
    for name, default in (("model", BASE), ("probes", PROBES), ("device", "cpu"), ("largest", 99),
                          ("completion_tokens", 5), ("rows_a_pass", 512)):  # fmt: skip
        value = getattr(options, name)
        if value != default:
            found[name] = str(value) if isinstance(value, Path) else value
    return found


def split_job(job: dict[str, Any]) -> tuple[dict[str, Any], Path, Path, str]:
    """What a job says beside the checkpoint it starts from, the probes and the device, and these."""
    rest = dict(job)
    base, probes = Path(rest.pop("model", BASE)), Path(rest.pop("probes", PROBES))
    return rest, base, probes, rest.pop("device", "cpu")


def conclude(
    options: argparse.Namespace, runs: Runs, table: Callable[[Runs], str],
    sentence: Callable[[Runs], str], draw: Callable[[Runs, Path], None],
) -> None:  # fmt: skip
    """Print the table and the sentence, and write the figure, unless the table alone is asked for."""
    if not options.table:
        draw(runs, options.out / f"{options.name}.svg")
    print(f"{table(runs)}\n\n{sentence(runs)}")


def mean_and_half(values: Iterable[float | None]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by Student's t; NaN where there are none, or one alone.

    >>> mean_and_half([1.0, 2.0, 3.0])  # t(.975, 2) = 4.303, s = 1
    (2.0, 2.484...)
    """
    from scipy.stats import t

    known = [v for v in values if v is not None and math.isfinite(v)]
    if len(known) < 2:
        return (known[0] if known else math.nan), math.nan
    half = float(t.ppf(0.975, len(known) - 1)) * stdev(known) / math.sqrt(len(known))
    return fmean(known), half


def said(values: Iterable[float | None], digits: int = 3) -> str:
    """``.849 ± .012``, or a dash."""
    mean, half = mean_and_half(values)
    if math.isnan(mean):
        return "-"
    text = _short(f"{mean:.{digits}f}")
    return text if math.isnan(half) else f"{text} ± {_short(f'{half:.{digits}f}')}"


def _short(text: str) -> str:
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def of(runs: Iterable[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The runs whose job has these values."""
    return [r for r in runs if all(r["job"].get(k) == v for k, v in wanted.items())]


def column(runs: Iterable[dict[str, Any]], name: str) -> list[float | None]:
    """One figure of several runs."""
    return [run.get(name) for run in runs]


def processor_minutes(runs: Iterable[dict[str, Any]]) -> str:
    """What they took, training and measuring."""
    total = sum(r["training_seconds"] + r["measuring_seconds"] for r in runs)
    return f"{total / 60:.1f} minutes of processor time"


def new_figure(columns: int, width: float = 9.6, height: float = 3.6) -> tuple[Any, Any]:
    """A figure with axes side by side, in the colours of the light scheme."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ink, surface, axis = (ROLES[name][0] for name in ("ink", "surface", "axis"))
    mpl.rcParams.update({
        "svg.hashsalt": "trajkit", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5,
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": axis, "axes.facecolor": surface,
        "xtick.color": ink, "ytick.color": ink, "figure.facecolor": surface,
    })  # fmt: skip
    figure, axes = plt.subplots(
        1, columns, figsize=(width, height), layout="constrained", squeeze=False
    )
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", lw=0.5, color=axis)
        ax.set_axisbelow(True)
    return figure, axes[0]


def save_figure(figure: Any, path: Path) -> None:
    """Write an SVG that follows the reader's light or dark scheme."""
    from matplotlib import pyplot as plt

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    svg = path.read_text()
    names = COLOURS | ROLES
    for name, (light, _) in names.items():
        svg = svg.replace(light, f"var(--{name})")
    light = "".join(f"--{name}:{pair[0]};" for name, pair in names.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in names.items())
    style = f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
    svg = svg.replace("</style>", f"{style}</style>", 1)
    path.write_text("\n".join(line.rstrip() for line in svg.split("\n")))


def colour(name: str) -> str:
    """A colour, of the light scheme."""
    return COLOURS[name][0]
