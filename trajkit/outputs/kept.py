"""Scores of a probe set as they are kept: a row a checkpoint (:mod:`trajkit.outputs.rows`).

    outputs/<name>/
      zarr.json        group; its attributes are the record: the commit
      log_p, entropy   float32 [T, N]        rank, argmax   int32 [T, N]
      ids              int32 [N]             response tokens, end to end
      offsets          int64 [R + 1]         where each response begins
      prompt_ids       int32 [P]             prompt_offsets   int64 [R + 1]
      text             uint8                 UTF-8: a JSON array [prompt, response, its tokens] a line

T checkpoints, N response tokens, R responses.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.batching import offsets_of
from trajkit.outputs.probes import Probe
from trajkit.outputs.rows import (
    KeptRows,
    RowsRecord,
    create_rows,
    holds,
    names_in,
    read_record,
    rows_path,
)
from trajkit.store.store import Store

ROWS = {"log_p": "float32", "entropy": "float32", "rank": "int32", "argmax": "int32"}
"""the arrays [T, N]"""
FIXED = {
    "ids": "int32",
    "offsets": "int64",
    "prompt_ids": "int32",
    "prompt_offsets": "int64",
    "text": "uint8",
}
"""those that do not grow"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(RowsRecord):
    """What was scored and how, as kept in the group's attributes."""

    FORMAT = "trajkit-outputs"
    FOLDER = "outputs"
    DO = "score"
    DONE = "scored"
    ARRAYS = (*ROWS, *FIXED)
    TUPLES = ("steps", "weights", "divergences")

    probes: str
    """digest of the probes' tokens"""
    tokenizer: str
    """digest of the tokenizer"""
    tokens: int
    """N"""
    responses: int
    """R"""
    dtype: str
    """of the model while it scored"""
    divergence_places: int
    """places whose whole distributions were compared"""
    divergences: tuple[Mapping[str, Any], ...] = ()
    """:class:`trajkit.outputs.distances.Divergence` of each row"""
    noise: Mapping[str, float] | None = None
    """:class:`trajkit.outputs.noise.Noise`, of log p"""

    @property
    def row_arrays(self) -> Mapping[str, tuple[str, int]]:
        """A number a response token."""
        return {name: (dtype, self.tokens) for name, dtype in ROWS.items()}

    @property
    def fixed_arrays(self) -> Mapping[str, str]:
        """The probes themselves."""
        return FIXED


class Outputs(KeptRows[Record]):
    """The scores of one probe set over the checkpoints of a run."""

    def __repr__(self) -> str:
        r = self.record
        return f"<Outputs {r.name!r}: {len(r.steps)} checkpoints, {r.tokens:,} tokens>"

    @property
    def log_p(self) -> Array:
        """Log-probability of each response token at each step, float32 [T, N]."""
        return self.rows("log_p")

    @cached_property
    def ids(self) -> Array:
        """The response tokens, int32 [N]."""
        return self.fixed("ids")

    @cached_property
    def offsets(self) -> Array:
        """Where each response begins, int64 [R + 1]."""
        return self.fixed("offsets")

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """(prompt, response) of each response, as text."""
        return [(prompt, response) for prompt, response, _ in self._lines]

    @property
    def pieces(self) -> list[list[str]]:
        """Each response's tokens, as text apart."""
        return [pieces for _, _, pieces in self._lines]

    @cached_property
    def _lines(self) -> list[tuple[str, str, list[str]]]:
        lines = self.fixed("text").tobytes().decode().split("\n")
        return [tuple(json.loads(line)) for line in lines if line]

    def positions(self) -> Array:
        """Each token's place in its response, int64 [N]."""
        starts = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return np.asarray(np.arange(self.record.tokens) - starts)


def create_outputs(
    path: Path,
    record: Record,
    probes: Sequence[Probe],
    decode: Callable[[int], str],
    force: bool,
) -> Outputs:
    """Outputs without a row, there whole or not at all; ``decode`` gives a token's text.

    Raises:
        AlreadyExists: something is at ``path``, and is not outputs that ``force`` may replace.
    """
    known = {i: decode(i) for p in probes for i in p.response_ids}
    lines = "".join(
        json.dumps([p.prompt, p.response, [known[i] for i in p.response_ids]]) + "\n"
        for p in probes
    )
    fixed = {
        "ids": np.array([i for p in probes for i in p.response_ids], np.int32),
        "offsets": offsets_of(probes),
        "prompt_ids": np.array([i for p in probes for i in p.prompt_ids], np.int32),
        "prompt_offsets": np.cumsum([0, *(len(p.prompt_ids) for p in probes)]).astype(np.int64),
        "text": np.frombuffer(lines.encode(), np.uint8),
    }
    return Outputs(path, create_rows(path, record, fixed, force))


def outputs_path(store: Store, name: str) -> Path:
    """Where outputs of a name lie in a store; raises :class:`InvalidInput` for a bad name."""
    return rows_path(store, Record, name)


def read_outputs(where: Store | Path, name: str = "default") -> Outputs:
    """Outputs in a store by their name, or in a folder.

    Raises:
        NotFound: there are none. FormatError: the record is damaged.
    """
    path = outputs_path(where, name) if isinstance(where, Store) else where
    have = outputs_names(where) if isinstance(where, Store) else []
    return Outputs(path, read_record(path, Record, have, "trajkit logprobs --probes P.jsonl"))


def outputs_names(store: Store) -> list[str]:
    """The names of the outputs in a store."""
    return names_in(store, Record)


def is_outputs(path: Path) -> bool:
    """Whether a folder holds what this module writes, damaged or not."""
    return holds(path, Record)
