"""One training run on the adder's task, lean enough for experiments with dozens of them.

The same arithmetic as TRL's GRPO with the settings of ``data/`` (checked against its p(correct) in
docs/paper.md), in a plain torch loop: a step takes 70 ms in place of 250. Every step draws prompts,
samples completions at temperature 1 from the current weights, and follows

    grpo     sum over tokens of -A log p / tokens, A = (r - mean) / (std + 1e-4) in each prompt's group,
             r = 1 for the right answer; on-policy, so that the clipped ratio is 1; no KL term
    random   the same with r the toss of a coin
    own      cross-entropy on those samples that are right (rejection sampling): no negative signal
    sft      cross-entropy on the right answer, once a prompt; nothing is sampled from the model

Gradients are clipped to norm 1, then noise is added where it is asked for: Gaussian, of every tensor's
own power over the signal-to-noise ratio, 10^(-dB/10) mean(g²). With -inf dB only the noise is left.

Rows are prompts padded on the left and completions after them. Axis letters: R rows, L positions.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # examples/, for the task

from adder import LARGEST, answer_for, prompt_for

if TYPE_CHECKING:
    import torch

    Watch = Callable[[int, torch.nn.Module, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """What one run is made with; the defaults are those of ``data/``."""

    signal: str = "grpo"
    """grpo, random, own or sft"""
    seed: int = 1
    """of prompts, sampling, rewards and noise; the model started from is one"""
    steps: int = 396
    every: int = 12
    """steps between two checkpoints"""
    prompts: int = 32
    """a step"""
    generations: int = 8
    """completions a prompt"""
    learning_rate: float = 2e-5
    optimizer: str = "adamw"
    """adamw, adamw-no-momentum (beta1 = 0), sgd or sgd-momentum (.9)"""
    tossed: float = 0.0
    """share of the rewards that are replaced by the toss of a coin"""
    snr_db: float = math.inf
    """signal-to-noise ratio of the gradient; inf: no noise is added, -inf: noise alone"""
    largest: int = LARGEST
    """largest number that is added"""
    completion_tokens: int = 5
    """longest completion"""
    rows_a_pass: int = 512
    """rows of one forward and backward pass; gradients of several are added up"""


class PromptStream:
    """The additions of a run, in order, the same for the same seed."""

    def __init__(self, tokenizer: Any, largest: int, seed: int) -> None:
        self.tokenizer, self.largest, self._rng = tokenizer, largest, random.Random(seed)
        self._read: dict[tuple[int, ...], str] = {}

    def draw(self, count: int) -> tuple[list[list[int]], list[str]]:
        """Token ids of ``count`` prompts, and their right answers."""
        pairs = [
            (self._rng.randint(0, self.largest), self._rng.randint(0, self.largest))
            for _ in range(count)
        ]
        ids = [self.tokenizer(prompt_for(a, b))["input_ids"] for a, b in pairs]
        return ids, [answer_for(a, b) for a, b in pairs]

    def text(self, ids: Sequence[int]) -> str:
        """What a completion says, special tokens left out."""
        key = tuple(ids)
        if key not in self._read:
            self._read[key] = self.tokenizer.decode(key, skip_special_tokens=True)
        return self._read[key]


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """Token ids and attention mask, int64 [R, L]."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def positions(mask_RL: Any) -> Any:
    """Position of every token in its own text, int64 [R, L]; 0 in the padding."""
    return (mask_RL.cumsum(-1) - 1).clamp(min=0)


def sample(
    model: Any, ids_RL: Any, mask_RL: Any, n_tokens: int, end: int, generator: Any
) -> tuple[Any, Any]:
    """Completions at temperature 1, int64 [R, n], and which of their tokens count: up to the end."""
    import torch

    alive = torch.ones(len(ids_RL), dtype=torch.bool, device=ids_RL.device)
    tokens, counted = [], []
    mask, ids, place, cache = mask_RL, ids_RL, positions(mask_RL), None
    with torch.no_grad():
        for _ in range(n_tokens):
            out = model(
                input_ids=ids, attention_mask=mask, position_ids=place, past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
            cache = out.past_key_values
            chances = torch.softmax(out.logits[:, -1].float(), -1)
            ids = torch.multinomial(chances, 1, generator=generator)
            tokens.append(ids)
            counted.append(alive[:, None])
            alive = alive & (ids[:, 0] != end)
            if not alive.any():
                break
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            place = place[:, -1:] + 1
    return torch.cat(tokens, 1), torch.cat(counted, 1)


def advantages(rewards: Any, generations: int) -> Any:
    """(r - mean) / (std + 1e-4) in every group of completions of one prompt, float32 [R]."""
    groups = rewards.view(-1, generations)
    spread = groups.std(1, keepdim=True) if generations > 1 else 0.0
    return ((groups - groups.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()


def accumulate_gradient(
    model: Any, prompt_RL: Any, mask_RL: Any, reply_RN: Any, weight_RN: Any, total: float, rows: int
) -> None:
    """Add the gradient of sum(-weight log p) / total to the model's."""
    import torch

    used = weight_RN.ne(0).any(1).nonzero()[:, 0]  # a group without contrast moves nothing
    for part in used.split(rows):
        reply, weight = reply_RN[part], weight_RN[part]
        ids = torch.cat([prompt_RL[part], reply], 1)
        mask = torch.cat([mask_RL[part], torch.ones_like(reply)], 1)
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
        )
        logits = out.logits[:, -reply.shape[1] - 1 : -1].float()
        log_p = torch.log_softmax(logits, -1).gather(-1, reply[..., None])[..., 0]
        (-(weight * log_p).sum() / total).backward()


def add_noise(model: Any, snr_db: float, generator: Any) -> None:
    """Add Gaussian noise to the gradients, or put it in their place."""
    import torch

    if snr_db == math.inf:
        return
    for parameter in model.parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        power = gradient.pow(2).mean()
        noise = torch.randn(gradient.shape, generator=generator, device=gradient.device)
        if snr_db == -math.inf:
            gradient.copy_(noise * power.sqrt())
        else:
            gradient.add_(noise * (power * 10 ** (-snr_db / 10)).sqrt())


def make_optimizer(name: str, parameters: Any, learning_rate: float) -> Any:
    """The optimizer of that name, without weight decay."""
    import torch

    match name:
        case "adamw" | "adamw-no-momentum":
            betas = (0.9 if name == "adamw" else 0.0, 0.999)
            return torch.optim.AdamW(parameters, learning_rate, betas=betas, weight_decay=0.0)
        case "sgd" | "sgd-momentum":
            momentum = 0.9 if name == "sgd-momentum" else 0.0
            return torch.optim.SGD(parameters, learning_rate, momentum=momentum)
    raise ValueError(f"no such optimizer: {name!r}")


def train(model: Any, tokenizer: Any, setting: Setting, watch: Watch) -> None:
    """Train ``model`` in place; ``watch(step, model, numbers)`` is called at 0 and after every step."""
    import torch

    device, end = model.device, tokenizer.eos_token_id
    stream = PromptStream(tokenizer, setting.largest, setting.seed)
    coin = random.Random(setting.seed + 1_000_003)
    generator = torch.Generator(device).manual_seed(setting.seed)
    optimizer = make_optimizer(setting.optimizer, model.parameters(), setting.learning_rate)
    toss = 1.0 if setting.signal == "random" else setting.tossed
    watch(0, model, {})
    for step in range(1, setting.steps + 1):
        prompts, answers = stream.draw(setting.prompts)
        if setting.signal == "sft":
            replies = [[*tokenizer(a)["input_ids"], end] for a in answers]
            # short answers are filled up after their end; what stands there has no weight
            width = max(map(len, replies))
            reply = torch.tensor([r + [end] * (width - len(r)) for r in replies], device=device)
            counted = torch.tensor(
                [[i < len(r) for i in range(width)] for r in replies], device=device
            )
            prompt, mask = pad_left(prompts, tokenizer.pad_token_id, device)
            weight, mean_reward = counted.float(), math.nan
        else:
            many = [p for p in prompts for _ in range(setting.generations)]
            prompt, mask = pad_left(many, tokenizer.pad_token_id, device)
            reply, counted = sample(model, prompt, mask, setting.completion_tokens, end, generator)
            texts = [
                stream.text([t for t, c in zip(r, k, strict=True) if c])
                for r, k in zip(reply.tolist(), counted.tolist(), strict=True)
            ]
            right = [a for a in answers for _ in range(setting.generations)]
            rewards = [float(t == a) for t, a in zip(texts, right, strict=True)]
            mean_reward = sum(rewards) / len(rewards)
            rewards = [float(coin.random() < 0.5) if coin.random() < toss else r for r in rewards]
            scores = torch.tensor(rewards, device=device)
            gain = scores if setting.signal == "own" else advantages(scores, setting.generations)
            weight = gain[:, None] * counted
            if setting.signal == "own":
                counted = counted & (scores[:, None] > 0)
        optimizer.zero_grad()
        accumulate_gradient(
            model, prompt, mask, reply, weight, max(float(counted.sum()), 1.0), setting.rows_a_pass
        )
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        add_noise(model, setting.snr_db, generator)
        optimizer.step()
        watch(step, model, {} if math.isnan(mean_reward) else {"reward": mean_reward})
