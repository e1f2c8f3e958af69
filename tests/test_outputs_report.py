"""The report's part about outputs: there where a probe set was scored, and nowhere else."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_models import write_run

import trajkit
from trajkit.errors import InvalidInput, NotFound
from trajkit.outputs.activations import activations
from trajkit.outputs.logprobs import logprobs
from trajkit.progress import Note
from trajkit.reports.outputs_section import read_rewards


def test_the_page_says_what_was_scored(tmp_path: Path) -> None:
    write_run(tmp_path / "ckpts", "qwen3", (0, 10, 25, 30))
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    trajkit.fit(traj, 0.7)
    trajkit.report(traj, tmp_path / "without")
    page = (tmp_path / "without" / "index.html").read_text()
    assert "outputs-" not in page
    assert json.loads((tmp_path / "without" / "summary.json").read_text())["outputs"] is None
    lines = [{"prompt": "<b>&" * n, "response": "some <i>words</i> " * n} for n in (1, 2)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logprobs(traj, tmp_path / "p.jsonl")
    (tmp_path / "r.csv").write_text("step,mean_reward\n0,\n10,0.25\n30,0.5\n")
    trajkit.report(traj, tmp_path / "with", rewards=tmp_path / "r.csv", formats=["svg"])
    page = (tmp_path / "with" / "index.html").read_text()
    for part in ("outputs-drift", "outputs-rsq", "outputs-tokens"):
        assert f'<section id="{part}"' in page
        assert (tmp_path / "with" / "figures" / f"{part}.svg").exists()
    assert "reward" in page
    assert "<i>words" not in page  # text of probes is escaped
    assert page.count("<mark ") == 36  # the longer response, a token a character
    assert not re.search(r"(src|href)=\"http", page)
    summary = json.loads((tmp_path / "with" / "summary.json").read_text())
    assert len(summary["outputs"]["drift"]) == 4
    assert summary["outputs"]["linearity"]["tokens"] == 54


def test_rows_of_weights_that_were_replaced_are_said(tmp_path: Path) -> None:
    write_run(tmp_path / "ckpts", "qwen3", (0, 10, 25, 30))
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "p", "response": "words"}) + "\n")
    logprobs(traj, tmp_path / "p.jsonl")
    activations(traj, tmp_path / "p.jsonl")

    def told() -> tuple[list[str], str]:
        trajkit.fit(tmp_path / "s.zarr", 0.7)
        notes: list[object] = []
        trajkit.report(tmp_path / "s.zarr", tmp_path / "page", force=True, progress=notes.append)
        page = (tmp_path / "page" / "index.html").read_text()
        return [n.text for n in notes if isinstance(n, Note) and "Not " in n.text], page

    notes, page = told()
    assert notes == []
    assert "the store has now" not in page
    shutil.rmtree(tmp_path / "ckpts" / "checkpoint-30")
    (tmp_path / "ckpts" / "checkpoint-25").rename(tmp_path / "ckpts" / "checkpoint-30")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", replace_from=30)
    notes, page = told()
    assert [("scored on" in n, "measured on" in n, "step 30 " in n) for n in notes] == [
        (True, False, True),
        (False, True, True),
    ]
    assert page.count("the weights that the store has now: step 30 of the") == 2


def test_rewards_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_rewards(tmp_path / "r.csv")
    for text in ("", "step,loss\n1,2\n", "step,reward\n1,high\n"):
        (tmp_path / "r.csv").write_text(text)
        with pytest.raises(InvalidInput):
            read_rewards(tmp_path / "r.csv")
