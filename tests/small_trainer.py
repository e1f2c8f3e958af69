"""A trainer for the tests of ``trajkit reground``: numpy alone, the HF Trainer's folders.

A noisy quadratic with momentum: deterministic, its noise drawn by the step's number. With --resume it
goes on from a folder's optimizer state, as the HF Trainer does.
"""

import argparse
import json
import struct
import sys
import time
from pathlib import Path

import numpy as np

SHAPES = {"layer.weight": (6, 50), "norm.weight": (50,), "head.weight": (4, 50)}


def make_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def train_step(
    weights: dict[str, np.ndarray], moments: dict[str, np.ndarray], number: int
) -> dict[str, np.ndarray]:
    """One step in place; the moments after it."""
    rng = np.random.default_rng(number)
    after = {}
    for name, w in weights.items():
        noise = rng.normal(size=w.shape).astype(np.float32)
        gradient = np.float32(0.02) * w + np.float32(0.01) * noise
        before = moments.get(name, np.zeros_like(w))
        after[name] = np.float32(0.9) * before + gradient
        w -= np.float32(0.1) * after[name]
    return after


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, value in tensors.items():
        header[name] = {
            "dtype": "F32", "shape": value.shape, "data_offsets": [at, at + value.nbytes],
        }  # fmt: skip
        at += value.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    content = b"".join(value.tobytes() for value in tensors.values())
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + content)


def load(path: Path) -> dict[str, np.ndarray]:
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    found = {}
    for name, entry in json.loads(raw[8 : 8 + n]).items():
        a, b = entry["data_offsets"]
        values = np.frombuffer(raw[8 + n + a : 8 + n + b], np.float32)
        found[name] = values.reshape(entry["shape"]).copy()
    return found


def save_checkpoint(
    folder: Path,
    step: int,
    weights: dict[str, np.ndarray],
    moments: dict[str, np.ndarray],
    layout: str = "checkpoint-{step}",
) -> None:
    """A folder under a temporary name until it is whole; ``{before}`` is the step less one."""
    part = folder / f"tmp-checkpoint-{step}"
    part.mkdir(parents=True)
    save(part / "model.safetensors", weights)
    save(part / "optimizer.pt", moments)
    (part / "config.json").write_text('{"model_type": "small"}')
    reward = float(-np.abs(weights["layer.weight"]).mean())
    history = [{"step": step - 1, "reward": reward - 0.1}, {"step": step, "reward": reward}]
    (part / "trainer_state.json").write_text(
        json.dumps({"global_step": step, "log_history": history})
    )
    target = folder / layout.format(step=step, before=step - 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--total", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0, help="that a step takes")
    parser.add_argument("--fail-at", type=int, help="fails at this step, while --flag is not there")
    parser.add_argument("--flag", type=Path)
    parser.add_argument("--wider", action="store_true", help="writes another shape")
    parser.add_argument(
        "--as-files", action="store_true", help="writes stepN.safetensors, nothing else"
    )
    parser.add_argument("--layout", default="checkpoint-{step}", help="name of a step's folder")
    options = parser.parse_args()
    weights, moments, step = load(options.model / "model.safetensors"), {}, 0
    if options.resume:
        moments = load(options.resume / "optimizer.pt")
        step = json.loads((options.resume / "trainer_state.json").read_text())["global_step"]
    while step < options.total:
        step += 1
        time.sleep(options.seconds)
        if step == options.fail_at and not (options.flag and options.flag.exists()):
            print("CUDA out of memory")
            sys.exit(3)
        moments = train_step(weights, moments, step)
        if step % options.save_every:
            continue
        saved = weights | ({"head.weight": np.zeros((5, 50), "f4")} if options.wider else {})
        if options.as_files:
            save(options.output / f"step{step}.safetensors", saved)
        else:
            save_checkpoint(options.output, step, saved, moments, options.layout)


if __name__ == "__main__":
    main()
