"""The task of the example run: additions of two numbers below 100, one character a token.

Shared by the training script, the demo and the tests: prompts and answers, the fixed evaluation
set, and the measure that the run improves. Run as a script it prints that measure:

    python examples/adder.py data/adder-grpo/checkpoint-*
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LARGEST = 99
"""Largest number that is added."""

EVALUATION_COUNT = 400
"""Number of additions in the fixed evaluation set."""

EVALUATION_SEED = 20260104
"""Seed of the fixed evaluation set."""


def prompt_for(a: int, b: int) -> str:
    """Return the text the model continues.

    >>> prompt_for(7, 48)
    '7+48='
    """
    return f"{a}+{b}="


def answer_for(a: int, b: int) -> str:
    """Return the right continuation, without the end token.

    >>> answer_for(7, 48)
    '55'
    """
    return str(a + b)


def evaluation_pairs(
    count: int = EVALUATION_COUNT, seed: int = EVALUATION_SEED
) -> list[tuple[int, int]]:
    """Draw the additions that every checkpoint is judged on, the same for the same `seed`."""
    places = random.Random(seed).sample(range((LARGEST + 1) ** 2), count)
    return [divmod(place, LARGEST + 1) for place in places]


def load_model(folder: str | Path) -> tuple[Any, Any]:
    """Load a checkpoint folder: its model in float32, ready to evaluate, and its tokenizer.

    Raises:
        FileNotFoundError: `folder` is no folder (a hub name is never looked up).

    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: expected a checkpoint folder, found none")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


class ExtrapolatedLogits:
    """Two models as one, whose logits are l0 + alpha (l1 - l0); what `answer_log_probabilities` asks.

    Teacher-forced, so both run once over the whole text; `trajkit.LogitsExtrapolation` is for
    generating.
    """

    def __init__(self, base: Any, second: Any, alpha: float) -> None:
        self.base, self.second, self.alpha = base, second, alpha
        self.device = base.device

    def __call__(self, **inputs: Any) -> Any:
        """Run both models; the result has `logits`."""
        import types

        first, second = self.base(**inputs).logits.float(), self.second(**inputs).logits.float()
        return types.SimpleNamespace(logits=first + self.alpha * (second - first))


def answer_log_probabilities(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[int, int]] | None = None
) -> torch.Tensor:
    """Compute the log-probability the model gives to each right answer and the end token after it.

    Args:
        model: a causal language model; its logits are taken to float32.
        tokenizer: its tokenizer, with a pad and an end token.
        pairs: the additions; the fixed evaluation set by default.

    Returns:
        float32 [len(pairs)], natural logarithm, summed over the characters of the answer.

    """
    import torch

    if pairs is None:
        pairs = evaluation_pairs()
    prompts = [tokenizer(prompt_for(a, b))["input_ids"] for a, b in pairs]
    answers = [
        tokenizer(answer_for(a, b))["input_ids"] + [tokenizer.eos_token_id] for a, b in pairs
    ]
    width = max(len(p) + len(c) for p, c in zip(prompts, answers, strict=True))
    # Padded on the right: a causal model never looks there, so no attention mask is needed for
    # the positions that are read; one is passed because transformers asks for it.
    tokens = torch.full((len(pairs), width), tokenizer.pad_token_id, dtype=torch.int64)
    is_answer = torch.zeros((len(pairs), width), dtype=torch.bool)
    is_text = torch.zeros((len(pairs), width), dtype=torch.int64)
    for row, (p, c) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(p) + len(c)] = torch.tensor(p + c)
        is_answer[row, len(p) : len(p) + len(c)] = True
        is_text[row, : len(p) + len(c)] = 1
    device = model.device
    with torch.no_grad():
        logits = model(input_ids=tokens.to(device), attention_mask=is_text.to(device)).logits
    log_p = torch.log_softmax(logits[:, :-1].float(), dim=-1).cpu()
    log_p = log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.where(is_answer[:, 1:], log_p, 0.0).sum(-1)


def probability_correct(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[int, int]] | None = None
) -> float:
    """Compute the model's mean probability of the right answer over `pairs`.

    The fixed evaluation set is the default. The probability of an answer is the product of the
    teacher-forced probabilities of its characters and of the end token: the chance that sampling
    at temperature 1 answers right.
    """
    return float(answer_log_probabilities(model, tokenizer, pairs).double().exp().mean())


def _lines_for(folders: Sequence[str]) -> Iterator[str]:
    """One line of text for each checkpoint folder."""
    for folder in folders:
        yield f"{probability_correct(*load_model(folder)):.4f}  {folder}"


if __name__ == "__main__":
    import sys

    if len(sys.argv) < 2:
        sys.exit("usage: python examples/adder.py CHECKPOINT-FOLDER...")
    for line in _lines_for(sys.argv[1:]):
        print(line)
