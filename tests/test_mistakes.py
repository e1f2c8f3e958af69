"""Mistakes of a new user: each gives one line that names the thing and the way out, and exit 1 or 2."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from store_series import contents, small_series, write_checkpoint

import trajkit
from trajkit.cli.main import main


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which somebody works: good and bad checkpoints, stores, and files of their own."""
    root = tmp_path_factory.mktemp("work")
    small_series(root / "ckpts", 4, config={"model_type": "x"})
    trajkit.ingest(root / "ckpts", root / "run.zarr")
    trajkit.fit(trajkit.open(root / "run.zarr"))
    trajkit.ingest(root / "ckpts", root / "unfitted.zarr")
    trajkit.ingest(root / "ckpts" / "checkpoint-10", root / "single.zarr")
    lost = Path(shutil.copytree(root / "unfitted.zarr", root / "lost.zarr"))
    (lost / "zarr.json").unlink()
    for run in ("lr1", "lr2"):
        shutil.copytree(root / "ckpts", root / "runs" / run)
    bins = root / "bins" / "checkpoint-5"
    bins.mkdir(parents=True)
    (bins / "pytorch_model.bin").write_bytes(b"PK")
    shutil.copytree(root / "ckpts" / "checkpoint-10", root / "epochs" / "epoch_1")
    write_checkpoint(root / "other" / "checkpoint-50", {"w": np.zeros(3, np.float32)})
    cut = Path(shutil.copytree(root / "ckpts", root / "cut"))
    file = cut / "checkpoint-20" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    shutil.copytree(root / "ckpts" / "checkpoint-40", root / "late" / "checkpoint-15")
    (root / "empty").mkdir()
    (root / "thesis").mkdir()
    (root / "thesis" / "chapter.tex").write_text("x")
    (root / "notes.txt").write_text("x")
    again = Path(shutil.copytree(root / "ckpts", root / "again"))
    small_series(root / "resumed", 5, seed=9, config={"model_type": "x"})
    for step in (30, 40, 50):
        shutil.copytree(
            root / "resumed" / f"checkpoint-{step}",
            again / f"checkpoint-{step}",
            dirs_exist_ok=True,
        )
    return root


RUN = "--store run.zarr"

MISTAKES = {
    # ingest: where are the checkpoints?
    "ingest ckpt": "no such file or folder",
    "ingest empty": "looked for checkpoint-N",
    "ingest": "Missing argument",
    "ingest Qwen/Qwen2.5-1.5B": "no such file or folder",
    "ingest ckpts --base Qwen/Qwen2.5-1.5B --store b.zarr": "hf download",
    "ingest ckpts --base empty --store b.zarr": "no weights of a base model",
    "ingest bins": "safe_serialization=True",
    "ingest bins/checkpoint-5/pytorch_model.bin": "safe_serialization=True",
    "ingest notes.txt": "expected a .safetensors file",
    "ingest runs": "pass the one that is meant",
    "ingest runs/lr1 runs/lr2": "two checkpoints claim step 10",
    "ingest epochs": "--pattern",
    "ingest epochs --pattern epoch": "'epoch_(\\d+)'",
    "ingest epochs --pattern epoch-([0-9]+)": "there are epoch_1",
    "ingest epochs --pattern epoch_([0-9]+": "not a regular expression",
    "ingest 5=nowhere": "no such file or folder: nowhere",
    "ingest cut --store c.zarr": "checkpoint-20",
    # ingest: into which store?
    "ingest ckpts --store thesis": "name a new folder with --store",
    "ingest ckpts --store notes.txt": "name another place with --store",
    "ingest ckpts --store lost.zarr": "put zarr.json back",
    "ingest other " + RUN: "each run needs a --store of its own",
    "ingest late " + RUN: "--replace-from 15",
    "ingest again " + RUN: "--replace-from 30",
    "ingest ckpts --replace-from 99 " + RUN: "name the folder of the resumed run",
    "ingest ckpts --replace-from 0 " + RUN: "another --store",
    "ingest ckpts --codec lz4 " + RUN: "leave the option out",
    "ingest ckpts --keyframes 3 " + RUN: "leave the option out",
    "ingest ckpts --dtype float32 " + RUN: "name another with --store",
    # ingest: options
    "ingest ckpts --codec gzip": "'zstd'",
    "ingest ckpts --memory lots": "512MiB",
    "ingest ckpts --memory 1k --store m.zarr": "raise --memory",
    "ingest ckpts --poll-seconds -1": "x>=0",
    "ingest ckpts --stor run.zarr": "--store",
    "ingset ckpts": "ingest",
    # fit
    "fit --store rum.zarr": "trajkit ingest CKPTS",
    "fit --store ckpts": "trajkit ingest CKPTS",
    "fit --store notes.txt": "--store",
    "fit --store single.zarr": "ingest more",
    "fit --rsq-threshold 70 " + RUN: "0<=x<=1",
    "fit --from-step 35 " + RUN: "widen --from-step",
    "fit --sample 0.1 " + RUN: "--paper",
    "fit --device gpu " + RUN: "'cuda'",
    "fit --name a/b " + RUN: "name",
    # extrapolate
    "extrapolate --steps 60 -o out --store unfitted.zarr": "trajkit fit",
    "extrapolate --steps 60 -o out --fit ealry " + RUN: "default",
    "extrapolate -o out " + RUN: "--steps",
    "extrapolate --steps 60 " + RUN: "'-o'",
    "extrapolate --steps sixty -o out " + RUN: "whole numbers such as",
    "extrapolate --steps 60 -o ckpts/checkpoint-10 --force " + RUN: "choose another -o",
    "extrapolate --steps 60 -o notes.txt " + RUN: "choose another -o",
    "extrapolate --steps 60 -o run.zarr --force " + RUN: "choose another -o",
    "extrapolate --steps 60 -o . --force " + RUN: "choose another -o",
    "extrapolate --steps 60 -o out --tensors *.mlp.* " + RUN: "PATTERN=RULE",
    "extrapolate --steps 60 -o out --tensors *.mpl.*=hold " + RUN: "* stands for any characters",
    "extrapolate --steps 60 -o out --tensors *norm*=freeze " + RUN: "hold",
    "extrapolate --steps 60 -o out --like other/checkpoint-50 " + RUN: "tensor",
    "extrapolate --steps 60 -o out --estimator linear " + RUN: "'anchored'",
    # restore, report, verify, info
    "restore --step 15 -o out " + RUN: "from 10 to 40",
    "restore --step 20 -o ckpts/checkpoint-20 --force " + RUN: "choose another -o",
    "report -o thesis --force " + RUN: "choose another -o",
    "report --store unfitted.zarr": "trajkit fit",
    "report --format gif " + RUN: "png",
    "verify --against ckpt " + RUN: "no such file or folder",
    "verify --store lost.zarr": "trajkit ingest CKPTS",
    "info --store nothing.zarr": "trajkit ingest CKPTS",
    "info run.zarr": "unexpected extra argument",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_and_the_way_out(
    prepared: Path, mistake: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("TRAJKIT_STORE", raising=False)
    monkeypatch.setattr(sys, "argv", ["trajkit", *mistake.split()])
    before = contents(prepared)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert ended.value.code in (1, 2), said
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if not line.startswith("compiling, once")]
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: "), said.err
    assert len(lines[0]) < 700
    assert MISTAKES[mistake] in lines[0]
    assert contents(prepared) == before, "nothing is written or lost"


def test_there_are_forty_of_them() -> None:
    assert len(MISTAKES) >= 40


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_no_permission(prepared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    sys.argv = ["trajkit", "ingest", str(prepared / "ckpts"), "--store", str(tmp_path / "locked/s")]
    with pytest.raises(SystemExit):
        main()
    assert "Permission denied" in capfd.readouterr().err


def test_a_wrong_line_in_json_mode_is_still_on_stderr(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared)
    for arguments, expected in (("info --json --store run.zarr", True), ("info --json", False)):
        monkeypatch.setattr(sys, "argv", ["trajkit", *arguments.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        assert (ended.value.code == 0) == expected
        if expected:
            assert json.loads(said.out)["steps"] == [10, 20, 30, 40]
        else:
            assert said.out == ""
            assert said.err.startswith("error: no store at trajkit.zarr")
