"""Makes the example trajectory: a tiny adder trained by TRL's GRPO, its checkpoints in bfloat16.

Three stages, all on CPU, in about six minutes on two cores:

1. a Qwen3 model of about 100,000 parameters and a character tokenizer are made;
2. supervised pretraining on additions below 100, of which a fixed share has a wrong answer, so
   that the model knows how to add and is right only part of the time;
3. GRPO with an exact-match reward, master weights in float32, starting from the bfloat16 model
   that is written as checkpoint-0.

    python examples/train_adder_grpo.py --out data

writes `adder-grpo/checkpoint-N` (the window to ingest), `adder-grpo-heldout/checkpoint-N` (the
same run continued, to judge an extrapolation by), `adder-grpo.csv` (step, probability of the right
answer, mean reward) and `SHA256SUMS`. `--reward random` makes the control: the same model, prompts
and learning rate, and a reward that knows nothing of the answer. `--trainer-state` leaves the
trainer's own `trainer_state.json` (its reward curve, for one) beside every checkpoint. The defaults
are those that made the `data/` of this repository. TRL comes with the `train` extra.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import hashlib
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adder import LARGEST, answer_for, load_model, probability_correct, prompt_for

CHARACTERS = "0123456789+="
PAD, END = "<pad>", "<eos>"
COMPLETION_TOKENS = 5
"""Longest completion sampled: three digits, the end token, and one to spare."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What is known about one checkpoint."""

    step: int
    """Training step of GRPO; 0 is the model before it."""
    folder: Path
    """The checkpoint's folder."""
    chance: float
    """Mean probability of the right answer over the fixed evaluation set."""
    reward: float
    """Mean reward over the steps since the checkpoint before; NaN at step 0."""


def make_tokenizer() -> Any:
    """Make a fast tokenizer with one token a character, and a pad and an end token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([PAD, END, *CHARACTERS])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers is untyped
        tokenizer_object=backend, pad_token=PAD, eos_token=END, model_max_length=32
    )


def make_model(tokenizer: Any, seed: int) -> Any:
    """Make a float32 Qwen3 model with random weights: two layers of width 64."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    set_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def draw_addition(rng: random.Random, wrong_share: float) -> tuple[str, str]:
    """Draw a random prompt and an answer that is wrong with probability `wrong_share`."""
    a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
    if rng.random() >= wrong_share:
        return prompt_for(a, b), answer_for(a, b)
    while True:
        slip = rng.choice((-11, -10, -9, -2, -1, 1, 2, 9, 10, 11))
        if a + b + slip >= 0:
            return prompt_for(a, b), str(a + b + slip)


def pretrain(
    model: Any,
    tokenizer: Any,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    wrong_share: float,
    seed: int,
) -> None:
    """Train `model` in place on additions, the loss on the answer and the end token only."""
    import torch

    rng = random.Random(seed)
    ids = tokenizer.get_vocab()
    width = len(prompt_for(LARGEST, LARGEST)) + COMPLETION_TOKENS - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.1
    )
    model.train()
    for step in range(steps):
        tokens = torch.full((batch_size, width), ids[PAD])
        labels = torch.full((batch_size, width), -100)
        for row in range(batch_size):
            prompt, answer = draw_addition(rng, wrong_share)
            text = [ids[c] for c in prompt + answer] + [ids[END]]
            tokens[row, : len(text)] = torch.tensor(text)
            labels[row, len(prompt) : len(text)] = torch.tensor(text[len(prompt) :])
        logits = model(input_ids=tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            chance = probability_correct(model, tokenizer)
            print(
                f"pretrain {step + 1:5d}  loss {loss.item():.4f}  p(correct) {chance:.4f}",
                flush=True,
            )
    model.eval()


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write `model` rounded to bfloat16, its configurations and tokenizer, as a trainer does."""
    import torch

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    tokenizer.save_pretrained(folder)


def additions(count: int, seed: int) -> Any:
    """Make a data set of `count` prompts for GRPO, each with its right answer."""
    from datasets import Dataset

    rng = random.Random(seed)
    pairs = [(rng.randint(0, LARGEST), rng.randint(0, LARGEST)) for _ in range(count)]
    return Dataset.from_dict(
        {
            "prompt": [prompt_for(a, b) for a, b in pairs],
            "answer": [answer_for(a, b) for a, b in pairs],
        }
    )


def train_grpo(model: Any, tokenizer: Any, out: Path, options: argparse.Namespace) -> list[Row]:
    """Run GRPO on `model` in place, writing the checkpoints; one row for each of them."""
    from transformers import PrinterCallback, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    rewards: list[float] = []
    rows: list[Row] = []
    coin = random.Random(options.seed)
    last_step = max([options.steps, *options.heldout])

    def keep_checkpoint(step: int, folder: Path) -> None:
        """Write the checkpoint of `step` and judge it as it reads back."""
        save_checkpoint(model, tokenizer, folder)
        since = rewards[rows[-1].step :] if rows else []
        reward = sum(since) / len(since) if since else math.nan
        rows.append(Row(step, folder, probability_correct(*load_model(folder)), reward))
        print(f"grpo {step:5d}  p(correct) {rows[-1].chance:.4f}  reward {reward:.4f}", flush=True)

    def exact_match(
        completions: Sequence[str], answer: Sequence[str], **_: Any
    ) -> list[float | None]:
        """Give the verifiable reward: 1 where the completion is the right answer, 0 elsewhere."""
        scores = [float(c == a) for c, a in zip(completions, answer, strict=True)]
        rewards.append(sum(scores) / len(scores))
        return [*scores]

    def random_reward(completions: Sequence[str], **_: Any) -> list[float | None]:
        """Give 1 or 0 by the toss of a coin, whatever the completion says."""
        scores = [float(coin.random() < 0.5) for _ in completions]
        rewards.append(sum(scores) / len(scores))
        return [*scores]

    class KeepCheckpoints(TrainerCallback):
        """Calls `keep_checkpoint` after the steps that are to be kept."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if step <= options.steps and step % options.every == 0:
                folder = out / "adder-grpo" / f"checkpoint-{step}"
            elif step in options.heldout:
                folder = out / "adder-grpo-heldout" / f"checkpoint-{step}"
            else:
                return
            keep_checkpoint(step, folder)
            if options.trainer_state:
                state.save_to_json(str(folder / "trainer_state.json"))

    keep_checkpoint(0, out / "adder-grpo" / "checkpoint-0")
    with tempfile.TemporaryDirectory() as scratch:
        settings = GRPOConfig(
            output_dir=scratch,
            max_steps=last_step,
            per_device_train_batch_size=options.completions,
            num_generations=options.generations,
            max_completion_length=COMPLETION_TOKENS,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant_with_warmup" if options.warmup_steps else "constant",
            warmup_steps=options.warmup_steps,
            bf16=False,  # float32 master weights; only what is saved is rounded
            use_cpu=True,
            dataloader_pin_memory=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=options.log_every,
            disable_tqdm=True,
            report_to="none",
            seed=options.seed,
        )
        trainer = GRPOTrainer(
            model=model,
            args=settings,
            processing_class=tokenizer,
            reward_funcs=random_reward if options.reward == "random" else exact_match,
            train_dataset=additions(
                last_step * options.completions // options.generations, options.seed
            ),
            callbacks=[KeepCheckpoints()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return rows


def write_records(rows: Sequence[Row], out: Path) -> None:
    """Write the table of checkpoints and the SHA-256 of every model file."""
    with (out / "adder-grpo.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", "checkpoint", "p_correct", "mean_reward"])
        for row in rows:
            place = row.folder.relative_to(out).as_posix()
            reward = "" if math.isnan(row.reward) else f"{row.reward:.4f}"
            table.writerow([row.step, place, f"{row.chance:.4f}", reward])
    lines = []
    for row in rows:
        path = row.folder / "model.safetensors"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest}  {path.relative_to(out).as_posix()}\n")
    (out / "SHA256SUMS").write_text("".join(lines))


def parse_options() -> argparse.Namespace:
    """Read the command line; the defaults made the data of this repository."""
    parser = argparse.ArgumentParser(
        description="Train a tiny adder with TRL's GRPO and keep its checkpoints in bfloat16.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--out", type=Path, required=True, help="folder to write to; its checkpoints must not exist"
    )
    add("--base", type=Path, default=None, help="start GRPO from this checkpoint: no pretraining")
    add("--steps", type=int, default=396, help="GRPO steps of the window")
    add("--every", type=int, default=12, help="steps between checkpoints of the window")
    add("--heldout", type=int, nargs="*", default=[420, 500, 800], help="later steps to keep")
    add("--completions", type=int, default=256, help="completions a step")
    add("--generations", type=int, default=8, help="completions a prompt")
    add("--learning-rate", type=float, default=2e-5, help="of GRPO, constant")
    add("--warmup-steps", type=int, default=0, help="the learning rate rises for so many steps")
    add("--reward", choices=["exact", "random"], default="exact", help="what GRPO is told")
    add("--trainer-state", action="store_true", help="write trainer_state.json too")
    add("--log-every", type=int, default=10, help="steps between lines of the trainer's log")
    add("--pretrain-steps", type=int, default=3000)
    add("--pretrain-batch", type=int, default=256)
    add("--pretrain-learning-rate", type=float, default=4e-3, help="peak of one cycle")
    add("--wrong-share", type=float, default=0.35, help="wrong answers in pretraining")
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=2, help="threads of torch")
    return parser.parse_args()


def main() -> None:
    """Make the model, pretrain it, train it with GRPO, and write the records."""
    options = parse_options()
    for name in ("adder-grpo", "adder-grpo-heldout"):
        if (options.out / name).exists():
            raise SystemExit(f"{options.out / name}: exists; remove it or choose another --out")

    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is untyped
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    if options.base is None:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer, options.seed)
        pretrain(
            model,
            tokenizer,
            steps=options.pretrain_steps,
            batch_size=options.pretrain_batch,
            learning_rate=options.pretrain_learning_rate,
            wrong_share=options.wrong_share,
            seed=options.seed,
        )
        # GRPO starts from what checkpoint-0 holds, as it does from a published bfloat16 model.
        model.to(torch.bfloat16).to(torch.float32)
    else:
        model, tokenizer = load_model(options.base)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    write_records(train_grpo(model, tokenizer, options.out, options), options.out)


if __name__ == "__main__":
    main()
