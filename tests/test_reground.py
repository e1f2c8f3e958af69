"""``trajkit reground``: segments of a trainer's own process, jumps between them, kills and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_trainer import load, make_weights, save_checkpoint, train_step

torch = pytest.importorskip("torch")

from trajkit.checkpoints import folder as folder_module  # noqa: E402
from trajkit.errors import InvalidInput, Locked, Mismatch, NotFound, StorageError  # noqa: E402
from trajkit.training.driver import reground  # noqa: E402
from trajkit.training.horizon import Horizon  # noqa: E402
from trajkit.training.progress import State  # noqa: E402
from trajkit.training.reground import Regrounding  # noqa: E402
from trajkit.training.template import Template  # noqa: E402
from trajkit.training.trainer import TrainerFailed  # noqa: E402

TRAINER = Path(__file__).with_name("small_trainer.py")
RESUMING = "--resume {resume}"


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "base", 0, make_weights(), make_weights())
    return tmp_path / "base" / "checkpoint-0"


def command(*more: str) -> str:
    places = "--model {model} --output {output} --total {total}"
    return " ".join([f"'{sys.executable}' '{TRAINER}'", places, *more])


def in_process(
    segments: int, every: int, n: int, rule: str, policy: Any, **options: Any
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The same run in one process: the same steps, jumps by :class:`Regrounding`."""
    weights = make_weights()
    parameters = {name: torch.from_numpy(value) for name, value in weights.items()}
    loop = Regrounding(parameters, every, Horizon(n), rule, **options)
    moments: dict[str, np.ndarray] = {}
    lines, number = [], 0
    for _ in range(segments * every):
        number += 1
        moments = train_step(weights, moments, number)
        line = loop.after_step()
        if line is not None:
            lines.append(line)
            if policy == "reset" and line["n"]:
                moments, number = {}, 0
    return weights, lines


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("pooled", {"wait": 1, "limit": 2.0}),
        ("pooled", {"wait": 2, "limit": 2.0, "keep": 0.5}),
        ("two-point", {}),
        ("rsq", {"threshold": 0.3}),
    ],
)
@pytest.mark.parametrize("policy", ["keep", "reset"])
def test_the_files_give_the_bits_that_the_process_gives(
    start: Path, tmp_path: Path, rule: str, options: dict[str, Any], policy: Any
) -> None:
    result = reground(
        start, tmp_path / "work", command(RESUMING), 4,
        every=5, jump=20, rule=rule, optimizer=policy, **options,
    )  # fmt: skip
    expected, lines = in_process(4, 5, 20, rule, policy, **options)
    found = load(Path(result.model) / "model.safetensors")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert [line["moved"] for line in result.lines] == [line["moved"] for line in lines]
    assert sum(line["moved"] for line in lines) > 0
    assert result.virtual_steps == lines[-1]["virtual_steps"]
    kept = (tmp_path / "work" / "jumps.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == list(result.lines)


def test_a_cap_shortens_the_jump_as_in_the_process(start: Path, tmp_path: Path) -> None:
    result = reground(
        start, tmp_path / "w", command(RESUMING), 1, every=5, jump=100, rule="two-point",
        max_norm=0.01,
    )  # fmt: skip
    weights = make_weights()
    parameters = {name: torch.from_numpy(value) for name, value in weights.items()}
    loop = Regrounding(parameters, 5, Horizon(100), "two-point", max_norm=0.01)
    moments: dict[str, np.ndarray] = {}
    for number in range(1, 6):
        moments = train_step(weights, moments, number)
        line = loop.after_step()
    assert line is not None
    assert result.lines[0]["n"] == pytest.approx(line["n"], rel=1e-9)
    assert result.lines[0]["relative_norm"] == pytest.approx(0.01, rel=1e-3)


def test_normalisation_stays_and_ranges_are_of_no_account(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for i, elements in enumerate((1 << 20, 7)):
        monkeypatch.setattr("trajkit.training.stream.RANGE_ELEMENTS", elements)
        monkeypatch.setattr("trajkit.training.stream.MOST_OPEN_FILES", 256 if i else 0)
        results.append(
            reground(
                start, tmp_path / f"w{i}", command(), 3, every=3, jump=9, wait=0, limit=0.5
            )
        )  # fmt: skip
    a, b = (load(Path(r.model) / "model.safetensors") for r in results)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert [x["moved"] for x in results[0].lines] == [x["moved"] for x in results[1].lines]
    last = load(tmp_path / "w0" / "segment-0003" / "checkpoint-3" / "model.safetensors")
    np.testing.assert_array_equal(a["norm.weight"], last["norm.weight"])
    assert (a["layer.weight"] != last["layer.weight"]).any()


def test_no_steps_to_jump_change_no_bit(start: Path, tmp_path: Path) -> None:
    result = reground(start, tmp_path / "w", command(RESUMING), 3, every=2, jump=0)
    weights, moments = make_weights(), {}
    for number in range(1, 7):
        moments = train_step(weights, moments, number)
    found = load(Path(result.model) / "model.safetensors")
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value)


def test_checkpoints_further_apart_and_plain_files(start: Path, tmp_path: Path) -> None:
    """A trainer that writes bare files is started again from a whole folder."""
    result = reground(
        start, tmp_path / "w", command("--save-every 2 --as-files"), 2, every=4, jump=8, wait=5
    )
    assert {p.name for p in Path(result.model).iterdir()} >= {"model.safetensors", "config.json"}
    last = load(tmp_path / "w" / "segment-0002" / "step4.safetensors")
    found = load(Path(result.model) / "model.safetensors")
    np.testing.assert_array_equal(found["layer.weight"], last["layer.weight"])


@pytest.mark.parametrize(
    ("layout", "weights"),
    [
        ("global_step_{step}/actor/huggingface", "global_step_3/actor/huggingface"),  # verl
        ("global_step{step}_hf", "global_step3_hf"),  # OpenRLHF
        ("step_{step}/policy/weights/model/consolidated", None),  # NeMo-RL
        ("iter_000000{before}", "iter_0000002"),  # slime
    ],
)
def test_other_trainers_folders_are_started_from(
    start: Path, tmp_path: Path, layout: str, weights: str | None
) -> None:
    expected = reground(start, tmp_path / "trl", command(), 3, every=3, jump=6, wait=1, limit=1.0)
    words = command(f"--layout '{layout}'")
    result = reground(start, tmp_path / "w", words, 2, every=3, jump=6, wait=1, limit=1.0)
    result = reground(start, tmp_path / "w", words, 3, every=3, jump=6, wait=1, limit=1.0)
    a, b = (load(Path(r.model) / "model.safetensors") for r in (expected, result))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    if weights is not None:  # before the first jump the trainer's own folder will do
        first = json.loads((tmp_path / "w" / "jumps.jsonl").read_text().splitlines()[0])
        assert first["model"] == str(tmp_path / "w" / "segment-0001" / weights)


def test_the_optimizers_state_is_handed_on_byte_for_byte(start: Path, tmp_path: Path) -> None:
    result = reground(
        start, tmp_path / "w", command(RESUMING), 1, every=3, jump=6, rule="two-point",
        optimizer="keep",
    )  # fmt: skip
    last = tmp_path / "w" / "segment-0001" / "checkpoint-3"
    for name in ("optimizer.pt", "trainer_state.json"):
        assert (Path(result.model) / name).read_bytes() == (last / name).read_bytes()
        assert (Path(result.model) / name).stat().st_ino != (last / name).stat().st_ino


def test_a_state_that_holds_the_weights_is_refused(start: Path, tmp_path: Path) -> None:
    script = tmp_path / "deepspeed.py"
    script.write_text(
        "import subprocess, sys, pathlib\n"
        f"subprocess.run([sys.executable, {str(TRAINER)!r}, *sys.argv[1:]], check=True)\n"
        "out = sys.argv[sys.argv.index('--output') + 1]\n"
        "(pathlib.Path(out) / 'checkpoint-2' / 'global_step2').mkdir()\n"
    )
    words = f"'{sys.executable}' '{script}' --model {{model}} --output {{output}} --total {{total}}"
    options: dict[str, Any] = {"every": 2, "jump": 4, "rule": "two-point"}
    with pytest.raises(NotImplementedError, match="global_step2 holds weights"):
        reground(start, tmp_path / "w", f"{words} {RESUMING}", 1, optimizer="keep", **options)
    reground(start, tmp_path / "w2", words, 1, **options)


def test_a_jump_that_hurt_is_taken_back(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[list[float], list[float]]] = []

    def judge(self: Horizon, before: list[float], after: list[float]) -> bool:
        judged.append((before, after))
        self.n = 10
        return len(judged) != 1

    monkeypatch.setattr(Horizon, "judge", judge)
    result = reground(
        start, tmp_path / "w", command(RESUMING), 2, every=3, jump=20, rule="two-point",
        optimizer="keep", adapt=True,
    )  # fmt: skip
    last = tmp_path / "w" / "segment-0001" / "checkpoint-3"
    assert result.lines[1]["rolled_back"]
    assert Path(result.model) == last
    assert result.virtual_steps == 3
    assert result.real_steps == 6
    assert len(judged[0][0]) == len(judged[0][1]) == 2
    again = reground(
        start, tmp_path / "w", command(RESUMING), 3, every=3, jump=20, rule="two-point",
        optimizer="keep", adapt=True,
    )  # fmt: skip
    assert again.lines[2]["n"] == 10
    log = tmp_path / "w" / "segment-0003" / "checkpoint-6" / "trainer_state.json"
    assert json.loads(log.read_text())["global_step"] == 6  # it resumed from step 3


def run_cli(*words: str, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    code = "from trajkit.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "reground", *words], capture_output=True, text=True, **kwargs
    )


def test_killed_anywhere_it_goes_on_to_the_same_weights(start: Path, tmp_path: Path) -> None:
    options = ["--segments", "5", "--every", "4", "--jump", "12", "--wait", "1", "--limit", "1"]
    rule: dict[str, Any] = {"every": 4, "jump": 12, "wait": 1, "limit": 1.0}
    whole = reground(start, tmp_path / "whole", command(RESUMING), 5, **rule)
    words = [str(start), "--work", str(tmp_path / "w"), "--command"]
    words += [command(RESUMING, "--seconds 0.02"), *options]
    rng = np.random.default_rng(0)
    code = "from trajkit.cli.main import main; main()"
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "reground", *words], stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(float(rng.uniform(1.0, 5.0)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    done = run_cli(*words)
    assert done.returncode == 0, done.stderr
    state = State.read(tmp_path / "w")
    assert state is not None
    a = load(Path(whole.model) / "model.safetensors")
    b = load(Path(state.origin.model) / "model.safetensors")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    keys = ("real_steps", "virtual_steps", "moved", "norm", "reward")
    assert [[x[k] for k in keys] for x in whole.lines] == [
        [x[k] for k in keys] for x in state.lines
    ]
    assert len(list((tmp_path / "w").glob("sums-*"))) == 1
    assert kills


def test_a_kill_after_each_write_goes_on_to_the_same_weights(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule: dict[str, Any] = {"every": 3, "jump": 12, "wait": 1, "limit": 1.0}
    whole = reground(start, tmp_path / "whole", command(), 3, **rule)
    writes = 0
    real = State.write

    class Killed(BaseException):
        pass

    for stop in range(1, 7):

        def write(self: State, work: Path, stop: int = stop) -> None:
            nonlocal writes
            writes += 1
            if writes == stop:
                raise Killed
            real(self, work)

        writes = 0
        work = tmp_path / f"w{stop}"
        monkeypatch.setattr(State, "write", write)
        with pytest.raises(Killed):
            reground(start, work, command(), 3, **rule)
        monkeypatch.setattr(State, "write", real)
        again = reground(start, work, command(), 3, **rule)
        a, b = (load(Path(r.model) / "model.safetensors") for r in (whole, again))
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
        assert [x["norm"] for x in whole.lines] == [x["norm"] for x in again.lines]


def test_a_trainer_that_fails_is_named_and_the_same_command_continues(
    start: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "mended"
    words = [str(start), "--work", str(tmp_path / "w"), "--segments", "2", "--every", "3"]
    words += ["--rule", "two-point", "--jump", "6", "--command"]
    words += [command("--fail-at 2 --flag", str(flag))]
    done = run_cli(*words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "exited with status 3: CUDA out of memory" in done.stderr
    assert "the same command continues" in done.stderr
    flag.touch()
    done = run_cli(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["real_steps"] == 6
    assert (tmp_path / "w" / "segment-0001" / "checkpoint-1").is_dir()  # the first attempt stays
    assert (tmp_path / "w" / "segment-0001-2" / "checkpoint-3").is_dir()


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ("--save-every 99", TrainerFailed, "wrote no checkpoint"),
        ("--save-every 2", TrainerFailed, "expected a checkpoint of step 3, found 2"),
    ],
)
def test_a_trainer_that_does_not_save_is_told_so(
    start: Path, tmp_path: Path, more: str, error: Any, says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        reground(start, tmp_path / "w", command(more), 1, every=3)
    assert "\n" not in str(caught.value)
    done = reground(start, tmp_path / "w", command(), 1, every=3)  # another command, same run
    assert done.real_steps == 3


def test_a_checkpoint_of_another_shape_is_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match=r"head.weight.*has shape \[4, 50\].*\[5, 50\]") as caught:
        reground(start, tmp_path / "w", command("--wider"), 2, every=3, rule="two-point")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "w" / "segment-0001" / "checkpoint-3").is_dir()


def test_a_full_disk_loses_nothing(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule: dict[str, Any] = {"every": 3, "jump": 6, "wait": 0, "limit": 0.5}
    whole = reground(start, tmp_path / "whole", command(), 3, **rule)
    reground(start, tmp_path / "w", command(), 1, **rule)
    before = (tmp_path / "w" / "jumps.jsonl").read_bytes()
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(folder_module, "write_all", full)
        with pytest.raises(StorageError, match="No space left"):
            reground(start, tmp_path / "w", command(), 3, **rule)
        assert (tmp_path / "w" / "jumps.jsonl").read_bytes() == before
    again = reground(start, tmp_path / "w", command(), 3, **rule)
    a, b = (load(Path(r.model) / "model.safetensors") for r in (whole, again))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert not (tmp_path / "w" / "segment-0002-2").exists()  # the trainer did not run twice


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("python t.py --output {output} --steps {steps}", InvalidInput, r"no \{model\}"),
        ("python t.py --model {model} --steps {steps}", InvalidInput, r"no \{output\}"),
        ("python t.py --model {model} --output {output}", InvalidInput, r"no \{steps\}"),
        ("python 't.py --model {model}", InvalidInput, "cannot be read"),
        ("", InvalidInput, "empty"),
        ("no-such-trainer {model} {output} {steps}", NotFound, "no such program"),
    ],
)
def test_a_command_that_cannot_train_is_refused_before_anything_runs(
    start: Path, tmp_path: Path, text: str, error: Any, says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        reground(start, tmp_path / "w", text, 1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_no_shell_sees_the_command(start: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "a b; touch gone $(touch gone) 'q'"
    words = command("--flag ';' ") + " --fail-at 99"
    result = reground(start, hostile, words, 1, every=2, rule="two-point")
    assert Path(result.model).parent == hostile
    assert not list(tmp_path.rglob("gone*"))


def test_places_are_filled_once_and_whole() -> None:
    template = Template(("t", "--m={model}", "{output}/x", "{unknown}", "{segment}"))
    filled = template.fill({"model": "/{output}", "output": "/o", "segment": "3"})
    assert filled == ("t", "--m=/{output}", "/o/x", "{unknown}", "3")


def test_what_was_begun_otherwise_is_not_mixed(start: Path, tmp_path: Path) -> None:
    reground(start, tmp_path / "w", command(), 1, every=2)
    with pytest.raises(Mismatch, match="begun with jump 150, asked for 9"):
        reground(start, tmp_path / "w", command(), 2, every=2, jump=9)
    with pytest.raises(InvalidInput, match=r"needs \{resume\}"):
        reground(start, tmp_path / "w", command(), 2, every=2, optimizer="keep")


def test_two_do_not_work_in_one_folder_nor_beside_a_trainer_left_over(
    start: Path, tmp_path: Path
) -> None:
    words = [str(start), "--work", str(tmp_path / "w"), "--segments", "1", "--every", "3"]
    words += ["--command", command("--seconds 1.5")]
    code = "from trajkit.cli.main import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "reground", *words])
    while not list((tmp_path / "w").glob("segment-*.log")):
        time.sleep(0.05)
    with pytest.raises(Locked, match="works here"):
        reground(start, tmp_path / "w", command(), 1, every=3)
    process.kill()  # the trainer lives on
    process.wait()
    with pytest.raises(Locked, match="trainer that outlived"):
        reground(start, tmp_path / "w", command(), 1, every=3)
    deadline = time.monotonic() + 60
    while True:
        try:
            reground(start, tmp_path / "w", command(), 1, every=3)
            break
        except Locked:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_state_from_elsewhere_is_one_line(start: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    work.mkdir()
    for content in ("[]", "{", '{"made_by": "x"}', "[" * 100_000):
        (work / "reground.json").write_text(content)
        with pytest.raises(ValueError, match="not a state of trajkit reground") as caught:
            reground(start, work, command(), 1)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("policy", "rule", "options"),
    [
        ("keep", "pooled", {"wait": 0, "limit": 1.0}),
        pytest.param("reset", "two-point", {}, marks=pytest.mark.slow),
        pytest.param("reset", "pooled", {"wait": 0, "limit": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_under_the_hf_trainer_files_and_process_give_the_same_weights(
    tmp_path: Path, policy: Any, rule: str, options: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    import hf_trainer

    from trajkit.integrations.trl import RegroundCallback

    hf_trainer.make_model(tmp_path / "base")
    callback = RegroundCallback(4, 20, rule, optimizer=policy, **options)
    model = hf_trainer.train(tmp_path / "base", tmp_path / "one", 8, callbacks=[callback])
    script = Path(hf_trainer.__file__)
    words = f"'{sys.executable}' '{script}' --model {{model}} --output {{output}} --steps {{total}}"
    result = reground(
        tmp_path / "base", tmp_path / "w", f"{words} {RESUMING}", 2,
        every=4, jump=20, rule=rule, optimizer=policy, **options,
    )  # fmt: skip
    jumped = callback.ledger.lines
    assert [x["moved"] for x in result.lines] == [x["moved"] for x in jumped]
    assert min(x["moved"] for x in jumped) > 0
    again = hf_trainer.transformers.AutoModelForCausalLM.from_pretrained(
        result.model, dtype=torch.float32
    )
    expected = dict(model.named_parameters())
    for name, value in again.named_parameters():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_outputs_choose_the_jump(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    import hf_trainer
    from tiny_models import make_tokenizer

    hf_trainer.make_model(tmp_path / "base", vocabulary=96)
    make_tokenizer().save_pretrained(tmp_path / "base")
    lines = [{"prompt": f"{i}+", "response": f"{i * 7}"} for i in range(24)]
    probes = tmp_path / "probes.jsonl"
    probes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = Path(hf_trainer.__file__)
    words = f"'{sys.executable}' '{script}' --model {{model}} --output {{output}} --steps {{total}}"
    result = reground(
        tmp_path / "base", tmp_path / "w", words, 1, every=4, jump=4, rule="guided",
        probes=str(probes),
    )  # fmt: skip
    line = result.lines[0]
    assert line["guide"]
    assert (line["n"] == 4) == (Path(result.model).name == "start-0002")
    assert line["n"] == 0 or line["moved"] > 0
    assert not list((tmp_path / "w").glob("guided-*"))
    hf_trainer.transformers.AutoModelForCausalLM.from_pretrained(result.model)


def test_guided_asks_for_probes(start: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="takes probes"):
        reground(start, tmp_path / "w", command(), 1, rule="guided")
    with pytest.raises(InvalidInput, match="starts anew"):
        reground(
            start, tmp_path / "w", command(RESUMING), 1, rule="guided", probes="p", optimizer="keep"
        )
