"""The command line as a person runs it: words, exit codes, one line an error."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import HELD_OUT, SEEN
from safetensors.torch import load_file, save_file

import trajkit
from trajkit.cli.main import cli

COMMANDS = ("ingest", "fit", "extrapolate", "report", "restore", "verify", "info")
TRAJKIT = Path(sys.executable).with_name("trajkit")


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    command = [str(TRAJKIT), *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "TRAJKIT_STORE"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def invoke(*arguments: str | Path) -> Result:
    """The command in this process: quick, for what needs no exit code of the real one."""
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_three_commands_verbatim_in_an_empty_folder(tmp_path: Path) -> None:
    shutil.copytree(SEEN, tmp_path / "ckpts")
    for line in (
        "ingest ckpts/",
        "fit --rsq-threshold 0.7",
        "extrapolate --steps 2000 -o out/",
        "report",
    ):
        done = run(*line.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert {"trajkit.zarr", "out", "report"} <= {p.name for p in tmp_path.iterdir()}
    assert (tmp_path / "report" / "index.html").is_file()
    provenance = json.loads((tmp_path / "out" / "trajkit.json").read_text())
    assert provenance["target"]["step"] == 2000
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_json_of_every_command(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"

    def values(*arguments: str | Path) -> dict[str, object]:
        done = invoke(*arguments, "--store", store, "--json", "-q")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    ingested = values("ingest", SEEN)
    assert (ingested["steps"], ingested["ingested"], ingested["skipped"]) == (34, 34, 0)
    assert ingested["raw_bytes"] == 34 * 2 * 99_584
    assert 4 * ingested["stored_bytes"] < ingested["raw_bytes"]
    again = values("ingest", SEEN)
    assert (again["steps"], again["ingested"], again["skipped"]) == (34, 0, 34)
    fitted = values("fit", "--rsq-threshold", "0.7")
    assert fitted["elements"] == 99_584
    assert fitted["fitted"] + fitted["static"] + fitted["invalid"] == fitted["elements"]
    assert fitted["device"] == "cpu"
    assert 0.40 < fitted["continuous_null_median_rsq"] < 0.48
    assert 0.27 < fitted["null_median_rsq"] < 0.33  # increments of .18 ulp, through bf16
    assert fitted["verdict"] == "drifting"
    assert 0.2 < fitted["drift_share"] < 0.3
    assert 0.10 < fitted["null_above_threshold"] < 0.18
    assert {"above_threshold", "median_rsq", "seconds"} <= fitted.keys()
    out = values("extrapolate", "--steps", "500,+10", "-o", tmp_path / "out")
    assert [t["step"] for t in out["targets"]] == [500, 406]
    assert {"moved", "held", "unchanged_after_rounding", "seconds"} <= out.keys()
    assert values("report", "-o", tmp_path / "report")["path"].endswith("index.html")
    assert values("restore", "--step", "12", "-o", tmp_path / "r")["path"] == str(tmp_path / "r")
    verified = values("verify")
    assert (verified["ok"], verified["bad"]) == (True, [])
    info = values("info")
    assert info["steps"] == list(range(0, 397, 12))
    assert list(info["fits"]) == ["default"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command: str) -> None:
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert f"trajkit {command}" in done.output.split("Examples:")[1]


def test_misuse_exits_2_and_errors_exit_1_with_one_line(tmp_path: Path) -> None:
    assert run("fit", "--rsq-threshold", "2").returncode == 2
    assert run("extrapolate").returncode == 2
    done = run("fit", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "trajkit ingest" in done.stderr
    traced = run("--debug", "fit", cwd=tmp_path)
    assert "Traceback" in traced.stderr


def damage_missing(folder: Path) -> str:
    shutil.rmtree(folder)
    return "no such"


def damage_empty(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "no checkpoint"


def damage_truncated(folder: Path) -> str:
    file = folder / "checkpoint-24" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "checkpoint-24"


def damage_shape(folder: Path) -> str:
    file = folder / "checkpoint-24" / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"] = torch.zeros(7, dtype=torch.bfloat16)
    save_file(state, file, {"format": "pt"})
    return "model.norm.weight"


def damage_absent_tensor(folder: Path) -> str:
    file = folder / "checkpoint-24" / "model.safetensors"
    state = load_file(file)
    del state["model.norm.weight"]
    save_file(state, file, {"format": "pt"})
    return "model.norm.weight"


@pytest.mark.parametrize(
    "damage",
    [damage_missing, damage_empty, damage_truncated, damage_shape, damage_absent_tensor],
)
@pytest.mark.parametrize("existing", [False, True])
def test_bad_input_gives_one_line_and_leaves_the_store(
    tmp_path: Path, damage, existing: bool
) -> None:
    folder = tmp_path / "ckpts"
    for step in (0, 12, 24, 36):
        shutil.copytree(SEEN / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    store = tmp_path / "trajkit.zarr"
    if existing:
        trajkit.ingest([folder / "checkpoint-0", folder / "checkpoint-12"], store)
    before = snapshot(store)
    expected = damage(folder)
    done = run("ingest", folder, "--store", store)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected.lower() in done.stderr.lower()
    assert store.exists() == existing
    assert snapshot(store) == before


@pytest.mark.parametrize("inner", ["actor/huggingface", "hf_model", "."])
def test_verl_layouts(tmp_path: Path, inner: str) -> None:
    for step in (12, 24):
        target = tmp_path / "ckpts" / f"global_step_{step}" / inner
        shutil.copytree(SEEN / f"checkpoint-{step}", target)
    (tmp_path / "ckpts" / "latest_checkpointed_iteration.txt").write_text("24")
    assert run("ingest", "ckpts/", cwd=tmp_path).returncode == 0
    traj = trajkit.open(tmp_path / "trajkit.zarr")
    assert traj.steps.tolist() == [12, 24]


def test_sharded_checkpoints_come_back_in_their_files(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for folder in (SEEN / "checkpoint-384", SEEN / "checkpoint-396", HELD_OUT / "checkpoint-420"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        model.save_pretrained(tmp_path / "ckpts" / folder.name, max_shard_size="60kB")
    assert len(list((tmp_path / "ckpts" / "checkpoint-396").glob("model-*.safetensors"))) > 2
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    for step in (384, 396, 420):
        trajkit.restore(traj, step, tmp_path / f"restored-{step}")
        assert snapshot(tmp_path / f"restored-{step}") == snapshot(
            tmp_path / "ckpts" / f"checkpoint-{step}"
        )


def test_restore_gives_every_step_back_bit_for_bit(adder_store: Path, tmp_path: Path) -> None:
    traj = trajkit.open(adder_store)
    for step in (0, 12, 204, 396):
        trajkit.restore(traj, step, tmp_path / str(step))
        assert snapshot(tmp_path / str(step)) == snapshot(SEEN / f"checkpoint-{step}")
    for step in traj.steps.tolist():
        state = load_file(SEEN / f"checkpoint-{step}" / "model.safetensors")
        assert set(state) == set(traj.tensors)
        for name, tensor in state.items():
            read = traj.read(name, step)
            assert read.shape == tuple(tensor.shape)
            assert read.tobytes() == tensor.view(torch.uint16).numpy().tobytes()


def test_the_store_is_five_times_smaller(adder_store: Path) -> None:
    source = sum(p.stat().st_size for p in SEEN.rglob("*.safetensors"))
    stored = trajkit.open(adder_store).store.stored_bytes
    assert stored * 5 < source


def test_output_is_refused_where_something_is(adder_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    for options in ((), ("--force",)):
        done = run("extrapolate", "--steps", "500", "-o", out, "--store", adder_store, *options)
        assert done.returncode == 1
        assert "holds mine.txt, which trajkit did not write; choose another -o" in done.stderr
        assert snapshot(out) == {"mine.txt": b"precious"}
