"""Extrapolation: GB/s written against cp of the same folder, and peak memory.

    python benchmarks/bench_extrapolate.py [--work DIR] [--json FILE] [--quick]

A synthetic bf16 model whose every element moves (the worst case: nothing in the fit compresses
well), three checkpoints ingested and fitted. Extrapolation ends with everything on the disk
(fsync), so it stands beside ``cp -r`` followed by ``sync`` of the copy; plain ``cp -r``, which
leaves the copy in the page cache, is shown too. Sources come from the page cache for all three, and
free memory is warm (settle.py).
Peak memory is that of a fresh process over what it holds after its imports and a first small run,
which compiles the kernels.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from settle import timed
from synthetic import round_to_bf16

import trajkit
from trajkit.text import format_bytes

STEPS = (0, 100, 200)
BLOCK_ELEMENTS = 1 << 22
MEASURE = """
import json, sys
import trajkit
warm_store, store, out, memory = sys.argv[1:]
for estimator in ("anchored", "two-point"):
    trajkit.extrapolate(trajkit.open(warm_store), 300, out + "-warm", estimator=estimator, force=True)

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
trajkit.extrapolate(trajkit.open(store), [300, 400, 500], out, memory=memory)
print(json.dumps(peak() - before))
"""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for scratch files (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--size", type=float, default=1.0, help="GB the model, for speed")
    parser.add_argument("--memory-size", type=float, default=2.0, help="GB the model, for memory")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.size = options.memory_size = 0.02
        options.repeats = 1
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory(prefix="trajkit-bench-", dir=options.work) as folder:
        work = Path(folder)
        small = make_store(work / "small", 1 << 12)
        for estimator in ("anchored", "two-point"):  # compiles the kernels
            extrapolate(small, [300], work / "warm", estimator=estimator)
        store = make_store(work / "large", int(options.size * 5e8))
        rows = results["speed"] = []
        for estimator, steps, rounding in (
            ("anchored", [300], "nearest"),
            ("anchored", [300, 400, 500], "nearest"),
            ("anchored", [300], "stochastic"),
            ("line", [300], "nearest"),
            ("two-point", [300], "nearest"),
        ):
            row = measure_speed(store, steps, estimator, rounding, work, options.repeats)
            rows.append(row)
            print_row(row, first=len(rows) == 1)
        if options.memory_size != options.size:
            shutil.rmtree(store.parent)
            store = make_store(work / "larger", int(options.memory_size * 5e8))
        results["memory"] = measure_memory(small, store, work, "512MiB")
    memory = results["memory"]
    print(
        f"\npeak memory, {format_bytes(memory['model_bytes'])} in 3 targets: "
        f"{format_bytes(memory['peak_bytes'])} of {memory['budget']}"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def make_store(folder: Path, n_elements: int) -> Path:
    """Ingest and fit three checkpoints in two shards; returns the store."""
    write_moving_series(folder / "ckpts", n_elements)
    trajkit.ingest(folder / "ckpts", folder / "s.zarr", codec="lz4")
    shutil.rmtree(folder / "ckpts")
    trajkit.fit(trajkit.open(folder / "s.zarr"), 0.7)
    return folder / "s.zarr"


def write_moving_series(folder: Path, n_elements: int) -> None:
    """Checkpoints of a bf16 model in which every element drifts by several ulps."""
    half = n_elements // 2
    for step in STEPS:
        target = folder / f"checkpoint-{step}"
        target.mkdir(parents=True)
        index = {}
        for i in range(2):
            name, file = f"model.layers.{i}.weight", f"model-{i + 1:05d}-of-00002.safetensors"
            index[name] = file
            entry = {"dtype": "BF16", "shape": [half], "data_offsets": [0, 2 * half]}
            header = json.dumps({"__metadata__": {"format": "pt"}, name: entry}).encode()
            header += b" " * (-len(header) % 8)
            with (target / file).open("wb") as out:
                out.write(len(header).to_bytes(8, "little") + header)
                rng = np.random.default_rng(i)
                weights = rng.standard_normal(BLOCK_ELEMENTS, np.float32) * np.float32(0.02)
                drift = rng.standard_normal(BLOCK_ELEMENTS, np.float32) * np.float32(2e-5)
                for start in range(0, half, BLOCK_ELEMENTS):
                    at = int(rng.integers(BLOCK_ELEMENTS))
                    noise = np.roll(drift, at) * np.float32(10)
                    values = np.roll(weights, -at) + np.float32(step) * np.roll(drift, 7 * at)
                    values += noise * np.float32(step % 200 != 0)
                    out.write(round_to_bf16(values[: half - start]).tobytes())
        document = {"metadata": {"total_size": 4 * half}, "weight_map": index}
        (target / "model.safetensors.index.json").write_text(json.dumps(document))


def extrapolate(store: Path, steps: list[int], out: Path, **options: Any) -> None:
    """One run of what is measured."""
    shutil.rmtree(out, ignore_errors=True)
    trajkit.extrapolate(trajkit.open(store), steps, out, **options)


def measure_speed(
    store: Path, steps: list[int], estimator: str, rounding: str, work: Path, repeats: int
) -> dict[str, Any]:
    """GB/s of extrapolating and of copying its output, in turns; medians."""
    out, copy = work / "out", work / "copy"

    def write() -> None:
        extrapolate(store, steps, out, estimator=estimator, rounding=rounding)

    def run_cp() -> None:
        subprocess.run(["cp", "-r", out, copy], check=True)

    def run_cp_and_sync() -> None:
        run_cp()
        subprocess.run(["sync", *(p for p in copy.rglob("*") if p.is_file())], check=True)

    seconds: dict[str, list[float]] = {"extrapolate": [], "cp": [], "cp_sync": []}
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        seconds["extrapolate"].append(timed(write, store))
        for name, command in (("cp", run_cp), ("cp_sync", run_cp_and_sync)):
            shutil.rmtree(copy, ignore_errors=True)
            seconds[name].append(timed(command, out))
        shutil.rmtree(copy)
    n_bytes = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
    shutil.rmtree(out)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "estimator": estimator,
        "rounding": rounding,
        "targets": len(steps),
        "bytes": n_bytes,
        "seconds": seconds,
        **{f"{name}_gb_s": n_bytes / 1e9 / value for name, value in middle.items()},
        "of_cp_sync": middle["cp_sync"] / middle["extrapolate"],
        "of_cp": middle["cp"] / middle["extrapolate"],
    }


def measure_memory(small: Path, store: Path, work: Path, budget: str) -> dict[str, Any]:
    """Peak memory of a fresh process that writes three targets."""
    command = [sys.executable, "-c", MEASURE, small, store, work / "m", budget]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    model = sum(v.n_bytes for v in trajkit.open(store).store.vectors.values())
    return {"model_bytes": model, "budget": budget, "peak_bytes": json.loads(done.stdout)}


def print_row(row: dict[str, Any], first: bool) -> None:
    """One line of the table."""
    if first:
        print(
            f"{'estimator':12}{'rounding':12}{'targets':>8}{'GB/s':>8}{'cp+sync':>9}{'ratio':>7}"
            f"{'cp':>8}{'ratio':>7}"
        )
    print(
        f"{row['estimator']:12}{row['rounding']:12}{row['targets']:8d}"
        f"{row['extrapolate_gb_s']:8.2f}{row['cp_sync_gb_s']:9.2f}{row['of_cp_sync']:7.2f}"
        f"{row['cp_gb_s']:8.2f}{row['of_cp']:7.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
