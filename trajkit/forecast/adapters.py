"""Whether a written adapter is one: its config, its pairs of matrices, the modules they go to.

lora_A [r, in]    lora_B [out, r]    beside a module of weight [out, in]
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.errors import InvalidInput, Mismatch

CONFIG = "adapter_config.json"
_A, _B = ".lora_A.weight", ".lora_B.weight"


def check_adapter(folder: Path, called: Path) -> Path | None:
    """Check an adapter's folder on its own; its base model's folder, where it is on this disk.

    Raises:
        InvalidInput: its config is not one of PEFT's. Mismatch: a matrix without its partner, or
            shapes that do not go together.
    """
    config = _read_config(folder / CONFIG, called)
    shapes = {name: entry.shape for name, entry in open_checkpoint(folder).tensors.items()}
    modules = [name.removesuffix(_A) for name in shapes if name.endswith(_A)]
    for name in shapes:
        if name.endswith(_B) and name.removesuffix(_B) + _A not in shapes:
            raise Mismatch(f"{called}: {name!r} has no lora_A beside it")
    ranks = {config.get("r"), *_values(config.get("rank_pattern"))}
    for module in modules:
        a, b = shapes[module + _A], shapes.get(module + _B)
        if b is None:
            raise Mismatch(f"{called}: {module + _A!r} has no lora_B beside it")
        if a[0] != b[1] or a[0] not in ranks:
            raise Mismatch(
                f"{called}: {module!r} has matrices {list(b)} and {list(a)}, the config rank "
                f"{config.get('r')}"
            )
    base = config.get("base_model_name_or_path")
    return Path(base) if isinstance(base, str) and (Path(base) / "config.json").is_file() else None


def check_modules(folder: Path, called: Path, base_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that every pair of matrices has a module to go to.

    Args:
        folder: the adapter.
        called: the name to use in messages.
        base_shapes: of the base model's parameters, by name.

    Raises:
        Mismatch: the base model has no such module, or one of another shape.
    """
    shapes = {name: entry.shape for name, entry in open_checkpoint(folder).tensors.items()}
    for name, a in shapes.items():
        if not name.endswith(_A):
            continue
        module = name.removesuffix(_A)
        weight = base_shapes.get(module.removeprefix("base_model.model.") + ".weight")
        wanted = (shapes[module + _B][0], a[1])
        if weight is not None and wanted in (weight, weight[::-1]):  # GPT-2 keeps them transposed
            continue
        what = "no such module" if weight is None else f"one of shape {list(weight)}"
        raise Mismatch(f"{called}: {module!r} adapts a weight {list(wanted)}; the base has {what}")


def _read_config(path: Path, called: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{called}: {CONFIG} is not readable: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise InvalidInput(f"{called}: {CONFIG} names no peft_type")
    return config


def _values(pattern: Any) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, dict) else []
