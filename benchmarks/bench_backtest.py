"""What a backtest costs beside plain fits of the same store, and the memory it takes.

    python benchmarks/bench_backtest.py [--work DIR] [--json FILE] [--quick]

A synthetic bf16 series of the statistics of a real run. Fits and the backtest of five origins take
turns in one process on a warm store; the figure is the median backtest over the median fit. The bar:
less than three plain fits. Peak memory is that of a fresh process over what it holds after its
imports and a first small run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe_machine
from synthetic import write_series

import trajkit
from trajkit.evidence.backtest import backtest

MEMORY = """
import json, sys
import trajkit
warm, store, budget = sys.argv[1:]
trajkit.backtest(warm)

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
trajkit.backtest(store, memory=budget)
print(json.dumps(peak() - before))
"""


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for scratch files (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--elements", type=int, default=8_000_000)
    parser.add_argument("--checkpoints", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", default="256MiB")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.elements, options.repeats = 600_000, 2
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        write_series(work / "ckpts", options.elements, options.checkpoints)
        write_series(work / "small", 1 << 18, 12)
        trajkit.ingest(work / "ckpts", work / "run.zarr")
        trajkit.ingest(work / "small", work / "small.zarr")
        trajkit.fit(work / "small.zarr")
        backtest(work / "small.zarr")
        rows: list[dict[str, float]] = []
        for _ in range(options.repeats):
            fit = seconds_of(lambda: trajkit.fit(work / "run.zarr"))
            test = seconds_of(lambda: backtest(work / "run.zarr"))
            rows.append({"fit_seconds": fit, "backtest_seconds": test})
            print(
                f"fit {fit:6.2f} s   backtest {test:6.2f} s   ratio {test / fit:5.2f}", flush=True
            )
        command = [sys.executable, "-c", MEMORY]
        places = [str(work / "small.zarr"), str(work / "run.zarr"), options.budget]
        done = subprocess.run([*command, *places], capture_output=True, text=True, check=True)
        peak = json.loads(done.stdout)
    fits, tests = ([row[k] for row in rows] for k in ("fit_seconds", "backtest_seconds"))
    ratio = statistics.median(tests) / statistics.median(fits)
    print(f"median ratio {ratio:.2f}; peak memory {peak / 2**20:.0f} MiB of {options.budget}")
    if options.json:
        result = {
            "machine": describe_machine(),
            "elements": options.elements,
            "checkpoints": options.checkpoints,
            "rows": rows,
            "backtest_over_fit": ratio,
            "peak_bytes": peak,
            "budget": options.budget,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
