"""Reading the same chunks: the compiled reader, the same through Python, tensorstore, zarr-python.

    python benchmarks/bench_read.py --work DIR [--json FILE] [--quick]

One array [T, N] of bf16 codes as a store has them (a key frame, then deltas in which one element in
five changes), in chunks of 2^18; each reader reads every chunk of every frame, in turns, and what it
reads is compared with what was written before anything is timed. GB are decoded bytes. "a second" is
the best of the runs by the clock; "a CPU second" the best by the time that all of the process's
threads spent on a core, which a busy machine does not distort as much. Readers are held to one thread
where they can be told; the files are in the page cache.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tensorstore
import zarr
from machine import describe_machine

from trajkit.store import native
from trajkit.store.array import ZArray
from trajkit.store.chunks import ChunkReader
from trajkit.store.codecs import codec_by_name
from trajkit.store.rows import write_row

CHUNK = 1 << 18
CODECS = ("zstd", "lz4", "none")
Reader = Callable[[int], Any]
"""reads chunk k of every frame: [T, C]"""


def main() -> int:
    """Write, compare, measure and print; 1 where a reader reads something else."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for scratch files")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    n_frames, n_chunks, turns = (4, 2, 2) if options.quick else (32, 8, 7)
    codes_TN = make_codes(n_frames, n_chunks * CHUNK)
    load = os.getloadavg()[0]
    rows = []
    print(f"{codes_TN.nbytes / 1e6:.0f} MB of codes; the machine's load is {load:.1f}")
    print(f"{'codec':6}{'reader':>13}{'GB a second':>14}{'GB a CPU second':>18}")
    for codec in CODECS:
        folder = options.work / f"read-{codec}"
        shutil.rmtree(folder, ignore_errors=True)
        array = ZArray(
            folder, codes_TN.dtype, codes_TN.shape[1], CHUNK, codec_by_name(codec), n_frames,
            ("checkpoint", "element"),
        )  # fmt: skip
        array.write_metadata()
        for t, codes_N in enumerate(codes_TN):
            write_row(array, codes_N, t)
        readers = make_readers(array)
        columns = [codes_TN[:, k * CHUNK : (k + 1) * CHUNK] for k in range(n_chunks)]
        wrong = [
            name
            for name, read in readers.items()
            if not all(np.array_equal(read(k), column) for k, column in enumerate(columns))
        ]
        if wrong:
            print(f"no speed is reported; wrong: {', '.join(wrong)}", file=sys.stderr)
            return 1
        for name, (wall, cpu) in measure(readers, n_chunks, turns).items():
            row = {"codec": codec, "reader": name, "gb_per_second": codes_TN.nbytes / wall / 1e9}
            row["gb_per_cpu_second"] = codes_TN.nbytes / cpu / 1e9
            rows.append(row)
            print(
                f"{codec:6}{name:>13}{row['gb_per_second']:>14.2f}{row['gb_per_cpu_second']:>18.2f}"
            )
        shutil.rmtree(folder)
    if options.json:
        machine = describe_machine()
        machine["load"] = [load, os.getloadavg()[0]]
        results = {"machine": machine, "checkpoints": n_frames, "elements": codes_TN.shape[1]}
        options.json.write_text(json.dumps({**results, "reads": rows}, indent=1) + "\n")
    return 0


def make_codes(n_frames: int, n: int) -> np.ndarray:
    """Frames as a store codes them, uint16 [T, N]."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal(n, np.float32) * np.float32(0.02)).view(np.uint32) >> 16
    codes_TN = rng.integers(1, 3, (n_frames, n), np.uint16)
    codes_TN *= rng.random((n_frames, n), np.float32) < 0.2
    codes_TN[0] = weights
    return codes_TN


def make_readers(array: ZArray) -> dict[str, Reader]:
    """Each reader's way to a chunk of every frame; ours into one piece of memory, as a fit has it."""
    n_frames = array.rows or 1
    column = np.empty((n_frames, CHUNK), array.dtype)
    reader = ChunkReader(array)

    def compiled(k: int) -> np.ndarray:
        reader.read_rows(range(n_frames), k, column)
        return column

    def through_python(k: int) -> np.ndarray:
        with patch.object(native, "find_reader", lambda: None):
            return compiled(k)

    context = {"file_io_concurrency": {"limit": 1}, "data_copy_concurrency": {"limit": 1}}
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(array.path)}}
    opened = tensorstore.open(spec, open=True, context=tensorstore.Context(context)).result()
    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
    by_zarr = zarr.open_array(array.path, mode="r")
    return {
        "compiled": compiled,
        "Python": through_python,
        "tensorstore": lambda k: opened[:, k * CHUNK : (k + 1) * CHUNK].read().result(),
        "zarr-python": lambda k: by_zarr[:, k * CHUNK : (k + 1) * CHUNK],
    }


def measure(
    readers: dict[str, Reader], n_chunks: int, turns: int
) -> dict[str, tuple[float, float]]:
    """The fewest seconds and the fewest CPU seconds of each for all chunks, in turns."""
    best = dict.fromkeys(readers, (np.inf, np.inf))
    for _ in range(turns):
        for name, read in readers.items():
            clock, cpu = time.perf_counter(), time.process_time()
            for k in range(n_chunks):
                read(k)
            spent = time.perf_counter() - clock, time.process_time() - cpu
            best[name] = min(best[name][0], spent[0]), min(best[name][1], spent[1])
    return best


if __name__ == "__main__":
    sys.exit(main())
