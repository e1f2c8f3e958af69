"""The Triton kernels' GB/s on a CUDA device, beside the device's own copy.

    PYTHONPATH=. python benchmarks/bench_gpu.py [--json FILE] [--quick]

Needs torch, triton and numpy alone. Correctness comes first: results are compared with the float64
reference, for rows read 16 bytes a thread and for rows read one by one, and no speed is reported
where they differ. Two numbers a row:

- GB/s of frames: the frames' bytes over the time, what a user sees;
- of copy: all bytes that must move (frames read, results written, and for a batch the state read
  and written) over the time, as a fraction of what a copy on the same device moves.

``fit`` is a whole window in one call; above 64 frames it keeps its state in memory on the way.
``batch`` is 64 more frames on top of a state. Times are medians by device events, after warm-up;
the data (15 % of the codes not zero) is several times the cache.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

from trajkit.kernels import reference
from trajkit.kernels.formats import format_of
from trajkit.kernels.state import Solution, new_sums
from trajkit.kernels.steps import span_units

DTYPES = {"bfloat16": torch.uint16, "float16": torch.uint16, "float32": torch.uint32}
FRAMES = (8, 16, 32, 64, 128, 512, 4096)
RSQ_TOLERANCE = 2e-5  # 64 float32 additions of terms of one sign, at worst a few 1e-6, and rounding
QUICK_BYTES = 2**30


def main() -> int:
    """Check, measure and print; 0, or 1 where there is no device or a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        return 1
    wrong = [fault for dtype in DTYPES for fault in find_faults(dtype, "cuda")]
    for fault in wrong:
        print(f"differs from the reference: {fault}", file=sys.stderr)
    if wrong:
        print("no speed is reported", file=sys.stderr)
        return 1
    results = measure_all(options.quick)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def measure_all(quick: bool) -> dict[str, Any]:
    """Every size, printed as it comes."""
    properties = torch.cuda.get_device_properties(0)
    copy = copy_bandwidth()
    results: dict[str, Any] = {
        "card": properties.name,
        "card_memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "machine": describe_machine(),
        "copy_gb_per_second": copy,
        "rows": [],
    }
    versions = results["machine"]["versions"]
    print(f"{properties.name}, {results['machine']['date']}, CUDA {torch.version.cuda}, ", end="")
    print(f"torch {torch.__version__}, triton {versions['triton']}, numpy {versions['numpy']}")
    print(f"results equal the reference's; copy {copy:.0f} GB/s, read and written")
    print(f"{'what':6}{'dtype':10}{'T':>6}{'N':>15}{'GB/s of frames':>16}{'of copy':>9}")
    for dtype in DTYPES:
        for n_frames in (8, 64, 512) if quick else FRAMES:
            kinds = ("fit", "batch") if n_frames == 64 else ("fit",)
            for kind in kinds:
                row = measure(kind, dtype, n_frames, copy, quick)
                results["rows"].append(row)
                print(
                    f"{kind:6}{dtype:10}{n_frames:>6}{row['elements']:>15,}"
                    f"{row['gb_per_second']:>16.0f}{row['fraction_of_copy']:>9.2f}",
                    flush=True,
                )
    return results


def find_faults(dtype: str, device: str) -> list[str]:
    """Where a fit on the device differs from the reference, in words; empty if nowhere."""
    from trajkit.kernels.gpu import launch as gpu

    faults = []
    for n_frames in (8, 64, 100):
        for n in (4096, 1003):  # rows that begin on 64 bytes, and rows that do not
            codes, is_key, steps = make_walks(dtype, n_frames, n)
            sums = new_sums(n, dtype, *span_units(steps))
            reference.accumulate_frames(codes, is_key, steps, sums)
            want = reference.solve(sums)
            poisoned = gpu.new_solution(n, dtype, device)
            poisoned.rsq.fill_(float("nan"))
            poisoned.flags.fill_(255)
            got = gpu.fit_frames(
                torch.from_numpy(codes).to(device), is_key, steps, dtype, out=poisoned
            )
            fault = compare(got, want)
            if fault:
                faults.append(f"{dtype}, {n_frames} frames of {n} elements: {fault}")
    return faults


def compare(got: Solution, want: Solution) -> str:
    """What differs beyond rounding, or nothing."""
    for name in ("flags", "bits_last"):
        if not np.array_equal(getattr(got, name).cpu().numpy(), getattr(want, name)):
            return name
    rsq, slope = got.rsq.cpu().numpy(), got.slope.cpu().numpy()
    if not np.array_equal(np.isnan(rsq), np.isnan(want.rsq)):
        return "where R² is NaN"
    error = float(np.nanmax(np.abs(rsq - want.rsq)))
    if error > RSQ_TOLERANCE:
        return f"R² by {error:.2g}"
    error = float(np.nanmax(np.abs(slope - want.slope)) / np.nanmax(np.abs(want.slope)))
    return f"slope by {error:.2g} of the largest" if error > 1e-5 else ""


def make_walks(
    dtype: str, n_frames: int, n: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Codes [T, N], key marks [T] and uneven steps [T] of random walks, a third of them static."""
    rng = np.random.default_rng(n_frames)
    walk = np.cumsum(rng.normal(0, 1e-3, (n_frames, n)), axis=0) + rng.normal(0, 0.02, n)
    walk[:, ::3] = walk[0, ::3]
    values = torch.from_numpy(walk).to(getattr(torch, dtype))
    bits = values.view(DTYPES[dtype]).numpy()
    codes, is_key = bits.copy(), np.arange(n_frames) % 37 == 0
    for t in range(1, n_frames):
        if not is_key[t]:
            reference.encode_frame(bits[t], bits[t - 1], codes[t])
    return codes, is_key, np.cumsum(rng.integers(1, 9, n_frames))


def copy_bandwidth(n_bytes: int = 2**31) -> float:
    """GB/s, read and written, of a copy on the device."""
    source = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * n_bytes / seconds(lambda: target.copy_(source)) / 1e9


def measure(kind: str, dtype: str, n_frames: int, copy: float, quick: bool) -> dict[str, Any]:
    """One size, as many elements as fit in 70 % of the free memory."""
    from trajkit.kernels.gpu import launch as gpu

    torch.cuda.empty_cache()
    width = format_of(dtype).width // 8
    frame_bytes, result_bytes = n_frames * width, 21 + width
    state_bytes = 5 * 8 + 3 * 4 + 4 * width + 4
    needs_state = kind == "batch" or n_frames > 64
    room = int(0.7 * torch.cuda.mem_get_info()[0])
    room = min(room, QUICK_BYTES) if quick else room
    n = room // (frame_bytes + result_bytes + state_bytes * needs_state) // 4096 * 4096
    codes = make_codes(dtype, n_frames, n, "cuda")
    is_key, steps = np.arange(n_frames) == 0, np.arange(n_frames) * 10.0
    if kind == "fit":
        out = gpu.new_solution(n, dtype)
        spent = seconds(lambda: gpu.fit_frames(codes, is_key, steps, dtype, out=out))
        moved = frame_bytes + result_bytes
    else:
        sums = gpu.new_sums(n, dtype, *span_units(steps))
        gpu.accumulate_frames(codes, is_key, steps, sums)
        spent = seconds(
            lambda: gpu.accumulate_frames(codes, is_key, sums.x_last + 10.0 + steps, sums)
        )
        moved = frame_bytes + 2 * state_bytes
    return {
        "kind": kind,
        "dtype": dtype,
        "checkpoints": n_frames,
        "elements": n,
        "seconds": spent,
        "gb_per_second": n * frame_bytes / spent / 1e9,
        "fraction_of_copy": n * moved / spent / 1e9 / copy,
    }


def make_codes(dtype: str, n_frames: int, n: int, device: str) -> torch.Tensor:
    """Frames [T, N] on the device: weights of size 0.02, then deltas of a few ulps at most.

    Weights of a usual size matter: bits near zero are numbers below 1e-38, which the kernels sum
    twice over.
    """
    generator = torch.Generator(device).manual_seed(0)
    codes = torch.empty((n_frames, n), dtype=DTYPES[dtype], device=device)
    weights = torch.empty(n, dtype=getattr(torch, dtype), device=device)
    codes[0] = weights.normal_(0, 0.02, generator=generator).view(DTYPES[dtype])
    for t in range(1, n_frames):
        dice = torch.randint(0, 256, (n,), dtype=torch.uint8, device=device, generator=generator)
        codes[t].copy_(torch.where(dice < 38, dice % 4 + 1, 0).to(torch.uint8))
    return codes


def seconds(work: Callable[[], object], times: int = 11) -> float:
    """The median of a few runs after three for warming up, timed on the device."""
    spent = []
    for i in range(times + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        if i >= 3:
            spent.append(start.elapsed_time(end) / 1000)
    return float(np.median(spent))


if __name__ == "__main__":
    sys.exit(main())
