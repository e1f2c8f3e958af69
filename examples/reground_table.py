"""The table and the figure of re-grounding on the adder, from curves of ``reground_adder.py``.

    python examples/reground_table.py collect runs/*.json --estimate plain-2e-5 -o docs/reground.json
    python examples/reground_table.py table docs/reground.json
    python examples/reground_table.py figure docs/reground.json -o docs/reground.svg

Level: p(correct) of the plain run of the same seed at learning rate 2e-5 and its last step, 1,000. A
curve reaches it where the line between two looks does; looks are before a jump, so that what a jump
adds counts from the next one on. ``below plain``: the lowest p(correct) less that of the plain run of
the same seed and learning rate at the same real step, at any look.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

BASE_RATE = 2e-5
COLOURS = {  # (light, dark)
    "plain": ("#5d636d", "#9aa1ac"),
    "plain x3": ("#8b6d2f", "#c9a862"),
    "plain x10": ("#b3541e", "#ee9a68"),
    "two-point": ("#a3195b", "#f07fb2"),
    "rsq": ("#6f42c1", "#b79bf0"),
    "pooled": ("#1f5fc4", "#7fb0ff"),
    "pooled x10": ("#0f7b5f", "#5fd3b1"),
}
ROLES = {
    "ink": ("#1a1c20", "#e7e9ed"),
    "surface": ("#ffffff", "#15171b"),
    "axis": ("#b9bec6", "#4a505a"),
}


def collect(paths: Iterable[Path], estimate: str | None = None) -> list[dict[str, Any]]:
    """The curves, with what tells runs apart; figures rounded to what can be read off them.

    Files whose names begin with ``estimate`` were made under conditions in which seconds say
    something else: theirs are their steps times the mean cost of a step of the other plain runs.
    """
    runs, paths = [], list(paths)
    others = [
        found["curve"][-1]
        for path in paths
        for found in [json.loads(path.read_text())]
        if found["settings"]["rule"] == "plain" and not path.name.startswith(estimate or "\0")
    ]
    for path in sorted(paths, key=lambda p: p.name):
        found = json.loads(path.read_text())
        settings, curve = found["settings"], found["curve"]
        estimated = estimate is not None and path.name.startswith(estimate)
        if estimated:
            cost = fmean(point["processor_seconds"] / point["step"] for point in others)
            curve = [{**point, "processor_seconds": cost * point["step"]} for point in curve]
        names = ["rule", "learning_rate", "seed"]
        if settings["rule"] != "plain":
            names += ["every", "jump", "optimizer", "adapt"]
        if settings["rule"] == "pooled":
            names += ["keep", "limit", "wait"]
        runs.append(
            {
                **{name: settings[name] for name in names},
                **({"seconds": "estimated"} if estimated else {}),
                "step": [point["step"] for point in curve],
                "p_correct": [round(point["p_correct"], 5) for point in curve],
                "processor_seconds": [round(point["processor_seconds"], 1) for point in curve],
                "jumps": [
                    {
                        "real_steps": jump["real_steps"],
                        "n": jump["n"],
                        "share_moved": round(jump.get("share_moved", 0.0), 4),
                    }
                    for jump in found["jumps"]
                    if jump["n"]
                ],
            }
        )
    return runs


def name_of(run: dict[str, Any]) -> tuple[Any, ...]:
    """What runs of different seeds have in common."""
    left = ("seed", "step", "p_correct", "processor_seconds", "seconds", "jumps")
    return tuple((name, value) for name, value in run.items() if name not in left)


def reach(run: dict[str, Any], level: float, axis: str = "step") -> float | None:
    """Where a curve first reaches a level, between looks by a line; None where it does not."""
    p, x = run["p_correct"], run[axis]
    for i in range(1, len(p)):
        if p[i] >= level:
            at = 1.0 if p[i - 1] >= level else (level - p[i - 1]) / (p[i] - p[i - 1])
            return float(x[i - 1] + at * (x[i] - x[i - 1]))
    return None


def below(run: dict[str, Any], plain: dict[str, Any]) -> float:
    """The lowest p(correct) of a run less the plain run's at the same real step."""
    shared = [
        (s, p) for s, p in zip(run["step"], run["p_correct"], strict=True) if s <= plain["step"][-1]
    ]
    expected = np.interp([s for s, _ in shared], plain["step"], plain["p_correct"])
    return float(min(np.array([p for _, p in shared]) - expected))


def describe(run: dict[str, Any]) -> str:
    """A run's rule and settings, for the table."""
    if run["rule"] == "plain":
        return "plain"
    said = f"{run['rule']} {run['every']}/{run['jump']}"
    if "wait" in run:
        said += f", wait {run['wait']}"
        said += "" if run["keep"] == 0.8 else f", keep {run['keep']}"
        said += "" if run["limit"] == 16 else f", t² > {run['limit']:g}"
    said += ", adapted" if run.get("adapt") else ""
    return said + ("" if run["optimizer"] == "reset" else f", optimizer {run['optimizer']}")


def rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting: what its seeds reached, against plain runs of the same seeds."""
    plain = {(r["learning_rate"], r["seed"]): r for r in runs if r["rule"] == "plain"}
    levels = {s: r["p_correct"][-1] for (rate, s), r in plain.items() if rate == BASE_RATE}
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        settings.setdefault(name_of(run), []).append(run)
    found = []
    for group in settings.values():
        group = sorted((r for r in group if r["seed"] in levels), key=lambda r: r["seed"])
        if not group:
            continue
        steps = [reach(r, levels[r["seed"]]) for r in group]
        seconds = [reach(r, levels[r["seed"]], "processor_seconds") for r in group]
        base = [plain[BASE_RATE, r["seed"]] for r in group]
        same = [plain.get((r["learning_rate"], r["seed"])) for r in group]
        lows = [below(r, p) for r, p in zip(group, same, strict=True) if p is not None]
        found.append(
            {
                "rule": describe(group[0]),
                "learning_rate": group[0]["learning_rate"],
                "seeds": [r["seed"] for r in group],
                "last": [(r["step"][-1], r["p_correct"][-1]) for r in group],
                "steps": steps,
                "fewer": [b["step"][-1] / s for b, s in zip(base, steps, strict=True) if s],
                "less": [
                    b["processor_seconds"][-1] / s
                    for b, s in zip(base, seconds, strict=True)
                    if s is not None
                ],
                "below": min(lows) if lows and group[0]["rule"] != "plain" else None,
            }
        )
    return sorted(
        found, key=lambda row: (row["rule"] != "plain", row["learning_rate"], row["rule"])
    )


def table(runs: list[dict[str, Any]]) -> str:
    """The table, as markdown."""
    lines = [
        "| rule | lr | p(correct), last real step | real steps to plain's level at 1,000 "
        "| fewer | less processor time | below plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows(runs):
        last = ", ".join(f"{p:.3f}".lstrip("0") for _, p in row["last"])
        steps = ", ".join("never" if s is None else f"{s:.0f}" for s in row["steps"])
        whole = len(row["fewer"]) == len(row["seeds"])
        fewer = f"{fmean(row['fewer']):.1f} ({min(row['fewer']):.1f} or more)" if whole else "-"
        less = f"{fmean(row['less']):.1f}" if whole else "-"
        low = "" if row["below"] is None else f"{row['below']:+.3f}"
        lines.append(
            f"| {row['rule']} | {row['learning_rate']:g} "
            f"| {last} at {row['last'][0][0]} | {steps} | {fewer} | {less} | {low} |"
        )
    return "\n".join(lines)


def against_best(runs: list[dict[str, Any]]) -> str:
    """The pooled rule against plain training at the rate that gets furthest per step."""
    plain = {(r["learning_rate"], r["seed"]): r for r in runs if r["rule"] == "plain"}
    rate = max(r for r, _ in plain)
    ratios = []
    for run in runs:
        best = plain.get((rate, run["seed"]))
        if run["rule"] == "pooled" and run["learning_rate"] == rate and best is not None:
            steps = reach(run, best["p_correct"][-1])
            if steps is not None:
                level, last = best["p_correct"][-1], best["step"][-1]
                ratios.append(
                    f"{describe(run)}, seed {run['seed']}: {steps:.0f} real steps to {level:.3f}, "
                    f"plain's at lr {rate:g} after {last}: {last / steps:.2f} times fewer"
                )
    return "\n".join(sorted(ratios))


def colour_name(run: dict[str, Any]) -> str:
    """Which of the colours a run is drawn in."""
    times = round(run["learning_rate"] / BASE_RATE)
    name = run["rule"] + (f" x{times}" if times > 1 else "")
    return name if name in COLOURS else run["rule"]


def draw(runs: list[dict[str, Any]], out: Path) -> None:
    """p(correct) over real steps, and over processor time; colours follow the reader's scheme."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ink, surface, axis = (ROLES[name][0] for name in ("ink", "surface", "axis"))
    mpl.rcParams.update({
        "svg.hashsalt": "trajkit", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": axis, "axes.facecolor": surface,
        "xtick.color": ink, "ytick.color": ink, "figure.facecolor": surface,
    })  # fmt: skip
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained", sharey=True)
    seen: set[str] = set()
    settings: dict[str, int] = {}
    for run in sorted(runs, key=lambda r: list(COLOURS).index(colour_name(r))):
        name = colour_name(run)
        said = name if run["rule"] == "plain" else f"{name} {run['every']}/{run['jump']}"
        if said not in seen:
            settings[name] = settings.get(name, -1) + 1
        style = {"color": COLOURS[name][0], "lw": 1.3, "label": None if said in seen else said}
        if run["rule"] != "plain":
            style |= {"marker": "o", "ms": 2.2, "ls": ("-", "--", ":")[settings[name] % 3]}
        seen.add(said)
        for ax, x in zip(axes, ("step", "processor_seconds"), strict=True):
            ax.plot(run[x], run["p_correct"], **style)
    axes[0].set_xlabel("real steps")
    axes[1].set_xlabel("processor seconds of training")
    axes[0].set_ylabel("p(correct), 400 additions")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", lw=0.5, color=axis)
        ax.set_xlim(left=0)
    figure.legend(
        *axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=5
    )
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    if out.suffix == ".svg":
        out.write_text(two_schemes(out.read_text()))


def two_schemes(svg: str) -> str:
    """A picture that follows the reader's light or dark scheme."""
    names = {
        light: (name.replace(" ", "-"), light, dark)
        for name, (light, dark) in (COLOURS | ROLES).items()
    }
    for light, (name, _, _) in names.items():
        svg = svg.replace(light, f"var(--{name})")
    of_light = "".join(f"--{name}:{light};" for name, light, _ in names.values())
    of_dark = "".join(f"--{name}:{dark};" for name, _, dark in names.values())
    style = f"svg{{{of_light}}}@media(prefers-color-scheme:dark){{svg{{{of_dark}}}}}"
    svg = svg.replace("</style>", style + "</style>", 1)
    return "\n".join(line.rstrip() for line in svg.split("\n"))


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    gather = commands.add_parser("collect")
    gather.add_argument("curves", type=Path, nargs="+")
    gather.add_argument("-o", "--out", type=Path, required=True)
    gather.add_argument("--estimate", metavar="PREFIX", help="files whose seconds are estimated")
    for name in ("table", "figure"):
        one = commands.add_parser(name)
        one.add_argument("results", type=Path)
        if name == "figure":
            one.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "collect":
        lines = ",\n".join(json.dumps(run) for run in collect(options.curves, options.estimate))
        options.out.write_text(f"[\n{lines}\n]\n")
        return
    runs = json.loads(options.results.read_text())
    if options.command == "table":
        print(table(runs))
        print("\n" + against_best(runs))
    else:
        draw(runs, options.out)


if __name__ == "__main__":
    main()
