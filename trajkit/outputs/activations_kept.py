"""Mean activations as they are kept: a row a checkpoint (:mod:`trajkit.outputs.rows`).

    activations/<name>/
      zarr.json   group; its attributes are the record: the commit
      mean        float64 [T, E]        the layers' columns, one layer after another
      parts       float64 [T, D x 11]   what changed each linear layer's output since the first row:
                                        :data:`trajkit.outputs.shares.SUMS`, layer by layer
      places      int64 [S]             places of the probe set that ``parts`` are sums over

T checkpoints, E columns: a layer has one a neuron, or one a place of the probe set. Without linear
layers there are no ``parts`` and no ``places``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.rows import KeptRows, RowsRecord, names_in, read_record, rows_path
from trajkit.outputs.shares import SUMS
from trajkit.store.store import Store

N_SUMS = len(SUMS)
"""numbers of ``parts`` a layer"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationsRecord(RowsRecord):
    """What was measured and how, as kept in the group's attributes."""

    FORMAT = "trajkit-activations"
    FOLDER = "activations"
    DO = "measure"
    DONE = "measured"
    ARRAYS = ("mean", "parts", "places")
    TUPLES = ("steps", "weights", "layers", "widths", "linear")

    probes: str
    """digest of the probes' tokens"""
    tokenizer: str
    """digest of the tokenizer"""
    dtype: str
    """of the model while it was measured"""
    where: str
    """``response`` or ``all`` (:func:`trajkit.outputs.layers.rows_looked_at`)"""
    per: str
    """``neuron``: a column is a feature, the mean over places; ``position``: a place, over features"""
    tokens: int
    """places looked at"""
    responses: int
    layers: tuple[str, ...]
    """names of the modules, as the model has them"""
    widths: tuple[int, ...]
    """columns of each"""
    linear: tuple[str, ...] = ()
    """those whose change is taken apart"""
    places: int = 0
    """S"""
    noise: Mapping[str, float] | None = None
    """:class:`trajkit.outputs.noise.Noise`, of means"""

    @property
    def row_arrays(self) -> Mapping[str, tuple[str, int]]:
        """Means, and sums of changes taken apart."""
        found = {"mean": ("float64", sum(self.widths))}
        if self.linear:
            found["parts"] = ("float64", N_SUMS * len(self.linear))
        return found

    @property
    def fixed_arrays(self) -> Mapping[str, str]:
        """Places of the decomposition."""
        return {"places": "int64"} if self.linear else {}


class Activations(KeptRows[ActivationsRecord]):
    """The mean activations of some layers over the checkpoints of a run."""

    def __repr__(self) -> str:
        r = self.record
        return f"<Activations {r.name!r}: {len(r.steps)} checkpoints, {len(r.layers)} layers>"

    @cached_property
    def offsets(self) -> Array:
        """Where each layer's columns begin, and their number, int64 [layers + 1]."""
        return np.concatenate([[0], np.cumsum(self.record.widths, dtype=np.int64)])

    def of_layer(self, layer: str) -> Array:
        """A layer's mean activations at each step, float64 [T, width].

        Raises:
            ValueError: the layer is none of those measured. FormatError: the array is damaged.
        """
        i = self.record.layers.index(layer)
        return self.rows("mean", int(self.offsets[i]), int(self.offsets[i + 1]))

    def parts(self) -> Array:
        """Sums of changes taken apart, float64 [T, linear layers, 11]; empty without any."""
        record = self.record
        shape = len(record.steps), len(record.linear), N_SUMS
        return self.rows("parts").reshape(shape) if record.linear else np.zeros(shape)


def activations_path(store: Store, name: str) -> Path:
    """Where activations of a name lie in a store; raises :class:`InvalidInput` for a bad name."""
    return rows_path(store, ActivationsRecord, name)


def read_activations(where: Store | Path, name: str = "default") -> Activations:
    """Activations in a store by their name, or in a folder.

    Raises:
        NotFound: there are none. FormatError: the record is damaged.
    """
    path = activations_path(where, name) if isinstance(where, Store) else where
    have = activations_names(where) if isinstance(where, Store) else []
    make = "trajkit activations --probes P.jsonl"
    return Activations(path, read_record(path, ActivationsRecord, have, make))


def activations_names(store: Store) -> list[str]:
    """The names of the activations in a store."""
    return names_in(store, ActivationsRecord)
