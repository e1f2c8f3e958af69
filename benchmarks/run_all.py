"""Every CPU benchmark, one after the other; results as JSON under benchmarks/results/.

python benchmarks/run_all.py --work DIR [--quick]
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = (
    ("bench_kernels.py",),
    ("bench_store.py",),
    ("bench_read.py",),
    ("bench_sparse.py",),
    ("bench_fit.py",),
    ("bench_fit.py", "--scaling"),
    ("bench_extrapolate.py",),
    ("bench_evidence.py",),
    ("bench_outputs.py",),
)


def main() -> None:
    """Run each benchmark that is there; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for scratch files")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for script, *flags in RUNS:
        name = script.removesuffix(".py") + "".join(flags).replace("--", "_")
        print(f"\n== {name}", flush=True)
        command = [sys.executable, str(HERE / script), *flags]
        if script != "bench_kernels.py":  # which needs no files
            command += ["--work", str(options.work)]
        command += ["--json", str(RESULTS / f"{name}.json")]
        if options.quick:
            command.append("--quick")
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
