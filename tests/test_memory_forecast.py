"""Memory of extrapolate, of the report, and of reading a checkpoint or a history: peaks measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_memory import needs_peak, write_big

import trajkit
from trajkit.errors import OverBudget
from trajkit.text import parse_bytes

MEASURE = """
import json, sys, warnings
what, big, small, out, memory = sys.argv[1:]
import trajkit
warnings.simplefilter("ignore", trajkit.TrajkitWarning)

def do(store, out):
    traj = trajkit.open(store)
    if what == "extrapolate":
        trajkit.extrapolate(traj, [5, 6], out, memory=memory)
    elif what == "two-point":
        trajkit.extrapolate(traj, 5, out, estimator="two-point", memory=memory)
    elif what == "rank-k":
        trajkit.extrapolate(traj, [5, 6], out, estimator="rank-k", memory=memory)
    elif what == "capped":
        trajkit.extrapolate(traj, [5, 6], out, max_norm=1e-6, memory=memory)
    elif what == "report":
        trajkit.report(traj, out)
    else:
        # the caller's tensor, and the next one in the making
        return 2 * max(array.nbytes for _, array in traj.checkpoint(2, memory=memory))

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

do(small, out + "-small")  # libraries and compiled kernels are no part of it
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
given = do(big, out) or 0
print(json.dumps(peak() - before - given))
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of checkpoints of 160 MB, and one of 200 kB."""
    folder = tmp_path_factory.mktemp("stores")
    for name, n_bytes in (("big", 160_000_000), ("small", 200_000)):
        write_big(folder / name, n_bytes, 3)
        trajkit.ingest(folder / name, folder / f"{name}.zarr")
        trajkit.fit(folder / f"{name}.zarr")
    return folder / "big.zarr", folder / "small.zarr"


@needs_peak
@pytest.mark.parametrize(
    "what", ["extrapolate", "two-point", "rank-k", "capped", "report", "checkpoint"]
)
def test_peaks_stay_under_a_small_budget(
    stores: tuple[Path, Path], tmp_path: Path, what: str
) -> None:
    memory = "48MiB"
    command = [sys.executable, "-c", MEASURE, what, *stores, tmp_path / "out", memory]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    peak = json.loads(done.stdout)
    print(what, peak)
    assert peak <= parse_bytes(memory), f"{what} took {peak} bytes"


def test_a_history_is_planned_before_it_is_read(stores: tuple[Path, Path]) -> None:
    traj = trajkit.open(stores[0])
    with pytest.raises(OverBudget):
        traj.history("a", memory="100MB")
    with pytest.raises(OverBudget):
        traj.checkpoint(2, memory="100kB")
