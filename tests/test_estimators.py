"""Estimators beside the line's own: each against plain numpy, and against what the backtest judged."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from series_on_disk import rounded, write_values
from test_backtest import AXIS, forecast_plainly, walks
from test_extrapolate import read

import trajkit
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, InvalidInput, Mismatch
from trajkit.evidence.backtest import backtest
from trajkit.evidence.candidates import Candidate, all_candidates
from trajkit.evidence.kept import commit_backtest
from trajkit.fits.estimators.gates import GateRule, parse_gate
from trajkit.fits.fit import plan_fit
from trajkit.fits.kept import read_fit
from trajkit.store.store import Store

KNOWN = 5
"""checkpoints that a forecast knows"""


def make_store(folder: Path, dtype: str, known: int = len(AXIS)) -> Path:
    """A fitted store of the first checkpoints of ``walks(1)``."""
    write_values(folder / "ckpts", AXIS[:known], walks(1)[:known], dtype)
    trajkit.ingest(folder / "ckpts", folder / "s.zarr", keyframes=4)
    trajkit.fit(folder / "s.zarr", 0.7)
    return folder / "s.zarr"


def values_of(folder: Path) -> np.ndarray:
    """All elements of a written checkpoint, in the store's order, float64 [N]."""
    return np.concatenate([v.ravel() for _, v in sorted(read(folder).items())]).astype(float)


def options_of(candidate: Candidate) -> dict[str, Any]:
    """A rule of the backtest as ``extrapolate`` takes it."""
    options: dict[str, Any] = {"estimator": candidate.estimator}
    if candidate.gate is not None:
        options["gate"] = candidate.gate
    if candidate.estimator == "damped":
        options["damping"] = candidate.damping
    return options


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_what_the_backtest_judged(tmp_path: Path, dtype: str) -> None:
    """Every rule: from a store that ends at the origin, the folder's distance to the real one."""
    store = make_store(tmp_path / "whole", dtype)
    judged = backtest(store, origins=1).record
    origin, y = judged["origins"][0], rounded(walks(1), dtype).astype(float)
    assert AXIS[KNOWN - 1] == origin
    known = make_store(tmp_path / "known", dtype, KNOWN)
    last = y[KNOWN - 1]
    half = 2.0**-25 if dtype == "float32" else 2.0**-9
    for i, horizon in enumerate(judged["horizons"]):
        real = y[AXIS.index(origin + horizon)]
        for candidate in all_candidates():
            out = tmp_path / "out"
            trajkit.extrapolate(known, origin + horizon, out, force=True, **options_of(candidate))
            held = np.linalg.norm(last - real)
            ratio = np.linalg.norm(values_of(out) - real) / held
            rounding = half * np.linalg.norm(np.abs(y).max(axis=0)) * 2 / held
            assert ratio == pytest.approx(judged["ratio"][candidate.name][i], abs=rounding + 2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["shrunk", "wiener", "mean", "anchored t:3"])
def test_weights_and_gates_are_their_equations(tmp_path: Path, dtype: str, name: str) -> None:
    store = make_store(tmp_path, dtype, len(AXIS) - 1)
    y = rounded(walks(1), dtype).astype(float)
    wanted = forecast_plainly(y, np.array(AXIS), len(AXIS) - 2, len(AXIS) - 1)[name]
    estimator, _, gate = name.partition(" ")
    result = trajkit.extrapolate(
        store, AXIS[-1], tmp_path / "out", estimator=estimator, gate=gate or None
    )
    found = values_of(tmp_path / "out")
    half = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float64": 2.0**-24}[dtype]
    scale = np.maximum(np.abs(found), np.abs(y[-2]))
    # the drift's t is kept as float16, so that a weight 1 - 1/t² is off by up to 2^-10/t²
    move = np.abs(wanted - y[-2]) + np.abs(y[-2] - y[0])
    allowed = 4 * half * scale + (2.0**-10 if name == "wiener" else 2e-6) * move + 1e-12
    off = np.abs(found - wanted) > allowed
    if gate == "t:3":  # at the threshold itself float16 decides
        fit = read_fit(Store.open(store))
        t = np.concatenate([np.abs(fit.drift_t(n)).ravel() for n in sorted(fit.store.tensors)])
        off &= t != 3
    assert not off.any(), (found[off], wanted[off], y[-2][off])
    assert result.moved > 100
    assert result.held > 50
    provenance = json.loads((tmp_path / "out" / "trajkit.json").read_text())
    assert provenance["estimator"] == estimator
    assert provenance.get("gate") == (gate or None)
    assert provenance["rsq_threshold"] is None


def test_an_asked_gate_closes_a_weight(tmp_path: Path) -> None:
    store = make_store(tmp_path, "float32")
    last = values_of_last(store)
    trajkit.extrapolate(store, 170, tmp_path / "open", estimator="shrunk")
    trajkit.extrapolate(store, 170, tmp_path / "shut", estimator="shrunk", gate="t:4")
    fit = read_fit(Store.open(store))
    t = np.concatenate([np.abs(fit.drift_t(n)).ravel() for n in sorted(fit.store.tensors)])
    shut = values_of(tmp_path / "shut")
    assert np.array_equal(shut, np.where(t > 4, values_of(tmp_path / "open"), last))
    assert 0 < (shut != last).sum() < (values_of(tmp_path / "open") != last).sum()


def values_of_last(store: Path) -> np.ndarray:
    run = trajkit.open(store)
    last = int(run.store.steps[-1])
    return np.concatenate([run.read(n, last).ravel() for n in sorted(run.store.tensors)]).astype(
        float
    )


def test_the_drift_s_t_is_kept_and_planned(tmp_path: Path) -> None:
    values = walks(1)
    values[:, 0] = np.arange(len(AXIS))  # exact but for the uneven axis
    values[:, 1] = np.array(AXIS) * 0.125  # exact: t is infinite
    write_values(tmp_path / "ckpts", AXIS, values, "float32")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    fit = trajkit.fit(tmp_path / "s.zarr")
    t = np.concatenate([fit.drift_t(n).ravel() for n in sorted(fit.store.tensors)])
    assert t.dtype == np.float16
    assert np.isinf(t[1])
    y, x = rounded(values, "float32").astype(float), np.array(AXIS, float)
    dx = np.diff(x)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        drift = (y[-1] - y[0]) / (x[-1] - x[0])
        s2 = ((np.diff(y, axis=0) - drift * dx) ** 2 / dx).sum(0) / (len(x) - 2)
        plain = drift * np.sqrt(x[-1] - x[0]) / np.sqrt(s2)
    moving = np.ptp(y, axis=0) > 0
    moving[1] = False
    np.testing.assert_allclose(t[moving].astype(float), plain[moving], rtol=2.0**-10, atol=1e-3)
    assert np.isnan(t[~moving][1:]).all()
    folder = fit.folder
    on_disk = sum(p.stat().st_size for p in folder.rglob("c/**/*") if p.is_file())
    assert plan_fit(tmp_path / "s.zarr").n_bytes_written == pytest.approx(on_disk, rel=0.05)


def make_old(store: Path) -> None:
    """The fit as an earlier trajkit left it: without the drift's t."""
    fit = read_fit(Store.open(store))
    document = json.loads((fit.path / "zarr.json").read_text())
    attributes = document["attributes"]
    attributes["digests"] = {
        k: v for k, v in attributes["digests"].items() if not k.endswith("drift_t")
    }
    del attributes["sha256"]
    attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
    (fit.path / "zarr.json").write_bytes(canonical_json(document))
    for dtype in fit.arrays:
        shutil.rmtree(fit.folder / dtype / "drift_t")


def test_a_fit_made_before_the_drift_s_t_was_kept(tmp_path: Path) -> None:
    store = make_store(tmp_path, "float32")
    trajkit.extrapolate(store, 170, tmp_path / "new")
    make_old(store)
    assert "drift_t" not in read_fit(Store.open(store)).arrays["float32"]
    trajkit.extrapolate(store, 170, tmp_path / "old")
    assert np.array_equal(values_of(tmp_path / "new"), values_of(tmp_path / "old"))
    trajkit.extrapolate(store, 170, tmp_path / "shrunk", estimator="shrunk")
    for options in ({"gate": "t:3"}, {"estimator": "wiener"}):
        with pytest.raises(Mismatch, match="run trajkit fit again") as raised:
            trajkit.extrapolate(store, 170, tmp_path / "no", **options)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "no").exists()
    trajkit.fit(store, 0.7)
    trajkit.extrapolate(store, 170, tmp_path / "again", gate="t:3")


def test_gates_by_t_as_people_write_them() -> None:
    rule = parse_gate("t:3")
    assert rule == GateRule("t", 3.0)
    assert str(rule) == "t:3"
    assert rule.of(np.array([-4, 2, np.nan, np.inf], np.float16)).dtype == np.float32
    for text in ("t:-1", "t:inf", "t:nan", "t", "t:1e9"):
        with pytest.raises(InvalidInput):
            parse_gate(text)


def test_auto_takes_what_the_backtest_says(tmp_path: Path) -> None:
    store = make_store(tmp_path, "float32")
    record = backtest(store, origins=1).record
    last = AXIS[-1]
    horizon = record["horizons"][0]
    auto, plain = tmp_path / "auto", tmp_path / "plain"
    result = trajkit.extrapolate(store, last + horizon, auto, estimator="auto")
    why = json.loads((auto / "trajkit.json").read_text())["auto"]
    assert why["horizon_judged"] == horizon
    assert why["trust_horizon"] == record["trust_horizon"]
    assert why["ratio"] == record["ratio"][why["rule"]][0]
    written = {c.name: c for c in all_candidates()}
    assert why["ratio"] == min(record["ratio"][name][0] for name in written)
    trajkit.extrapolate(store, last + horizon, plain, **options_of(written[why["rule"]]))
    assert np.array_equal(values_of(auto), values_of(plain))
    assert "the run's backtest" in (auto / "README.md").read_text()
    assert result.moved > 0
    far = record["trust_horizon"] + 1000
    with pytest.raises(InvalidInput, match="strict") as raised:
        trajkit.extrapolate(store, last + far, tmp_path / "no", estimator="auto", strict=True)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "no").exists()
    warned = trajkit.extrapolate(store, last + far, tmp_path / "far", estimator="auto").warnings
    assert any("beat its last checkpoint" in line for line in warned)


def test_auto_holds_where_holding_is_best(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(len(AXIS), 400)).cumsum(axis=0) * 1e-3
    values[:, 0] = -0.0
    write_values(tmp_path / "ckpts", AXIS, values, "float32")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    record = dict(backtest(store, origins=1).record)
    record["best"] = [
        {**c, "rule": "hold", "estimator": "hold", "gate": None, "ratio": 1.0}
        for c in record["best"]
    ]
    for key in ("table_sha256",):
        record.pop(key)
    commit_backtest(store, record, [{"tensor": "w", "horizon": 1}])
    result = trajkit.extrapolate(store, 160, tmp_path / "out", estimator="auto")
    assert any("those of the last checkpoint" in line for line in result.warnings)
    assert result.moved == 0
    bits = next(iter(read(tmp_path / "out").values()))
    assert bits.tobytes() == trajkit.open(store.path).read("w", AXIS[-1]).tobytes()
    broken = [{**c, "gate": "7", "estimator": "damped", "damping": 9.0} for c in record["best"]]
    commit_backtest(store, record | {"best": broken}, [{"tensor": "w", "horizon": 1}])
    with pytest.raises(FormatError, match="run trajkit backtest again"):
        trajkit.extrapolate(store, 160, tmp_path / "no", estimator="auto")


def test_auto_without_a_backtest_or_with_another_s(tmp_path: Path) -> None:
    store = make_store(tmp_path, "bfloat16")
    result = trajkit.extrapolate(store, 170, tmp_path / "auto", estimator="auto")
    trajkit.extrapolate(store, 170, tmp_path / "plain")
    assert any("no backtest" in line for line in result.warnings)
    assert np.array_equal(values_of(tmp_path / "auto"), values_of(tmp_path / "plain"))
    for options in ({"gate": "t:3"}, {"damping": 0.5}, {"rsq_threshold": 0.5}, {"strict": True}):
        with pytest.raises(InvalidInput):
            trajkit.extrapolate(store, 170, tmp_path / "no", estimator="auto", **options)
    with pytest.raises(InvalidInput, match="strict is of"):
        trajkit.extrapolate(store, 170, tmp_path / "no", strict=True)
    backtest(store, to_step=AXIS[-2])
    with pytest.raises(Mismatch, match="run trajkit backtest"):
        trajkit.extrapolate(store, 170, tmp_path / "no", estimator="auto")
