"""PEFT adapters through extrapolate: the card, and --check without peft."""

import json
from pathlib import Path

import numpy as np
import pytest
from store_series import write_checkpoint

import trajkit
from trajkit.errors import InvalidInput, Mismatch
from trajkit.forecast.adapters import check_adapter, check_modules

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "owner/base-model"}


def write_adapter(folder: Path, scale: float, **config: object) -> Path:
    rng = np.random.default_rng(0)
    state = {
        f"{MODULE}.lora_A.weight": (rng.normal(size=(2, 6)) * scale).astype(np.float32),
        f"{MODULE}.lora_B.weight": (rng.normal(size=(4, 2)) * scale).astype(np.float32),
    }
    write_checkpoint(folder, state, adapter_config={**CONFIG, **config})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_says_what_it_is(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        write_adapter(tmp_path / "c" / f"checkpoint-{step}", 1 + step / 100)
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr")
    trajkit.extrapolate(tmp_path / "s.zarr", 30, tmp_path / "out", check=True)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == CONFIG
    front = (tmp_path / "out" / "README.md").read_text().split("---\n")[1].splitlines()
    assert front[:2] == ["library_name: peft", "base_model: owner/base-model"]


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    assert check_adapter(write_adapter(tmp_path / "good", 1), Path("out")) is None
    with pytest.raises(InvalidInput, match="peft_type"):
        check_adapter(write_adapter(tmp_path / "kind", 1, peft_type=5), Path("out"))
    with pytest.raises(Mismatch, match="rank 3"):
        check_adapter(write_adapter(tmp_path / "rank", 1, r=3), Path("out"))
    alone = write_checkpoint(
        tmp_path / "alone",
        {f"{MODULE}.lora_A.weight": np.zeros((2, 6), np.float32)},
        adapter_config=CONFIG,
    )
    (alone / "model.safetensors").rename(alone / "adapter_model.safetensors")
    with pytest.raises(Mismatch, match="no lora_B"):
        check_adapter(alone, Path("out"))


def test_the_modules_are_those_of_the_base_model(tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good", 1)
    name = "model.layers.0.self_attn.q_proj.weight"
    check_modules(good, Path("out"), {name: (4, 6)})
    check_modules(good, Path("out"), {name: (6, 4)})  # GPT-2's are transposed
    with pytest.raises(Mismatch, match="no such module"):
        check_modules(good, Path("out"), {"model.layers.1.weight": (4, 6)})
    with pytest.raises(Mismatch, match=r"shape \[4, 5\]"):
        check_modules(good, Path("out"), {name: (4, 5)})
