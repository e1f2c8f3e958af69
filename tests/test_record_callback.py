"""RecordCallback under the Hugging Face Trainer and under TRL's GRPO."""

from pathlib import Path
from typing import Any

import pytest

import trajkit
from trajkit.errors import InvalidInput, Mismatch, Unsupported
from trajkit.reports.verify import verify
from trajkit.store.metrics import read_kept_metrics
from trajkit.store.store import Store

torch = pytest.importorskip("torch")

from test_recorder import bits_of, read  # noqa: E402


def make_trainer(folder: Path, callbacks: list[Any], **changes: Any) -> Any:
    """A small regression under the Hugging Face Trainer: the same run each time."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 1)

        def forward(self, x: Any, labels: Any) -> Any:
            return {"loss": ((self.inner(x) - labels) ** 2).mean()}

    torch.manual_seed(7)
    model, x = Model(), torch.randn(32, 3)
    options = {
        "output_dir": str(folder), "max_steps": 8, "per_device_train_batch_size": 32,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "use_cpu": True,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 2,
    }  # fmt: skip
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**(options | changes)),
        train_dataset=[{"x": r, "labels": r.sum(dim=0, keepdim=True)} for r in x],
        callbacks=callbacks,
    )


@pytest.mark.filterwarnings("ignore")
def test_under_a_real_trainer_every_step_and_log_is_kept(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from trajkit.integrations.trl import RecordCallback

    seen: list[Any] = []

    class Look(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            seen.append(model.inner.weight.detach().clone())

    store = tmp_path / "s"
    save = {"save_strategy": "steps", "save_steps": 4}
    callbacks = [RecordCallback(store, dtype=None), Look()]
    trainer = make_trainer(tmp_path / "run", callbacks, **save)
    trainer.train()
    traj = trajkit.open(store)
    assert traj.steps.tolist() == list(range(9))
    for step in range(1, 9):
        assert read(store, "inner.weight", step) == bits_of(seen[step - 1])
    kept = read_kept_metrics(Store.open(store))
    assert kept is not None
    logged = {h["step"]: h["loss"] for h in trainer.state.log_history if "loss" in h}
    assert dict(kept.curves["loss"]) == logged
    assert set(logged) == {2, 4, 6, 8}
    assert not (store / ".lock").exists()

    # resumed from its checkpoint of step 4, the same run: its steps are there, bit for bit
    callback = RecordCallback(store, dtype=None)
    trainer = make_trainer(tmp_path / "run", [callback], **save, max_steps=10)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert trajkit.open(store).steps.tolist() == list(range(11))
    # resumed with another learning rate: refused, unless it is asked for
    other = {**save, "max_steps": 10, "learning_rate": 5e-3}
    for on_error, replace_from in (("raise", None), ("warn", None), ("raise", "resume")):
        callback = RecordCallback(store, dtype=None, on_error=on_error, replace_from=replace_from)  # type: ignore[arg-type]
        trainer = make_trainer(tmp_path / "run", [callback], **other)
        trainer.lr_scheduler = None
        before = read(store, "inner.weight", 8)
        folder = str(tmp_path / "run" / "checkpoint-4")
        trainer.create_optimizer()
        if on_error == "raise" and replace_from is None:
            with pytest.raises(Mismatch, match=r"step 5 is in the store.*replace_from=5"):
                train_anew(trainer, folder)
        else:
            train_anew(trainer, folder)
        assert (read(store, "inner.weight", 8) == before) == (replace_from is None)
        assert not (store / ".lock").exists()
    assert trajkit.open(store).steps.tolist() == list(range(11))
    assert verify(store).bad == ()


def train_anew(trainer: Any, folder: str) -> None:
    """Resume, with weights that differ from the first run's after the next step."""
    transformers = pytest.importorskip("transformers")

    class Nudge(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, model: Any, **__: Any) -> None:
            with torch.no_grad():
                model.inner.weight += 0.1

    trainer.add_callback(Nudge())
    trainer.train(resume_from_checkpoint=folder)


@pytest.mark.filterwarnings("ignore")
def test_fsdp_is_refused_and_other_processes_do_nothing(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from types import SimpleNamespace

    from trajkit.integrations.trl import RecordCallback

    state = SimpleNamespace(is_world_process_zero=False, global_step=0)
    callback = RecordCallback(tmp_path / "s")
    callback.on_train_begin(SimpleNamespace(fsdp=""), state, None, model=None)
    callback.on_step_end(None, state, None, model=None)
    callback.on_log(None, state, None, {"loss": 1.0})
    callback.on_train_end(None, state, None)
    state.is_world_process_zero = True
    with pytest.raises(Unsupported, match="FSDP"):
        callback.on_train_begin(SimpleNamespace(fsdp="full_shard"), state, None, model=None)
    with pytest.raises(InvalidInput, match="on_error"):
        RecordCallback(tmp_path / "s", on_error="ignore")  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


@pytest.mark.filterwarnings("ignore")
def test_under_grpo_a_recorded_step_is_the_model(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from tiny_models import make_model, make_tokenizer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from trajkit.integrations.trl import RecordCallback

    model, tokenizer = make_model("qwen3"), make_tokenizer()
    tokenizer.padding_side = "left"
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(
            output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=4,
            num_generations=2, max_completion_length=3, learning_rate=1e-3, bf16=False,
            use_cpu=True, save_strategy="no", logging_steps=1, report_to="none",
            disable_tqdm=True, gradient_checkpointing=False, dataloader_pin_memory=False,
        ),
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [float(sum(map(ord, c)) % 7) for c in completions],
        train_dataset=datasets.Dataset.from_dict({"prompt": ["ab", "cd", "ef", "gh"]}),
        callbacks=[RecordCallback(tmp_path / "s")],
    )  # fmt: skip
    trainer.train()
    traj = trajkit.open(tmp_path / "s")
    assert traj.steps.tolist() == [0, 1, 2, 3]
    kept = read_kept_metrics(traj.store)
    assert kept is not None
    assert [step for step, _ in kept.curves["reward"]] == [1, 2, 3]
    loaded = trajkit.load_model(tmp_path / "s", step=3)
    named = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert bits_of(parameter) == bits_of(named[name].detach().bfloat16())
    assert read(tmp_path / "s", "model.embed_tokens.weight", 0) != read(
        tmp_path / "s", "model.embed_tokens.weight", 3
    )
