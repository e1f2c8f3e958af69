"""The backtest against plain numpy that fits every prefix from scratch; choices; what is kept."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from series_on_disk import rounded, write_series, write_values
from test_cli import run

import trajkit
from trajkit.errors import FormatError, InvalidInput, NotFound
from trajkit.evidence.backtest import backtest
from trajkit.evidence.candidates import Candidate, all_candidates
from trajkit.evidence.choice import choose, trust_horizon
from trajkit.evidence.errors import half_ulps
from trajkit.evidence.kept import check_backtest, read_backtest
from trajkit.evidence.origins import BacktestPlan, Forecast, plan_backtest
from trajkit.kernels.formats import ulp_of
from trajkit.stats.nulls import null_median
from trajkit.store.store import Store

AXIS = [0, 10, 20, 30, 50, 60, 70, 80, 100, 110, 120, 130, 140, 150]


def walks(seed: int, n: int = 400, drift: float = 0.3, scale: float = 1e-3) -> np.ndarray:
    """Walks with drift about values of a weight's size, on ``AXIS``, [T, N]; a fifth at rest."""
    rng = np.random.default_rng(seed)
    dx = np.diff(AXIS)[:, None]
    steps = rng.normal(size=(len(AXIS) - 1, n)) * np.sqrt(dx) + drift * dx * rng.normal(size=n)
    steps[:, rng.uniform(size=n) < 0.2] = 0
    return np.concatenate([np.zeros((1, n)), np.cumsum(steps, axis=0)]) * scale + 0.05


def forecast_plainly(y_TN: np.ndarray, x_T: np.ndarray, o: int, g: int) -> dict[str, np.ndarray]:
    """What rules say of checkpoint ``g`` from checkpoints 0 to ``o``, in float64."""
    x, y = x_T[: o + 1].astype(float), y_TN[: o + 1]
    u = x - x.mean()
    slope = u @ y / (u @ u)
    mean, last, first = y.mean(0), y[-1], y[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        rsq = (u @ y) ** 2 / ((u @ u) * ((y - mean) ** 2).sum(0))
        dx = np.diff(x)[:, None]
        drift = (last - first) / (x[-1] - x[0])
        s2 = ((np.diff(y, axis=0) - drift * dx) ** 2 / dx).sum(0) / (len(x) - 2)
        t = drift * np.sqrt(x[-1] - x[0]) / np.sqrt(s2)
    rsq[np.ptp(y, axis=0) == 0] = np.nan  # at rest: whatever the rounding says
    h = x_T[g] - x[-1]
    null = null_median(tuple(int(v) for v in x))
    assert null is not None
    moves = slope * h
    weight = np.where(rsq > null, (rsq - null) / (1 - null), 0)
    with np.errstate(divide="ignore"):
        shrink = np.where(np.abs(t) > 1, 1 - 1 / t**2, 0)
    return {
        "hold": last,
        "anchored rsq:0.7": last + np.where(rsq > np.float32(0.7), moves, 0),
        "line rsq:0.7": np.where(rsq > np.float32(0.7), mean + slope * (x_T[g] - x.mean()), last),
        "two-point": last + drift * h,
        "damped 0.3 rsq:0.7": last + np.where(rsq > np.float32(0.7), 0.3 * moves, 0),
        "damped 1.5 rsq:0.9": last + np.where(rsq > np.float32(0.9), 1.5 * moves, 0),
        "anchored t:3": last + np.where(np.abs(t) > 3, moves, 0),
        "shrunk": last + moves * weight,
        "wiener": last + drift * h * shrink,
        "mean": mean,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_errors_are_those_of_fits_from_scratch(tmp_path: Path, dtype: str) -> None:
    values = walks(1)
    write_values(tmp_path / "ckpts", AXIS, values, dtype)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", keyframes=4)
    record = backtest(tmp_path / "s.zarr").record
    y, x = rounded(values, dtype), np.array(AXIS)
    for i, horizon in enumerate(record["horizons"]):
        sums: dict[str, float] = {}
        for f in record["forecasts"]:
            if f["horizon"] != horizon:
                continue
            o, g = AXIS.index(f["origin"]), AXIS.index(f["target"])
            for name, forecast in forecast_plainly(y, x, o, g).items():
                sums[name] = sums.get(name, 0.0) + float(((forecast - y[g]) ** 2).sum())
        for name in sums.keys() - {"hold"}:
            expected = np.sqrt(sums[name] / sums["hold"])
            assert record["ratio"][name][i] == pytest.approx(expected, rel=1e-5), (name, horizon)


def test_combinations_are_judged_on_every_sixteenth_element(tmp_path: Path) -> None:
    values = walks(8, 640)
    write_values(tmp_path / "ckpts", AXIS, values, "float32")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", keyframes=3)
    record = backtest(tmp_path / "s.zarr").record
    y, x = rounded(values, "float32")[:, ::16], np.array(AXIS, float)
    shares: dict[str, list[float]] = {"ema 0.8": [], "rank-k 3": []}
    held = []
    last = record["horizons"][-1]
    for f in record["forecasts"]:
        if f["horizon"] != last:
            continue
        o, g = AXIS.index(f["origin"]), AXIS.index(f["target"])
        u, s, vt = np.linalg.svd(y[: o + 1] - y[0], full_matrices=False)
        lines = [np.polyval(np.polyfit(x[: o + 1], u[:, j] * s[j], 1), x[g]) for j in range(3)]
        weights = 0.8 ** np.arange(o, -1, -1.0)
        error = ((y[o] - y[g]) ** 2).sum()
        held.append(((values[o] - values[g]) ** 2).sum())
        average = weights @ y[: o + 1] / weights.sum()
        shares["ema 0.8"].append(((average - y[g]) ** 2).sum() / error)
        shares["rank-k 3"].append(((y[0] + lines @ vt[:3] - y[g]) ** 2).sum() / error)
    for name, share in shares.items():
        expected = np.sqrt(np.average(share, weights=held))
        assert record["ratio"][name][-1] == pytest.approx(expected, rel=1e-3)


def test_a_window_that_starts_between_keys_is_the_same_window(tmp_path: Path) -> None:
    values = walks(2)
    write_values(tmp_path / "all", AXIS, values, "bfloat16")
    write_values(tmp_path / "late", AXIS[3:], values[3:], "bfloat16")
    trajkit.ingest(tmp_path / "all", tmp_path / "a.zarr", keyframes=5)
    trajkit.ingest(tmp_path / "late", tmp_path / "b.zarr")
    one = backtest(tmp_path / "a.zarr", from_step=AXIS[3]).record
    other = backtest(tmp_path / "b.zarr").record
    assert one["ratio"] == other["ratio"]
    assert one["coverage"] == other["coverage"]


def test_tensors_and_dtypes_add_up(tmp_path: Path) -> None:
    import torch

    parts = [walks(seed, 60) for seed in (3, 4)]
    states = [
        {"a": torch.tensor(a), "b": torch.tensor(b).bfloat16(), "i": torch.arange(3)}
        for a, b in zip(*parts, strict=True)
    ]
    write_series(tmp_path / "ckpts", AXIS, states)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    found = backtest(tmp_path / "s.zarr")
    table = found.tensors()
    assert sorted(set(table["tensor"])) == ["a", "b"]
    for i, horizon in enumerate(found.record["horizons"]):
        rows = table.filter(table["horizon"] == horizon)
        held = rows["held_error"].to_numpy()
        pooled = np.sqrt((rows["two-point"].to_numpy() ** 2 * held).sum() / held.sum())
        assert found.record["ratio"]["two-point"][i] == pytest.approx(pooled, rel=1e-9)


def test_an_exact_line_is_forecast_and_a_run_at_rest_says_nothing(tmp_path: Path) -> None:
    x = np.array(AXIS, float)[:, None]
    line = 0.5 + x * np.linspace(-1e-3, 1e-3, 41)[None]
    write_values(tmp_path / "line", AXIS, line, "float64")
    trajkit.ingest(tmp_path / "line", tmp_path / "line.zarr")
    found = backtest(tmp_path / "line.zarr")
    assert max(r for r in found.record["ratio"]["anchored rsq:0.7"]) < 1e-5
    assert found.trust_horizon == found.record["horizons"][-1]
    write_values(tmp_path / "rest", AXIS, np.ones((len(AXIS), 5)), "bfloat16")
    trajkit.ingest(tmp_path / "rest", tmp_path / "rest.zarr")
    found = backtest(tmp_path / "rest.zarr")
    assert found.record["ratio"]["anchored rsq:0.7"] == [None] * len(found.record["horizons"])
    assert found.trust_horizon == 0


def test_driftless_walks_are_not_trusted(tmp_path: Path) -> None:
    """Nothing forecasts a driftless walk; what was chosen beforehand must not seem to."""
    steps = list(range(0, 410, 10))
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(len(steps), 20000)), axis=0) * 1e-3
    write_values(tmp_path / "ckpts", steps, walk, "float32")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    found = backtest(tmp_path / "s.zarr")
    honest = [choice["honest_ratio"] for choice in found.record["best"]]
    assert min(honest) > 0.99
    assert found.record["ratio"]["two-point"][-1] > 1.2


@pytest.mark.parametrize(("kind", "seed"), [("iid", 5), ("walk", 6)])
def test_intervals_cover_what_they_are_made_for(tmp_path: Path, kind: str, seed: int) -> None:
    steps = list(range(0, 300, 10))
    rng = np.random.default_rng(seed)
    x, n = np.array(steps, float)[:, None], 20000
    slopes = rng.normal(size=n) * 1e-4
    noise = rng.normal(size=(len(steps), n)) * 1e-3
    values = x * slopes + (noise if kind == "iid" else np.cumsum(noise, axis=0))
    write_values(tmp_path / "ckpts", steps, values, "float32")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    covered = [c[kind] for c in backtest(tmp_path / "s.zarr").record["coverage"]]
    assert 0.93 < min(covered) <= max(covered) < 0.97


@given(
    st.lists(st.integers(1, 40), min_size=4, max_size=40),
    st.integers(1, 8),
)
def test_plans_never_look_ahead(gaps: list[int], n_origins: int) -> None:
    steps = np.cumsum([0, *gaps]).tolist()
    try:
        plan = plan_backtest(steps, n_origins)
    except InvalidInput:
        return
    assert 1 <= len(plan.origins) <= n_origins
    assert all(a < b for a, b in pairwise(plan.horizons))
    for f in plan.forecasts:
        assert 3 <= f.origin < f.target < len(steps)
        assert plan.reach(f) <= steps[f.origin] - steps[0]
    assert {f.horizon for f in plan.forecasts} == set(range(len(plan.horizons)))


def test_a_choice_knows_only_what_was_known() -> None:
    """Rule 1 is perfect on forecasts that end after the origin: it must not be taken for them."""
    steps = tuple(range(0, 100, 10))
    forecasts = (Forecast(4, 5, 0), Forecast(5, 6, 0), Forecast(5, 9, 1), Forecast(8, 9, 0))
    plan = BacktestPlan(steps, (4, 5, 8), (10, 40), forecasts)
    candidates = all_candidates()[:2]
    errors = np.array([[3.0, 9.0], [9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    held = np.full(4, 9.0)
    near, far = choose(plan, errors, held, candidates)
    # forecast 0 knows nothing (default), 1 knows forecast 0 (rule 0), 3 knows 0 and 1 (rule 1)
    assert near.honest_ratio == pytest.approx(np.sqrt((3 + 9 + 0) / 27))
    assert far.honest_ratio == pytest.approx(1.0)  # forecast 2 knows forecast 0 alone: rule 0
    assert far.rule == candidates[1]
    assert trust_horizon((near, far)) == 10


def test_names_are_unique_and_say_what_extrapolate_takes() -> None:
    names = [c.name for c in all_candidates()]
    assert len(set(names)) == len(names)
    assert Candidate("damped", "t:3", 0.5).name in names


def test_half_an_ulp_is_half_an_ulp() -> None:
    values = np.float32([0.02, -3.0, 1e-38, 0.0, 65504.0])
    for dtype in ("bfloat16", "float32"):
        expected = ulp_of(values, dtype)[[0, 1, 4]] / 2
        np.testing.assert_allclose(half_ulps(values, dtype)[[0, 1, 4]], expected)


def test_it_is_kept_replaced_and_checked(tmp_path: Path, adder_store: Path) -> None:
    path = shutil.copytree(adder_store, tmp_path / "s.zarr")
    with pytest.raises(NotFound, match="trajkit backtest"):
        read_backtest(Store.open(path))
    first = backtest(path, origins=2)
    second = backtest(path)
    kept = read_backtest(Store.open(path))
    assert dict(kept.record) == dict(second.record)
    assert len(kept.record["origins"]) > len(first.record["origins"])
    assert not list(path.glob(".backtest*"))
    assert list(check_backtest(Store.open(path))) == []
    assert trajkit.verify(path).ok
    for name in ("zarr.json", "tensors.json.gz"):
        file = path / "backtest" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        assert len(list(check_backtest(Store.open(path)))) == 1
        assert not trajkit.verify(path).ok
        file.write_bytes(whole)
    import zarr

    assert zarr.open_group(path, mode="r")["backtest"].attrs["format"] == "trajkit-backtest"


def test_a_record_that_does_not_add_up_is_refused(tmp_path: Path, adder_store: Path) -> None:
    import hashlib

    from trajkit.disk import canonical_json
    from trajkit.store.documents import group_document

    path = shutil.copytree(adder_store, tmp_path / "s.zarr")
    backtest(path, origins=2)
    file = path / "backtest" / "zarr.json"
    good = json.loads(file.read_bytes())["attributes"]
    del good["sha256"]
    choice = good["best"][0]
    changes: list[dict[str, Any]] = [
        {"horizons": [2**70]}, {"horizons": []}, {"best": None}, {"ratio": {"a": ["x"]}},
        {"trust_horizon": "far"}, {"origins": [-(2**70)]}, {"ratio": []}, {"coverage": [1]},
        {"defaults": ["none such"]}, {"frames_digest": "x"}, {"ratio": {"\x1b[2J": [0.5]}},
        *({"best": [choice | {name: value}] * len(good["best"])} for name, value in (
            ("honest_ratio", "x"), ("ratio", [1]), ("damping", None), ("damping", 10**400),
            ("rule", "a\nb"), ("parameter", "x"), ("gate", 7), ("horizon", 10**400),
            ("estimator", None),
        )),
    ]  # fmt: skip
    for change in changes:
        attributes = {**good, **change}
        attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
        file.write_bytes(canonical_json(group_document(attributes)))
        with pytest.raises(FormatError, match="trajkit backtest again") as raised:
            read_backtest(Store.open(path))
        assert str(raised.value).isprintable()
        (damage,) = trajkit.verify(path).bad
        assert damage.what.isprintable()


def test_what_somebody_else_keeps_there_is_not_deleted(tmp_path: Path, adder_store: Path) -> None:
    path = shutil.copytree(adder_store, tmp_path / "s.zarr")
    backtest(path, origins=2)
    thesis = path / "backtest" / "thesis.txt"
    thesis.write_text("mine")
    with pytest.raises(FormatError, match=r"thesis\.txt: trajkit did not write this"):
        backtest(path, origins=2)
    assert thesis.read_text() == "mine"
    elsewhere = tmp_path / "elsewhere"
    shutil.move(path / "backtest", elsewhere)
    (path / "backtest").symlink_to(elsewhere)
    with pytest.raises(FormatError, match="symbolic link"):
        backtest(path, origins=2)
    assert sorted(p.name for p in elsewhere.iterdir()) == [
        "tensors.json.gz",
        "thesis.txt",
        "zarr.json",
    ]


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    write_values(tmp_path / "ckpts", [0, 1, 2], np.ones((3, 4)), "float32")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    with pytest.raises(InvalidInput, match="needs 5 checkpoints"):
        backtest(tmp_path / "s.zarr")
    write_values(tmp_path / "more", AXIS, walks(1, 4), "float32")
    trajkit.ingest(tmp_path / "more", tmp_path / "m.zarr")
    for options in ({"origins": 0}, {"horizons": [0]}, {"horizons": [10**6]}):
        with pytest.raises(InvalidInput):
            backtest(tmp_path / "m.zarr", **options)


def test_memory_and_batches_change_nothing(tmp_path: Path) -> None:
    write_values(tmp_path / "ckpts", AXIS, walks(9, 1000), "bfloat16")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    records = [backtest(tmp_path / "s.zarr", memory=m).record for m in ("400KB", "1GiB")]
    for name, row in records[0]["ratio"].items():
        assert row == pytest.approx(records[1]["ratio"][name], rel=1e-4), name


def test_the_command_prints_a_table_and_json(adder_store: Path, tmp_path: Path) -> None:
    path = shutil.copytree(adder_store, tmp_path / "s.zarr")
    done = run("backtest", "--store", str(path), "--origins", "3")
    assert done.returncode == 0, done.stderr
    assert "error over holding" in done.stdout
    assert "beyond the data" in done.stdout
    done = run("backtest", "--store", str(path), "--origins", "3", "--json")
    record = json.loads(done.stdout)
    assert {"origins", "horizons", "ratio", "best", "trust_horizon"} <= record.keys()
    done = run("backtest", "--store", str(path), "--fail-below", "0.999")
    assert done.returncode == 1


def test_the_report_says_how_far_it_can_be_trusted(adder_store: Path, tmp_path: Path) -> None:
    path = shutil.copytree(adder_store, tmp_path / "s.zarr")
    trajkit.report(path, tmp_path / "before")
    assert "How far it can be trusted" not in (tmp_path / "before" / "index.html").read_text()
    found = backtest(path, to_step=300)
    trajkit.report(path, tmp_path / "after")
    page = (tmp_path / "after" / "index.html").read_text()
    assert "How far it can be trusted" in page
    assert "chosen beforehand" in page
    assert "up to step 300; run trajkit backtest again" in page
    summary = json.loads((tmp_path / "after" / "summary.json").read_text())
    assert summary["backtest"]["horizons"] == found.record["horizons"]
