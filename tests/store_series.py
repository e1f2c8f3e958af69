"""Checkpoints written byte by byte with numpy, and folders compared, for the store's tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trajkit.arrays import DTYPES

Tensors = Mapping[str, np.ndarray]

CODES = {d.scalar: d.code for d in DTYPES.values()}


def pack(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file, tensors in the order given."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, array in tensors.items():
        shape = list(array.shape)
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": CODES[array.dtype], "shape": shape, "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(array.tobytes() for array in tensors.values())
    return len(text).to_bytes(8, "little") + text + body


def write_checkpoint(
    folder: Path,
    tensors: Tensors,
    shards: int = 1,
    metadata: Mapping[str, str] | None = None,
    **side_files: object,
) -> Path:
    """A checkpoint folder; ``config={...}`` becomes config.json, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(pack(tensors, metadata))
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {n: tensors[n] for n in names[i::shards]}
            (folder / file).write_bytes(pack(part, metadata))
            weight_map |= dict.fromkeys(part, file)
        total = sum(a.nbytes for a in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, content in side_files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))
    return folder


def any_bits(rng: np.random.Generator, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """An array of any bit patterns, NaNs of every payload included (bool: 0 and 1)."""
    kind = DTYPES[dtype]
    raw = rng.integers(0, 256, int(np.prod(shape)) * kind.itemsize, np.uint8)
    if dtype == "bool":
        raw &= 1
    return raw.view(kind.scalar).reshape(tuple(shape))


def drift(
    rng: np.random.Generator, first: Tensors, checkpoints: int, share: float = 0.2
) -> list[dict[str, np.ndarray]]:
    """A series in which a share of the elements moves by one unit of the bits at every step."""
    series = [dict(first)]
    for _ in range(checkpoints - 1):
        state = {}
        for name, array in series[-1].items():
            kind = DTYPES[array.dtype.name]
            bits = array.reshape(-1).view(kind.bits)
            if kind.name == "bool":
                state[name] = array ^ (rng.random(array.shape) < share)
                continue
            state[name] = (
                (bits + (rng.random(bits.size) < share)).astype(kind.bits).view(kind.scalar)
            ).reshape(array.shape)
        series.append(state)
    return series


def small_series(
    folder: Path, checkpoints: int = 6, seed: int = 0, elements: int = 3000, **side_files: object
) -> list[Path]:
    """Checkpoints 10, 20, ... of one small bf16 and fp32 model: their folders."""
    rng = np.random.default_rng(seed)
    first = {
        "model.embed_tokens.weight": any_bits(rng, "bfloat16", (elements // 10, 10)),
        "model.norm.weight": any_bits(rng, "float32", (17,)),
        "model.head.weight": any_bits(rng, "bfloat16", (elements // 3,)),
    }
    return [
        write_checkpoint(folder / f"checkpoint-{10 * (i + 1)}", state, **side_files)
        for i, state in enumerate(drift(rng, first, checkpoints))
    ]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are alike in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative name."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
