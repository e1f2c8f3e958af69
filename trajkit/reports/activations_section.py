"""What the report says of a run's activations, where some were measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trajkit.outputs.activations_fit import ActivationsFit, fit_activations, shares_by_module
from trajkit.outputs.activations_kept import (
    Activations,
    activations_names,
    read_activations,
)
from trajkit.outputs.rows import say_changed
from trajkit.outputs.shares import PARTS, Shares
from trajkit.reports.activations_plots import (
    MOST_PANELS,
    LayerRsq,
    PartCurves,
    draw_layers,
    draw_parts,
)
from trajkit.reports.figures import PlannedFigure
from trajkit.reports.findings import number, percent
from trajkit.reports.markup import escape
from trajkit.reports.modules import place_of
from trajkit.store.store import Store

TITLES = {
    "activations-layers": "Activations: R² by layer",
    "activations-parts": "Activations: what changed them",
}
_PER = {"neuron": "a neuron's mean over", "position": "the mean over a layer's neurons at each of"}
_WHERE = {
    "response": "the places that predict response tokens",
    "all": "all places of prompts and responses",
}


@dataclass(frozen=True)
class ActivationsSection:
    """One set of measured layers, read once."""

    kept: Activations
    fit: ActivationsFit
    changed: str
    """where rows are of other weights than the store's, a sentence that says so"""

    @property
    def numbers(self) -> dict[str, Any]:
        """For summary.json."""
        record = self.kept.record
        return {
            **self.fit.describe(),
            "where": record.where,
            "per": record.per,
            "tokens": record.tokens,
            "places": record.places,
            "noise": dict(record.noise or {}),
            "parts_of_last_change": {n: s.describe() for n, s in self.last.items()},
        }

    @cached_property
    def last(self) -> Mapping[str, Shares]:
        """What changed each linear module's output from the first checkpoint to the last."""
        return shares_by_module(self.kept)

    @property
    def content(self) -> dict[str, str]:
        """HTML above the figures, by section."""
        found = {"activations-layers": self._fit_table()}
        if self.last:
            found["activations-parts"] = self._parts_table()
        return found

    def figures(self) -> list[PlannedFigure]:
        """R² by layer; where linear layers were taken apart, what changed them."""
        rows = self._layer_rows()
        whole, record = self.fit.whole, self.kept.record
        null = whole["null_median_rsq"]
        noise = (record.noise or {}).get("largest", 0.0)
        figures = [
            PlannedFigure(
                "activations-layers",
                lambda palette, width: draw_layers(rows, null, palette, width),
                f"<b>How to read it.</b> A line is fitted to {_PER[record.per]} {record.tokens:,} "
                f"tokens of fixed texts, {_WHERE[record.where]}. A dot is a layer's median R², the bar "
                f"its middle half; dashed is the median of driftless random walks on these steps, "
                f"{number(null)}. Two passes of one checkpoint differ by up to {noise:.2g}. Neurons of "
                "a layer move together, so its own walks are the run's changes with their signs by "
                "chance, all neurons' alike: where more than 5 % of 999 reach the layer's median R² "
                f"(p), it wanders.{_left_out(len(rows), self._n_modules())} {escape(self.changed)}",
                f"R² of mean activations by layer: median {number(whole['median_rsq'])} of all, a "
                f"random walk has {number(null)}",
            )
        ]
        curves = self._part_curves()
        if curves:
            figures.append(
                PlannedFigure(
                    "activations-parts",
                    lambda palette, width: draw_parts(curves, palette, width),
                    "<b>How to read it.</b> The change Δy of a linear layer's output since step "
                    f"{record.steps[0]} is, exactly, W0 Δx (its input changed) + ΔW x0 + Δb (its "
                    "weights changed) + ΔW Δx (their product). A line is a part's length along Δy, "
                    f"Σ ⟨part, Δy⟩ / Σ |Δy|², over {record.places:,} tokens; the three add up to 100 %."
                    + _left_out(len(curves), len(self.last)),
                    "Parts along the change of the output at the last checkpoint: "
                    + "; ".join(
                        f"{n}: input {_signed(d['along_input'])}, weights {_signed(d['along_weight'])}"
                        for n, d in ((n, s.describe()) for n, s in self.last.items())
                    ),
                )
            )
        return figures

    def _n_modules(self) -> int:
        return len({_module(layer) for layer in self.kept.record.layers})

    def _layer_rows(self) -> list[LayerRsq]:
        """Quartiles of R² of each layer, a row a module."""
        found: dict[str, list[tuple[int, list[float]]]] = {}
        offsets = self.kept.offsets
        for i, layer in enumerate(self.kept.record.layers):
            rsq = self.fit.rsq[offsets[i] : offsets[i + 1]]
            rsq = rsq[np.isfinite(rsq)]
            quartiles = np.quantile(rsq, [0.25, 0.5, 0.75]).tolist() if len(rsq) else [np.nan] * 3
            found.setdefault(_module(layer), []).append((place_of(layer).layer or 0, quartiles))
        rows = [
            LayerRsq(name, np.array([x for x, _ in cells]), np.array([q for _, q in cells]))
            for name, cells in found.items()
        ]
        return rows[:MOST_PANELS]

    def _part_curves(self) -> list[PartCurves]:
        """The parts along each module's change, checkpoint by checkpoint."""
        steps = self.kept.steps[1:]
        curves: dict[str, list[list[float]]] = {}
        for t in range(1, len(self.kept.steps)):
            for name, shares in shares_by_module(self.kept, t).items():
                told = shares.describe()
                along = [told[f"along_{part}"] for part in PARTS]
                curves.setdefault(name, []).append([np.nan if a is None else a for a in along])
        rows = [PartCurves(name, steps, np.array(along)) for name, along in curves.items()]
        return rows[:MOST_PANELS]

    def _fit_table(self) -> str:
        """A row a module: median R² beside that of independent walks and of its own; HTML."""
        head = (
            f"<tr><th>module, layers folded</th><th>{self.kept.record.per}s</th><th>median R²</th>"
            "<th>walk</th><th>its own walks</th><th>p</th><th>verdict</th></tr>"
        )
        lines = []
        for row in self.fit.modules:
            low, high, p = (row[f"own_walks_{key}"] for key in ("low", "high", "p"))
            between = "none" if low is None else f"{number(low)} to {number(high)}"
            lines.append(
                f'<tr><th scope="row">{escape(row["module"])}</th>'
                f'<td class="n">{row["elements"]:,}</td><td class="n">{number(row["median_rsq"])}</td>'
                f'<td class="n">{number(row["null_median_rsq"])}</td><td class="n">{between}</td>'
                f'<td class="n">{number(p, 3)}</td><td>{row["verdict"] or "none"}</td></tr>'
            )
        return (
            f'<div class="scroll"><table class="plain flat"><thead>{head}</thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )

    def _parts_table(self) -> str:
        """A row a module: lengths of the parts along the change, and over the change's; HTML."""
        steps = self.kept.record.steps
        head = (
            "<tr><th>module, layers folded</th><th>|Δy| over |y|</th><th>input</th><th>weights</th>"
            "<th>product</th></tr>"
        )
        lines = []
        for name, shares in self.last.items():
            told = shares.describe()
            cells = "".join(
                f'<td class="n">{_signed(told[f"along_{p}"])} ({percent(told[p])})</td>'
                for p in PARTS
            )
            lines.append(
                f'<tr><th scope="row">{escape(name)}</th>'
                f'<td class="n">{percent(told["relative_change"], 1)}</td>{cells}</tr>'
            )
        return (
            f'<p class="lead">From step {steps[0]:,} to {steps[-1]:,}: each part along the change, and '
            "in parentheses its mean length over the change's.</p>"
            f'<div class="scroll"><table class="plain flat"><thead>{head}</thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )


def read_activations_section(store: Store) -> ActivationsSection | None:
    """The activations to show (``default``, or the first by name); None without two checkpoints.

    Raises:
        FormatError: they are damaged.
    """
    for name in sorted(activations_names(store), key=lambda name: (name != "default", name)):
        kept = read_activations(store, name)
        if len(kept.record.steps) >= 2:
            return ActivationsSection(kept, fit_activations(kept), say_changed(store, kept.record))
    return None


def _module(layer: str) -> str:
    place = place_of(layer)
    return place.module if place.layer is None else f"{place.stack}.*.{place.module}"


def _left_out(shown: int, there: int) -> str:
    return f" {shown} of {there} modules are drawn." if shown < there else ""


def _signed(part: float | None) -> str:
    """A length along the change in per cent, with a decimal and a true minus; never minus zero."""
    return (
        "none"
        if part is None
        else f"{round(100 * part, 1) + 0.0:.1f} %".replace("-", "\N{MINUS SIGN}")
    )
