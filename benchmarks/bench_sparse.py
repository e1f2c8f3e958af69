"""What a store and a fit cost where little changes: density x codec, and a long run at 1 %.

    python benchmarks/bench_sparse.py [--work DIR] [--json FILE] [--quick]

Synthetic bf16 checkpoints: elements change at random with the density, nine in ten by one ulp and one
by two, either way. Ratios are of raw tensor bytes: "deltas" of the delta frames alone, with checksums,
indexes and digests; "bound" is the order-0 entropy of places and values. GB/s are of raw bytes too, by
the processor's time of all threads, which other users of a shared machine disturb less than the
clock's; decode goes from the files to the bits of every frame; fits are to the commit. Codecs take
turns, and the best of the repeats counts. The long run is fitted by the clock as well, beside ``cat``
of the raw files to /dev/null. Published weight-sync deltas reach 34 to 130 times at one step.

With ``--json`` a figure of the ratios, over density, is written beside the file.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_store import decode_all
from machine import describe_machine

import trajkit
from trajkit.store.store import Store

DENSITIES = (0.003, 0.01, 0.03, 0.1, 0.2)
CODECS = ("zstd", "lz4", "pcodec", "sparse")
ONE_ULP = 0.9
"""of the changes"""


def main() -> None:
    """Run the benchmark, print its tables, write the results and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for scratch files (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the results here, and a figure beside")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    n, frames, repeats = (1 << 19, 6, 1) if options.quick else (1 << 23, 33, 3)
    with tempfile.TemporaryDirectory(prefix="trajkit-bench-sparse-", dir=options.work) as folder:
        work = Path(folder)
        results: dict[str, Any] = {"machine": describe_machine(), "elements": n, "frames": frames}
        results["rows"] = []
        for density in DENSITIES:
            write_sparse_series(work / "ckpts", n, frames, density)
            results["rows"] += measure_codecs(work, density, repeats)
            shutil.rmtree(work / "ckpts")
        print_rows(results["rows"])
        results["long"] = measure_long(work, n // 4 if options.quick else n, 256, repeats)
        print_long(results["long"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        draw(results["rows"], options.json.with_suffix(".svg"))


def write_sparse_series(folder: Path, n: int, frames: int, density: float, seed: int = 0) -> None:
    """Write ``checkpoint-T`` folders of one bf16 tensor."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(n, np.float32) * np.float32(0.02)
    bits = (weights.view(np.uint32) >> 16).astype(np.uint16)
    entry = {"dtype": "BF16", "shape": [n], "data_offsets": [0, 2 * n]}
    header = json.dumps({"model.weight": entry}).encode()
    header += b" " * (-len(header) % 8)
    for t in range(frames):
        if t:
            moved = np.flatnonzero(rng.random(n, np.float32) < density)
            ulps = np.where(rng.random(len(moved)) < ONE_ULP, 1, 2)
            bits[moved] += (ulps * rng.choice([-1, 1], len(moved))).astype(np.uint16)
        target = folder / f"checkpoint-{10 * t}"
        target.mkdir(parents=True)
        with (target / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header + bits.tobytes())


def bound_of(density: float) -> float:
    """Raw bits of an element over the order-0 entropy of whether, and by what, it changes."""
    parts = np.array([ONE_ULP / 2, ONE_ULP / 2, (1 - ONE_ULP) / 2, (1 - ONE_ULP) / 2])
    values = -(parts * np.log2(parts)).sum()
    either = -(density * np.log2(density) + (1 - density) * np.log2(1 - density))
    return float(16 / (either + density * values))


def spent(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the processor and of the clock that a call takes, and what it gives."""
    cpu, clock = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - clock, result


def measure_codecs(work: Path, density: float, repeats: int) -> list[dict[str, Any]]:
    """A row a codec, in turns."""
    rows = {c: {"codec": c, "density": density, "bound": bound_of(density)} for c in CODECS}
    for _ in range(repeats + 1):  # the first warms files and compiled code, and does not count
        for codec, row in rows.items():
            path = work / f"{codec}.zarr"
            shutil.rmtree(path, ignore_errors=True)
            cpu, _, result = spent(
                lambda p=path, c=codec: trajkit.ingest(work / "ckpts", p, codec=c)
            )
            rates = {"ingest": result.raw_bytes / cpu}
            store = Store.open(path)
            rates["decode"] = store.raw_bytes / spent(lambda s=store: decode_all(s))[0]
            cpu, _, fit = spent(lambda p=path: trajkit.fit(p))
            rates["fit"] = store.raw_bytes / cpu
            deltas = [
                f.stored_bytes for t, f in enumerate(store.commit.frames) if not store.is_key(t)
            ]
            row["deltas"] = store.raw_bytes / len(store.steps) / float(np.mean(deltas))
            row["path"] = fit.describe()["path"]
            best = row.setdefault("gbps", {})
            if "warm" in row:
                best.update({k: max(best.get(k, 0.0), v / 1e9) for k, v in rates.items()})
            row["warm"] = True
    for row in rows.values():
        del row["warm"]
    return list(rows.values())


def measure_long(work: Path, n: int, frames: int, repeats: int) -> dict[str, Any]:
    """256 checkpoints at 1 %: whole ratios, fits from changes and from frames in turns, and cat."""
    write_sparse_series(work / "long", n, frames, 0.01)
    stores = {codec: work / f"long-{codec}.zarr" for codec in ("sparse", "zstd")}
    found: dict[str, Any] = {"density": 0.01, "checkpoints": frames, "elements": n}
    for codec, path in stores.items():
        result = trajkit.ingest(work / "long", path, codec=codec)
        found[f"ratio_{codec}"] = result.raw_bytes / result.stored_bytes
    raw = result.raw_bytes
    names = [str(p) for p in sorted((work / "long").rglob("*.safetensors"))]
    best: dict[str, float] = {}
    for turn in range(repeats + 1):
        for codec, path in stores.items():
            cpu, clock, fit = spent(lambda p=path: trajkit.fit(p, keep_sums=False))
            found[f"path_{codec}"] = fit.describe()["path"]
            for key, seconds in (("cpu", cpu), ("clock", clock)):
                name = f"fit_{codec}_{key}"
                best[name] = max(best.get(name, 0.0), raw / seconds / 1e9 if turn else 0.0)
        with open("/dev/null", "wb") as nothing:  # noqa: PTH123 - a device
            clock = spent(lambda: subprocess.run(["cat", *names], stdout=nothing, check=True))[1]
        best["cat_clock"] = max(best.get("cat_clock", 0.0), raw / clock / 1e9)
    return found | {"gbps": best}


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print("\n| density | codec  | deltas | bound | ingest GB/s | decode GB/s | fit GB/s | path   |")
    print("|--------:|--------|-------:|------:|------------:|------------:|---------:|--------|")
    for row in rows:
        rates = row["gbps"]
        print(
            f"| {100 * row['density']:5.1f} % | {row['codec']:<6} | {row['deltas']:6.1f} "
            f"| {row['bound']:5.1f} | {rates['ingest']:11.2f} | {rates['decode']:11.2f} "
            f"| {rates['fit']:8.2f} | {row['path']:<6} |"
        )


def print_long(found: dict[str, Any]) -> None:
    """The lines on the long run."""
    rates = found["gbps"]
    print(
        f"\n{found['checkpoints']} checkpoints of {found['elements']:,} elements, 1 % changing: the "
        f"whole store {found['ratio_sparse']:.1f} times smaller (zstd {found['ratio_zstd']:.1f})"
    )
    for key in ("cpu", "clock"):
        sparse, dense = rates[f"fit_sparse_{key}"], rates[f"fit_zstd_{key}"]
        print(
            f"fit, GB/s by the {key}: {sparse:.2f} ({found['path_sparse']}), zstd {dense:.2f} "
            f"({found['path_zstd']}): {sparse / dense:.1f} times"
        )
    print(f"cat of the raw files to /dev/null: {rates['cat_clock']:.2f} GB/s by the clock")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The figure: ratio of delta frames over density, a line a codec, and the bound."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    percent = [100 * d for d in DENSITIES]
    for codec in CODECS:
        axes.plot(percent, [r["deltas"] for r in rows if r["codec"] == codec], "o-", label=codec)
    axes.plot(percent, [bound_of(d) for d in DENSITIES], "k--", label="order-0 bound")
    axes.axhspan(34, 130, color="0.9", label="published weight-sync deltas, one step")
    axes.set(xscale="log", yscale="log", xlabel="elements that change, %", ylabel="times smaller")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
