"""Small checkpoint series written as trainers write them, for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

TORCH_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def write_series(
    folder: Path, steps: Sequence[int], states: Sequence[Mapping[str, torch.Tensor]]
) -> Path:
    """Write one ``checkpoint-N`` folder a state."""
    for step, state in zip(steps, states, strict=True):
        target = folder / f"checkpoint-{step}"
        target.mkdir(parents=True)
        tensors = {name: t.contiguous() for name, t in state.items()}
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return folder


def write_values(
    folder: Path, steps: Sequence[int], values_TN: np.ndarray, dtype: str = "bfloat16"
) -> Path:
    """Write a series of one tensor ``w`` of shape [N], rounded to the dtype."""
    cast = TORCH_DTYPES[dtype]
    return write_series(folder, steps, [{"w": torch.tensor(row).to(cast)} for row in values_TN])


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The float64 values that remain after rounding to the dtype."""
    return torch.tensor(values).to(TORCH_DTYPES[dtype]).double().numpy()
