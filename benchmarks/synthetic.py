"""Synthetic checkpoint series with the update statistics of a real bf16 RLVR run, any size.

Weights are N(0, .02); float32 master weights drift and diffuse so that about one bf16 element in
five changes between neighbouring checkpoints, as in DESIGN.md's table. Written block by block: memory
does not grow with the model.
"""

import json
import struct
from pathlib import Path

import numpy as np

BLOCK_ELEMENTS = 1 << 22


def write_series(
    folder: Path, n_elements: int, n_steps: int, every: int = 10, seed: int = 0
) -> None:
    """Write ``checkpoint-N`` folders of one bf16 model, in tensors of at most 16 Mi elements."""
    names = [f"model.layers.{i}.weight" for i in range(-(-n_elements // (1 << 24)))]
    sizes = [min(1 << 24, n_elements - (i << 24)) for i in range(len(names))]
    entries = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in zip(names, sizes, strict=True):
        entries[name] = {"dtype": "BF16", "shape": [size], "data_offsets": [at, at + 2 * size]}
        at += 2 * size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    files = []
    for t in range(n_steps):
        target = folder / f"checkpoint-{t * every}"
        target.mkdir(parents=True)
        files.append((target / "model.safetensors").open("wb"))
        files[-1].write(struct.pack("<Q", len(header)) + header)
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(BLOCK_ELEMENTS, np.float32)  # drawn once, read at random offsets

    def draw(n: int) -> np.ndarray:
        return np.roll(normal, int(rng.integers(BLOCK_ELEMENTS)))[:n]

    for start in range(0, n_elements, BLOCK_ELEMENTS):
        n = min(BLOCK_ELEMENTS, n_elements - start)
        master = rng.standard_normal(n, np.float32) * np.float32(0.02)
        drift = draw(n) * np.float32(5e-6)
        for file in files:
            file.write(round_to_bf16(master).tobytes())
            master += drift + draw(n) * np.float32(5e-6)
    for file in files:
        file.close()


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """The bf16 bits nearest to float32 values, ties to even, uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


if __name__ == "__main__":
    import sys

    write_series(Path(sys.argv[1]), int(float(sys.argv[2])), int(sys.argv[3]))
