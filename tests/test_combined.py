"""Averages of checkpoints and lines in a few directions, written: against numpy and the backtest."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from series_on_disk import rounded, write_series, write_values
from test_backtest import AXIS, walks
from test_estimators import KNOWN, values_of
from test_extrapolate import read

import trajkit
from trajkit.errors import FormatError, InvalidInput, OverBudget
from trajkit.evidence.backtest import backtest
from trajkit.evidence.candidates import COMBINATIONS, Candidate
from trajkit.evidence.deltas import measure_deltas, plan_deltas
from trajkit.evidence.kept import commit_backtest, read_backtest
from trajkit.fits.estimators.table import make_estimator
from trajkit.forecast.combine import weigh
from trajkit.forecast.evaluation import resolve
from trajkit.forecast.extrapolate import plan_extrapolate
from trajkit.forecast.request import Request
from trajkit.forecast.values import open_values
from trajkit.progress import silent
from trajkit.store.store import Store

RANK_3 = {"estimator": "rank-k", "rank": 3}
RULES: list[dict[str, Any]] = [
    {"estimator": "ema"},
    {"estimator": "ema", "decay": 0.8},
    {"estimator": "rank-k"},
    RANK_3,
    {"estimator": "rank-k-anchored", "rank": 2},
]


def options_of(candidate: Candidate) -> dict[str, Any]:
    """A combination that the backtest judges, as ``extrapolate`` takes it."""
    name = "decay" if candidate.estimator == "ema" else "rank"
    return {"estimator": candidate.estimator, name: candidate.parameter}


def forecast_by_svd(y_TN: np.ndarray, x_T: np.ndarray, target: int, **rule: Any) -> np.ndarray:
    """The same rules from singular vectors and sums, float64 [N]."""
    if rule["estimator"] == "ema":
        weights = rule.get("decay", 0.5) ** np.arange(len(x_T) - 1, -1, -1.0)
        return weights @ y_TN / weights.sum()
    anchored = rule["estimator"].endswith("anchored")
    u, s, vt = np.linalg.svd(y_TN - y_TN[0], full_matrices=False)
    out = (y_TN[-1] if anchored else y_TN[0]).copy()
    for j in range(rule.get("rank", 1)):
        slope, at_zero = np.polyfit(x_T, u[:, j] * s[j], 1)
        out += vt[j] * (slope * (target - x_T[-1]) if anchored else slope * target + at_zero)
    return out


def store_of(folder: Path, values: np.ndarray, steps: list[int], dtype: str) -> Path:
    write_values(folder / "ckpts", steps, values, dtype)
    trajkit.ingest(folder / "ckpts", folder / "s.zarr", keyframes=4)
    return folder / "s.zarr"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("from_step", [None, 20])  # 20: a window that begins with a delta
def test_what_is_written_is_the_equation(tmp_path: Path, dtype: str, from_step: int | None) -> None:
    store = store_of(tmp_path, walks(1), AXIS, dtype)
    inside = [i for i, step in enumerate(AXIS) if step >= (from_step or 0)]
    y, x = rounded(walks(1), dtype).astype(float)[inside], np.array(AXIS, float)[inside]
    half = 2.0**-8 if dtype == "bfloat16" else 2.0**-24
    at_rest = np.ptp(y, axis=0) == 0
    assert at_rest.sum() > 50
    for i, rule in enumerate(RULES):
        out = tmp_path / f"out{i}"
        result = trajkit.extrapolate(store, 200, out, from_step=from_step, **rule)
        wanted, found = forecast_by_svd(y, x, 200, **rule), values_of(out)
        allowed = 1.01 * half * np.maximum(np.abs(found), np.abs(y[-1]))
        assert (np.abs(found - wanted) <= allowed + 2e-5 * np.ptp(y, axis=0).max()).all()
        assert np.array_equal(found[at_rest], y[-1][at_rest])
        assert result.moved + result.unchanged_after_rounding == (~at_rest).sum()
        provenance = json.loads((out / "trajkit.json").read_text())
        assert provenance["fitted_steps"] == [AXIS[i] for i in inside]
        assert provenance["fit"] is None
        own = {k: v for k, v in rule.items() if k != "estimator"}
        assert own.items() <= provenance["parameters"].items()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_what_the_backtest_judged(tmp_path: Path, dtype: str) -> None:
    """Sixteen copies of each element: what the backtest samples is then the whole model."""
    values = np.repeat(walks(1, 60), 16, axis=1)
    judged = backtest(store_of(tmp_path / "whole", values, AXIS, dtype), origins=1).record
    origin, y = judged["origins"][0], rounded(values, dtype).astype(float)
    assert AXIS[KNOWN - 1] == origin
    known = store_of(tmp_path / "known", values[:KNOWN], AXIS[:KNOWN], dtype)
    last = y[KNOWN - 1]
    half = 2.0**-25 if dtype == "float32" else 2.0**-9
    for i, horizon in enumerate(judged["horizons"]):
        real = y[AXIS.index(origin + horizon)]
        held = np.linalg.norm(last - real)
        for candidate in COMBINATIONS:
            out = tmp_path / "out"
            trajkit.extrapolate(known, origin + horizon, out, force=True, **options_of(candidate))
            ratio = np.linalg.norm(values_of(out) - real) / held
            rounding = half * np.linalg.norm(np.abs(y).max(axis=0)) * 2 / held
            assert ratio == pytest.approx(judged["ratio"][candidate.name][i], abs=rounding + 2e-5)


def test_a_sample_judges_nearly_as_the_whole(tmp_path: Path) -> None:
    """Without copies: 2,500 sampled elements of 40,000 that move as one population."""
    values = walks(2, 40_000)
    judged = backtest(store_of(tmp_path / "whole", values, AXIS, "float32"), origins=1).record
    origin = judged["origins"][0]
    known = store_of(tmp_path / "known", values[:KNOWN], AXIS[:KNOWN], "float32")
    i, horizon = len(judged["horizons"]) - 1, judged["horizons"][-1]
    real, last = values[AXIS.index(origin + horizon)], values[KNOWN - 1]
    for candidate in COMBINATIONS:
        trajkit.extrapolate(
            known, origin + horizon, tmp_path / "out", force=True, **options_of(candidate)
        )
        ratio = np.linalg.norm(values_of(tmp_path / "out") - real) / np.linalg.norm(last - real)
        assert ratio == pytest.approx(judged["ratio"][candidate.name][i], rel=0.05)


def test_auto_writes_what_the_backtest_chose(tmp_path: Path) -> None:
    store = store_of(tmp_path, walks(1), AXIS, "float32")
    trajkit.fit(store)
    found = backtest(store, origins=1)
    record = {k: v for k, v in found.record.items() if k != "table_sha256"}
    horizon = record["horizons"][-1]
    rows = found.tensors().to_dicts()
    for candidate in COMBINATIONS:
        choice = {
            **record["best"][-1], "rule": candidate.name, "estimator": candidate.estimator,
            "gate": None, "damping": 1.0, "parameter": candidate.parameter, "ratio": 0.5,
        }  # fmt: skip
        commit_backtest(Store.open(store), record | {"best": [choice] * len(record["best"])}, rows)
        auto, plain = tmp_path / "auto", tmp_path / "plain"
        result = trajkit.extrapolate(store, AXIS[-1] + horizon, auto, estimator="auto", force=True)
        trajkit.extrapolate(store, AXIS[-1] + horizon, plain, force=True, **options_of(candidate))
        assert np.array_equal(values_of(auto), values_of(plain))
        assert not any("extrapolate writes" in line for line in result.warnings)
        why = json.loads((auto / "trajkit.json").read_text())
        assert why["auto"]["rule"] == candidate.name
        assert why["estimator"] == candidate.estimator
    for broken in (0.5, 0, -1, 1e300):
        choice = {**choice, "parameter": broken}
        commit_backtest(Store.open(store), record | {"best": [choice] * len(record["best"])}, rows)
        assert read_backtest(Store.open(store)).record["best"][0]["parameter"] == broken
        with pytest.raises(FormatError, match="run trajkit backtest again"):
            trajkit.extrapolate(store, 300, tmp_path / "no", estimator="auto")


def test_every_rule_that_is_judged_can_be_written() -> None:
    for candidate in COMBINATIONS:
        options = options_of(candidate)
        assert make_estimator(options.pop("estimator"), options).combines


def test_budgets_and_workers_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk and a half, in one part and in many, by one worker and by three."""
    rng = np.random.default_rng(3)
    steps = list(range(0, 60, 10))
    values = 0.05 + np.cumsum(rng.normal(size=(6, 400_000)) * 1e-3 + 5e-4, axis=0)
    store = store_of(tmp_path, values, steps, "bfloat16")
    opened = Store.open(store)
    (vector,) = opened.vectors.values()
    assert plan_deltas(vector, 6, 2**30)[1] > plan_deltas(vector, 6, 8_000_000)[1]
    one, other = (measure_deltas(opened, range(6), b, silent) for b in (2**30, 8_000_000))
    assert np.array_equal(one, other)
    deltas = rounded(values, "bfloat16").astype(float)
    deltas -= deltas[0]
    np.testing.assert_allclose(one, deltas @ deltas.T, rtol=1e-5, atol=1e-5 * one.max())
    trajkit.extrapolate(store, 90, tmp_path / "a", **RANK_3)
    monkeypatch.setattr("trajkit.forecast.chunks.count_workers", lambda: 3)
    monkeypatch.setattr("trajkit.evidence.deltas.count_workers", lambda: 3)
    trajkit.extrapolate(store, 90, tmp_path / "b", memory="60MB", **RANK_3)
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_elements_that_are_not_numbers_are_held_and_move_nothing_else(tmp_path: Path) -> None:
    values = walks(4)
    clean = store_of(tmp_path / "clean", values[:, 5:], AXIS, "float32")
    values[2, :3] = [np.nan, np.inf, -np.inf]
    values[-1, 3] = np.nan
    values[:, 4] = -0.0
    store = store_of(tmp_path / "bad", values, AXIS, "float32")
    for rule in ({"estimator": "ema"}, RANK_3):
        trajkit.extrapolate(clean, 200, tmp_path / "a", force=True, **rule)
        trajkit.extrapolate(store, 200, tmp_path / "b", force=True, **rule)
        a, b = values_of(tmp_path / "a"), next(iter(read(tmp_path / "b").values())).ravel()
        np.testing.assert_allclose(b[5:], a, rtol=1e-6, atol=1e-7)
        last = trajkit.open(store).read("w", AXIS[-1]).ravel()
        assert b[:5].tobytes() == last[:5].tobytes()


def test_norms_are_copied_gates_close_and_a_float64_run_over_its_range_is_written(
    tmp_path: Path,
) -> None:
    import torch

    parts = walks(5, 40)
    states = [
        {"a": torch.tensor(row) * 1e300, "norm": torch.tensor(row), "i": torch.arange(3) + t}
        for t, row in enumerate(parts)
    ]
    write_series(tmp_path / "ckpts", AXIS, states)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    trajkit.extrapolate(tmp_path / "s.zarr", 200, tmp_path / "out", **RANK_3)
    found = read(tmp_path / "out")
    run = trajkit.open(tmp_path / "s.zarr")
    for name in ("norm", "i"):
        assert np.array_equal(found[name], run.read(name, AXIS[-1]))
    assert np.isfinite(found["a"]).all()
    plain = store_of(tmp_path / "plain", walks(5), AXIS, "float32")
    trajkit.fit(plain)
    trajkit.extrapolate(plain, 200, tmp_path / "open", **RANK_3)
    trajkit.extrapolate(plain, 200, tmp_path / "shut", gate="t:3", **RANK_3)
    t = np.concatenate([
        np.abs(trajkit.open(plain).fits["default"].drift_t(n)).ravel() for n in ["w"]
    ])  # fmt: skip
    last = trajkit.open(plain).read("w", AXIS[-1]).ravel()
    opened, shut = (next(iter(read(tmp_path / n).values())).ravel() for n in ("open", "shut"))
    assert np.array_equal(shut, np.where(t > 3, opened, last))
    assert 0 < (shut != last).sum() < (opened != last).sum()


def test_values_in_memory_are_the_written_ones(tmp_path: Path) -> None:
    store = store_of(tmp_path, walks(6), AXIS, "bfloat16")
    trajkit.extrapolate(store, [200, 230], tmp_path / "out", **RANK_3)
    for step in (200, 230):
        values = open_values(store, step, **RANK_3)
        (vector,) = Store.open(store).vectors.values()
        bits = np.concatenate([bits for _, bits in values.chunks(vector)])
        written = next(iter(read(tmp_path / "out" / f"step_{step}").values()))
        assert bits.tobytes() == written.tobytes()


def test_a_run_at_rest_and_two_checkpoints_are_written(tmp_path: Path) -> None:
    still = store_of(tmp_path / "still", np.full((4, 9), -0.0), AXIS[:4], "bfloat16")
    two = store_of(tmp_path / "two", walks(7)[:2], AXIS[:2], "float32")
    for rule in RULES[:-1]:
        result = trajkit.extrapolate(still, 99, tmp_path / "a", force=True, **rule)
        assert (result.moved, result.unchanged_after_rounding) == (0, 0)
        bits = next(iter(read(tmp_path / "a").values()))
        assert bits.tobytes() == trajkit.open(still).read("w", AXIS[3]).tobytes()
        trajkit.extrapolate(two, 99, tmp_path / "b", force=True, **rule)


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, walks(1), AXIS, "float32")
    out = tmp_path / "out"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"estimator": "rank-k", "rank": 1.5}, "whole number"),
        ({"estimator": "rank-k", "rank": 0}, "rank must lie"),
        ({"estimator": "ema", "decay": 1.5}, "decay must lie"),
        ({"estimator": "ema", "rank": 2}, "rank is a parameter of the estimator rank-k and"),
        ({"estimator": "rank-k", "from_step": 150}, "from_step earlier than its to_step"),
        ({"estimator": "anchored", "from_step": 0}, "select the checkpoints of"),
    ]
    for options, words in wrong:
        with pytest.raises(InvalidInput, match=words) as raised:
            trajkit.extrapolate(store, 200, out, **options)
        assert "\n" not in str(raised.value)
    with pytest.raises(OverBudget):
        plan_extrapolate(store, 200, out, estimator="rank-k", memory="300KB")
    monkeypatch.setattr("trajkit.evidence.deltas.MOST_CHECKPOINTS", 10)
    with pytest.raises(InvalidInput, match="10 checkpoints or fewer, not 14"):
        plan_extrapolate(store, 200, out, estimator="rank-k")
    assert plan_extrapolate(store, 200, out, estimator="ema").memory_bytes > 0
    assert not out.exists()


def test_a_damaged_or_misplaced_frame_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path, walks(1), AXIS, "float32")
    frames = store / "frames" / "float32" / "c"
    good = (frames / "5" / "0").read_bytes()
    (frames / "5" / "0").write_bytes((frames / "6" / "0").read_bytes())
    for rule in ({"estimator": "ema"}, {"estimator": "rank-k"}):
        with pytest.raises(FormatError):
            trajkit.extrapolate(store, 200, tmp_path / "out", **rule)
        assert not (tmp_path / "out").exists()
    (frames / "5" / "0").write_bytes(good)
    shutil.rmtree(frames / "6")
    with pytest.raises(FormatError, match="step 70"):
        trajkit.extrapolate(store, 200, tmp_path / "out", estimator="ema")


def test_a_rule_with_its_weights_is_a_value(tmp_path: Path) -> None:
    import pickle

    store = store_of(tmp_path, walks(1), AXIS, "float32")
    rule = weigh(resolve(Request.make(store, 200, **RANK_3)), (200,), 2**30, silent).rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(rule)
    ((step, weights),) = rule.weights
    assert (step, len(weights)) == (200, len(AXIS))
    assert sum(weights) == pytest.approx(1)
