"""Means of activations in float64, a layer at a time, as batches pass.

Axis letters: M places of a batch, F features, W columns of a layer.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.layers import Passing
from trajkit.outputs.libraries import torch

Per = Literal["neuron", "position"]


class MeanActivations:
    """The mean over places of every neuron, or over neurons of every place.

    Args:
        n_layers: how many modules there are.
        n_places: places looked at in the whole probe set.
        per: ``neuron`` or ``position``.
        block_bytes: for what is widened to float64 at a time.

    Memory: a float64 a column, on the CPU, and one block. The order of additions is that of the
    batches, so the same batches give the same bits.
    """

    def __init__(self, n_layers: int, n_places: int, per: Per, block_bytes: int) -> None:
        self.n_places = n_places
        self.per = per
        self.block_bytes = block_bytes
        self._columns: list[Array | None] = [None] * n_layers

    @torch.no_grad()
    def see(self, passing: Passing) -> None:
        """Add one module's outputs of one batch."""
        features = passing.y.shape[1]
        size = max(1, self.block_bytes // (features * (8 + passing.y.element_size())))
        columns = self._columns[passing.layer]
        if columns is None:
            columns = np.zeros(features if self.per == "neuron" else self.n_places)
            self._columns[passing.layer] = columns
        for start in range(0, len(passing.rows_M), size):
            block = slice(start, start + size)
            rows_MF = _widen(passing.y[passing.rows_M[block]])
            if self.per == "neuron":
                columns += rows_MF.sum(0).cpu().numpy()
            else:
                columns[passing.places_M[block]] = rows_MF.mean(1).cpu().numpy()

    def widths(self) -> tuple[int, ...]:
        """Columns of each layer seen."""
        return tuple(0 if c is None else len(c) for c in self._columns)

    def means(self) -> Array:
        """The layers' columns, one after another, float64."""
        over = self.n_places if self.per == "neuron" else 1
        found: Sequence[Any] = [c / over for c in self._columns if c is not None]
        return np.concatenate(found) if found else np.zeros(0)


def _widen(rows_MF: Any) -> Any:
    """As float64, on the CPU where the device has none."""
    return (rows_MF.cpu() if rows_MF.device.type == "mps" else rows_MF).double()
