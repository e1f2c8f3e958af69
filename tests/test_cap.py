"""A cap on the norm of a jump: what is scaled, by how much, and that nothing else changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from series_on_disk import write_series, write_values
from store_series import contents
from test_backtest import AXIS, walks
from test_estimators import values_of, values_of_last
from test_extrapolate import read

import trajkit
from trajkit.errors import InvalidInput, TrajkitWarning
from trajkit.evidence.backtest import backtest
from trajkit.fits.estimators.table import ESTIMATORS
from trajkit.forecast.values import open_values
from trajkit.store.store import Store

RULES: list[dict[str, Any]] = [{"estimator": name} for name in ESTIMATORS]
RULES += [{"estimator": "expo", "alpha": 0.7}, {"estimator": "rank-k", "rank": 3}]
RULES += [{"gate": "t:3"}, {"estimator": "line", "gate": "none"}]


def store_of(folder: Path, dtype: str, values: np.ndarray | None = None) -> Path:
    """A fitted store of walks with drift, the first elements NaN or infinite somewhere."""
    values = walks(1) if values is None else values
    values[3, 0], values[-1, 1], values[-1, 2] = np.nan, np.inf, np.nan
    write_values(folder / "ckpts", AXIS, values, dtype)
    trajkit.ingest(folder / "ckpts", folder / "s.zarr", keyframes=4)
    trajkit.fit(folder / "s.zarr", 0.7)
    return folder / "s.zarr"


@pytest.fixture(scope="module", params=["float32", "float64", "bfloat16"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("run"), request.param)


def moved(folder: Path, last: np.ndarray) -> np.ndarray:
    """What was written less the last checkpoint; NaN where that is not finite."""
    with np.errstate(invalid="ignore"):
        return values_of(folder) - last


def norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values[np.isfinite(values)]))


def target_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "trajkit.json").read_text())["target"]
    return found


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_jump_is_scaled_to_the_cap(tmp_path: Path, store: Path, rule: dict[str, Any]) -> None:
    last = values_of_last(store)
    trajkit.extrapolate(store, 200, tmp_path / "free", **rule)
    free = moved(tmp_path / "free", last)
    size = norm(free) / norm(last)
    cap = 0.4 * size
    result = trajkit.extrapolate(store, 200, tmp_path / "capped", max_norm=cap, **rule)
    capped = moved(tmp_path / "capped", last)
    found = target_of(tmp_path / "capped")
    narrow = "bfloat16" in Store.open(store).vectors
    assert found["relative_norm"] == pytest.approx(size, rel=0.01 if narrow else 1e-5)
    assert found["scale"] == pytest.approx(cap / found["relative_norm"], rel=1e-9)
    assert norm(capped) / norm(last) == pytest.approx(cap, rel=0.02 if narrow else 1e-5)
    half = (2.0**-8 if narrow else 2.0**-23) * np.maximum(np.abs(last), np.abs(last + free))
    off = np.abs(capped - found["scale"] * free) > 2 * half + 1e-7
    assert not off[np.isfinite(capped)].any()
    assert np.array_equal(np.isfinite(capped), np.isfinite(free))
    assert any("was scaled by" in line for line in result.warnings)
    card = (tmp_path / "capped" / "README.md").read_text()
    assert f"scaled by {found['scale']:.3g} of {cap:g}" in card
    assert "The jump to step 200 was scaled" in card


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_cap_that_is_not_reached_changes_no_bit(
    tmp_path: Path, store: Path, rule: dict[str, Any]
) -> None:
    trajkit.extrapolate(store, 200, tmp_path / "free", rounding="stochastic", **rule)
    result = trajkit.extrapolate(
        store, 200, tmp_path / "capped", rounding="stochastic", max_norm=1e6, **rule
    )
    said = {"trajkit.json", "README.md"}
    free, capped = (
        {k: v for k, v in contents(tmp_path / n).items() if k not in said}
        for n in ("free", "capped")
    )
    assert free == capped
    assert target_of(tmp_path / "capped")["scale"] == 1
    assert "within the cap of 1e+06" in (tmp_path / "capped" / "README.md").read_text()
    assert "max_norm" not in (tmp_path / "free" / "trajkit.json").read_text()
    assert not any("scaled" in line for line in result.warnings)
    assert result.targets[0].relative_norm == target_of(tmp_path / "capped")["relative_norm"]


def test_targets_are_capped_one_by_one_and_over_the_whole_model(tmp_path: Path) -> None:
    """Tensors of several dtypes, one copied: one norm of all of them; near targets stay."""
    import torch

    parts = [walks(seed, 60) for seed in (3, 4, 5)]
    states = [
        {
            "a": torch.tensor(a).float(), "b": torch.tensor(b).bfloat16(),
            "norm": torch.tensor(c).float() + 3, "i": torch.arange(3) * 1000,
        }
        for a, b, c in zip(*parts, strict=True)
    ]  # fmt: skip
    write_series(tmp_path / "ckpts", AXIS, states)
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr")
    steps, out = [155, 250, 400], tmp_path / "out"
    free = trajkit.extrapolate(tmp_path / "s.zarr", steps, tmp_path / "free", max_norm=1e9)
    sizes = [t.relative_norm for t in free.targets]
    cap = sizes[1] * 0.9
    found = trajkit.extrapolate(tmp_path / "s.zarr", steps, out, max_norm=cap)
    scales = [t.scale for t in found.targets]
    assert [t.relative_norm for t in found.targets] == sizes
    assert scales == [1, pytest.approx(0.9), pytest.approx(cap / sizes[2])]
    run = trajkit.open(tmp_path / "s.zarr")
    names = ("a", "b", "norm")
    last = {n: run.read(n, AXIS[-1]).astype(float) for n in names}
    whole = np.sqrt(sum((last[n] ** 2).sum() for n in names))
    for step, size in zip(steps, sizes, strict=True):
        written = read(tmp_path / "free" / f"step_{step}")
        jump = np.sqrt(sum(((written[n].astype(float) - last[n]) ** 2).sum() for n in names))
        assert jump / whole == pytest.approx(size, rel=0.02)
    assert (
        contents(out / "step_155")["model.safetensors"]
        == (contents(tmp_path / "free" / "step_155")["model.safetensors"])
    )


def test_budgets_and_workers_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = 0.05 + np.cumsum(rng.normal(size=(len(AXIS), 900_000)) * 1e-3, axis=0)
    store = store_of(tmp_path, "bfloat16", values)
    a = trajkit.extrapolate(store, 300, tmp_path / "a", max_norm=0.01)
    monkeypatch.setattr("trajkit.forecast.chunks.count_workers", lambda: 3)
    b = trajkit.extrapolate(store, 300, tmp_path / "b", max_norm=0.01, memory="30MB")
    assert [t.scale for t in a.targets] == [t.scale for t in b.targets]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    (vector,) = Store.open(store).vectors.values()
    bits = [bits for _, bits in open_values(store, 300, max_norm=0.01).chunks(vector)]
    written = next(iter(read(tmp_path / "a").values()))
    assert np.concatenate(bits).tobytes() == written.tobytes()


def test_auto_is_capped_too(tmp_path: Path) -> None:
    store = store_of(tmp_path, "float32")
    backtest(store, origins=1)
    with pytest.warns(TrajkitWarning, match="was scaled by"):
        trajkit.extrapolate(store, 200, tmp_path / "out", estimator="auto", max_norm=1e-4)
    last = values_of_last(store)
    size = norm(moved(tmp_path / "out", last)) / norm(last)
    assert size == pytest.approx(1e-4, rel=1e-3)


def test_what_is_no_cap_or_has_no_size_is_one_line(tmp_path: Path) -> None:
    store = store_of(tmp_path, "float32")
    for cap in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="max_norm must be"):
            trajkit.extrapolate(store, 200, tmp_path / "out", max_norm=cap)
    values = np.cumsum(np.ones((len(AXIS), 5)), axis=0)
    values[-1] = 0
    write_values(tmp_path / "zero", AXIS, values, "float32")
    trajkit.ingest(tmp_path / "zero", tmp_path / "z.zarr")
    with pytest.raises(InvalidInput, match="no relative size") as raised:
        trajkit.extrapolate(
            tmp_path / "z.zarr", 200, tmp_path / "out", estimator="ema", max_norm=0.1
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    still = write_values(tmp_path / "still", AXIS, np.zeros((len(AXIS), 5)), "float32")
    trajkit.ingest(still, tmp_path / "still.zarr")
    result = trajkit.extrapolate(
        tmp_path / "still.zarr", 200, tmp_path / "rest", estimator="ema", max_norm=0.1
    )
    assert result.targets[0].relative_norm == 0
