"""What a backtest and the pass over movement cost beside plain fits of the same store, and their memory.

    python benchmarks/bench_evidence.py [--work DIR] [--json FILE] [--quick]

A synthetic bf16 series of the statistics of a real run. A fit, the backtest of five origins and the
evidence take turns in one process on a warm store; the figures are medians over the median fit. The
bar: a backtest of five origins costs less than three plain fits. The first turn is not counted: in it
memory and files are cold. Peak memory is that of a fresh process over what it holds after its imports
and a first small run.
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
from trajkit.evidence.movement import measure_evidence

MEMORY = """
import json, sys
from trajkit.evidence.backtest import backtest
from trajkit.evidence.movement import measure_evidence
what, warm, store, budget = sys.argv[1:]
verb = {"backtest": backtest, "evidence": measure_evidence}[what]
verb(warm)

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
verb(store, memory=budget)
print(json.dumps(peak() - before))
"""


def seconds_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall time of one call, and processor time of all its threads."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


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
        verbs: dict[str, Callable[[Path], Any]] = {
            "fit": trajkit.fit,
            "backtest": backtest,
            "evidence": measure_evidence,
        }
        for verb in verbs.values():
            verb(work / "small.zarr")
        rows: list[dict[str, tuple[float, float]]] = []
        for _ in range(options.repeats + 1):
            rows.append({n: seconds_of(lambda v=v: v(work / "run.zarr")) for n, v in verbs.items()})
            print(
                "   ".join(
                    f"{n} {t:6.2f} s ({p:.2f} of processors)" for n, (t, p) in rows[-1].items()
                ),
                flush=True,
            )
        peaks = {name: _peak(name, work, options.budget) for name in ("backtest", "evidence")}
    seconds = {n: statistics.median(row[n][0] for row in rows[1:]) for n in verbs}
    processor = {n: statistics.median(row[n][1] for row in rows[1:]) for n in verbs}
    for name, peak in peaks.items():
        print(
            f"{name}: {seconds[name] / seconds['fit']:.2f} plain fits (median of {options.repeats}), "
            f"{processor[name] / processor['fit']:.2f} in processor time; "
            f"peak memory {peak / 2**20:.0f} MiB of {options.budget}"
        )
    if options.json:
        result = {
            "machine": describe_machine(),
            "elements": options.elements,
            "checkpoints": options.checkpoints,
            "seconds": rows,
            "over_fit": {n: seconds[n] / seconds["fit"] for n in peaks},
            "over_fit_processor": {n: processor[n] / processor["fit"] for n in peaks},
            "peak_bytes": peaks,
            "budget": options.budget,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _peak(what: str, work: Path, budget: str) -> int:
    """Peak memory of one verb in a fresh process, bytes."""
    places = [str(work / "small.zarr"), str(work / "run.zarr"), budget]
    command = [sys.executable, "-c", MEMORY, what, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))


if __name__ == "__main__":
    main()
