"""Extrapolated folders of many architectures load in transformers and hold the right numbers.

Tiny random models, trained a few steps with a real optimizer so that their weights move, saved as
trainers save them; a covering selection of architecture, dtype, tied heads and shards.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import SEEN
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

import trajkit
from trajkit.errors import Mismatch
from trajkit.forecast.rules import is_copied

STEPS = (5, 10, 15, 20)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS = {
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 8},
    "llama": SMALL,
    "gemma": {**SMALL, "head_dim": 8},
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


@dataclass(frozen=True)
class Case:
    kind: str
    dtype: str
    tied: bool
    sharded: bool

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        return f"{self.kind}-{self.dtype}-{tied}-{'sharded' if self.sharded else 'single'}"


CASES = [
    Case("qwen2", "bfloat16", tied=True, sharded=False),
    Case("qwen2", "float32", tied=False, sharded=True),
    Case("qwen3", "bfloat16", tied=False, sharded=True),
    Case("qwen3", "float16", tied=True, sharded=False),
    Case("llama", "float16", tied=False, sharded=True),
    Case("llama", "bfloat16", tied=True, sharded=True),
    Case("gemma", "float32", tied=True, sharded=False),
    Case("gemma", "bfloat16", tied=True, sharded=True),
    Case("mixtral", "bfloat16", tied=False, sharded=True),
    Case("mixtral", "float32", tied=False, sharded=False),
    Case("gpt2", "float32", tied=True, sharded=False),
    Case("gpt2", "float16", tied=True, sharded=True),
]


@contextmanager
def silence_expected() -> Iterator[None]:
    """Fail on whatever transformers says at the level of a warning or above."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert said == []


def make_model(case: Case, vocabulary: int) -> PreTrainedModel:
    config: PreTrainedConfig = AutoConfig.for_model(
        case.kind,
        vocab_size=vocabulary,
        tie_word_embeddings=case.tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **KINDS[case.kind],
    )
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def train(case: Case, folder: Path) -> Path:
    """Checkpoints of a few AdamW steps, each cast to the case's dtype and saved with a tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(SEEN / "checkpoint-0")
    model = make_model(case, len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    batch = torch.randint(len(tokenizer), (4, 12), generator=torch.Generator().manual_seed(1))
    dtype = getattr(torch, case.dtype)
    for step in range(1, STEPS[-1] + 1):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            saved = make_model(case, len(tokenizer)).to(dtype)
            saved.load_state_dict(model.state_dict())
            target = folder / f"checkpoint-{step}"
            size = "20kB" if case.sharded else "5GB"
            saved.save_pretrained(target, max_shard_size=size)
            tokenizer.save_pretrained(target)
    assert (len(list(target.glob("*.safetensors"))) > 1) == case.sharded
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob(pattern))}


def check_loads(folder: Path, dtype: torch.dtype) -> None:
    """transformers loads the folder without a word, and the model and its tokenizer generate."""
    with silence_expected():
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            assert not info.get(problem), f"{problem}: {info[problem]}"
        assert model.dtype == dtype
        prompt = tokenizer("12+34=", return_tensors="pt").input_ids
        attended = torch.ones_like(prompt)
        with torch.no_grad():
            logits = model(input_ids=prompt).logits
            answer = model.generate(
                prompt, attention_mask=attended, max_new_tokens=4, min_new_tokens=4, do_sample=False
            )
    assert torch.isfinite(logits.float()).all()
    assert answer.shape == (1, prompt.shape[1] + 4)
    assert isinstance(tokenizer.decode(answer[0]), str)


def two_point(
    first: dict[str, torch.Tensor], last: dict[str, torch.Tensor], beta: float
) -> dict[str, torch.Tensor]:
    """Equation 4 of arXiv 2601.04537 in float32, rounded once; norms as they were last."""
    return {
        name: last[name]
        if is_copied(name)
        else (w.float() + beta * (last[name].float() - w.float())).to(w.dtype)
        for name, w in first.items()
    }


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extrapolated_models_load_and_generate(case: Case, tmp_path: Path) -> None:
    ckpts = train(case, tmp_path / "ckpts")
    trajkit.ingest(ckpts, tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    trajkit.fit(traj, 0.5)
    last = ckpts / f"checkpoint-{STEPS[-1]}"

    checked = find_spec("accelerate") is not None
    result = trajkit.extrapolate(traj, [30, STEPS[-1]], tmp_path / "out", check=checked)
    future, present = (Path(t.path) for t in result.targets)
    assert result.targets[0].moved > 1000
    assert files(future, "*.safetensors") != files(last, "*.safetensors")
    assert files(future, "*.safetensors").keys() == files(last, "*.safetensors").keys()
    for folder in (future, present):
        check_loads(folder, getattr(torch, case.dtype))
        side = {n: c for n, c in files(last, "*").items() if not n.endswith(".safetensors")}
        assert side.items() <= files(folder, "*").items()

    assert files(present, "*.safetensors") == files(last, "*.safetensors")
    assert result.targets[1].moved == 0

    trajkit.extrapolate(traj, 30, tmp_path / "pair", estimator="two-point")
    first = ckpts / f"checkpoint-{STEPS[0]}"
    beta = (30 - STEPS[0]) / (STEPS[-1] - STEPS[0])
    assert_same_bits(weights(tmp_path / "pair"), two_point(weights(first), weights(last), beta))
    check_loads(tmp_path / "pair", getattr(torch, case.dtype))


@pytest.mark.parametrize("step", [420, 600, 2000])
def test_two_point_on_the_real_run(adder_store: Path, tmp_path: Path, step: int) -> None:
    traj = trajkit.open(adder_store)
    trajkit.extrapolate(
        traj, step, tmp_path / "out", estimator="two-point", from_step=96, to_step=384
    )
    first, last = (weights(SEEN / f"checkpoint-{s}") for s in (96, 384))
    assert any(map(is_copied, first))
    assert not all(map(is_copied, first))
    expected = two_point(first, last, (step - 96) / (384 - 96))
    assert_same_bits(weights(tmp_path / "out"), expected)
    check_loads(tmp_path / "out", torch.bfloat16)


def test_anchored_on_the_real_run_gives_the_last_step_back(
    adder_store: Path, tmp_path: Path
) -> None:
    traj = trajkit.open(adder_store)
    last = int(traj.steps[-1])
    trajkit.extrapolate(traj, last, tmp_path / "out")
    expected = files(SEEN / f"checkpoint-{last}", "*.safetensors")
    assert files(tmp_path / "out", "*.safetensors") == expected
    check_loads(tmp_path / "out", torch.bfloat16)


def test_a_folder_that_would_load_wrongly_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    case = Case("qwen2", "bfloat16", tied=False, sharded=False)
    ckpts = train(case, tmp_path / "ckpts")
    trajkit.ingest(ckpts, tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    trajkit.fit(traj, 0.5)
    like = tmp_path / "like"
    shutil.copytree(ckpts / f"checkpoint-{STEPS[-1]}", like)
    config = json.loads((like / "config.json").read_text())
    for change, says in (
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, "missing keys"),
        ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, "unexpected keys"),
        ({"intermediate_size": 64}, "mismatched keys"),
        ({"num_attention_heads": 0}, "cannot load it"),
    ):
        (like / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(Mismatch, match=says):
            trajkit.extrapolate(traj, 30, tmp_path / "out", like=like, check=True)
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
