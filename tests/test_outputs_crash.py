"""Killed logprobs, activations and generate, run again: the files of a run that was not killed."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SEEN
from store_series import contents
from tiny_models import write_run

import trajkit
from trajkit.errors import AlreadyExists, NotFound
from trajkit.outputs.activations import activations
from trajkit.outputs.activations_kept import read_activations
from trajkit.outputs.check import check_outputs
from trajkit.outputs.generate import generate
from trajkit.outputs.kept import read_outputs
from trajkit.outputs.logprobs import logprobs
from trajkit.outputs.sampling import Sampling
from trajkit.store.store import Store

STEPS = (0, 10, 25, 30)

KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch, transformers
torch.set_num_threads(1)
import trajkit
from trajkit.outputs.activations import activations
from trajkit.outputs.generate import generate
from trajkit.outputs.logprobs import logprobs
from trajkit.outputs.sampling import Sampling

verb, folder, kills = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])

def act(name):
    if verb == "generate":
        sampling = Sampling(batch=2, max_new_tokens=6, seed=2)
        models = [str(folder / f"checkpoint-{s}") for s in (0, 396)]
        generate(None, *models, folder / "p.jsonl", folder / name, alpha=2.5, sampling=sampling)
    else:
        verbs = {"logprobs": logprobs, "activations": activations}
        verbs[verb](trajkit.open(folder / "s.zarr"), folder / "p.jsonl", name=name, batch_tokens=64)

# what every child would import and compile; no thread may run here, and zarr's loop is one, so
# that the parent does not use it
if verb == "generate":
    act("warm")
else:
    import zarr, zarr.codecs
    from trajkit.outputs.models import load_tokenizer
    from trajkit.outputs.weights import open_weights
    traj = trajkit.open(folder / "s.zarr")
    trajkit.load_model(traj, 0)(input_ids=torch.tensor([[5, 6]]))
    load_tokenizer(open_weights(traj, 0))

def in_child(action):
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def wait(child):
    return os.waitpid(child, 0)[1]

# every touch of the disk is counted; the child dies before or after the n-th
touches, until = [0], [None]

def counted(function):
    def touch(*args, **kwargs):
        touches[0] += 1
        if touches[0] == until[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return touch

os.fsync = counted(os.fsync)
for name in ("replace", "rename", "mkdir", "unlink"):
    setattr(Path, name, counted(getattr(Path, name)))

def whole(name):
    act(name)
    (folder / "touches").write_text(str(touches[0]))

assert wait(in_child(lambda: whole("first"))) == 0  # it makes what all share
started = time.perf_counter()
assert wait(in_child(lambda: whole("whole"))) == 0
seconds = time.perf_counter() - started
total = int((folder / "touches").read_text())
rng = random.Random(4)
points = sorted(rng.sample(range(1, total - 3), kills)) + list(range(total - 3, total + 1))
for i, point in enumerate(points):
    until[0] = point
    assert wait(in_child(lambda: act(f"touch{i}"))) == signal.SIGKILL
until[0] = None
for i in range(kills):
    child = in_child(lambda: act(f"instant{i}"))
    time.sleep(rng.uniform(0.2, 1.0) * seconds)
    os.kill(child, signal.SIGKILL)
    wait(child)
"""


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses nothing the kernel has."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="trajkit-test-") as folder:
        yield Path(folder)


def kill(verb: str, folder: Path, kills: int) -> list[str]:
    """Run a verb to its end, and many times to a kill: the names of these.

    ``kills`` are at random touches of the disk and as many at random instants; four are at the last
    four touches.
    """
    here = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", KILLER, here, verb, str(folder), str(kills)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return [f"touch{i}" for i in range(kills + 4)] + [f"instant{i}" for i in range(kills)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that are killed: threads add up in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("verb", ["logprobs", "activations"])
def test_rows_killed_anywhere_lose_nothing(fast_path: Path, verb: str) -> None:
    write_run(fast_path / "ckpts", "qwen3", STEPS)
    store_path = fast_path / "s.zarr"
    trajkit.ingest(fast_path / "ckpts", store_path)
    lines = [{"prompt": "p" * n, "response": "words " * n} for n in range(1, 6)]
    (fast_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    killed = kill(verb, fast_path, kills=3)
    store = Store.open(store_path)
    assert list(check_outputs(store)) == []
    read: Any = read_outputs if verb == "logprobs" else read_activations
    again: Any = logprobs if verb == "logprobs" else activations
    array, folder = ("log_p", "outputs") if verb == "logprobs" else ("mean", "activations")
    whole = read(store, "whole")
    expected = contents(whole.path)
    reached = set()
    for name in killed:
        try:
            kept = read(store, name)
        except NotFound:  # killed before its folder had its name
            reached.add(-1)
        else:
            rows = len(kept.record.steps)
            reached.add(rows)
            assert kept.record.steps == STEPS[:rows]
            assert np.array_equal(kept.rows(array), whole.rows(array)[:rows])
        again(trajkit.open(store_path), fast_path / "p.jsonl", name=name, batch_tokens=64)
        files = contents(store_path / folder / name)
        record = json.loads(files.pop("zarr.json"))["attributes"]
        model = json.loads(expected["zarr.json"])["attributes"]
        assert record | {"name": "", "sha256": ""} == model | {"name": "", "sha256": ""}
        assert files == {k: v for k, v in expected.items() if k != "zarr.json"}
    assert len(reached) > 2, f"the kills were not spread: {reached}"
    assert list(check_outputs(store)) == []
    left = {p.name for p in (store_path / folder).iterdir()}
    assert left == {"zarr.json", "first", "whole", *killed}


@pytest.mark.usefixtures("one_thread")
def test_generate_killed_anywhere_loses_nothing(fast_path: Path) -> None:
    for step in (0, 396):
        (fast_path / f"checkpoint-{step}").symlink_to(SEEN / f"checkpoint-{step}")
    lines = [json.dumps({"prompt": f"{i}+{3 * i}="}) for i in range(10, 30)]
    prompts = fast_path / "p.jsonl"
    prompts.write_text("\n".join(lines) + "\n")
    killed = kill("generate", fast_path, kills=4)
    models = [str(fast_path / f"checkpoint-{step}") for step in (0, 396)]
    expected = (fast_path / "whole").read_bytes()
    assert len(expected.splitlines()) == len(lines)
    reached = set()
    for name in killed:
        out, part = fast_path / name, fast_path / f"{name}.part"
        if out.exists():
            assert out.read_bytes() == expected
        kept = part.read_bytes() if part.exists() else b""
        batches = kept.count(b'{"trajkit journal": "batch"}\n')
        reached.add(batches)
        sampling = Sampling(batch=2, max_new_tokens=6, seed=2)
        try:
            found = generate(None, *models, prompts, out, alpha=2.5, sampling=sampling)
        except AlreadyExists:
            assert out.read_bytes() == expected
        else:
            assert found.resumed == 2 * batches
        assert out.read_bytes() == expected
    assert len(reached) > 2, f"the kills were not spread: {reached}"
    left = {p.name for p in fast_path.iterdir()}
    inputs = {"p.jsonl", "touches", "warm", "first", "whole", "checkpoint-0", "checkpoint-396"}
    assert left == inputs | set(killed)
