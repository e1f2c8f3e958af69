"""Responses sampled from a model for prompts of a file: batched, seeded, gone on with when killed."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trajkit.errors import InvalidInput
from trajkit.outputs.journal import Journal
from trajkit.outputs.libraries import torch, transformers
from trajkit.outputs.models import quiet_transformers
from trajkit.outputs.probes import (
    check_ids,
    check_length,
    encode_prompt,
    read_lines,
    tokenizer_digest,
)
from trajkit.progress import Advanced, Finished, Progress, Started, silent


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    >>> Sampling(temperature=0).is_greedy
    True
    """

    temperature: float = 1.0
    """0 takes the likeliest token"""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit"""
    max_new_tokens: int = 256
    samples: int = 1
    """responses a prompt"""
    batch: int = 32
    """responses sampled together"""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InvalidInput(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InvalidInput(f"top_p must lie in (0, 1], not {self.top_p}")
        for name, least in (("top_k", 0), ("max_new_tokens", 1), ("samples", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be {least} or more, not {getattr(self, name)}")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What was sampled."""

    path: str
    prompts: int
    responses: int
    tokens: int
    """of all responses, end tokens included"""
    resumed: int
    """responses that were there from a run before"""
    seconds: float
    tokens_per_second: float
    """of those sampled now"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, and the line it is from."""

    line: Mapping[str, Any]
    ids: tuple[int, ...]
    text: str


def read_prompts(
    path: str | Path, tokenizer: Any, *, context: int | None, vocabulary: int | None
) -> list[Prompt]:
    """The prompts of a JSONL file; responses in it are not read.

    Raises:
        NotFound, FormatError, InvalidInput, Mismatch: as :func:`trajkit.outputs.probes.read_probes`.
    """
    lines = read_lines(path)
    if not lines:
        raise InvalidInput(f"{path}: no prompts in it")
    prompts = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, prompt {number}"
        ids, text = encode_prompt(line, tokenizer, where)
        check_length(len(ids) + 1, context, where)  # one token of room, at the least
        check_ids(ids, vocabulary, where)
        kept = {k: v for k, v in line.items() if k not in ("response", "response_ids", "eos")}
        prompts.append(Prompt(kept, tuple(ids), text))
    return prompts


def sample_file(
    model: Any,
    tokenizer: Any,
    prompts_path: str | Path,
    out: str | Path,
    sampling: Sampling,
    request: Mapping[str, Any],
    *,
    processors: Sequence[Any] = (),
    force: bool = False,
    progress: Progress = silent,
) -> SampleResult:
    """Sample responses to the prompts of a file and write them as a probe set.

    Args:
        model: of transformers.
        tokenizer: its own.
        prompts_path: JSONL with ``prompt`` or ``messages``.
        out: JSONL to write: the prompts' lines with ``prompt_ids``, ``response``, ``response_ids``
            (the end token included), ``sample`` (0 to samples - 1) and the ``tokenizer``'s digest.
        sampling: how.
        request: what else decides the outcome, such as the model's digest: JSON types.
        processors: transformers' logits processors.
        force: replace ``out``.
        progress: receives :mod:`trajkit.progress` events, in responses.

    Notes:
        Each batch draws from a seed of its own, so that a run that was killed and goes on gives the
        same responses as one that was not.
    """
    started = time.perf_counter()
    context = context_of(model.config)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    prompts = read_prompts(prompts_path, tokenizer, context=context, vocabulary=vocabulary)
    wanted = [(i, s) for i in range(len(prompts)) for s in range(sampling.samples)]
    batches = [wanted[at : at + sampling.batch] for at in range(0, len(wanted), sampling.batch)]
    digest = tokenizer_digest(tokenizer)
    whole = {
        **request,
        "prompts": hashlib.sha256(Path(prompts_path).read_bytes()).hexdigest(),
        "sampling": asdict(sampling),
    }
    sampled = 0
    with Journal(out, whole, force) as journal:
        resumed = len(journal.lines)
        progress(Started("sample", len(wanted), "responses"))
        progress(Advanced(resumed))
        for b in range(journal.batches, len(batches)):
            chosen = [prompts[i] for i, _ in batches[b]]
            responses = sample_batch(
                model, tokenizer, [p.ids for p in chosen], sampling, b, processors
            )
            sampled += sum(map(len, responses))
            journal.append(
                [
                    {
                        **prompt.line,
                        "prompt_ids": list(prompt.ids),
                        "response": tokenizer.decode(ids, skip_special_tokens=True),
                        "response_ids": ids,
                        "sample": s,
                        "tokenizer": digest,
                    }
                    for prompt, ids, (_, s) in zip(chosen, responses, batches[b], strict=True)
                ]
            )
            progress(Advanced(len(responses)))
        tokens = sum(len(line["response_ids"]) for line in journal.lines)
        journal.commit()
    seconds = time.perf_counter() - started
    rate = sampled / max(seconds, 1e-9)
    progress(Finished(f"{len(wanted)} responses, {rate:,.0f} tokens/s"))
    return SampleResult(str(out), len(prompts), len(wanted), tokens, resumed, seconds, rate)


def sample_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch: int = 0,
    processors: Sequence[Any] = (),
) -> list[list[int]]:
    """Responses to prompts of any lengths, sampled together, the end token included.

    ``batch`` numbers the batches of one seed, so that each draws its own numbers.
    """
    pad, ends = _pad_and_ends(model, tokenizer)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    context = context_of(model.config)
    new = (
        sampling.max_new_tokens
        if context is None
        else min(sampling.max_new_tokens, context - width)
    )
    draw: dict[str, Any] = (
        {"do_sample": False}
        if sampling.is_greedy
        else {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    )
    settings = transformers.GenerationConfig(  # type: ignore[no-untyped-call]  # it ships no types
        **draw,
        max_new_tokens=new,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        use_cache=True,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), quiet_transformers():
        torch.manual_seed(_seed_of(sampling.seed, batch))
        found = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            logits_processor=transformers.LogitsProcessorList(processors),
        )
    return [_until_end(row[width:], ends) for row in found.tolist()]


def context_of(config: Any) -> int | None:
    """Tokens that a model can take, where its config says so."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _pad_and_ends(model: Any, tokenizer: Any) -> tuple[int, set[int]]:
    """The token to pad with, and those that end a response."""
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    found = set(ends if isinstance(ends, list) else [ends]) - {None}
    found |= {tokenizer.eos_token_id} - {None}
    pad = tokenizer.pad_token_id
    return (pad if pad is not None else min(found, default=0)), found


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """A response without the padding behind its end token."""
    for at, token in enumerate(ids):
        if token in ends:
            return ids[: at + 1]
    return ids


def _seed_of(seed: int, batch: int) -> int:
    digest = hashlib.sha256(f"{seed} {batch}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
