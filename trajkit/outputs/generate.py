"""Generate: responses of a step to come, decoded with the logits of two earlier models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajkit.errors import InvalidInput
from trajkit.outputs.logits import LogitsExtrapolation
from trajkit.outputs.models import build_model, load_tokenizer
from trajkit.outputs.probes import check_same_tokenizer
from trajkit.outputs.sampling import Sampling, sample_file
from trajkit.outputs.weights import ForecastWeights, StoredWeights, Weights, parse_weights
from trajkit.progress import Note, Progress, silent
from trajkit.store.tensors import Source


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What was generated."""

    path: str
    alpha: float
    step: int | None
    """the training step that alpha amounts to, where both models have one"""
    prompts: int
    responses: int
    tokens: int
    resumed: int
    """responses that were there from a run before"""
    seconds: float
    tokens_per_second: float


def generate(
    traj: Source | None,
    base: str | Weights,
    second: str | Weights,
    prompts: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    alpha: float | None = None,
    sampling: Sampling | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress = silent,
) -> GenerateResult:
    """Write responses decoded with l0 + alpha (l1 - l0).

    Args:
        traj: the run, where a model is one of its steps; None where both are folders.
        base: the earlier model: a step's number, or a checkpoint folder.
        second: the later model, likewise.
        prompts: JSONL with ``prompt`` or ``messages`` (:mod:`trajkit.outputs.probes`).
        out: JSONL to write (:func:`trajkit.outputs.sampling.sample_file`).
        step: the training step to stand for: alpha = (step - base) / (second - base).
        alpha: in place of ``step``.
        sampling: temperature, top-p, lengths, seed (default: temperature 0.6 and top-p 0.95, as in
            arXiv 2601.04537).
        dtype: of the models' parameters (default: the checkpoints' own).
        device: as torch names it.
        force: replace ``out``.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        NotFound: no such step, folder or file. InvalidInput: not exactly one of step and alpha; the
            models' steps are alike. Mismatch: different tokenizers; ``out`` was begun otherwise.
        AlreadyExists: ``out`` is there already.
    """
    first, later = _open(base, traj), _open(second, traj)
    alpha = choose_alpha(first.step, later.step, step, alpha)
    sampling = sampling or Sampling(temperature=0.6, top_p=0.95)
    tokenizer = load_tokenizer(later)
    check_same_tokenizer(load_tokenizer(first), tokenizer)
    progress(Note(f"alpha {alpha:g}: from {first.label} and {later.label}"))
    base_model = build_model(first, dtype=dtype, device=device)
    second_model = build_model(later, dtype=dtype, device=device)
    processor = LogitsExtrapolation(base_model, alpha, pad_token_id=tokenizer.pad_token_id)
    request = {
        "alpha": alpha,
        "base": identify(first),
        "second": identify(later),
        "dtype": str(second_model.dtype),
    }
    result = sample_file(
        second_model,
        tokenizer,
        prompts,
        out,
        sampling,
        request,
        processors=[processor],
        force=force,
        progress=progress,
    )
    amounts_to = None
    if first.step != later.step:
        amounts_to = round(first.step + alpha * (later.step - first.step))
    return GenerateResult(
        path=result.path,
        alpha=alpha,
        step=amounts_to,
        prompts=result.prompts,
        responses=result.responses,
        tokens=result.tokens,
        resumed=result.resumed,
        seconds=result.seconds,
        tokens_per_second=result.tokens_per_second,
    )


def choose_alpha(base: int, second: int, step: int | None, alpha: float | None) -> float:
    """Alpha, given or from the steps: (step - base) / (second - base).

    Raises:
        InvalidInput: both or neither are given; the two steps are alike.

    >>> choose_alpha(0, 400, 1000, None)
    2.5
    """
    if (step is None) == (alpha is None):
        raise InvalidInput("give the step to stand for, or alpha: one of them")
    if alpha is not None:
        return alpha
    assert step is not None
    if base == second:
        raise InvalidInput(f"base and second are both step {base}: give alpha instead of a step")
    return (step - base) / (second - base)


def identify(weights: Weights) -> Any:
    """What tells one model's weights from another's in a request: JSON types."""
    if isinstance(weights, StoredWeights):
        return weights.store.commit.frames[weights.frame].digest
    if isinstance(weights, ForecastWeights):
        return [weights.label, str(weights.values.estimator)]
    checkpoint = getattr(weights, "checkpoint", None)
    files = [] if checkpoint is None else checkpoint.files
    sizes = [[f.name, f.size, f.path.stat().st_mtime_ns] for f in files]
    return [weights.label, sizes]


def _open(model: str | Weights, traj: Source | None) -> Weights:
    return parse_weights(model, traj) if isinstance(model, str) else model
