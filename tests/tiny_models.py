"""Tiny models of several families, made on the spot, and short runs of them, for tests of outputs."""

from pathlib import Path

import torch
import transformers

VOCABULARY = 96
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES = {
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "gemma2": ("Gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3": ("Gemma3", {"sliding_window": 16}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 16},
    ),
}


def make_model(family: str, seed: int = 0, **changes: object) -> transformers.PreTrainedModel:
    """A float32 model with random weights, in eval mode."""
    name, special = FAMILIES[family]
    suffix = "TextConfig" if family == "gemma3" else "Config"
    config = getattr(transformers, name + suffix)(**{**_COMMON, **special, **changes})
    torch.manual_seed(seed)
    return getattr(transformers, name + "ForCausalLM")(config).eval()


def make_tokenizer(special: int = 3) -> transformers.PreTrainedTokenizerFast:
    """One token a printable character; ``special`` of pad, end and begin at the head."""
    from tokenizers import Tokenizer, decoders, models

    heads = ["<pad>", "<eos>", "<bos>"][:special]
    characters = [chr(c) for c in range(32, 32 + VOCABULARY - len(heads))]
    vocabulary = {token: i for i, token in enumerate([*heads, *characters])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def write_run(
    folder: Path, family: str, steps: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[Path]:
    """Checkpoints of a model that drifts at random from one to the next, with its tokenizer."""
    model, tokenizer = make_model(family), make_tokenizer()
    drift = {n: 0.02 * torch.randn_like(p) for n, p in model.named_parameters()}
    written = []
    for i, step in enumerate(steps):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += (drift[name] + 0.005 * torch.randn_like(parameter)) * (i > 0)
        target = folder / f"checkpoint-{step}"
        import copy

        copy.deepcopy(model).to(dtype).save_pretrained(target)
        tokenizer.save_pretrained(target)
        written.append(target)
    return written
