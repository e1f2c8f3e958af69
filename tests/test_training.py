"""The jump: pooled drift, other rules, arithmetic, judgement, and a real trainer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from trajkit.errors import InvalidInput, Unsupported  # noqa: E402
from trajkit.kernels import api as kernels  # noqa: E402
from trajkit.kernels.gate import Gate  # noqa: E402
from trajkit.training.horizon import Horizon  # noqa: E402
from trajkit.training.jump import Snapshot, jump, movable  # noqa: E402
from trajkit.training.pooled import PooledDrift  # noqa: E402
from trajkit.training.reground import Regrounding  # noqa: E402
from trajkit.training.segments import RsqGate, TwoPoint  # noqa: E402


class Fixed:
    """A rule that always says the same."""

    is_ready = True

    def __init__(self, rates: dict[str, Any]) -> None:
        self.rates = rates

    def begin(self) -> None: ...

    def observe(self, steps: int = 1) -> None: ...

    def rate(self, name: str) -> Any:
        return self.rates[name]


@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    st.integers(0, 99),
)
def test_pooled_drift_is_the_formula(segments: list[int], keep: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = torch.tensor(rng.normal(size=7), dtype=torch.float32)
    rule = PooledDrift({"w": p}, keep=keep, limit=4.0, wait=0)
    d, m, v = np.zeros(7), 0.0, np.zeros(7)
    for steps in segments:
        p += torch.tensor(rng.normal(size=7), dtype=torch.float32)  # a jump: no real step
        rule.begin()
        start, squares = p.double().numpy().copy(), np.zeros(7)
        for _ in range(steps):
            before = p.double().numpy().copy()
            p += torch.tensor(rng.normal(0.3, 1.0, size=7), dtype=torch.float32)
            rule.observe()
            squares += (p.double().numpy() - before) ** 2
        d, m, v = keep * d + p.double().numpy() - start, keep * m + steps, keep * v + squares
    mean, var = d / m, v / m - (d / m) ** 2
    t2 = mean**2 * m / var
    clear = abs(t2 - 4) > 1e-3
    np.testing.assert_allclose(
        rule.rate("w").numpy()[clear], np.where(t2 > 4, mean, 0)[clear], rtol=2e-3, atol=1e-6
    )


def test_observations_several_steps_apart_are_weighed_by_their_steps() -> None:
    """A walk with drift has the same t², to sampling, whether looked at every step or every third."""
    rng = np.random.default_rng(1)
    changes = rng.normal(0.1, 1.0, size=(3000, 400)).astype(np.float32)
    found = []
    for every in (1, 3):
        p = torch.zeros(400)
        rule = PooledDrift({"w": p}, keep=1, limit=9, wait=0)
        rule.begin()
        for t in range(0, 3000, every):
            p += torch.tensor(changes[t : t + every].sum(axis=0))
            rule.observe(every)
        mean = rule._sum["w"] / rule.steps
        var = (rule._squares["w"] - rule.steps * mean**2) / rule.looks
        found.append(float(var.mean()))
    assert found == pytest.approx([1.0, 1.0], abs=0.03)


def test_what_never_moved_stays_and_what_always_moves_alike_goes() -> None:
    p = torch.zeros(2)
    rule = PooledDrift({"w": p}, wait=0)
    rule.begin()
    for _ in range(4):
        p += torch.tensor([0.0, 0.25])
        rule.observe()
    assert rule.rate("w").tolist() == [0.0, 0.25]


def test_nothing_is_trusted_before_the_segments_waited_for() -> None:
    p = torch.zeros(3)
    rule = PooledDrift({"w": p}, wait=2)
    seen = []
    for _ in range(4):
        rule.begin()
        for _ in range(3):
            p += torch.rand(3)
            rule.observe()
        seen.append(rule.is_ready)
    assert seen == [False, False, True, True]


def test_a_kept_state_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    p = torch.randn(5)
    rule = PooledDrift({"w": p}, limit=0.5, wait=0)
    rule.begin()
    p += torch.randn(5)
    rule.observe()
    rule.begin()  # a process ends between segments
    again = PooledDrift({"w": p}, limit=0.5, wait=0)
    again.load({name: value.clone() for name, value in rule.state().items()})
    for _ in range(3):
        p += torch.randn(5)
        rule.observe()
        again.observe()
    assert torch.equal(rule.rate("w"), again.rate("w"))
    assert again.segments == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_jump_is_the_kernels_extrapolation(dtype: Any) -> None:
    torch.manual_seed(3)
    p = (torch.randn(1000) * torch.tensor(10.0) ** torch.randint(-4, 4, (1000,))).to(dtype)
    rate = torch.randn(1000) * 1e-3
    rate[::3] = 0
    name = str(dtype).removeprefix("torch.")
    bits = np.dtype("u4" if dtype is torch.float32 else "u2")
    as_int = torch.int32 if dtype is torch.float32 else torch.int16
    last = p.view(as_int).numpy().view(bits).copy()
    out = np.empty_like(last)
    flags = np.where(rate.numpy() == 0, np.uint8(kernels.FLAG_STATIC), np.uint8(0))
    zeros = np.zeros(1000, np.float32)
    kernels.extrapolate_line(
        "last", last, rate.numpy(), zeros, name,
        dx=77.0, gate=Gate(flags=flags), out_bits=out, backend="reference",
    )  # fmt: skip
    done = jump({"w": p}, Fixed({"w": rate}), 77)
    np.testing.assert_array_equal(p.view(as_int).numpy().view(bits), out)
    assert done.moved == int((out != last).sum())
    assert done.elements == 1000


def test_a_jump_of_no_steps_changes_no_bit() -> None:
    p = torch.tensor([-0.0, 0.0, float("nan"), float("inf"), 1e-40, 1.0])
    before = p.view(torch.int32).clone()
    done = jump({"w": p}, Fixed({"w": torch.ones(6)}), 0)
    assert torch.equal(p.view(torch.int32), before)
    assert (done.moved, done.norm, done.n) == (0, 0.0, 0)
    jump({"w": p}, Fixed({"w": torch.zeros(6)}), 10)
    assert torch.equal(p.view(torch.int32), before)


def test_what_would_leave_the_format_stays() -> None:
    p = torch.tensor([60000.0, 1.0], dtype=torch.float16)
    jump({"w": p}, Fixed({"w": torch.tensor([1000.0, 1.0])}), 10)
    assert p.tolist() == [60000.0, 11.0]


def test_a_long_jump_is_shortened_to_the_cap() -> None:
    p = torch.full((4,), 3.0)
    done = jump({"w": p}, Fixed({"w": torch.ones(4)}), 100, max_norm=0.5)
    assert done.n == pytest.approx(1.5)
    assert done.relative_norm == pytest.approx(0.5)
    assert p.tolist() == [4.5] * 4


def test_norms_and_integers_stay() -> None:
    named = {
        "model.norm.weight": torch.ones(2),
        "layers.0.input_layernorm.weight": torch.ones(2),
        "q_proj.weight": torch.ones(2),
        "buffer": torch.ones(2, dtype=torch.int64),
    }
    assert list(movable(named)) == ["q_proj.weight"]


def test_segments_rules_are_their_formulas() -> None:
    rng = np.random.default_rng(5)
    path = np.cumsum(rng.normal(0.2, 1.0, size=(12, 50)), axis=0).astype(np.float32)
    p = torch.tensor(path[0])
    two, gate = TwoPoint({"w": p}), RsqGate({"w": p}, threshold=0.7)
    for rule in (two, gate):
        rule.begin()
    for row in path[1:]:
        p.copy_(torch.tensor(row))
        two.observe()
        gate.observe()
    np.testing.assert_allclose(two.rate("w").numpy(), (path[-1] - path[0]) / 11, rtol=1e-6)
    slope = np.polyfit(np.arange(12), path.astype(np.float64), 1)[0]
    rsq = np.array([np.corrcoef(np.arange(12), column)[0, 1] ** 2 for column in path.T])
    expected = np.where(rsq > 0.7, slope, 0)
    np.testing.assert_allclose(gate.rate("w").numpy(), expected, rtol=1e-3, atol=1e-6)


def make_run(seed: int = 0) -> tuple[Any, Any, Any]:
    """A small regression: model, optimizer, and one training step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(64, 4)
    y = x.sum(dim=1, keepdim=True)

    def step() -> float:
        loss = ((model(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return -float(loss.detach())

    return model, optimizer, step


def test_a_jump_that_hurt_is_taken_back_bit_for_bit() -> None:
    model, optimizer, step = make_run()
    loop = Regrounding(
        dict(model.named_parameters()), 5, Horizon(40, adapt=True), "two-point", optimizer=optimizer
    )
    for _ in range(5):
        loop.reward(step())
        end = {n: p.detach().clone() for n, p in model.named_parameters()}
        moments = {
            i: {k: torch.as_tensor(v).clone() for k, v in s.items()}
            for i, s in optimizer.state_dict()["state"].items()
        }
        loop.after_step()
    for _ in range(5):
        step()
        loop.reward(-1e6)  # the reward fell by far more than its noise
        line = loop.after_step()
    assert line is not None
    assert line["rolled_back"]
    for name, p in model.named_parameters():
        assert torch.equal(p, end[name]), name
    for i, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), moments[i][key]), key
    assert loop.horizon.n == 20
    assert loop.virtual_steps == 5


def test_snapshots_hold_their_own_copy() -> None:
    p = torch.ones(2)
    snapshot = Snapshot({"w": p})
    p.zero_()
    snapshot.restore()
    p.zero_()
    snapshot.restore()
    assert p.tolist() == [1.0, 1.0]


def test_no_jump_while_old_responses_wait() -> None:
    model, _, step = make_run()
    loop = Regrounding(dict(model.named_parameters()), 3, Horizon(4), "two-point")
    lines = []
    for t in range(1, 9):
        step()
        lines.append(loop.after_step(may_jump=t % 4 == 0) is not None)
    assert lines == [False, False, False, True, False, False, False, True]


def test_resetting_forgets_the_optimizers_moments() -> None:
    model, optimizer, step = make_run()
    loop = Regrounding(
        dict(model.named_parameters()), 2, Horizon(3), "two-point",
        optimizer=optimizer, policy="reset",
    )  # fmt: skip
    for _ in range(2):
        step()
        loop.after_step()
    assert not optimizer.state


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"every": 0}, "one real step"),
        ({"policy": "halve"}, "kept or reset"),
        ({"rule": "magic"}, "unknown rule"),
        ({"keep": 2.0}, "keep"),
        ({"colour": 1}, "pooled"),
    ],
)
def test_bad_options_are_one_line(change: dict[str, Any], word: str) -> None:
    options: dict[str, Any] = {"every": 5, "rule": "pooled", **change}
    every, rule = options.pop("every"), options.pop("rule")
    with pytest.raises(InvalidInput, match=word) as caught:
        Regrounding({"w": torch.ones(2)}, every, Horizon(5), rule, **options)
    assert "\n" not in str(caught.value)


def test_nothing_to_move_is_said() -> None:
    with pytest.raises(InvalidInput, match="no floating-point parameter"):
        Regrounding({"norm": torch.ones(2)}, 5, Horizon(5))


def train_with_callback(folder: Path, callback: Any, steps: int = 12) -> Any:
    """The same small regression under the Hugging Face Trainer."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 1)

        def forward(self, x: Any, labels: Any) -> Any:
            return {"loss": ((self.inner(x) - labels) ** 2).mean()}

    torch.manual_seed(7)
    model = Model()
    x = torch.randn(32, 3)
    rows = [{"x": r, "labels": r.sum(dim=0, keepdim=True)} for r in x]
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=32,
            learning_rate=1e-2, lr_scheduler_type="constant", use_cpu=True, save_strategy="no",
            report_to="none", disable_tqdm=True, logging_steps=1, seed=1,
        ),
        train_dataset=rows,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_under_a_real_trainer_jumps_are_made_logged_and_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from trajkit.integrations.trl import RegroundCallback

    log = tmp_path / "jumps.jsonl"
    callback = RegroundCallback(4, 10, "two-point", optimizer="reset", log=log)
    trainer = train_with_callback(tmp_path, callback)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["real_steps"] for line in lines] == [4, 8, 12]
    assert [line["virtual_steps"] for line in lines] == [14, 28, 42]
    assert all(line["share_moved"] > 0.9 for line in lines)
    told = [h for h in trainer.state.log_history if "jump/n" in h]
    assert len(told) == 3


@pytest.mark.filterwarnings("ignore")
def test_parameters_in_parts_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from types import SimpleNamespace

    from trajkit.integrations.trl import RegroundCallback

    for args in (
        SimpleNamespace(deepspeed="zero3.json", fsdp=""),
        SimpleNamespace(deepspeed=None, fsdp="full_shard"),
    ):
        with pytest.raises(Unsupported, match="trajkit reground"):
            RegroundCallback().on_train_begin(args, None, None, model=torch.nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore")
def test_parameters_in_parts_are_refused_however_they_came_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("transformers")
    from types import SimpleNamespace

    from trajkit.integrations.trl import RegroundCallback

    args = SimpleNamespace(deepspeed=None, fsdp="")
    sharded = type("FullyShardedDataParallel", (torch.nn.Module,), {})()
    inner = torch.nn.Linear(2, 2)
    sharded.inner = inner
    zero = torch.nn.Linear(2, 2)
    zero.weight.ds_id = 3
    for model in (torch.nn.Sequential(sharded), zero):
        with pytest.raises(Unsupported, match="in parts"):
            RegroundCallback().on_train_begin(args, None, None, model=model)
    RegroundCallback().on_train_begin(args, None, None, model=inner)
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "true")
            with pytest.raises(Unsupported, match=name):
                RegroundCallback().on_train_begin(args, None, None, model=inner)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_a_generation_boundary_is_where_the_next_batch_is_generated(
    accumulation: int, per_generation: int, iterations: int
) -> None:
    """As TRL's trainers count: batch b is generated anew where b mod (steps x iterations) is 0."""
    pytest.importorskip("transformers")
    from types import SimpleNamespace

    from trajkit.integrations.trl import _is_generation_boundary

    args = SimpleNamespace(
        steps_per_generation=per_generation,
        num_iterations=iterations,
        gradient_accumulation_steps=accumulation,
    )
    for step in range(1, 30):
        generates = step * accumulation % (per_generation * iterations) == 0
        assert _is_generation_boundary(args, SimpleNamespace(global_step=step)) == generates
    plain = SimpleNamespace(gradient_accumulation_steps=accumulation)
    assert _is_generation_boundary(plain, SimpleNamespace(global_step=7))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_grpo_samples_its_next_responses_from_the_weights_after_the_jump(tmp_path: Path) -> None:
    """Each batch is trained on twice, so that a jump due after step 3 waits for step 4."""
    for library in ("trl", "transformers", "datasets"):
        pytest.importorskip(library)
    from datasets import Dataset
    from tiny_models import make_model, make_tokenizer
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from trajkit.integrations.trl import RegroundCallback

    seen: list[tuple[int, Any]] = []
    after: dict[int, Any] = {}

    def weights() -> Any:
        return trainer.model.model.layers[0].mlp.up_proj.weight.detach().clone()

    class Keep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            after[state.global_step] = weights()

    def reward(completions: Any, **_: Any) -> list[float]:
        seen.append((trainer.state.global_step, weights()))
        return [float(sum(map(ord, c)) % 5) for c in completions]

    callback = RegroundCallback(3, 50, "two-point")
    trainer = GRPOTrainer(
        model=make_model("qwen3"),
        args=GRPOConfig(
            output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=4, num_generations=4,
            num_iterations=2, max_completion_length=4, learning_rate=1e-3, bf16=False, use_cpu=True,
            gradient_checkpointing=False, save_strategy="no", logging_steps=1, disable_tqdm=True,
            lr_scheduler_type="constant", report_to="none", seed=1,
        ),
        processing_class=make_tokenizer(),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": f"{i}"} for i in range(16)]),
        callbacks=[callback, Keep()],
    )  # fmt: skip
    trainer.train()
    jumps = [line["real_steps"] for line in callback.ledger.lines]
    generated = [step for step, _ in seen]
    assert generated == [0, 2, 4, 6]
    assert jumps == [4, 8]
    assert all(line["moved"] for line in callback.ledger.lines)
    for step, value in seen[1:]:
        # the engine is synchronised where the global step has moved on since the last generation
        assert torch.equal(value, after[step]), step
