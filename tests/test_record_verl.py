"""verl's callback against a stub of the interface that its sources document."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trajkit
from trajkit.errors import Unsupported
from trajkit.store.metrics import read_kept_metrics

torch = pytest.importorskip("torch")

from test_recorder import bits_of, read  # noqa: E402

from trajkit.integrations.verl import RecordCallback  # noqa: E402


class StubEngine:
    """What verl's BaseEngine has of saving and of exporting whole tensors."""

    def __init__(self, peft: object = None) -> None:
        self.weights = {"model.a": torch.ones(4, 3), "model.b": torch.zeros(5)}
        self.saved: list[tuple[Any, ...]] = []
        self.gathered: list[str] = []
        self.peft = peft

    def save_checkpoint(
        self,
        local_path: str,
        hdfs_path: str | None = None,
        global_step: int = 0,
        max_ckpt_to_keep: int | None = None,
        **kwargs: Any,
    ) -> str:
        self.saved.append((local_path, hdfs_path, global_step, max_ckpt_to_keep))
        return "saved"

    def get_per_tensor_param(self, **kwargs: Any) -> tuple[Iterator[tuple[str, Any]], object]:
        def gather() -> Iterator[tuple[str, Any]]:
            whole = torch.empty(0)
            for name, tensor in self.weights.items():
                whole.fill_(-1)  # the buffer of the tensor before is used again
                whole = tensor.clone()
                self.gathered.append(name)
                yield name, whole

        return gather(), self.peft


def test_every_step_that_is_saved_is_recorded(tmp_path: Path) -> None:
    engines = [StubEngine(), StubEngine()]
    callbacks = [RecordCallback(tmp_path / "s", every=2, rank=rank, config={}) for rank in (0, 1)]
    for engine, callback in zip(engines, callbacks, strict=True):
        callback.attach(engine)
    for step in range(1, 5):
        for engine, callback in zip(engines, callbacks, strict=True):
            engine.weights["model.a"] = torch.full((4, 3), float(step))
            assert engine.save_checkpoint(f"step_{step}", None, step, max_ckpt_to_keep=3) == "saved"
            callback.log(step, {"reward": step})
    for callback in callbacks:
        callback.close()
    for engine in engines:  # gathering needs every rank
        assert engine.gathered == ["model.a", "model.b"] * 2
        assert engine.saved == [(f"step_{step}", None, step, 3) for step in range(1, 5)]
    traj = trajkit.open(tmp_path / "s")
    assert traj.steps.tolist() == [2, 4]
    for step in (2, 4):
        expected = torch.full((4, 3), float(step)).bfloat16()
        assert read(tmp_path / "s", "model.a", step) == bits_of(expected)
    kept = read_kept_metrics(traj.store)
    assert kept is not None
    assert len(kept.curves["reward"]) == 4


def test_weights_pass_through_unchanged(tmp_path: Path) -> None:
    engine, callback = StubEngine(), RecordCallback(tmp_path / "s", config={})
    for step in (0, 1):
        engine.weights["model.b"] += step
        weights, _ = engine.get_per_tensor_param()
        seen = {name: tensor.clone() for name, tensor in callback.passing(weights, step)}
        assert all(torch.equal(seen[name], engine.weights[name]) for name in engine.weights)
    callback.close()
    assert read(tmp_path / "s", "model.b", 1) == bits_of(torch.ones(5).bfloat16())


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    engine, callback = StubEngine(peft={"r": 8}), RecordCallback(tmp_path / "s")
    callback.attach(engine)
    with pytest.raises(Unsupported, match="adapter"):
        engine.save_checkpoint("step_1", global_step=1)
    callback.close()
