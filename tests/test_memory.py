"""Memory: ingest, fit, verify and restore stay under ``--memory``, measured as a process's peak."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import trajkit
from trajkit.checkpoints.layout import FlatVector, TensorInfo, lay_out
from trajkit.parallel import plan_workers
from trajkit.store.writer import bytes_a_worker
from trajkit.text import parse_bytes

MEASURE = """
import json, resource, sys
verb, ckpts, store, out, memory = sys.argv[1:]
from trajkit.store.ingest import ingest
from trajkit.store.restore import restore
from trajkit.trajectory import Trajectory
from trajkit.reports.verify import verify
from trajkit.fits.check import check_fits
import numpy as np, trajkit.kernels.cpu.launch
from trajkit.kernels import api
for bits in ("uint8", "uint16", "uint32"):  # the compiled kernels belong to the libraries
    a = np.zeros(8, bits)
    api.encode_frame(a, a, a); api.decode_frame(a, a, a)

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts again from what is resident now
before = peak()
match verb:
    case "ingest": ingest(ckpts, store, memory=memory)
    case "verify": assert verify(store, against=ckpts, memory=memory).ok
    case "restore": restore(Trajectory.open(store), 2, out, memory=memory)
print(json.dumps(peak() - before))
"""


MEASURE_FIT = """
import json, sys
from trajkit.fits.fit import fit
small, store, memory = sys.argv[1:4]
keep_sums = sys.argv[4] == "True"
fit(small, keep_sums=keep_sums); fit(small, memory="64MiB", name="b")  # libraries and kernels

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
fit(store, keep_sums=keep_sums, memory=memory)
print(json.dumps(peak() - before))
"""


def write_big(folder: Path, n_bytes: int, checkpoints: int) -> None:
    """Checkpoints of bf16 noise in two tensors of one file, written in blocks; they compress badly.

    Every checkpoint is the one before with a block's worth of new noise added to each element.
    """
    rng = np.random.default_rng(0)
    n = n_bytes // 4
    names = ("a", "b")
    header = {
        name: {"dtype": "BF16", "shape": [n], "data_offsets": [2 * n * i, 2 * n * (i + 1)]}
        for i, name in enumerate(names)
    }
    raw = json.dumps(header).encode()
    block = rng.integers(0, 2**16, 1 << 22, np.uint16)
    for step in range(checkpoints):
        path = folder / f"checkpoint-{step}" / "model.safetensors"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            left = 2 * n
            while left:
                part = block[:left] * np.uint16(2 * step + 1) + rng.integers(0, 99, dtype=np.uint16)
                file.write(part.tobytes())
                left -= len(part)


def check_peaks(tmp_path: Path, n_bytes: int, checkpoints: int, memory: str) -> dict[str, int]:
    write_big(tmp_path / "ckpts", n_bytes, checkpoints)
    peaks = {}
    for verb in ("ingest", "verify", "restore"):
        places = [tmp_path / name for name in ("ckpts", "s.zarr", "out")]
        command = [sys.executable, "-c", MEASURE, verb, *places, memory]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        peaks[verb] = json.loads(done.stdout)
        assert peaks[verb] <= parse_bytes(memory), f"{verb} took {peaks[verb]} bytes"
    return peaks


needs_peak = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs the peak that Linux keeps"
)


@needs_peak
def test_peaks_stay_under_a_small_budget(tmp_path: Path) -> None:
    """Checkpoints of 200 MB under 64 MiB; the budget is on top of interpreter and libraries."""
    check_peaks(tmp_path, 200_000_000, 3, "64MiB")


@needs_peak
@pytest.mark.parametrize(("memory", "keep_sums"), [("64MiB", False), ("112MiB", True)])
def test_a_fit_stays_under_a_small_budget(tmp_path: Path, memory: str, keep_sums: bool) -> None:
    """A hundred chunks of bf16 in as much as one worker needs; sums were once not counted."""
    write_big(tmp_path / "ckpts", 50_000_000, 3)
    write_big(tmp_path / "small", 4000, 3)
    for name in ("ckpts", "small"):
        trajkit.ingest(tmp_path / name, tmp_path / f"{name}.zarr", codec="lz4")
    stores = [tmp_path / "small.zarr", tmp_path / "ckpts.zarr"]
    command = [sys.executable, "-c", MEASURE_FIT, *stores, memory, str(keep_sums)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    peak = json.loads(done.stdout)
    assert peak <= parse_bytes(memory), f"fit took {peak} bytes"


@needs_peak
@pytest.mark.slow
def test_peaks_of_two_gigabyte_checkpoints(tmp_path: Path) -> None:
    peaks = check_peaks(tmp_path, 2_000_000_000, 3, "512MiB")
    print(peaks)


def test_the_plan_is_made_before_the_work() -> None:
    vectors = lay_out([("a", "bfloat16", (10**7,)), ("b", "float32", (100,))], chunk=1 << 18)
    one = bytes_a_worker(vectors, None)
    assert one == 7 * 2 * (1 << 18)
    assert bytes_a_worker(vectors, "float32") > one
    assert plan_workers("x", 8, one, 3 * one + 5).workers == 3
    assert plan_workers("x", 8, one, 100 * one).workers == 8
    assert plan_workers("x", 8, one, 100 * one, fixed_bytes=98 * one).workers == 2


def test_a_flat_vector_cuts_ranges_into_tensors() -> None:
    vector = FlatVector(
        "bfloat16",
        [
            TensorInfo("a", "bfloat16", (5,), 0),
            TensorInfo("none", "bfloat16", (0, 3), 5),
            TensorInfo("b", "bfloat16", (), 5),
            TensorInfo("c", "bfloat16", (4, 2), 6),
        ],
        chunk=6,
    )
    spans = [(s.tensor.name, s.start, s.stop, s.at) for s in vector.spans(3, 9)]
    assert spans == [("a", 3, 5, 0), ("b", 0, 1, 2), ("c", 0, 3, 3)]
    assert (vector.n_chunks, vector.chunk_span(2)) == (3, (12, 14))
