"""The example run's model in numpy: p(correct) of a checkpoint folder without torch.

Qwen3's forward pass (tied embeddings, grouped heads, normalised queries and keys, rotary positions,
SwiGLU) for models of a few layers, as the demo needs it. ``adder.py`` has the same measure by
transformers, and a test holds the two together.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from adder import answer_for, evaluation_pairs, prompt_for
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
"""Element types by their names in a safetensors header."""


def load_weights(folder: Path) -> dict[str, Array]:
    """Every tensor of ``folder/model.safetensors`` by name, float32."""
    raw = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    weights = {}
    for name, info in header.items():
        if name != "__metadata__":
            first, last = info["data_offsets"]
            values = np.frombuffer(raw[start + first : start + last], DTYPES[info["dtype"]])
            weights[name] = values.reshape(info["shape"]).astype(np.float32)
    return weights


def probability_correct(
    folder: Path, weights: dict[str, Array], base: dict[str, Array] | None = None, alpha: float = 1
) -> float:
    """The mean probability of the right answer over the fixed evaluation set, as in ``adder.py``.

    Args:
        folder: a checkpoint folder, for its ``config.json`` and ``tokenizer.json``.
        weights: its tensors, from :func:`load_weights`.
        base: an earlier checkpoint's: judge the logits l0 + alpha (l1 - l0) of the two.
        alpha: of these.
    """
    config = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    end, padding = config["eos_token_id"], config["pad_token_id"]
    prompts, texts = [], []
    for a, b in evaluation_pairs():
        prompts.append(len(prompt_for(a, b)))
        texts.append([vocabulary[c] for c in prompt_for(a, b) + answer_for(a, b)] + [end])
    width = max(map(len, texts))
    tokens = np.array([text + [padding] * (width - len(text)) for text in texts])
    logits = next_token_logits(config, weights, tokens[:, :-1]).astype(np.float64)
    if base is not None:
        first = next_token_logits(config, base, tokens[:, :-1]).astype(np.float64)
        logits = first + alpha * (logits - first)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    log_p = np.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
    place = np.arange(1, width)
    lengths = np.array([len(text) for text in texts])[:, None]
    is_answer = (place >= np.array(prompts)[:, None]) & (place < lengths)
    return float(np.exp(np.where(is_answer, log_p, 0).sum(axis=1)).mean())


def next_token_logits(config: dict[str, Any], weights: dict[str, Array], tokens: Array) -> Array:
    """Qwen3's logits, float32 [texts, places, vocabulary], for int tokens [texts, places]."""
    eps, width = config["rms_norm_eps"], config["head_dim"]
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    places = tokens.shape[1]
    rates = config["rope_parameters"]["rope_theta"] ** (-np.arange(0, width, 2) / width)
    angles = np.tile(np.arange(places)[:, None] * rates, 2).astype(np.float32)
    unseen = np.triu(np.full((places, places), -np.inf, np.float32), 1)

    def project(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T

    def normalise(x: Array, name: str) -> Array:
        scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(eps))
        return x * scale * weights[f"{name}.weight"]

    def split(x: Array, name: str, count: int) -> Array:
        """Heads first: [texts, count, places, width], normalised if there is a norm."""
        x = x.reshape(*x.shape[:2], count, width)
        x = normalise(x, name) if name else x
        return x.transpose(0, 2, 1, 3)

    def rotate(x: Array) -> Array:
        turned = np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], axis=-1)
        return x * np.cos(angles) + turned * np.sin(angles)

    x = weights["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        y = normalise(x, f"{layer}.input_layernorm")
        at = f"{layer}.self_attn"
        queries = rotate(split(project(y, f"{at}.q_proj"), f"{at}.q_norm", heads))
        keys = rotate(split(project(y, f"{at}.k_proj"), f"{at}.k_norm", shared))
        values = split(project(y, f"{at}.v_proj"), "", shared)
        keys, values = (np.repeat(z, heads // shared, axis=1) for z in (keys, values))
        scores = queries @ keys.transpose(0, 1, 3, 2) / np.float32(np.sqrt(width)) + unseen
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ values
        mixed = mixed.transpose(0, 2, 1, 3).reshape(*tokens.shape, heads * width)
        x = x + project(mixed, f"{at}.o_proj")
        y = normalise(x, f"{layer}.post_attention_layernorm")
        gate = project(y, f"{layer}.mlp.gate_proj")
        gate = gate / (1 + np.exp(-gate)) * project(y, f"{layer}.mlp.up_proj")
        x = x + project(gate, f"{layer}.mlp.down_proj")
    return normalise(x, "model.norm") @ weights["model.embed_tokens.weight"].T
