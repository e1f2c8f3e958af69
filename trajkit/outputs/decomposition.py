"""What changed a linear layer's output between two checkpoints: its input, its weights, or both.

For y = W x + b under the first checkpoint (0) and a later one (t), with Δ for t less 0:

    Δy = W0 Δx  +  (ΔW x0 + Δb)  +  ΔW Δx
         input      weight          product

which is exact; Δb stands with the weights. Each part has its mean length over the places looked at,
and its length along Δy: Σ <part, Δy> / Σ |Δy|², of which the three add up to 1.

Axis letters: S places that are kept, I inputs, O outputs of a layer, M places of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.errors import OverBudget
from trajkit.outputs.layers import Passing
from trajkit.outputs.libraries import torch
from trajkit.outputs.shares import SUMS, Shares
from trajkit.text import format_bytes

MOST_PLACES = 1024


def is_linear(module: Any) -> bool:
    """Whether a module is y = W x + b: torch's, or GPT-2's ``Conv1D``, which keeps W transposed."""
    return isinstance(module, torch.nn.Linear) or _is_transposed(module)


def parts_of_change(
    x0_MI: Any, x_MI: Any, w0_OI: Any, w_OI: Any, b0_O: Any = None, b_O: Any = None
) -> tuple[Any, Any, Any]:
    """(W0 Δx, ΔW x0 + Δb, ΔW Δx), float32 [M, O] each.

    Notes:
        Differences first, in float32, then products: so that each part is as exact as it is small.
    """
    x0, w0 = x0_MI.float(), w0_OI.float()
    dx, dw = x_MI.float() - x0, w_OI.float() - w0
    by_weight = x0 @ dw.T
    if b_O is not None:
        by_weight += b_O.float() - b0_O.float()
    return dx @ w0.T, by_weight, dx @ dw.T


@dataclass(slots=True)
class _Base:
    """What the first checkpoint had in one layer."""

    x_SI: Any
    y_SO: Any
    weight_OI: Any
    bias_O: Any


class Decomposer:
    """Sees the first model, then others, and takes their layers' changes apart.

    Args:
        model: with the first weights in it, or others of the same shapes.
        layers: names of the chosen modules.
        linear: those of them to take apart.
        places: int64 [S], ascending (:func:`choose_places`).
        block_bytes: for what is computed at a time.

    Memory: the first checkpoint's weights of these layers, and inputs and outputs at S places, in the
    model's dtype.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[str],
        linear: Sequence[str],
        places: Array,
        block_bytes: int,
    ) -> None:
        modules = dict(model.named_modules())
        self.linear = tuple(linear)
        self.places = places
        self.block_bytes = block_bytes
        self._modules = {layers.index(name): modules[name] for name in linear}
        self._base: dict[int, _Base] = {}
        self._sums: dict[int, Array] = {}

    def begin(self, first: bool) -> None:
        """A model comes whose layers are the base (``first``), or are compared with it."""
        self._sums = {i: np.zeros(len(SUMS)) for i in self._modules}
        if first:
            self._base = {i: self._remember(m) for i, m in self._modules.items()}
        self._first = first

    def finish(self) -> list[Shares]:
        """The sums of each linear layer; zeros of the base."""
        return [Shares(*self._sums[i].tolist()) for i in self._modules]

    def _remember(self, module: Any) -> _Base:
        weight = weight_of(module)
        out, inputs = weight.shape
        n = len(self.places)
        bias = None if module.bias is None else module.bias.detach().clone()
        return _Base(
            weight.new_empty((n, inputs)), weight.new_empty((n, out)), weight.detach().clone(), bias
        )

    @torch.no_grad()
    def see(self, passing: Passing) -> None:
        """Keep the base's input and output, or take a later one's change apart."""
        if passing.layer not in self._modules:
            return
        at = np.minimum(np.searchsorted(self.places, passing.places_M), len(self.places) - 1)
        inside = np.flatnonzero(self.places[at] == passing.places_M)
        base = self._base[passing.layer]
        rows = passing.rows_M[torch.from_numpy(inside).to(passing.rows_M.device)]
        kept = torch.from_numpy(at[inside]).to(rows.device)
        if self._first:
            base.x_SI[kept] = passing.x[rows]
            base.y_SO[kept] = passing.y[rows]
            return
        out, inputs = base.weight_OI.shape
        size = max(1, self.block_bytes // (4 * (2 * inputs + 6 * out)))
        for start in range(0, len(rows), size):
            block = slice(start, start + size)
            self._sums[passing.layer] += self._take_apart(
                base, kept[block], passing.module, passing.x[rows[block]], passing.y[rows[block]]
            )

    def _take_apart(self, base: _Base, kept: Any, module: Any, x_MI: Any, y_MO: Any) -> Array:
        """The sums over some places."""
        y0 = base.y_SO[kept].float()
        parts = parts_of_change(
            base.x_SI[kept], x_MI, base.weight_OI, weight_of(module), base.bias_O, module.bias
        )
        change = y_MO.float() - y0
        left = change - parts[0] - parts[1] - parts[2]
        lengths = [_norms(part) for part in (y0, change, *parts)]
        along = [(part.double() * change).sum(dtype=torch.float64) for part in parts]
        found = [
            torch.tensor(float(len(y0))),
            *(n.sum() for n in lengths),
            (lengths[1] ** 2).sum(),
            *along,
            _norms(left).sum(),
        ]
        return np.array([float(value) for value in found])


def _norms(rows_MO: Any) -> Any:
    """The length of each row, float64."""
    return torch.linalg.vector_norm(rows_MO, dim=-1, dtype=torch.float64)


def weight_of(module: Any) -> Any:
    """W of a linear module as [O, I], whichever way it keeps it."""
    return module.weight.T if _is_transposed(module) else module.weight


def _is_transposed(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def choose_places(
    model: Any, linear: Sequence[str], n_places: int, budget_bytes: int, most: int, seed: int = 0
) -> Array:
    """Places of the probe set at which changes are taken apart: int64 [S], ascending.

    As many as the budget holds beside the first checkpoint's weights, drawn once.

    Raises:
        OverBudget: it does not hold these weights and one place.
    """
    modules = dict(model.named_modules())
    shapes = [tuple(weight_of(modules[name]).shape) for name in linear]
    itemsize = model.dtype.itemsize
    weights = itemsize * sum(o * i for o, i in shapes)
    # one layer's W0, W and their difference in float32
    working = 3 * 4 * max((o * i for o, i in shapes), default=0)
    a_place = itemsize * sum(o + i for o, i in shapes)
    fitting = (budget_bytes - weights - working) // max(a_place, 1)
    if linear and fitting < 1:
        raise OverBudget(
            f"the first checkpoint's weights of {len(linear)} layers take "
            f"{format_bytes(weights + working)} beside the model, the budget leaves "
            f"{format_bytes(budget_bytes)}; pass more --memory, fewer --layers, or --places 0 to take "
            "no change apart"
        )
    count = min(n_places, most, fitting)
    if count == n_places:
        return np.arange(n_places)
    return np.sort(np.random.default_rng(seed).choice(n_places, count, replace=False))
