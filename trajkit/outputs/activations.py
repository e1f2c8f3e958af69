"""Activations: means of chosen layers under every checkpoint of a run, kept in the store.

With them, for linear layers, what changed their output since the first checkpoint
(:mod:`trajkit.outputs.decomposition`).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from trajkit.arrays import Array
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.errors import InvalidInput
from trajkit.outputs.activations_kept import (
    Activations,
    ActivationsRecord,
    read_activations,
)
from trajkit.outputs.batching import Batch, make_batches
from trajkit.outputs.decomposition import MOST_PLACES, Decomposer, choose_places, is_linear
from trajkit.outputs.layers import (
    Spectator,
    Where,
    choose_layers,
    offsets_looked_at,
    watch_layers,
)
from trajkit.outputs.means import MeanActivations, Per
from trajkit.outputs.models import OneModel, build_empty
from trajkit.outputs.noise import Noise, halve_batches
from trajkit.outputs.probes import Probe, tokenizer_digest
from trajkit.outputs.rows import RowsWriter, check_same, create_rows, holds, lock_rows
from trajkit.outputs.scoring import BLOCK_BYTES
from trajkit.outputs.sources import (
    choose_missing,
    choose_place,
    choose_sources,
    library_versions,
    open_probes,
    probes_digest,
    weights_digest,
)
from trajkit.outputs.weights import Weights
from trajkit.progress import Advanced, Finished, Progress, Started, silent
from trajkit.store.tensors import Source
from trajkit.text import format_seconds, parse_bytes

BATCH_TOKENS = 4096
_SAME = ("probes", "tokenizer", "dtype", "where", "per", "layers", "linear", "places")
"""what rows of one name have in common"""


@dataclass(frozen=True, slots=True)
class ActivationsResult:
    """What was measured."""

    name: str
    path: str
    steps: tuple[int, ...]
    """all that are measured"""
    measured: int
    """of these, now"""
    layers: tuple[str, ...]
    columns: int
    """of all layers together: neurons, or places"""
    where: str
    per: str
    tokens: int
    """places of the probe set that are looked at"""
    responses: int
    noise_floor: float
    """largest |Δ mean| between two passes of one checkpoint; smaller differences mean nothing"""
    places: int
    """of them, those at which changes are taken apart"""
    seconds: float


def activations(
    traj: Source | None,
    probes: str | Path,
    *,
    layers: Sequence[str] = (),
    name: str = "default",
    where: Where = "response",
    per: Per = "neuron",
    places: int = MOST_PLACES,
    steps: Sequence[int] | None = None,
    checkpoints: Sequence[str | Path] = (),
    out: str | Path | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    force: bool = False,
    progress: Progress = silent,
) -> ActivationsResult:
    """Measure mean activations of chosen layers under every checkpoint, and keep them in the store.

    Args:
        traj: the run; None where ``checkpoints`` and ``out`` are given.
        probes: JSONL (:mod:`trajkit.outputs.probes`).
        layers: patterns of module names (:mod:`fnmatch`); none: what attention and MLP add to the
            residual stream.
        name: of the activations in the store.
        where: ``response``: places that predict response tokens; ``all``: those of prompts, too.
        per: ``neuron``: the mean over places of every feature; ``position``: the mean over features of
            every place.
        places: most places at which linear layers' changes are taken apart, drawn once (seed 0);
            fewer where the budget is smaller; 0: none is.
        steps: which committed steps (default: all). Those measured before are passed over.
        checkpoints: measure these folders in place of the store's steps.
        out: a folder to keep the activations in, in place of the store.
        dtype: of the model's parameters (default: float32 on the CPU, else the checkpoints' own).
        device: as torch names it.
        batch_tokens: ids a batch, padding included.
        memory: budget for the first checkpoint's weights, inputs and outputs at ``places``, and a block;
            model and batch come on top.
        force: measure anew what is there under this name.
        progress: receives :mod:`trajkit.progress` events, in checkpoints.

    Raises:
        NotFound: no such step, folder or file. InvalidInput: a probe is not one; a pattern matches
            nothing; a step before the last one measured. Mismatch: the probes are of another
            tokenizer, or not those that were measured before under this name. Unsupported: a module
            gives no vector a token. OverBudget: the budget does not hold the layers' first weights.
            Locked: another process does.

    Notes:
        A checkpoint's row is there whole or not at all; a run that was killed goes on after the last
        one. Weights are swapped in one model. Where rows are added later, the first checkpoint is run
        once more, for its layers' inputs are not kept.
    """
    started = time.perf_counter()
    if where not in ("response", "all") or per not in ("neuron", "position"):
        raise InvalidInput("where is 'response' or 'all', and per 'neuron' or 'position'")
    sources = choose_sources(traj, steps, checkpoints)
    dtype = dtype or ("float32" if device == "cpu" else None)
    chosen = choose_layers(
        build_empty(sources[0], dtype=dtype, device="meta"), layers, sources[0].label
    )
    found, tokenizer = open_probes(sources[0], probes, ActivationsRecord)
    path = choose_place(traj, ActivationsRecord, name, out)
    job = _Job(sources, found, chosen, where, per, dtype, device, batch_tokens, parse_bytes(memory))
    record = ActivationsRecord(
        name=path.name,
        probes=probes_digest(found),
        tokenizer=tokenizer_digest(tokenizer),
        dtype=dtype or "own",
        where=where,
        per=per,
        tokens=job.n_places,
        responses=len(found),
        layers=chosen,
        widths=(),
        versions=library_versions(),
    )
    with lock_rows(path):
        kept = job.open(path, record, places, force)
        measured = job.run(RowsWriter(path, kept.record), kept, progress)
        kept = read_activations(path)
    seconds = time.perf_counter() - started
    progress(Finished(f"{measured} checkpoints in {format_seconds(seconds)}"))
    done = kept.record
    return ActivationsResult(
        name=done.name,
        path=str(path),
        steps=done.steps,
        measured=measured,
        layers=done.layers,
        columns=sum(done.widths),
        where=done.where,
        per=done.per,
        tokens=done.tokens,
        responses=done.responses,
        noise_floor=float((done.noise or {}).get("largest", float("nan"))),
        places=done.places,
        seconds=seconds,
    )


class _Job:
    """One call of :func:`activations`: the probes in batches, and one model for all weights."""

    def __init__(
        self,
        sources: Sequence[Weights],
        probes: Sequence[Probe],
        layers: tuple[str, ...],
        where: Where,
        per: Per,
        dtype: str | None,
        device: str,
        batch_tokens: int,
        budget: int,
    ) -> None:
        self.sources = sources
        self.probes = probes
        self.layers = layers
        self.where: Where = where
        self.per: Per = per
        self.budget = budget
        self.block_bytes = min(BLOCK_BYTES, budget // 3)
        self.offsets = offsets_looked_at(probes, where)
        self.n_places = int(self.offsets[-1])
        self.batches: list[Batch] = make_batches(probes, batch_tokens)
        self.model = OneModel(dtype, device)

    def open(self, path: Path, record: ActivationsRecord, most: int, force: bool) -> Activations:
        """The activations to add to: those that are there, if they are of the same, or new ones."""
        if force or not holds(path, ActivationsRecord):
            record, places = self._lay_out(record, most)
            fixed = {"places": places} if record.linear else {}
            return Activations(path, create_rows(path, record, fixed, force))
        kept = read_activations(path)
        there = kept.record
        # as many places as they have serve, whatever the budget would hold now
        asked = replace(
            record,
            linear=there.linear if most and there.linear else (),
            places=there.places if most else 0,
        )
        check_same(path, there, asked, _SAME)
        return kept

    def _lay_out(self, record: ActivationsRecord, most: int) -> tuple[ActivationsRecord, Array]:
        """The record with what only the model itself can tell, and the decomposition's places."""
        first = self.sources[0]
        model = self.model.holding(first)
        modules = dict(model.named_modules())
        shortest = min((p for p in self.probes if p.response_ids), key=lambda p: p.n_tokens)
        twice = [shortest, shortest]  # what has no row a text shows on two
        means = MeanActivations(len(self.layers), self.n_places, self.per, self.block_bytes)
        batches = make_batches(twice, 2 * shortest.n_tokens)
        self._watch(first, [means], batches, offsets_looked_at(twice, self.where))
        linear = tuple(n for n in self.layers if most > 0 and is_linear(modules[n]))
        places = choose_places(model, linear, self.n_places, self.budget - self.block_bytes, most)
        n = len(places) if linear else 0
        return replace(record, widths=means.widths(), linear=linear, places=n), places

    def run(
        self, writer: RowsWriter[ActivationsRecord], kept: Activations, progress: Progress
    ) -> int:
        """Measure what is missing, a committed row at a time; how many there were."""
        record = writer.record
        todo = choose_missing(self.sources, record)
        progress(Started("activations", len(todo), "checkpoints"))
        if not todo:
            return 0
        parts: Decomposer | None = None
        if record.linear:
            base = self._base(record)
            model = self.model.holding(base)
            places = kept.fixed("places")
            parts = Decomposer(model, self.layers, record.linear, places, self.block_bytes)
            if record.steps:
                parts.begin(first=True)
                self._watch(base, [parts], self.batches, self.offsets)
        for source in todo:
            rows = {"mean": self._measure(source, parts, first=not record.steps)}
            if parts is not None:
                rows["parts"] = np.array([shares.values() for shares in parts.finish()]).ravel()
            writer.append(
                source.step,
                rows,
                weights=(*record.weights, weights_digest(source)),
                noise=record.noise or asdict(self._measure_noise(source, rows["mean"])),
            )
            record = writer.record
            progress(Advanced(1))
        return len(todo)

    def _base(self, record: ActivationsRecord) -> Weights:
        """The checkpoint that changes are from."""
        if not record.steps:
            return self.sources[0]
        for source in self.sources:
            if source.step == record.steps[0]:
                return source
        raise InvalidInput(
            f"step {record.steps[0]} was measured first and is not among those asked for now; name it "
            "too, so that the next ones can be compared with it"
        )

    def _measure(self, source: Weights, parts: Decomposer | None, first: bool) -> Array:
        """Means under a checkpoint; its changes go to ``parts``."""
        means = MeanActivations(len(self.layers), self.n_places, self.per, self.block_bytes)
        spectators: list[Spectator] = [means]
        if parts is not None:
            parts.begin(first)
            spectators.append(parts)
        self._watch(source, spectators, self.batches, self.offsets)
        return means.means()

    def _measure_noise(self, source: Weights, mean: Array) -> Noise:
        """Measure a checkpoint once more, in batches half as large as they were."""
        means = MeanActivations(len(self.layers), self.n_places, self.per, self.block_bytes)
        halves = halve_batches(self.probes, self.batches)
        self._watch(source, [means], halves, self.offsets)
        return Noise.between(source.step, mean, means.means())

    def _watch(
        self,
        source: Weights,
        spectators: Sequence[Spectator],
        batches: Sequence[Batch],
        offsets: Array,
    ) -> None:
        model = self.model.holding(source)
        watch_layers(model, self.layers, batches, self.where, offsets, spectators, self.block_bytes)


__all__ = ["ActivationsResult", "activations"]
