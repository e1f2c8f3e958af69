"""Skill of outputs: the backtest's rules over tokens, against forecasts made one by one."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from store_series import write_checkpoint

import trajkit
from trajkit.errors import InvalidInput
from trajkit.evidence.backtest import backtest
from trajkit.evidence.origins import plan_backtest
from trajkit.outputs.kept import Outputs, Record
from trajkit.outputs.linearity import fit_lines
from trajkit.outputs.skill import CHOSEN, measure_skill


def made_outputs(tmp_path: Path, steps: tuple[int, ...], y: np.ndarray) -> Outputs:
    class Made(Outputs):
        def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
            return y[:, start:stop]

    record = Record(
        name="made",
        probes="",
        tokenizer="",
        tokens=y.shape[1],
        responses=1,
        dtype="float32",
        divergence_places=1,
        steps=steps,
    )
    return Made(tmp_path, record)


def test_skill_is_what_it_says_and_sees_nothing_later(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps = tuple(range(0, 120, 10))
    y = np.arange(12)[:, None] * rng.standard_normal(400) + 2 * rng.standard_normal((12, 400))
    y = y.astype(np.float32)
    found = measure_skill(made_outputs(tmp_path, steps, y))
    plan = plan_backtest(steps)
    assert found.record["origins"] == [steps[o] for o in plan.origins]
    assert found.record["horizons"] == list(plan.horizons)
    rows = {(row.rule, row.horizon): row.skill for row in found.rows}
    z, x = y.astype(np.float64), np.array(steps, float)
    for i, horizon in enumerate(plan.horizons):
        errors = dict.fromkeys(("hold", "anchored rsq:0.7", "two-point", "mean", "ema 0.5"), 0.0)
        for f in (f for f in plan.forecasts if f.horizon == i):
            known, at, reach = z[: f.origin + 1], x[: f.origin + 1], x[f.target] - x[f.origin]
            slope = np.polyfit(at, known, 1)[0]
            r = np.array([np.corrcoef(at, column)[0, 1] for column in known.T])
            decay = 0.5 ** np.arange(f.origin, -1, -1)
            guesses = {
                "hold": known[-1],
                "anchored rsq:0.7": known[-1] + np.where(r * r > 0.7, reach * slope, 0),
                "two-point": known[-1] + (known[-1] - known[0]) * reach / (at[-1] - at[0]),
                "mean": known.mean(0),
                "ema 0.5": decay @ known / decay.sum(),
            }
            for name, guess in guesses.items():
                errors[name] += ((guess - z[f.target]) ** 2).sum()
        for name in errors.keys() - {"hold"}:
            expected = 1 - errors[name] / errors["hold"]
            assert rows[name, horizon] == pytest.approx(expected, rel=1e-4)
    assert rows[CHOSEN, plan.horizons[0]] is not None
    for few in ((0, 10, 20, 30), (1, 10, 100, 1000, 10000)):
        with pytest.raises(InvalidInput):
            measure_skill(made_outputs(tmp_path, few, y[: len(few)]))


def test_skill_of_tokens_is_the_backtest_of_weights_of_their_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    steps = (0, 10, 20, 40, 50, 60, 70, 90, 100, 110)
    y = np.cumsum(rng.standard_normal((10, 500)) + 0.5, axis=0).astype(np.float32)
    y[:, 7] = 1.0  # a token that never changes
    for row, step in zip(y, steps, strict=True):
        write_checkpoint(tmp_path / "ckpts" / f"checkpoint-{step}", {"w": row})
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    weights = backtest(trajkit.open(tmp_path / "s.zarr")).record
    tokens = measure_skill(made_outputs(tmp_path, steps, y)).record
    for name in ("origins", "horizons", "forecasts", "defaults"):
        assert tokens[name] == weights[name]
    assert tokens["ratio"].keys() == weights["ratio"].keys()
    for name, ratios in tokens["ratio"].items():
        if not name.startswith(("ema", "rank-k")):  # the backtest judges these on a sample
            assert ratios == pytest.approx(weights["ratio"][name], rel=1e-4), name


def test_drift_of_tokens_on_uneven_steps_is_that_of_weights() -> None:
    rng = np.random.default_rng(2)
    steps = (0, 1000, *range(1010, 1110, 10))
    scale = np.sqrt(np.diff(steps))[:, None]
    walks = np.cumsum(rng.standard_normal((len(steps) - 1, 4000)) * scale, axis=0)
    t = fit_lines(np.concatenate([np.zeros((1, 4000)), walks]), steps).drift_t
    expected = 2 * scipy.stats.t.sf(2, len(steps) - 2)
    assert np.mean(np.abs(t) >= 2) == pytest.approx(expected, abs=0.015)
