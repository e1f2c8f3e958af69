"""The store: codec x ratio x ingest GB/s x decode GB/s, beside zstd on the raw files and cp.

    python benchmarks/bench_store.py [--work DIR] [--json FILE] [--quick | --size GB]

On the real trajectory of ``data/`` and on a synthetic series with its update statistics, four
checkpoints of 1 GB (``--size``). GB/s are of raw tensor bytes; ingest includes every fsync; decode
goes from the files to the bits of every frame, on all cores. The files come from the page cache and
free memory is warm (settle.py), for ``cp`` as well. "deltas" is the ratio of the delta frames alone:
what a long run tends to, since one frame in 64 is a key. "a core" is by the processor's time, which
other users of a shared machine disturb less. Besides: how fast a long store opens, and one element's
trajectory reads.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
from machine import describe_machine
from numcodecs import Zstd
from settle import settle, time_call, timed
from synthetic import write_series

import trajkit
from trajkit.checkpoints.series import find_series
from trajkit.kernels import api as kernels
from trajkit.parallel import count_workers
from trajkit.store.chunks import ChunkReader
from trajkit.store.codecs import CODECS
from trajkit.store.store import Store

DATA = Path(__file__).resolve().parent.parent / "data" / "adder-grpo"
BLOCK_BYTES = 1 << 24


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for scratch files (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--size", type=float, default=1.0, help="GB a synthetic checkpoint")
    parser.add_argument("--checkpoints", type=int, default=4, help="synthetic checkpoints")
    parser.add_argument("--codecs", default=",".join(CODECS), help="comma-separated")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    size = 0.05 if options.quick else options.size
    codecs = options.codecs.split(",")
    with tempfile.TemporaryDirectory(prefix="trajkit-bench-store-", dir=options.work) as folder:
        work = Path(folder)
        results: dict[str, Any] = {"machine": describe_machine()}
        results["data"] = measure_series(DATA, work, codecs, repeats=1 if options.quick else 5)
        print_series("data/adder-grpo", results["data"])
        write_series(work / "ckpts", int(size * 1e9 / 2), options.checkpoints)
        repeats = 1 if options.quick else 3
        results["synthetic"] = measure_series(work / "ckpts", work, codecs, repeats)
        print_series(f"synthetic, {options.checkpoints} x {size:g} GB", results["synthetic"])
        shutil.rmtree(work / "ckpts")
        results["long"] = measure_long(work, 50 if options.quick else 1000)
        print_long(results["long"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure_series(ckpts: Path, work: Path, codecs: list[str], repeats: int) -> dict[str, Any]:
    """Every codec on one series, and the peers; medians of the repeats."""
    trajkit.ingest(ckpts, work / "warm.zarr")  # compiled kernels, page cache
    n_bytes = Store.open(work / "warm.zarr").raw_bytes
    decode_all(Store.open(work / "warm.zarr"))
    shutil.rmtree(work / "warm.zarr")
    rows = [measure_codec(ckpts, work, codec, repeats) for codec in codecs]
    files = [found.path / "model.safetensors" for found in find_series([ckpts]).found]
    rows.append(measure_zstd(files))
    cp = []
    for _ in range(repeats):
        cp.append(timed(lambda: copy(files, work / "copied"), ckpts))
        shutil.rmtree(work / "copied")
    rows.append({"codec": "cp", "ratio": 1.0, "ingest_gbps": n_bytes / statistics.median(cp) / 1e9})
    return {"raw_bytes": n_bytes, "changed": changed_share(files), "rows": rows}


def measure_codec(ckpts: Path, work: Path, codec: str, repeats: int) -> dict[str, Any]:
    """Ratio, rates and bottleneck of one codec."""
    path = work / "s.zarr"
    ingests, decodes, ingest_cpu, decode_cpu = [], [], [], []
    for _ in range(repeats):
        shutil.rmtree(path, ignore_errors=True)
        settle(ckpts)
        cpu = time.process_time()
        result = trajkit.ingest(ckpts, path, codec=codec)
        ingest_cpu.append(result.raw_bytes / (time.process_time() - cpu))
        ingests.append(result.bytes_per_second)
        store = Store.open(path)
        settle(path)
        cpu = time.process_time()
        decodes.append(store.raw_bytes / time_call(lambda s=store: decode_all(s)))
        decode_cpu.append(store.raw_bytes / (time.process_time() - cpu))
    deltas = [f.stored_bytes for t, f in enumerate(store.commit.frames) if not store.is_key(t)]
    verify_seconds = time_call(lambda: trajkit.verify(path))
    shutil.rmtree(path)
    return {
        "codec": codec,
        "ratio": result.raw_bytes / result.stored_bytes,
        "delta_ratio": store.raw_bytes / len(store.steps) / statistics.mean(deltas),
        "ingest_gbps": statistics.median(ingests) / 1e9,
        "ingest_gbps_a_core": statistics.median(ingest_cpu) / 1e9,
        "decode_gbps": statistics.median(decodes) / 1e9,
        "decode_gbps_a_core": statistics.median(decode_cpu) / 1e9,
        "verify_gbps": result.raw_bytes / verify_seconds / 1e9,
        "bottleneck": result.bottleneck,
        "stage_seconds": {k: round(v, 3) for k, v in result.stage_seconds.items()},
    }


def decode_all(store: Store) -> None:
    """Every chunk through all frames, to its bits; read as a fit reads them."""
    frames = range(len(store.steps))
    for dtype, vector in store.vectors.items():
        mine = local()
        reader = ChunkReader(store.frames[dtype])

        def decode(
            k: int,
            dtype: str = dtype,
            chunk: int = vector.chunk,
            mine: Any = mine,
            reader: ChunkReader = reader,
        ) -> None:
            if not hasattr(mine, "bits"):
                mine.codes = np.empty((65, chunk), store.vectors[dtype].dtype.bits)
                mine.bits = mine.codes[0]
            for start in frames[::64]:
                batch = frames[start : start + 64]
                codes = mine.codes[1 : 1 + len(batch)]
                store.read_code_rows(reader, batch, k, codes)
                for t, row in zip(batch, codes, strict=True):
                    if store.is_key(t):
                        mine.bits[:] = row
                    else:
                        kernels.decode_frame(row, mine.bits, mine.bits)

        with reader, ThreadPoolExecutor(count_workers()) as pool:
            for _ in pool.map(decode, range(vector.n_chunks)):
                pass


def measure_zstd(files: list[Path]) -> dict[str, Any]:
    """Plain zstd, level 1, on the raw files, in blocks, on all cores, in memory."""
    codec = Zstd(level=1)
    raw = coded = 0
    seconds = {"encode": 0.0, "decode": 0.0}
    with ThreadPoolExecutor(count_workers()) as pool:
        for file in files:
            content = file.read_bytes()
            blocks = [content[i : i + BLOCK_BYTES] for i in range(0, len(content), BLOCK_BYTES)]
            clock = time.perf_counter()
            packed = list(pool.map(codec.encode, blocks))
            seconds["encode"] += time.perf_counter() - clock
            clock = time.perf_counter()
            for _ in pool.map(codec.decode, packed):
                pass
            seconds["decode"] += time.perf_counter() - clock
            raw += len(content)
            coded += sum(map(len, packed))
    return {
        "codec": "zstd -1 FILE",
        "ratio": raw / coded,
        "ingest_gbps": raw / seconds["encode"] / 1e9,
        "decode_gbps": raw / seconds["decode"] / 1e9,
    }


def copy(files: list[Path], target: Path) -> None:
    """``cp`` of the weights, one command a checkpoint, not synced."""
    for i, file in enumerate(files):
        (target / str(i)).mkdir(parents=True)
        subprocess.run(["cp", file, target / str(i)], check=True)


def changed_share(files: list[Path]) -> float:
    """The share of 16-bit words that differ between neighbouring files, from a sample."""
    shares = []
    for a, b in pairwise(files[:4]):
        size = min(a.stat().st_size, 1 << 24)
        with a.open("rb") as one, b.open("rb") as other:
            words = [np.frombuffer(f.read(size // 2 * 2), np.uint16) for f in (one, other)]
        shares.append(float((words[0] != words[1]).mean()))
    return statistics.mean(shares) if shares else 0.0


def measure_long(work: Path, checkpoints: int) -> dict[str, Any]:
    """A store of many checkpoints: opening it, and one element over all of them."""
    write_series(work / "long", 1 << 19, checkpoints)
    result = trajkit.ingest(work / "long", work / "long.zarr")
    opened = [time_call(lambda: trajkit.open(work / "long.zarr")) for _ in range(5)]
    traj = trajkit.open(work / "long.zarr")
    name, info = next(iter(traj.tensors.items()))
    element = time_call(lambda: traj.trajectory(name, (info.size - 1,)))
    shutil.rmtree(work / "long")
    shutil.rmtree(work / "long.zarr")
    return {
        "checkpoints": checkpoints,
        "append_seconds": result.seconds / checkpoints,
        "open_seconds": statistics.median(opened),
        "element_seconds": element,
    }


def print_series(title: str, result: dict[str, Any]) -> None:
    """One table."""
    print(
        f"\n{title}: {result['raw_bytes'] / 1e9:.3g} GB, "
        f"{100 * result['changed']:.0f} % of elements change from one file to the next\n"
    )
    titles = " | ".join(f"{title:>11}" for title in RATES.values())
    print(f"| codec        | ratio | deltas | {titles} | pace set by |")
    print(f"|--------------|------:|-------:|{'------------:|' * len(RATES)}-------------|")
    for row in result["rows"]:
        rates = [f"{row[key]:.2f}" if key in row else "" for key in RATES]
        cells = " | ".join(f"{rate:>11}" for rate in rates)
        pace = row.get("bottleneck") or ""
        deltas = f"{row['delta_ratio']:.2f}" if "delta_ratio" in row else ""
        print(f"| {row['codec']:<12} | {row['ratio']:5.2f} | {deltas:>6} | {cells} | {pace:<11} |")


RATES = {
    "ingest_gbps": "ingest GB/s",
    "ingest_gbps_a_core": "a core",
    "decode_gbps": "decode GB/s",
    "decode_gbps_a_core": "a core",
    "verify_gbps": "verify GB/s",
}


def print_long(result: dict[str, Any]) -> None:
    """The lines on a long run."""
    print(f"\n{result['checkpoints']} checkpoints of 1 MB: ", end="")
    print(f"{1e3 * result['append_seconds']:.1f} ms an append, ", end="")
    print(f"opened in {1e3 * result['open_seconds']:.0f} ms, ", end="")
    print(f"one element over all of them in {result['element_seconds']:.2f} s")


if __name__ == "__main__":
    main()
