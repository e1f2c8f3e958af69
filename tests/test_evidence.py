"""Evidence from files: the streamed Gram matrix against numpy, metrics, the record, the commands."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from conftest import ROOT
from series_on_disk import rounded, write_values

import trajkit
from trajkit.checkpoints.metrics import Metrics, read_metrics, read_trainer_state
from trajkit.cli.main import cli
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, InvalidInput, NotFound, Unsupported
from trajkit.evidence.backtest import backtest
from trajkit.evidence.beside import compare_drifts
from trajkit.evidence.gram import choose_frames
from trajkit.evidence.metrics import judge_metric, judge_metrics
from trajkit.evidence.movement import find_evidence, measure_evidence, read_evidence
from trajkit.fits.window import choose_window
from trajkit.progress import silent
from trajkit.reports.report import report
from trajkit.stats.gram import describe_gram
from trajkit.store.documents import group_document
from trajkit.store.metrics import journal_metrics, keep_metrics, read_kept_metrics
from trajkit.store.store import Store


def store_of(tmp_path: Path, steps: list[int], values_TN: np.ndarray, dtype: str = "float32"):
    path = tmp_path / "trajkit.zarr"
    trajkit.ingest(write_values(tmp_path / "ckpts", steps, values_TN, dtype), path, keyframes=5)
    return Store.open(path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("from_step", [None, 20])  # 20: a window that begins with a delta
def test_streamed_figures_are_those_of_numpy(
    tmp_path: Path, dtype: str, from_step: int | None
) -> None:
    rng = np.random.default_rng(0)
    steps = [0, 10, 20, 30, 50, 90, 100, 110, 120, 130, 140, 160]
    values = 1 + np.cumsum(rng.normal(0, 0.02, (12, 40_000)) + 0.01, axis=0)
    store = store_of(tmp_path, steps, values, dtype)
    found = measure_evidence(store, from_step=from_step)
    inside = [i for i, s in enumerate(steps) if s >= (from_step or 0)]
    d_KN = np.diff(rounded(values[inside], dtype), axis=0)
    dx_K = np.diff(np.array(steps)[inside]).astype(float)
    expected = describe_gram(d_KN @ d_KN.T, dx_K)
    for name in ("net_over_path", "growth", "drift_part", "first_component", "successive_cosine"):
        assert found.overall[name] == pytest.approx(getattr(expected, name), abs=1e-5), name
    np.testing.assert_allclose(found.overall["speed"], expected.speed, rtol=1e-5)
    np.testing.assert_allclose(found.overall["changed"], (d_KN != 0).mean(axis=1))
    assert found.overall["elements"] == 40_000
    assert list(found.modules) == ["w"]


def test_progress_is_shown_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(0).normal(size=(8, 50))
    store = store_of(tmp_path, list(range(8)), values)
    measure_evidence(store, progress=True)
    backtest(store, progress=True)
    said = capsys.readouterr().err
    assert "evidence of 8 checkpoints: " in said
    assert "backtest 4 origins: " in said
    measure_evidence(store)
    backtest(store, progress=False)
    assert capsys.readouterr().err == ""


def test_elements_that_are_not_finite_do_not_move(tmp_path: Path) -> None:
    values = np.outer(np.arange(6.0), np.ones(30))
    values[3, :10] = np.nan
    values[2, 10:12] = np.inf
    found = measure_evidence(store_of(tmp_path, list(range(6)), values))
    assert found.overall["growth"] == pytest.approx(2)
    assert found.overall["speed"] == pytest.approx([np.sqrt(18)] * 5)


def test_many_checkpoints_are_looked_at_through_some(tmp_path: Path) -> None:
    values = np.outer(np.arange(150.0), np.ones(4))
    store = store_of(tmp_path, list(range(150)), values)
    frames = choose_frames(choose_window(store, None, None))
    assert (len(frames), frames[0], frames[-1]) == (65, 0, 149)
    found = measure_evidence(store)
    assert len(found.steps) == 65
    assert found.overall["net_over_path"] == pytest.approx(1)
    assert found.overall["speed"] == pytest.approx([2.0] * 64)


def test_a_turn_in_a_store_is_found_and_auto_begins_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=(2, 3000)) * 0.01
    d_KN = np.repeat([one, two], [8, 22], axis=0) + 0.005 * rng.normal(size=(30, 3000))
    values = 1 + np.concatenate([np.zeros((1, 3000)), np.cumsum(d_KN, axis=0)])
    steps = list(range(0, 310, 10))
    store = store_of(tmp_path, steps, values, "bfloat16")
    found = measure_evidence(store)
    (only,) = found.overall["breaks"]
    assert abs(only["step"] - 80) <= 10  # within one checkpoint
    assert found.linear_from == only["step"]
    done = CliRunner().invoke(
        cli, ["fit", "--store", str(store.path), "--from-step", "auto", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["from_step"] == only["step"]


def test_the_record_is_kept_checked_and_measured_again(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(5, 20))
    store = store_of(tmp_path, [0, 1, 2, 3, 4], values)
    with pytest.raises(NotFound, match="trajkit evidence"):
        read_evidence(store)
    found = measure_evidence(store)
    path = store.path / "evidence" / "zarr.json"
    assert read_evidence(store).document() == path.read_bytes()
    assert trajkit.verify(store.path).ok
    before = path.stat().st_mtime_ns
    assert find_evidence(store, (0, 1, 2, 3, 4)).frames_digest == found.frames_digest
    assert path.stat().st_mtime_ns == before
    assert find_evidence(store, (1, 2, 3)).steps == (1, 2, 3)
    path.write_bytes(path.read_bytes().replace(b'"growth"', b'"grouth"'))
    with pytest.raises(FormatError, match="trajkit evidence again"):
        read_evidence(store)
    assert not trajkit.verify(store.path).ok
    assert find_evidence(store, (1, 2, 3)).steps == (1, 2, 3)  # measured and kept anew
    assert trajkit.verify(store.path).ok
    with pytest.raises(InvalidInput, match="3 checkpoints"):
        measure_evidence(store, to_step=1)


def seal(path: Path, attributes: dict[str, Any]) -> None:
    """Write a record as an attacker would: its digest right."""
    attributes.pop("sha256", None)
    attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
    path.write_bytes(canonical_json(group_document(attributes)))


def test_records_from_elsewhere_are_checked_field_by_field(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(5, 20))
    store = store_of(tmp_path, [0, 1, 2, 3, 4], values)
    measure_evidence(store)
    path = store.path / "evidence" / "zarr.json"
    good = json.loads(path.read_bytes())["attributes"]
    overall = good["overall"]
    turn = {"step": 2, "p_value": 0.001, "cosine": 0.1, "speed_ratio": 1.0}
    changes: list[dict[str, Any]] = [
        {"steps": [0, 1, 1, 3, 4]}, {"steps": [0, 1]}, {"steps": [0, 1, 2, 3, 10**400]},
        {"seconds": 10**400}, {"frames_digest": "\x1b[2J"}, {"modules": []}, {"overall": None},
        {"version": 2}, {"format": "x\ny"}, {"modules": {"a": {}}},
        *({"overall": overall | change} for change in (
            {"speed": ["x"] * 4}, {"speed": [float("nan")] * 4}, {"changed": [0.5]},
            {"cosine": [2.0] * 4}, {"growth": "\x1b"}, {"linear_from": 0.5}, {"net_squared": 10**400},
            {"breaks": [turn | {"cosine": "x"}]}, {"breaks": [turn | {"step": 2**70}]},
            {"breaks": 5}, {"elements": -1},
        )),
    ]  # fmt: skip
    for change in changes:
        seal(path, {**good, **change})
        with pytest.raises(FormatError, match="trajkit evidence again") as raised:
            read_evidence(store)
        assert str(raised.value).isprintable(), change
        (damage,) = trajkit.verify(store.path).bad
        assert damage.what == str(raised.value)
    seal(path, {**good, "overall": overall | {"breaks": [turn]}})
    assert trajkit.verify(store.path).ok
    path.write_bytes(path.read_bytes() + b" ")  # outside of the digest
    assert not trajkit.verify(store.path).ok


def test_damaged_or_missing_records_are_one_line_of_verify(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(5, 20))
    ckpts = write_values(tmp_path / "ckpts", [0, 1, 2, 3, 4], values, "float32")
    (folder,) = Path(ckpts).glob("*4")
    history = [{"step": s, "reward": s / 10} for s in range(5)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    trajkit.ingest(ckpts, tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    measure_evidence(store)
    assert read_kept_metrics(store) is not None
    assert trajkit.verify(store.path).ok
    for name in ("evidence", "metrics"):
        path = store.path / name / "zarr.json"
        whole = path.read_bytes()
        for at in range(0, len(whole), 29):  # any byte
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert len(trajkit.verify(store.path).bad) == 1, (name, at)
        contents: list[bytes] = [b"", b"[" * 5000, b"{}", whole[:-9], b'{"attributes": [1]}']
        for content in contents:
            path.write_bytes(content)
            (damage,) = trajkit.verify(store.path).bad
            assert damage.what.isprintable()
            assert str(path) in damage.what
        path.unlink()
        os.mkfifo(path)
        assert len(trajkit.verify(store.path).bad) == 1
        path.unlink()
        assert len(trajkit.verify(store.path).bad) == 1
        path.write_bytes(whole)
        assert trajkit.verify(store.path).ok
    path = store.path / "metrics" / "zarr.json"
    good = json.loads(path.read_bytes())["attributes"]
    for curves in ({"a": [[0]]}, {"a": [["x", 1]]}, {"a": [[1, "\x1b"]]}, [], {"a": 3}):
        seal(path, {**good, "curves": curves})
        assert read_kept_metrics(store) is None
        (damage,) = trajkit.verify(store.path).bad
        assert damage.what.isprintable()


def test_a_journal_cut_short_is_no_damage_and_a_changed_line_is(tmp_path: Path) -> None:
    store = store_of(tmp_path, [0, 1, 2], np.ones((3, 4)))
    journal_metrics(store.path, [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75}])
    journal = store.path / "metrics" / "journal"
    whole = journal.read_bytes()
    assert trajkit.verify(store.path).ok
    for cut in range(len(whole)):
        journal.write_bytes(whole[:cut])
        assert trajkit.verify(store.path).ok, cut
    journal.write_bytes(whole.replace(b"0.75", b"0.95"))
    (damage,) = trajkit.verify(store.path).bad
    assert "journal: damaged: 1 of" in damage.what
    journal.unlink()
    os.mkfifo(journal)
    assert len(trajkit.verify(store.path).bad) == 1


@pytest.mark.parametrize("name", ["evidence", "metrics"])
def test_records_are_not_written_through_links(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(2).normal(size=(5, 20))
    store = store_of(tmp_path / "run", [0, 1, 2, 3, 4], values)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "zarr.json").write_text("mine")
    (store.path / name).symlink_to(elsewhere)
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 1, "a": 1}]}')

    def write() -> object:
        if name == "evidence":
            return measure_evidence(store)
        return keep_metrics(store, [tmp_path], silent)

    with pytest.raises(FormatError, match="symbolic link"):
        write()
    assert (elsewhere / "zarr.json").read_text() == "mine"


def test_drifts_of_two_runs_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    way = rng.normal(size=500)
    t = np.arange(4.0)[:, None]
    a = store_of(tmp_path / "a", [0, 1, 2, 3], t * way)
    b = store_of(tmp_path / "b", [0, 5, 6, 9], -2 * t * way)
    c = store_of(tmp_path / "c", [0, 1, 2, 3], t * rng.normal(size=500))
    assert compare_drifts(a, (0, 3), b, (0, 9)).overall == pytest.approx(-1)
    found = compare_drifts(a, (0, 3), c, (0, 3))
    assert abs(found.overall or 1.0) < 0.2
    assert found.modules.keys() == {"w"}


def test_the_real_run_and_its_control_are_told_apart(adder_store: Path, tmp_path: Path) -> None:
    """The same model and learning rate; the control's reward is the toss of a coin."""
    shutil.copytree(ROOT / "data" / "adder-grpo-random.zarr", tmp_path / "control.zarr")
    real, control = (
        trajkit.open(adder_store).fits["default"],
        trajkit.fit(tmp_path / "control.zarr"),
    )
    assert (real.describe()["verdict"], control.describe()["verdict"]) == ("drifting", "wandering")
    assert real.describe()["drift_share"] > 0.2
    assert control.describe()["drift_share"] < 0.001
    found = measure_evidence(control.store).overall
    assert found["growth"] < 1.3
    assert found["drift_part"] < 0.05
    kept = read_kept_metrics(control.store)
    assert kept is not None
    assert len(kept.curves["reward"]) == 98


# Metrics.


def test_trainers_state_is_kept_at_ingest(tmp_path: Path) -> None:
    values = np.random.default_rng(4).normal(size=(3, 8))
    ckpts = write_values(tmp_path / "ckpts", [10, 20, 30], values, "float32")
    history = [{"step": s, "reward": s / 10, "epoch": 0.1, "name": "x"} for s in (10, 20)]
    folders = sorted(p for p in Path(ckpts).iterdir())
    (folders[1] / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (folders[2] / "trainer_state.json").write_text("[")
    said = []
    trajkit.ingest(ckpts, tmp_path / "s.zarr", progress=said.append)
    kept = read_kept_metrics(Store.open(tmp_path / "s.zarr"))
    assert kept == Metrics({"reward": ((10, 1.0), (20, 2.0))})
    assert any("no metrics taken" in str(event) for event in said)
    history.append({"step": 30, "reward": 9.0})
    (folders[2] / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    trajkit.ingest(ckpts, tmp_path / "s.zarr")
    kept = read_kept_metrics(Store.open(tmp_path / "s.zarr"))
    assert kept is not None
    assert kept.curves["reward"][-1] == (30, 9.0)
    assert trajkit.verify(tmp_path / "s.zarr").ok


def test_metrics_files_of_every_kind(tmp_path: Path) -> None:
    expected = Metrics({"acc": ((0, 0.5), (10, 0.75))})
    (tmp_path / "m.csv").write_text("step,acc,note\n10,0.75,x\n0,0.5,\n")
    (tmp_path / "m.jsonl").write_text('{"step": 0, "acc": 0.5}\n\n{"step": 10, "acc": 0.75}\n')
    (tmp_path / "m.json").write_text('[{"step": 0, "acc": 0.5}, {"step": 10, "acc": 0.75}]')
    pl.DataFrame({"step": [0, 10], "acc": [0.5, 0.75]}).write_parquet(tmp_path / "m.parquet")
    for kind in ("csv", "jsonl", "json", "parquet"):
        assert read_metrics(tmp_path / f"m.{kind}") == expected, kind


def test_tensorboard_events_where_tbparse_is(tmp_path: Path) -> None:
    pytest.importorskip("tbparse")
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(tmp_path / "events")
    writer.add_scalar("reward", 0.5, 0)
    writer.add_scalar("reward", 0.75, 10)
    writer.close()
    found = read_metrics(tmp_path / "events").curves["reward"]
    assert found == ((0, 0.5), (10, 0.75))


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("gone.csv", None, NotFound, "no such file"),
        ("m.csv", "time,acc\n1,2\n", InvalidInput, "no column 'step'"),
        ("m.csv", "step,acc\n1,no\n", InvalidInput, "no numbers"),
        ("m.csv", "", InvalidInput, "no numbers"),
        ("m.jsonl", "{", FormatError, "not readable"),
        ("m.json", '{"a": 1}', FormatError, "not readable"),
        ("m.json", "[" * 100_000, FormatError, "not readable"),
        ("m.parquet", "PAR1", FormatError, "not readable"),
        ("m.xlsx", "x", Unsupported, "csv"),
    ],
)
def test_bad_metrics_are_one_line(
    tmp_path: Path, name: str, content: str | None, error: type[Exception], words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=words):
        read_metrics(path)


def test_only_finite_numbers_at_whole_steps_are_taken(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "a": float("nan"), "b": "inf", "c": True, "d": [1], "e": 10**400, "f": 1},
        {"step": 1.5, "f": 2},
        {"step": -1, "f": 2},
        {"step": 2**70, "f": 2},
        {"step": None, "f": 2},
        {"f": 2},
    ]
    assert Metrics.of_rows(rows) == Metrics({"f": ((1, 1.0),)})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": 5}))
    with pytest.raises(FormatError, match="trainer's state"):
        read_trainer_state(tmp_path)


def test_the_fall_of_a_metric_is_named_and_losses_fall_well() -> None:
    steps = list(range(0, 210, 10))
    up = [(s, 1 - abs(s - 80) / 200) for s in range(0, 201, 4)]
    found = judge_metric("reward", up, steps, [1.0] * 20)
    assert found is not None
    assert (found.best_step, found.peak_step) == (80, 80)
    assert found.moved_after == pytest.approx(0.6)
    loss = judge_metric("loss", [(s, 1 / (1 + s)) for s in steps], steps, [1.0] * 20)
    assert loss is not None
    assert loss.peak_step is None
    steady = judge_metric("reward", [(s, s / 10) for s in steps], steps, [1.0] * 20)
    assert steady is not None
    assert (steady.best_step, steady.peak_step) == (200, None)
    assert judge_metric("reward", up[:2], steps, [1.0] * 20) is None
    names = [
        f.name for f in judge_metrics(Metrics({"lr": up, "z": up, "reward": up}), steps, [1.0] * 20)
    ]
    assert names == ["reward", "z"]


def test_a_loss_beside_a_reward_names_no_step() -> None:
    """GRPO's loss is about zero whatever the model does; a supervised loss is a goal."""
    steps = list(range(0, 110, 10))
    up = tuple((s, s / 10) for s in steps)
    curves = dict.fromkeys(
        ("loss", "reward", "kl", "train/kl_mean", "eval_loss", "skill", "lr"), up
    )
    names = {f.name for f in judge_metrics(Metrics(curves), steps, [1.0] * 10)}
    assert names == {"reward", "skill"}
    supervised = Metrics({n: c for n, c in curves.items() if n != "reward"})
    names = {f.name for f in judge_metrics(supervised, steps, [1.0] * 10)}
    assert {"loss", "eval_loss"} <= names


def test_the_report_names_best_steps_and_sets_runs_side_by_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    steps = list(range(0, 100, 10))
    walk = np.cumsum(rng.normal(size=(10, 300)), axis=0)
    a = store_of(tmp_path / "a", steps, walk)
    b = store_of(tmp_path / "b", steps, np.arange(10.0)[:, None] * rng.normal(size=300))
    for store in (a, b):
        trajkit.fit(store)
    (tmp_path / "m.csv").write_text(
        "step,<b>acc</b>\n" + "\n".join(f"{s},{1 - abs(s - 30) / 99}" for s in steps)
    )
    result = report(a, tmp_path / "out", metrics=tmp_path / "m.csv", beside=b.path)
    text = Path(result.path).read_text()
    assert "best step is 30" in text
    assert "<b>acc</b>" not in text
    assert "the weights moved along straight lines" in text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["movement"]["metrics"][0]["best_step"] == 30
    assert summary["beside"]["verdicts"] == ["wandering", "straight"]
    done = CliRunner().invoke(
        cli, ["evidence", "--store", str(a.path), "--metrics", str(tmp_path / "m.csv"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"][0]["best_step"] == 30
