"""Log-probs: every token of a probe set under every checkpoint of a run, kept in the store."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.errors import InvalidInput
from trajkit.outputs.batching import Batch, make_batches
from trajkit.outputs.distances import (
    MOST_PLACES,
    Divergence,
    DivergenceWatcher,
    choose_places,
)
from trajkit.outputs.kept import (
    Outputs,
    Record,
    create_outputs,
    is_outputs,
    read_outputs,
)
from trajkit.outputs.models import OneModel, read_config
from trajkit.outputs.noise import Noise, halve_batches
from trajkit.outputs.probes import Probe, tokenizer_digest
from trajkit.outputs.rows import RowsWriter, check_same, lock_rows
from trajkit.outputs.scoring import BLOCK_BYTES, Scores, score
from trajkit.outputs.sources import (
    choose_missing,
    choose_place,
    choose_sources,
    library_versions,
    open_probes,
    probes_digest,
    vocabulary_of,
    weights_digest,
)
from trajkit.outputs.weights import Weights
from trajkit.progress import Advanced, Finished, Progress, Started, silent
from trajkit.store.tensors import Source
from trajkit.text import format_seconds, parse_bytes

BATCH_TOKENS = 4096
_SAME = ("probes", "tokenizer", "dtype", "divergence_places")
"""what rows of one name have in common"""


@dataclass(frozen=True, slots=True)
class LogprobsResult:
    """What was scored."""

    name: str
    path: str
    steps: tuple[int, ...]
    """all that are scored"""
    scored: int
    """of these, now"""
    tokens: int
    """response tokens of the probe set"""
    responses: int
    noise_floor: float
    """largest |Δ log p| between two passes of one checkpoint; differences below mean nothing"""
    mean_kl_to_base: tuple[float, ...]
    """one a step, nats: KL(step || base) over the whole next-token distribution"""
    divergence_places: int
    """places over which it is the mean"""
    seconds: float


def logprobs(
    traj: Source | None,
    probes: str | Path,
    *,
    name: str = "default",
    steps: Sequence[int] | None = None,
    checkpoints: Sequence[str | Path] = (),
    out: str | Path | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
    divergence_places: int = MOST_PLACES,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    force: bool = False,
    progress: Progress = silent,
) -> LogprobsResult:
    """Score a probe set under every checkpoint, teacher-forced, and keep it in the store.

    Args:
        traj: the run; None where ``checkpoints`` and ``out`` are given.
        probes: JSONL (:mod:`trajkit.outputs.probes`).
        name: of the outputs in the store.
        steps: which committed steps (default: all). Those scored before are passed over.
        checkpoints: score these folders in place of the store's steps.
        out: a folder to keep the outputs in, in place of the store.
        dtype: of the model's parameters (default: float32 on the CPU, else the checkpoints' own).
        device: as torch names it.
        batch_tokens: ids a batch, padding included.
        divergence_places: most places whose whole distributions are compared; fewer where the
            budget is smaller.
        memory: budget for those distributions and a block of logits; model and batch come on top.
        force: score anew what is there under this name.
        progress: receives :mod:`trajkit.progress` events, in checkpoints.

    Raises:
        NotFound: no such step, folder or file. InvalidInput: a probe is not one; nothing to score;
            a step before the last one scored. Mismatch: the probes are of another tokenizer, or
            not those that were scored before under this name. Locked: another process does.

    Notes:
        A checkpoint's row is there whole or not at all; a run that was killed goes on after the last
        one. Weights are swapped in one model.
    """
    started = time.perf_counter()
    sources = choose_sources(traj, steps, checkpoints)
    found, tokenizer = open_probes(sources[0], probes, Record)
    path = choose_place(traj, Record, name, out)
    dtype = dtype or ("float32" if device == "cpu" else None)
    job = _Job(sources, found, dtype, device, batch_tokens, parse_bytes(memory))
    record = Record(
        name=path.name,
        probes=probes_digest(found),
        tokenizer=tokenizer_digest(tokenizer),
        tokens=job.tokens,
        responses=len(found),
        dtype=dtype or "own",
        divergence_places=len(job.choose(divergence_places)),
        versions=library_versions(),
    )
    with lock_rows(path):
        outputs = _open_outputs(path, record, found, tokenizer, force)
        scored = job.run(RowsWriter(outputs.path, outputs.record), progress)
        outputs = read_outputs(path)
    seconds = time.perf_counter() - started
    progress(Finished(f"{scored} checkpoints in {format_seconds(seconds)}"))
    done = outputs.record
    return LogprobsResult(
        name=done.name,
        path=str(path),
        steps=done.steps,
        scored=scored,
        tokens=done.tokens,
        responses=done.responses,
        noise_floor=float((done.noise or {}).get("largest", float("nan"))),
        mean_kl_to_base=tuple(float(d["to_base"]) for d in done.divergences),
        divergence_places=done.divergence_places,
        seconds=seconds,
    )


class _Job:
    """One call of :func:`logprobs`: the probes in batches, and one model for all weights."""

    def __init__(
        self,
        sources: Sequence[Weights],
        probes: Sequence[Probe],
        dtype: str | None,
        device: str,
        batch_tokens: int,
        budget: int,
    ) -> None:
        self.sources = sources
        self.probes = probes
        self.budget = budget
        self.block_bytes = min(BLOCK_BYTES, budget // 3)
        self.tokens = sum(len(p.response_ids) for p in probes)
        self.batches: list[Batch] = make_batches(probes, batch_tokens)
        self.vocabulary = vocabulary_of(read_config(sources[0]))
        self.model = OneModel(dtype, device)

    def choose(self, most: int) -> Any:
        """The places whose distributions are compared."""
        places = choose_places(self.tokens, self.vocabulary, self.budget, max(most, 1), seed=0)
        self.watcher = DivergenceWatcher(places)
        return places

    def run(self, writer: RowsWriter[Record], progress: Progress) -> int:
        """Score what is missing, a committed row at a time; how many there were."""
        record = writer.record
        todo = choose_missing(self.sources, record)
        progress(Started("logprobs", len(todo), "checkpoints"))
        if todo and record.steps:
            self._recall(record)
        for source in todo:
            scores = self._score(source)
            divergence = self.watcher.finish()
            noise = record.noise or asdict(self._measure_noise(source, scores))
            rows = {
                "log_p": scores.log_p_N,
                "entropy": scores.entropy_N,
                "rank": scores.rank_N,
                "argmax": scores.argmax_N,
            }
            writer.append(
                source.step,
                rows,
                weights=(*record.weights, weights_digest(source)),
                divergences=(*record.divergences, asdict(divergence)),
                noise=noise,
            )
            record = writer.record
            progress(Advanced(1))
        return len(todo)

    def _recall(self, record: Record) -> None:
        """Score the base and the last step again: their distributions are not kept."""
        by_step = {s.step: s for s in self.sources}
        for step in dict.fromkeys((record.steps[0], record.steps[-1])):
            if step not in by_step:
                raise InvalidInput(
                    f"step {step} was scored before and is not among those asked for now; name it "
                    "too, so that the next ones can be compared with it"
                )
            self._score(by_step[step])
            self.watcher.finish()

    def _score(self, source: Weights) -> Scores:
        return score(
            self.model.holding(source),
            self.batches,
            self.tokens,
            watcher=self.watcher,
            block_bytes=self.block_bytes,
        )

    def _measure_noise(self, source: Weights, scores: Scores) -> Noise:
        """Score a checkpoint once more, in batches half as large as they were."""
        halves = halve_batches(self.probes, self.batches)
        model = self.model.holding(source)
        again = score(model, halves, self.tokens, block_bytes=self.block_bytes)
        return Noise.between(source.step, scores.log_p_N, again.log_p_N)


def _open_outputs(
    path: Path, record: Record, probes: Sequence[Probe], tokenizer: Any, force: bool
) -> Outputs:
    """The outputs to add to: those that are there, if they are of the same probes, or new ones."""
    if force or not is_outputs(path):

        def decode(token: int) -> str:
            text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
            return text

        return create_outputs(path, record, probes, decode, force)
    outputs = read_outputs(path)
    check_same(path, outputs.record, record, _SAME)
    return outputs


__all__ = ["Divergence", "LogprobsResult", "Noise", "logprobs"]
