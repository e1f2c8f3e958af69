"""The HF Trainer on a small language model: no dropout, no sampling, the same batch at every step.

A command for ``trajkit reground``, and the same run in one process with ``RegroundCallback``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import SequentialSampler


class InOrder(transformers.Trainer):  # type: ignore[misc]
    """Rows in the order in which they lie, so that a run begun anew sees the same batches."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def make_model(folder: Path, vocabulary: int = 32) -> None:
    """A model to start from."""
    torch.manual_seed(5)
    config = transformers.Qwen3Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def train(
    model: Path, output: Path, steps: int, resume: str | None = None, callbacks: Sequence[Any] = ()
) -> Any:
    """Train up to a step; the model after it."""
    torch.set_num_threads(1)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    rows = torch.randint(0, 32, (8, 12), generator=torch.Generator().manual_seed(1))
    trainer = InOrder(
        model=loaded,
        args=transformers.TrainingArguments(
            output_dir=str(output), max_steps=steps, per_device_train_batch_size=8,
            learning_rate=3e-3, lr_scheduler_type="constant", use_cpu=True, report_to="none",
            save_strategy="steps", save_steps=1, logging_strategy="no", disable_tqdm=True, seed=1,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        processing_class=(
            transformers.AutoTokenizer.from_pretrained(model)
            if (Path(model) / "tokenizer.json").exists()
            else None
        ),
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--resume")
    given = parser.parse_args()
    train(given.model, given.output, given.steps, given.resume)
