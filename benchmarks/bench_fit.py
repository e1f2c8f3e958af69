"""End to end: a fit from the store on disk to the committed fit, beside what others would do.

    python benchmarks/bench_fit.py --work DIR [--json FILE] [--quick | --scaling]

GB/s are of raw bf16 (T x N x 2 bytes), the median of five warm runs. Each is the store's first fit:
one that takes the place of another has to remove it as well. The peers get the values stacked in
memory, free of charge:

- torch: the same moments in plain torch, float32, in blocks that fit the cache
- lstsq: torch.linalg.lstsq in float64 over stacked state dicts (what arXiv 2601.04537's code runs)
- polyfit: numpy.polyfit, all columns in one call
- linregress: scipy.stats.linregress an element, from a sample

``--scaling`` times T = 8 to 4,096 and N = 1e6 to 1e9 instead, and draws them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from settle import settle, time_call
from synthetic import write_series

import trajkit


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for scratch files")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--scaling", action="store_true", help="scaling with T and N")
    options = parser.parse_args()
    work = options.work / "trajkit-bench-fit"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        results: dict[str, Any] = {"machine": describe_machine()}
        if options.scaling:
            results |= measure_scaling(work, options.quick)
            draw_scaling(results, options.json.with_suffix(".svg") if options.json else None)
        else:
            results |= measure_stores(work, options.quick)
            results["peers"] = measure_peers(1 << 15 if options.quick else 1 << 18)
            print_stores(results)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure_stores(work: Path, quick: bool) -> dict[str, Any]:
    """Fits from zstd and lz4 stores, cold and warm, at T = 64 and T = 16."""
    n = 2_000_000 if quick else 40_000_000
    rows = []
    for n_frames in (64, 16):
        ckpts = work / f"ckpts-{n_frames}"
        write_series(ckpts, n, n_frames)
        for codec in ("zstd", "lz4"):
            store = work / f"{codec}-{n_frames}.zarr"
            trajkit.ingest(ckpts, store, codec=codec)
            fit_once(store)  # compiles, or loads what was compiled
            shutil.rmtree(store / "fits")
            drop_from_cache(store)
            cold = fit_once(store)
            warm = []
            for _ in range(5):
                shutil.rmtree(store / "fits")
                settle(store)
                warm.append(fit_once(store)["seconds"])
            warm.sort()
            raw = 2 * n * n_frames
            rows.append(
                {
                    "checkpoints": n_frames,
                    "codec": codec,
                    "cold_gb_per_second": raw / cold["seconds"] / 1e9,
                    "warm_gb_per_second": raw / warm[2] / 1e9,
                    "warm_best_gb_per_second": raw / warm[0] / 1e9,
                    "pace": cold["pace"],
                }
            )
            shutil.rmtree(store)
        shutil.rmtree(ckpts)
    return {"elements": n, "stores": rows}


def fit_once(store: Path) -> dict[str, Any]:
    """One fit in this process: seconds to the commit, and the stage that set the pace."""
    said: list[str] = []
    clock = time.perf_counter()
    trajkit.fit(trajkit.open(store), progress=lambda e: said.append(getattr(e, "summary", "")))
    seconds = time.perf_counter() - clock
    return {"seconds": seconds, "pace": said[-1].rsplit(": ", 1)[-1]}


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to forget a folder's pages."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def measure_peers(n: int, n_frames: int = 64) -> dict[str, float]:
    """GB/s of raw bf16 of the peers, on n elements of 64 checkpoints that lie in memory."""
    import torch
    from scipy.stats import linregress

    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((n_frames, n), np.float32) * 1e-5, axis=0)
    values = torch.from_numpy(walk + rng.standard_normal(n, np.float32) * 0.02).bfloat16()
    x = np.arange(n_frames) * 10.0
    design = torch.from_numpy(np.stack([np.ones(n_frames), x], axis=1))

    def torch_blocks() -> None:
        u = torch.from_numpy(x - x.mean()).float()
        for start in range(0, n, 4096):
            y = values[:, start : start + 4096].float()
            d = y - y[0]
            s_d, s_xd, s_dd = d.sum(0), u @ d, (d * d).sum(0)
            slope = s_xd / (u @ u)
            _ = slope * s_xd / (s_dd - s_d * s_d / n_frames), y[0] + s_d / n_frames

    def lstsq() -> None:
        stacked = values.double()
        line = torch.linalg.lstsq(design, stacked).solution
        residual = stacked - design @ line
        _ = 1 - (residual**2).sum(0) / ((stacked - stacked.mean(0)) ** 2).sum(0)

    wide = values.double().numpy()
    sample = min(n, 2000)

    def elementwise() -> None:
        for i in range(sample):
            linregress(x, wide[:, i])

    raw = 2 * n * n_frames
    return {
        "torch": rate(torch_blocks, raw),
        "lstsq": rate(lstsq, raw),
        "polyfit": rate(lambda: np.polyfit(x, wide, 1), raw),
        "linregress": rate(elementwise, 2 * sample * n_frames),
    }


def rate(work: Callable[[], Any], n_bytes: int, times: int = 3) -> float:
    """GB/s, the best of a few runs."""
    return n_bytes / min(time_call(work) for _ in range(times)) / 1e9


def print_stores(results: dict[str, Any]) -> None:
    """The table, with ratios to the peers."""
    peers = results["peers"]
    print(
        f"fit from the store to the committed fit, {results['elements']:,} elements, GB/s of bf16"
    )
    print(f"{'T':>4} {'codec':6}{'cold':>7}{'warm':>7}   pace set by              warm over lstsq")
    for row in results["stores"]:
        ratio = row["warm_gb_per_second"] / peers["lstsq"]
        print(
            f"{row['checkpoints']:>4} {row['codec']:6}{row['cold_gb_per_second']:>7.2f}"
            f"{row['warm_gb_per_second']:>7.2f}   {row['pace']:24} {ratio:>8.1f}"
        )
    print("peers, values stacked in memory, T = 64: ", end="")
    print(", ".join(f"{name} {value:.4g}" for name, value in peers.items()))


def measure_scaling(work: Path, quick: bool) -> dict[str, Any]:
    """Seconds of a fit as T grows and as N grows; zstd stores, each point in a process of its own."""
    by_t, by_n = [], []
    frame_counts = (8, 64, 512) if quick else (8, 32, 128, 512, 2048, 4096)
    for n_frames in frame_counts:
        by_t.append(measure_point(work, 250_000 if not quick else 50_000, n_frames))
    for n in (10**5, 10**6) if quick else (10**6, 10**7, 10**8, 3 * 10**8, 10**9):
        by_n.append(measure_point(work, n, 16 if n <= 3 * 10**8 else 8))
    return {"by_checkpoints": by_t, "by_elements": by_n}


def measure_point(work: Path, n: int, n_frames: int) -> dict[str, Any]:
    """One fit with the default budget: seconds, and peak memory above interpreter and libraries."""
    ckpts, store = work / "ckpts", work / "store.zarr"
    write_series(ckpts, n, n_frames)
    trajkit.ingest(ckpts, store)
    shutil.rmtree(ckpts)
    settle(store)
    done = subprocess.run(
        [sys.executable, "-c", _POINT, str(store)], capture_output=True, text=True, check=True
    )
    point = {"elements": n, "checkpoints": n_frames, **json.loads(done.stdout)}
    point["gb_per_second"] = 2 * n * n_frames / point["seconds"] / 1e9
    print(
        f"T {n_frames:>5}  N {n:>13,}  {point['seconds']:>8.2f} s  "
        f"{point['gb_per_second']:.2f} GB/s  peak {point['peak_bytes'] / 2**20:.0f} MiB",
        flush=True,
    )
    shutil.rmtree(store)
    return point


_POINT = """
import json, resource, sys, time
import numpy, trajkit, trajkit.fits.fit, trajkit.kernels.cpu.launch, trajkit.fits.table
traj = trajkit.open(sys.argv[1])
step = int(traj.steps[1])
for keep_sums in (False, True):  # compiled code is loaded by now, that of long windows too
    trajkit.fit(traj, to_step=step, name="warm", memory="64MiB", keep_sums=keep_sums)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clock = time.perf_counter()
trajkit.fit(traj)
seconds = time.perf_counter() - clock
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_bytes": 1024 * (peak - before) + 64 * 2**20}))
"""


def draw_scaling(results: dict[str, Any], path: Path | None) -> None:
    """Time against T and against N, doubly logarithmic, with a line of slope one."""
    if path is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    panels = (
        ("by_checkpoints", "checkpoints", "checkpoints T"),
        ("by_elements", "elements", "elements N, seconds a checkpoint"),
    )
    for ax, (key, field, label) in zip(axes, panels, strict=True):
        points = results[key]
        x = np.array([p[field] for p in points], float)
        y = np.array([p["seconds"] for p in points])
        if key == "by_elements":
            y = y / np.array([p["checkpoints"] for p in points])
        ax.loglog(x, y, "o-", color="#2563a8", label="measured")
        ax.loglog(x, y[-1] * x / x[-1], "--", color="#888888", label="proportional")
        ax.set_xlabel(label)
        ax.set_ylabel("seconds")
        ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
