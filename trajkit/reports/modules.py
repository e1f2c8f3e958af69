"""Where a tensor sits in a model, told from its name alone: stack, layer, module; experts folded.

No architecture is known here. The first whole number in a dotted name that has enough behind it is
the layer; what stands before it is the stack (``model.layers``, ``encoder.block``), what stands
after it the module. Whole numbers after the layer that count experts, or count to five or more, are
folded into one.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.stats.histograms import histogram_quantile, share

_CONTAINERS = {"layers", "layer", "h", "blocks", "block"}
_FOLD_ABOVE = 4
"""a numbered part of a module with more numbers than this is folded"""
MAX_ROWS = 48
"""modules shown apart; the smallest others are pooled"""
OTHERS = "(other modules)"
_ORDER = ("attn", "attention", "mixer", "mlp", "ffn", "feed_forward", "expert", "moe", "gate")
_PARTS = ("q", "k", "v", "qkv", "o", "out", "gate", "up", "down", "c_fc", "fc1", "fc2")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor sits.

    >>> place_of("model.layers.12.mlp.experts.7.up_proj.weight")
    Place(stack='model.layers', layer=12, module='mlp.experts.*.up_proj')
    >>> place_of("lm_head.weight")
    Place(stack='', layer=None, module='lm_head')
    """

    stack: str
    layer: int | None
    module: str
    """``.weight`` left out; experts as ``*``"""


def place_of(name: str) -> Place:
    """The place a dotted name tells."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        behind = len(parts) - i - 1
        named = i > 0 and parts[i - 1] in _CONTAINERS
        if part.isdecimal() and i > 0 and (behind >= 2 or (behind == 1 and named)):
            rest = parts[i + 1 :]
            return Place(".".join(parts[:i]), int(part), _module(rest))
    return Place("", None, _module(parts))


def _module(parts: Sequence[str]) -> str:
    kept = list(parts[:-1]) if len(parts) > 1 and parts[-1] == "weight" else list(parts)
    for i in range(1, len(kept)):
        if kept[i].isdecimal() and "expert" in kept[i - 1]:
            kept[i] = "*"
    return ".".join(kept)


def fold_experts(name: str) -> str:
    """The name with the experts' numbers as ``*``.

    >>> fold_experts("model.layers.0.mlp.experts.17.w1.weight")
    'model.layers.0.mlp.experts.*.w1.weight'
    """
    return re.sub(r"(expert[^.]*)\.\d+(?=\.|$)", r"\1.*", name)


@dataclass(frozen=True)
class Cell:
    """The tensors of one module in one layer, pooled."""

    tensors: tuple[Mapping[str, Any], ...]
    """their rows of the fit's table"""

    def total(self, column: str) -> int:
        """The sum of a count over the tensors."""
        return sum(int(row[column]) for row in self.tensors)

    @cached_property
    def fitted(self) -> int:
        """Elements with an R²."""
        return self.total("fitted")

    @cached_property
    def hist_rsq(self) -> Array:
        """Counts of R² on [0, 1]."""
        counts: Array = np.sum([row["hist_rsq"] for row in self.tensors], axis=0)
        return counts

    @cached_property
    def median_rsq(self) -> float | None:
        """Median R²: of several tensors to a bin of .02, of one as in the table."""
        if len(self.tensors) == 1:
            value: float | None = self.tensors[0]["median_rsq"]
            return value
        return histogram_quantile(self.hist_rsq, 0.0, 1.0)

    @property
    def share_above(self) -> float | None:
        """Share of the fitted elements above the threshold."""
        return share(self.total("above_threshold"), self.fitted)

    def null(self, column: str) -> float | None:
        """What walks score, ``null_*`` of the table: the tensors' mean, weighted by fitted elements.

        None where the fit keeps none.
        """
        known = [
            (row[column], row["fitted"]) for row in self.tensors if row.get(column) is not None
        ]
        total = sum(weight for value, weight in known if math.isfinite(value))
        if not total:
            return None
        return float(sum(v * (w / total) for v, w in known if math.isfinite(v)))

    def typical(self, column: str) -> float | None:
        """Median over tensors of a per-tensor statistic, weighted by fitted elements."""
        return weighted_median(
            [(row[column], row["fitted"]) for row in self.tensors if row[column] is not None]
        )


def weighted_median(pairs: Iterable[tuple[float, float]]) -> float | None:
    """The value at which half the weight is passed; None where there is no weight.

    >>> weighted_median([(1.0, 1), (2.0, 5), (9.0, 1)])
    2.0
    """
    ordered = sorted((v, w) for v, w in pairs if w > 0)
    if not ordered:
        return None
    half = np.cumsum([w for _, w in ordered])
    return float(ordered[int(np.searchsorted(half, half[-1] / 2))][0])


@dataclass(frozen=True)
class Row:
    """One module over the layers, or one tensor outside of them."""

    label: str
    cells: Mapping[int, Cell]
    """by layer; a tensor outside the layers has its one cell at 0"""

    @cached_property
    def pooled(self) -> Cell:
        """All layers in one."""
        return Cell(tuple(row for cell in self.cells.values() for row in cell.tensors))


@dataclass(frozen=True)
class ModuleGrid:
    """A model as modules x layers, and what lies outside of them."""

    layers: int
    """columns: the highest layer number and one"""
    rows: tuple[Row, ...]
    outside: tuple[Row, ...]
    folded_experts: int
    """expert tensors that share a cell with others"""

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """Modules first, then what lies outside."""
        return self.rows + self.outside


def arrange_modules(table: Sequence[Mapping[str, Any]]) -> ModuleGrid:
    """The rows of a fit's table (dicts) as modules x layers; tensors without elements left out."""
    present = [row for row in table if row["elements"]]
    places = _fold_numbers([place_of(row["name"]) for row in present])
    inside: dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]] = defaultdict(dict)
    outside: dict[str, list[Mapping[str, Any]]] = {}
    for row, place in zip(present, places, strict=True):
        if place.layer is None:
            outside.setdefault(place.module, []).append(row)
        else:
            inside[place.stack, place.module].setdefault(place.layer, []).append(row)
    labels = _stack_labels([stack for stack, _ in inside])
    keys = sorted(inside, key=lambda key: (labels[key[0]], _rank(key[1])))
    rows = [
        Row(labels[stack] + module, {n: Cell(tuple(c)) for n, c in inside[stack, module].items()})
        for stack, module in keys
    ]
    strip = [Row(label, {0: Cell(tuple(cells))}) for label, cells in outside.items()]
    return ModuleGrid(
        layers=max((n for row in rows for n in row.cells), default=-1) + 1,
        rows=_pool_small(rows),
        outside=_pool_small(strip),
        folded_experts=sum(
            len(cell.tensors)
            for row in rows
            if "*" in row.label
            for cell in row.cells.values()
            if len(cell.tensors) > 1
        ),
    )


def _fold_numbers(places: Sequence[Place]) -> list[Place]:
    """Fold numbered parts of modules that count higher than a few."""
    seen: dict[str, set[str]] = defaultdict(set)
    number = re.compile(r"(?<=\.)\d+(?=\.|$)")
    for place in places:
        if place.layer is not None:
            for hit in number.findall(place.module):
                seen[number.sub("*", place.module)].add(hit)

    def fold(place: Place) -> Place:
        pattern = number.sub("*", place.module)
        if place.layer is None or len(seen[pattern]) <= _FOLD_ABOVE:
            return place
        return Place(place.stack, place.layer, pattern)

    return [fold(place) for place in places]


def _stack_labels(stacks: Sequence[str]) -> dict[str, str]:
    """What to put before a module's name: nothing where there is only one stack of layers."""
    distinct = list(dict.fromkeys(stacks))
    if len(distinct) == 1:
        return {distinct[0]: ""}
    short = {
        s: ".".join(p for p in s.split(".") if p not in _CONTAINERS | {"model"}) for s in stacks
    }
    if len(set(short.values())) < len(distinct):
        short = {s: s for s in distinct}
    return {s: f"{text}: " if text else "" for s, text in short.items()}


def _rank(module: str) -> tuple[Any, ...]:
    """Attention, then MLP, then the rest, norms last; within them the order of the computation."""
    lower = module.lower()
    if "norm" in lower.rsplit(".", 2)[-1] or re.search(r"(^|\.)ln_?\w*(\.|$)", lower):
        group = 90
    else:
        group = next((i for i, word in enumerate(_ORDER) if word in lower), 50)
    words = re.split(r"[._]", lower)
    part = min((_PARTS.index(w) for w in words if w in _PARTS), default=len(_PARTS))
    return group, module.rpartition(".")[0], part, module


def _pool_small(rows: Sequence[Row]) -> tuple[Row, ...]:
    """At most MAX_ROWS rows: those with the fewest elements are pooled into one."""
    if len(rows) <= MAX_ROWS:
        return tuple(rows)
    by_size = sorted(rows, key=lambda row: -row.pooled.total("elements"))
    kept = {id(row) for row in by_size[: MAX_ROWS - 1]}
    pooled: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if id(row) not in kept:
            for n, cell in row.cells.items():
                pooled[n].extend(cell.tensors)
    others = Row(OTHERS, {n: Cell(tuple(c)) for n, c in pooled.items()})
    return (*(row for row in rows if id(row) in kept), others)


def module_summary(row: Row) -> dict[str, Any]:
    """A module's numbers for summary.json."""
    cell = row.pooled
    return {
        "module": row.label,
        "layers": len(row.cells),
        "tensors": len(cell.tensors),
        "elements": cell.total("elements"),
        "fitted": cell.fitted,
        "median_rsq": cell.median_rsq,
        "share_above_threshold": cell.share_above,
        "median_durbin_watson": cell.typical("median_durbin_watson"),
        "share_drift_t_above_2": cell.typical("share_drift_t_above_2"),
        "median_ulps_per_100_steps": cell.typical("median_ulps_per_100_steps"),
    }
