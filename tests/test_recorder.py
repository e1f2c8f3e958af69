"""Recorded steps: the bits of the model, in a store like any other, whatever happens to the run."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_crash import fast_path as fast_path

import trajkit
from trajkit.arrays import DTYPES
from trajkit.errors import (
    InvalidInput,
    Locked,
    Mismatch,
    StorageError,
    TrajkitError,
    Unsupported,
)
from trajkit.reports.verify import verify
from trajkit.store.metrics import read_kept_metrics
from trajkit.store.store import Store

torch = pytest.importorskip("torch")

from trajkit.store.writer import StoreWriter  # noqa: E402
from trajkit.training import recorder as recorder_module  # noqa: E402
from trajkit.training.host_copy import HostCopy  # noqa: E402

State = dict[str, Any]


def bits_of(tensor: Any) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return bytes(flat.numpy().tobytes())


def read(path: Path, name: str, step: int) -> bytes:
    return bytes(trajkit.open(path).read(name, step).tobytes())


def make_state(seed: int = 0, size: int = 700) -> State:
    """float32 weights, a norm in bfloat16, an integer buffer, a scalar, an empty tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.a.weight": torch.randn(size, 9, generator=generator),
        "model.norm.weight": torch.randn(33, generator=generator).bfloat16(),
        "model.count": torch.arange(5),
        "model.scale": torch.tensor(1.5),
        "model.none": torch.empty(0, 4),
    }


def drift(state: State, step: int) -> State:
    """The next step's state, new tensors; a few elements of each float change."""
    generator = torch.Generator().manual_seed(1000 + step)
    moved = dict(state)
    moved["model.a.weight"] = state["model.a.weight"] + 1e-3 * torch.randn(
        state["model.a.weight"].shape, generator=generator
    )
    moved["model.count"] = state["model.count"] + 1
    return moved


def make_run(steps: int, size: int = 700) -> list[State]:
    run = [make_state(size=size)]
    for step in range(1, steps):
        run.append(drift(run[-1], step))
    return run


def record_all(recorder: Any, run: list[State]) -> None:
    for step, state in enumerate(run):
        recorder.record(step, state)


def check_store(path: Path, run: list[State], dtype: Any = torch.bfloat16) -> list[int]:
    """Every committed step is the run's, rounded; every byte verifies: the steps."""
    traj = trajkit.open(path)
    for step in traj.steps.tolist():
        for name, tensor in run[step].items():
            kept = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
            assert read(path, name, step) == bits_of(kept), (name, step)
    assert verify(path).bad == ()
    return list(traj.steps.tolist())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", None])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_is_the_models_bits_rounded_once(
    tmp_path: Path, dtype: str | None, workers: int
) -> None:
    run = make_run(7)
    with trajkit.Recorder(tmp_path / "s", dtype=dtype, keyframes=3, workers=workers) as recorder:
        for step, state in enumerate(run):
            assert recorder.record(step, state)
    assert recorder.recorded == 7
    kept = None if dtype is None else getattr(torch, dtype)
    assert check_store(tmp_path / "s", run, kept) == list(range(7))


def test_the_copy_is_taken_before_record_returns(tmp_path: Path) -> None:
    state = make_state()
    with trajkit.Recorder(tmp_path / "s", waiting=3) as recorder:
        seen = []
        for step in range(6):
            seen.append({name: tensor.clone() for name, tensor in state.items()})
            recorder.record(step, state)
            state["model.a.weight"] += 0.01  # in place, while it is being written
            state["model.count"] += 1
    check_store(tmp_path / "s", seen)


def test_recording_is_ingesting_with_dtype(tmp_path: Path) -> None:
    """The same frames, digests and files as ingest --dtype of what a trainer would have saved."""
    from safetensors.torch import save_file

    run = make_run(5)
    for step, state in enumerate(run):
        folder = tmp_path / "ckpts" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    with trajkit.Recorder(tmp_path / "s", config={}) as recorder:
        for step, state in enumerate(run):
            recorder.record(step, state)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "i", dtype="bfloat16")
    for step, name in ((0, "model.a.weight"), (4, "model.a.weight"), (4, "model.norm.weight")):
        assert read(tmp_path / "s", name, step) == read(tmp_path / "i", name, step)
    assert Store.open(tmp_path / "s").commit.cast == "bfloat16"
    # and one goes on where the other ended
    later = [*run, drift(run[-1], 5)]
    with trajkit.Recorder(tmp_path / "i") as recorder:
        recorder.record(5, later[5])
    assert check_store(tmp_path / "i", later) == list(range(6))


def test_float64_is_rounded_once(tmp_path: Path) -> None:
    halfway = torch.tensor([1 + 2**-8 + 2**-40, 1.0], dtype=torch.float64)
    with trajkit.Recorder(tmp_path / "s") as recorder:
        recorder.record(0, {"w": halfway})
    kept = trajkit.open(tmp_path / "s").read("w", 0).view(np.uint16)
    assert hex(kept[0]) == "0x3f81"


def test_special_values_survive(tmp_path: Path) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    with trajkit.Recorder(tmp_path / "s") as recorder:
        recorder.record(0, {"w": bits})
        recorder.record(1, {"w": bits.flip(0)})
    assert read(tmp_path / "s", "w", 0) == bits_of(bits)
    assert read(tmp_path / "s", "w", 1) == bits_of(bits.flip(0))


def test_every_and_metrics_are_on_the_same_axis(tmp_path: Path) -> None:
    run = make_run(9)
    with trajkit.Recorder(tmp_path / "s", every=4) as recorder:
        for step, state in enumerate(run):
            taken = recorder.record(
                step, state, metrics={"reward": step / 10, "note": "text", "bad": float("nan")}
            )
            assert taken == (step % 4 == 0)
        recorder.log(11, {"reward": torch.tensor(2.0)})
    assert trajkit.open(tmp_path / "s").steps.tolist() == [0, 4, 8]
    kept = read_kept_metrics(Store.open(tmp_path / "s"))
    assert kept is not None
    assert kept.curves == {"reward": (*((s, s / 10) for s in range(9)), (11, 2.0))}
    assert not (tmp_path / "s" / "metrics" / "journal").exists()


def test_metrics_are_on_disk_with_their_step_and_half_a_line_is_passed_over(tmp_path: Path) -> None:
    run = make_run(3)
    recorder = trajkit.Recorder(tmp_path / "s")
    for step, state in enumerate(run):
        recorder.record(step, state, metrics={"reward": float(step)})
    recorder.flush()
    journal = tmp_path / "s" / "metrics" / "journal"
    whole = read_kept_metrics(Store.open(tmp_path / "s"))
    assert whole is not None
    assert whole.curves["reward"] == ((0, 0.0), (1, 1.0), (2, 2.0))
    content = journal.read_bytes()
    journal.write_bytes(content[:-5])  # as a kill leaves it
    cut = read_kept_metrics(Store.open(tmp_path / "s"))
    assert cut is not None
    assert cut.curves["reward"] == ((0, 0.0), (1, 1.0))
    recorder.log(3, {"reward": 3.0})
    recorder.close()
    after = read_kept_metrics(Store.open(tmp_path / "s"))
    assert after is not None
    assert after.curves["reward"] == ((0, 0.0), (1, 1.0), (3, 3.0))


def test_a_run_goes_on_and_steps_that_are_there_are_passed_over(tmp_path: Path) -> None:
    run = make_run(8)
    with trajkit.Recorder(tmp_path / "s", keyframes=3) as recorder:
        for step in range(5):
            recorder.record(step, run[step])
    with trajkit.Recorder(tmp_path / "s") as recorder:
        assert recorder.last == 4
        for step in range(3, 8):  # resumed from a checkpoint before the last recorded step
            assert recorder.record(step, run[step]) == (step > 4)
        assert recorder.skipped == [3, 4]
    assert check_store(tmp_path / "s", run) == list(range(8))


def test_a_step_of_other_bits_or_between_is_refused_with_the_way_out(tmp_path: Path) -> None:
    run = make_run(8)
    with trajkit.Recorder(tmp_path / "s", every=2) as recorder:
        for step in range(6):
            recorder.record(step, run[step])
    before = verify(tmp_path / "s")
    with trajkit.Recorder(tmp_path / "s") as recorder:
        with pytest.raises(
            Mismatch, match=r"step 2 is in the store with other bits.*replace_from=2"
        ):
            recorder.record(2, run[3])
        with pytest.raises(
            InvalidInput, match=r"step 3 is earlier than the last, 4.*replace_from=3"
        ):
            recorder.record(3, run[3])
        with pytest.raises(InvalidInput, match="0 or more"):
            recorder.record(-1, run[3])
    assert verify(tmp_path / "s").steps == before.steps
    other = [run[0], run[1], *make_run(8)[2:]]
    for step in range(2, 8):
        other[step] = drift(other[step - 1], step + 77)
    with trajkit.Recorder(tmp_path / "s", replace_from=2) as recorder:
        for step in range(8):
            if step != 1:
                recorder.record(step, other[step])
    assert recorder.cut == (2, 4)
    assert check_store(tmp_path / "s", other) == [0, 2, 3, 4, 5, 6, 7]
    with (
        trajkit.Recorder(tmp_path / "s", replace_from=0) as recorder,
        pytest.raises(InvalidInput, match="would cut every step"),
    ):
        recorder.record(0, run[1])
    assert trajkit.open(tmp_path / "s").steps.tolist() == [0, 2, 3, 4, 5, 6, 7]


def test_a_fit_works_while_training_goes_on(tmp_path: Path) -> None:
    run = make_run(12)
    with trajkit.Recorder(tmp_path / "s") as recorder:
        for step in range(6):
            recorder.record(step, run[step])
        recorder.flush()
        first = trajkit.fit(tmp_path / "s", keep_sums=True)
        for step in range(6, 12):
            recorder.record(step, run[step])
        recorder.flush()
        second = trajkit.fit(tmp_path / "s", keep_sums=True)
        assert len(trajkit.open(tmp_path / "s").steps) == 12
    trajkit.fit(tmp_path / "s", name="whole")
    whole = trajkit.open(tmp_path / "s").fits["whole"]
    assert first.record.found.frames_read == 6
    assert second.record.found.frames_read == 6, "the sums of the first are continued"
    name = "model.a.weight"
    np.testing.assert_allclose(second.slope(name), whole.slope(name), rtol=2e-5, atol=1e-9)


def test_two_recorders_do_not_share_a_store(tmp_path: Path) -> None:
    with trajkit.Recorder(tmp_path / "s") as recorder:
        recorder.record(0, make_state())
        with pytest.raises(Locked, match=f"process {os.getpid()}"):
            trajkit.Recorder(tmp_path / "s")
    assert not (tmp_path / "s" / ".lock").exists()
    with pytest.raises(InvalidInput, match="closed"):
        recorder.record(1, make_state())


def test_memory_is_bounded_and_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training waits where all copies are taken; no more of them are made."""
    made: list[HostCopy] = []
    gate = threading.Event()
    init, append = HostCopy.__init__, StoreWriter.append

    def counted(self: HostCopy, *args: Any) -> None:
        made.append(self)
        init(self, *args)

    def slow(self: StoreWriter, *args: Any) -> Any:
        gate.wait(10)
        return append(self, *args)

    monkeypatch.setattr(HostCopy, "__init__", counted)
    monkeypatch.setattr(StoreWriter, "append", slow)
    run = make_run(8)
    with trajkit.Recorder(tmp_path / "s", waiting=1) as recorder:
        for step in range(3):
            recorder.record(step, run[step])
        assert recorder._free.empty()
        threading.Timer(0.2, gate.set).start()
        for step in range(3, 8):
            recorder.record(step, run[step])  # waits for the gate, else it would never end
        one = sum(v.n_bytes for v in trajkit.open(tmp_path / "s").store.vectors.values())
        assert 3 * one <= recorder.memory_bytes <= 3 * one + 7 * 8 * (1 << 18)
    assert len(made) == 3
    check_store(tmp_path / "s", run)


@pytest.mark.parametrize("error", [StorageError("disk: full"), OSError(28, "No space left")])
def test_an_error_in_the_background_reaches_the_caller_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = make_run(9)
    append = StoreWriter.append

    def failing(self: StoreWriter, source: Any, *args: Any) -> Any:
        if source.step == 3:
            raise error
        return append(self, source, *args)

    monkeypatch.setattr(StoreWriter, "append", failing)
    recorder = trajkit.Recorder(tmp_path / "s", waiting=0)
    with pytest.raises(TrajkitError, match=r"full|No space"):
        record_all(recorder, run)
    assert recorder.last < 8
    recorder.close()
    with pytest.raises(InvalidInput, match="closed"):
        recorder.record(9, run[0])
    monkeypatch.undo()
    assert check_store(tmp_path / "s", run) == [0, 1, 2]
    with trajkit.Recorder(tmp_path / "s") as again:  # the same call goes on
        for step in range(3, 9):
            again.record(step, run[step])
    assert check_store(tmp_path / "s", run) == list(range(9))


def test_an_error_of_the_run_finishes_what_is_in_flight(tmp_path: Path) -> None:
    run = make_run(4)

    def fail() -> None:
        with trajkit.Recorder(tmp_path / "s", waiting=4) as recorder:
            record_all(recorder, run)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert check_store(tmp_path / "s", run) == [0, 1, 2, 3]


def test_an_exit_without_closing_finishes_what_is_in_flight(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import trajkit, test_recorder as t
recorder = trajkit.Recorder({str(tmp_path / "s")!r}, waiting=5)
for step, state in enumerate(t.make_run(5)):
    recorder.record(step, state)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert check_store(tmp_path / "s", make_run(5)) == [0, 1, 2, 3, 4]


KILLS = 12
KILLER = """
import json, os, pathlib, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
import trajkit, test_recorder as t
store, rng = sys.argv[1], random.Random(5)
run = t.make_run(30)
with trajkit.Recorder(store + ".warm") as recorder:
    for step in range(3):
        recorder.record(step, run[step])

def committed(path):
    root = pathlib.Path(path, "zarr.json")
    return len(json.loads(root.read_bytes())["attributes"]["steps"]) if root.exists() else 0

for i in range(int(sys.argv[3])):
    child = os.fork()  # no thread is running here
    if child == 0:
        with trajkit.Recorder(f"{store}.{i}") as recorder:
            for step, state in enumerate(run):
                recorder.record(step, state, metrics={"reward": step})
        os._exit(0)
    until = rng.randrange(24)
    while committed(f"{store}.{i}") < until:
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_sigkill_at_random_instants(fast_path: Path) -> None:
    """Each store is whole, each goes on, and the end is the store of a run that was not killed."""
    store, here = fast_path / "s", str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLER, str(store), here, str(KILLS)]
    subprocess.run(command, check=True, timeout=300)
    run, reached = make_run(30), []
    for i in range(KILLS):
        killed = fast_path / f"s.{i}"
        steps = check_store(killed, run) if (killed / "zarr.json").exists() else []
        assert steps == list(range(len(steps)))
        reached.append(len(steps))
        kept = read_kept_metrics(Store.open(killed)) if steps else None
        if len(steps) > 1:  # of the step in flight perhaps more
            assert kept is not None
            assert len(kept.curves["reward"]) >= len(steps) - 1
        with trajkit.Recorder(killed) as recorder:
            for step in range(max(len(steps) - 2, 0), 30):
                recorder.record(step, run[step], metrics={"reward": step})
        assert not list(killed.rglob("*.part"))
        if i < 3:
            assert check_store(killed, run) == list(range(30))
    assert len(set(reached)) > 3, f"the kills were not spread: {sorted(reached)}"


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(8, 4)
        self.lm_head = torch.nn.Linear(4, 8, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("left", torch.ones(3), persistent=False)


def test_wrappers_tied_weights_and_buffers(tmp_path: Path) -> None:
    model = Tied()
    wrapped = torch.nn.Module()
    wrapped.module = model  # as DistributedDataParallel has it
    states = [
        model,
        wrapped,
        {f"_orig_mod.{n}": t for n, t in model.state_dict().items()},
        {f"module._orig_mod.{n}": t for n, t in model.state_dict().items()},
        {n: t.clone() for n, t in model.state_dict().items()},  # tied no more, but alike
    ]
    with trajkit.Recorder(tmp_path / "s") as recorder:
        for step, state in enumerate(states):
            recorder.record(step, state)
        copy = {n: t.clone() for n, t in model.state_dict().items()}
        copy["lm_head.weight"][0, 0] += 1
        with pytest.raises(Mismatch, match=r'"lm_head.weight" is not in the store'):
            recorder.record(9, copy)
    traj = trajkit.open(tmp_path / "s")
    assert set(traj.store.tensors) == {"embed_tokens.weight", "kept"}
    assert len(traj.steps) == 5


class _Sharded(torch.Tensor):
    def full_tensor(self) -> Any: ...


def make_zero() -> Any:
    model = torch.nn.Linear(2, 2)
    model.weight.ds_id = 3  # as DeepSpeed marks what it keeps in parts
    return model


FullyShardedDataParallel = type("FullyShardedDataParallel", (torch.nn.Linear,), {})


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (lambda: torch.nn.Linear(2, 2, device="meta"), Unsupported, "meta device"),
        (lambda: {"w": torch.zeros(2).as_subclass(_Sharded)}, Unsupported, "in parts"),
        (make_zero, Unsupported, "ZeRO-3"),
        (lambda: FullyShardedDataParallel(2, 2), Unsupported, "FSDP"),
        (lambda: {"w": torch.zeros(2, dtype=torch.complex64)}, Unsupported, "complex64"),
        (lambda: {"w": torch.zeros(2).to_sparse()}, Unsupported, "sparse"),
        (lambda: {"w": 3}, InvalidInput, "not a tensor"),
        (dict, InvalidInput, "no tensor"),
        (lambda: 3, InvalidInput, "found int"),
        (lambda: {"a": torch.zeros(1), "_orig_mod.a": torch.zeros(1)}, InvalidInput, "two tensors"),
    ],
)
def test_what_cannot_be_recorded_is_one_line_and_nothing_is_lost(
    tmp_path: Path, model: Any, error: type[Exception], words: str
) -> None:
    with trajkit.Recorder(tmp_path / "s") as recorder:
        with pytest.raises(error, match=words) as caught:
            recorder.record(0, model())
        assert "\n" not in str(caught.value)
        recorder.record(0, make_state())
        with pytest.raises(TrajkitError):
            recorder.record(1, model())
        recorder.record(1, drift(make_state(), 1))
    assert trajkit.open(tmp_path / "s").steps.tolist() == [0, 1]


def test_another_model_is_refused(tmp_path: Path) -> None:
    state = make_state()
    with trajkit.Recorder(tmp_path / "s") as recorder:
        recorder.record(0, state)
        for change, words in (
            (
                {"model.a.weight": torch.zeros(3)},
                r"bfloat16 \[3\], in the store bfloat16 \[700, 9\]",
            ),
            ({"model.count": state["model.count"].int()}, "is int32"),
            ({"extra": torch.zeros(1)}, '"extra" is not in the store'),
        ):
            with pytest.raises(Mismatch, match=words):
                recorder.record(1, state | change)
        with pytest.raises(Mismatch, match="is missing"):
            recorder.record(1, {"model.a.weight": state["model.a.weight"]})
    with (
        trajkit.Recorder(tmp_path / "s", dtype=None) as recorder,
        pytest.raises(Mismatch, match=r"is float32.*in the store bfloat16.*dtype is None"),
    ):
        recorder.record(1, state)


def test_bad_options_leave_no_trace(tmp_path: Path) -> None:
    for options in ({"every": 0}, {"waiting": -1}, {"dtype": "int8"}, {"codec": "x"}):
        with pytest.raises(InvalidInput):
            trajkit.Recorder(tmp_path / "s", **options)  # type: ignore[arg-type]
    with trajkit.Recorder(tmp_path / "s"):
        pass
    assert not (tmp_path / "s").exists()
    assert recorder_module.Recorder is trajkit.Recorder


def test_fp8_and_every_other_dtype(tmp_path: Path) -> None:
    state = {
        name: torch.ones(6).to(getattr(torch, name)) for name in DTYPES if hasattr(torch, name)
    }
    assert len(state) == len(DTYPES)
    with trajkit.Recorder(tmp_path / "s", dtype=None) as recorder:
        recorder.record(0, state)
    check_store(tmp_path / "s", [state], None)
    trajkit.restore(tmp_path / "s", 0, tmp_path / "out")
    from safetensors.torch import load_file

    back = load_file(tmp_path / "out" / "model.safetensors")
    assert all(bits_of(back[name]) == bits_of(tensor) for name, tensor in state.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["qwen3", "llama", "mixtral"])
def test_any_recorded_step_loads(tmp_path: Path, family: str) -> None:
    """load_model, and restore with from_pretrained, give the recorded weights back."""
    pytest.importorskip("transformers")
    from tiny_models import make_model, make_tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = make_model(family), make_tokenizer()
    seen = []
    with trajkit.Recorder(tmp_path / "s", tokenizer=tokenizer) as recorder:
        for step in range(3):
            recorder.record(step, model)
            seen.append({n: p.detach().bfloat16() for n, p in model.named_parameters()})
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.01 * torch.randn_like(p)
    with trajkit.Recorder(tmp_path / "s") as recorder:  # goes on without being told of the files
        recorder.record(3, model.state_dict())
        seen.append({n: p.detach().bfloat16() for n, p in model.named_parameters()})
    for step in (1, 3):
        loaded = trajkit.load_model(tmp_path / "s", step=step)
        out = tmp_path / f"out-{step}"
        trajkit.restore(tmp_path / "s", step, out)
        restored = AutoModelForCausalLM.from_pretrained(out)
        assert type(loaded) is type(restored) is type(model)
        assert AutoTokenizer.from_pretrained(out).get_vocab() == tokenizer.get_vocab()
        for other in (loaded, restored):
            assert next(other.parameters()).dtype == torch.bfloat16
            for name, parameter in other.named_parameters():
                assert bits_of(parameter) == bits_of(seen[step][name]), name


def test_without_torch_there_is_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None\nimport trajkit; trajkit.Recorder"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "recording a model needs torch: pip install 'trajkit[models]'" in done.stderr
