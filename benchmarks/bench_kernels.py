"""The CPU kernels' GB/s beside memcpy and beside what others would do, and their worst errors.

    python benchmarks/bench_kernels.py [--json FILE] [--quick]

Everything in one run, GB/s of frames in memory (T x N x bytes an element), best of several runs:

- pass: decode and all sums; one thread, and two threads that work on different frames; the ratio
  is the median over runs in turns
- fit: decode, sums, solution and statistics, the whole window in one call, one thread
- peers: see bench_fit.py; they get decoded values, free of charge

"sparse" frames change one element in five, as a real bf16 run does; in "dense" ones every code
counts. Results are compared with the float64 reference first: no speed is reported where they
differ. Errors are the largest over each family that breaks naive sums, against two passes in long
double over the same stored values: R² absolutely, the slope in parts of (standard deviation of the
values) / (standard deviation of the steps), the size the slope has at R² = 1.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_fit import measure_peers
from machine import describe_machine

from trajkit.kernels import api
from trajkit.kernels.formats import bits_of, format_of, values_of

CHUNK = 1 << 18  # elements a chunk, as the fit reads them
FRAMES = (8, 16, 32, 64, 128, 256, 512)
RSQ_TOLERANCE = 2e-5


def main() -> int:
    """Check, measure and print; 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    errors = measure_errors(200 if options.quick else 2000)
    print_errors(errors)
    wrong = [e["family"] for e in errors if not e["rsq"] < RSQ_TOLERANCE] + find_faults()
    if wrong:
        print(f"no speed is reported; wrong: {', '.join(wrong)}", file=sys.stderr)
        return 1
    results: dict[str, Any] = {"machine": describe_machine(), "errors": errors}
    n = 1 << 14 if options.quick else CHUNK
    results["memcpy"] = measure_memcpy(1 << (22 if options.quick else 27))
    print(f"memcpy {results['memcpy']:.2f} GB/s, one thread")
    results["passes"] = measure_passes(n, (8, 64) if options.quick else FRAMES, results["memcpy"])
    results["peers"] = measure_peers(n)
    print_peers(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def find_faults() -> list[str]:
    """Dtypes whose solution is not the reference's, on frames of every kind."""
    faults = []
    for dtype in ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"):
        for n_frames in (3, 17, 130):
            codes, is_key, steps = make_frames(dtype, n_frames, 1000, dense=n_frames == 17)
            got = api.fit_frames(codes, is_key, steps, dtype)
            want = api.fit_frames(codes, is_key, steps, dtype, backend="reference")
            same = np.allclose(got.rsq, want.rsq, rtol=0, atol=RSQ_TOLERANCE, equal_nan=True)
            same &= bool((got.bits_last == want.bits_last).all())
            faults += [] if same else [f"{dtype} T={n_frames}"]
    return faults


def make_frames(
    dtype: str, n_frames: int, n: int, dense: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [T, N] with a key frame every 64, key marks and steps."""
    form = format_of(dtype)
    rng = np.random.default_rng(0)
    is_key = np.arange(n_frames) % 64 == 0
    start = bits_of((rng.standard_normal(n) * 0.02).astype(form.work), dtype)[0]
    codes = rng.integers(1, 7, (n_frames, n), dtype=form.bits)
    if not dense:
        codes *= rng.random((n_frames, n), np.float32) < 0.2
    bits = start.copy()
    for t in range(n_frames):
        if t > 0:
            api.decode_frame(codes[t], bits, bits)
        if is_key[t]:
            codes[t] = bits
    return codes, is_key, np.arange(n_frames) * 10.0


def measure_memcpy(n_bytes: int) -> float:
    """GB/s that one thread copies."""
    source = np.ones(n_bytes, dtype=np.uint8)
    target = np.zeros_like(source)
    return n_bytes / best_of(lambda: np.copyto(target, source)) / 1e9


def measure_passes(n: int, frame_counts: tuple[int, ...], memcpy: float) -> list[dict[str, Any]]:
    """GB/s of the pass and of the fit, for each dtype, kind of frames and T."""
    rows = []
    title = f"{'dtype':9} {'frames':7}{'T':>4}{'pass':>7}{'/memcpy':>9}"
    print(f"{title}{'2 threads':>11}{'ratio':>7}{'fit':>7}   GB/s, {n:,} elements")
    for dtype, dense in (("bfloat16", False), ("bfloat16", True), ("float32", True)):
        for n_frames in frame_counts:
            frames = make_frames(dtype, n_frames, n, dense)
            row = {"dtype": dtype, "dense": dense, "checkpoints": n_frames, "elements": n}
            row |= measure_frames(dtype, *frames)
            rows.append(row)
            print(
                f"{dtype:9} {'dense' if dense else 'sparse':7}{n_frames:>4}{row['pass']:>7.2f}"
                f"{row['pass'] / memcpy:>9.2f}{row['two_threads']:>11.2f}"
                f"{row['ratio']:>7.2f}{row['fit']:>7.2f}",
                flush=True,
            )
    return rows


def measure_frames(
    dtype: str, codes: np.ndarray, is_key: np.ndarray, steps: np.ndarray
) -> dict[str, float]:
    """GB/s of the pass on one and on two threads, and of the fit with its statistics."""
    repeats = max(1, (1 << 28) // codes.nbytes)

    def accumulate(frames: np.ndarray) -> None:
        sums = api.new_sums(codes.shape[1], dtype, *api.span_units(steps))
        for _ in range(repeats):
            sums.count, sums.s_u, sums.s_uu, sums.s_du2 = 0, 0.0, 0.0, 0.0
            api.accumulate_frames(frames, is_key, steps, sums)

    def fit() -> None:
        for _ in range(repeats):
            solution = api.fit_frames(codes, is_key, steps, dtype)
            api.summarise(solution, 0.7, steps[-1] - steps[0], dtype)

    two = [codes, codes.copy()]

    def both() -> None:
        workers = [threading.Thread(target=accumulate, args=(frames,)) for frames in two]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    read = codes.nbytes * repeats / 1e9
    one, of_both = take_turns(lambda: accumulate(codes), both)
    return {
        "pass": read / min(one),
        "two_threads": 2 * read / min(of_both),
        "ratio": 2 * float(np.median(np.array(one) / np.array(of_both))),
        "fit": read / best_of(fit),
    }


def take_turns(*works: Callable[[], Any], times: int = 9) -> list[list[float]]:
    """Seconds of every run of each, in turns, so that a mood of the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(times + 1):  # the first compiles and warms up
        for work, spent in zip(works, seconds, strict=True):
            clock = time.perf_counter()
            work()
            if turn:
                spent.append(time.perf_counter() - clock)
    return seconds


def best_of(work: Callable[[], Any], times: int = 5) -> float:
    """Seconds of the fastest run, after one that compiles and warms up."""
    work()
    seconds = []
    for _ in range(times):
        clock = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - clock)
    return min(seconds)


def make_families(n: int) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Series that break naive sums: dtype, values [T, N], steps [T]."""
    rng = np.random.default_rng(0)
    x = np.arange(64) * 10.0
    noise = rng.standard_normal((64, n))
    walk = np.cumsum(noise + 0.3, axis=0)
    long = np.cumsum(rng.standard_normal((10_000, max(n // 50, 4))), axis=0)
    first, middle = walk.copy(), walk.copy()
    first[0] += 1e4
    middle[31] -= 1e4
    signs = np.where(np.arange(64)[:, None] % 2, 1.0, -1.0)
    uneven = np.cumsum(rng.integers(1, 500, 64)).astype(np.float64)
    return {
        "random walks": ("bfloat16", 0.02 + 1e-4 * walk, x),
        "offset 1e8 times the drift": ("float64", 1e8 + walk, x),
        "offset, last bits of float32": ("float32", 1e3 + 1e-3 * walk, x),
        "weights of 1e-30": ("bfloat16", 1e-30 * walk, x),
        "weights of 1e-30, float32": ("float32", 1e-30 * walk, x),
        "weights of 1e25": ("float32", 1e25 * walk, x),
        "10,000 checkpoints": ("float32", long, np.arange(10_000.0)),
        "alternating signs": ("float32", signs + 0.01 * walk, x),
        "first checkpoint far off": ("float32", first, x),
        "a middle checkpoint far off": ("float32", middle, x),
        "window at step 1,000,000": ("float32", walk, 1e6 + x),
        "uneven steps": ("float16", walk, uneven),
        "nearly exact lines": ("float32", np.arange(64)[:, None] + 1e-3 * noise, x),
    }


def measure_errors(n: int) -> list[dict[str, Any]]:
    """The largest error of R² and of the slope in each family."""
    rows = []
    for family, (dtype, values, steps) in make_families(n).items():
        work = format_of(dtype).work
        bits = bits_of(values.astype(work).ravel(), dtype)[0].reshape(values.shape)
        got = api.fit_frames(bits, np.ones(len(steps), bool), steps, dtype)
        exact = values_of(bits.ravel(), dtype).reshape(bits.shape).astype(np.longdouble)
        u = (steps - steps.mean()).astype(np.longdouble)
        d = exact - exact.mean(axis=0)
        uu, dd, ud = u @ u, (d * d).sum(axis=0), u @ d
        moving = dd > 0
        rsq = ud[moving] ** 2 / (uu * dd[moving])
        slope_error = np.abs(got.slope - ud / uu)[moving] / np.sqrt(dd[moving] / uu)
        rows.append(
            {
                "family": family,
                "dtype": dtype,
                "checkpoints": len(steps),
                "elements": int(moving.sum()),
                "rsq": float(np.abs(got.rsq[moving] - rsq).max()),
                "slope": float(slope_error.max()),
            }
        )
    return rows


def print_errors(errors: list[dict[str, Any]]) -> None:
    """The table of worst errors."""
    print(f"{'largest error against two passes in long double':50}{'R²':>9}{'slope':>9}")
    for e in errors:
        name = f"{e['family']} ({e['dtype']}, T = {e['checkpoints']})"
        print(f"{name:50}{e['rsq']:>9.1e}{e['slope']:>9.1e}")


def print_peers(results: dict[str, Any]) -> None:
    """The peers' GB/s, and how many times as fast the fit of dense bf16 frames is at T = 64."""
    (ours,) = (
        row["fit"]
        for row in results["passes"]
        if row["dtype"] == "bfloat16" and row["dense"] and row["checkpoints"] == 64
    )
    print(f"T = 64, bf16, one thread where the peer lets us: fit {ours:.2f} GB/s")
    for name, value in results["peers"].items():
        print(f"  {name:11}{value:>9.4f} GB/s   fit is {ours / value:,.1f} times as fast")


if __name__ == "__main__":
    sys.exit(main())
