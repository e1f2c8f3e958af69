"""A module's own verdict: that of all its elements together, not a vote of its tensors."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from store_series import write_checkpoint

import trajkit
from trajkit.fits.kept import Fit

STEPS = list(range(0, 140, 10))
LAYERS, SIZE = 80, 15


def fit_of(folder: Path, values: dict[str, np.ndarray]) -> Fit:
    """A fit of float32 tensors given as [T, N]."""
    for t, step in enumerate(STEPS):
        state = {name: v[t].astype(np.float32) for name, v in values.items()}
        write_checkpoint(folder / "c" / f"step_{step}", state)
    trajkit.ingest(folder / "c", folder / "s.zarr")
    return trajkit.fit(folder / "s.zarr")


def test_a_module_is_judged_by_all_of_its_elements(tmp_path: Path) -> None:
    """Drifts too weak for any small tensor alone: together the module drifts, the other does not."""
    rng = np.random.default_rng(0)
    shape = (len(STEPS) - 1, LAYERS * SIZE)
    walk = np.cumsum(rng.normal(size=shape), axis=0)
    signs = rng.choice([-1, 1], size=shape[1])
    drift = np.cumsum(rng.normal(size=shape) + 0.25 * signs, axis=0)
    whole = {
        "up": np.concatenate([np.zeros((1, shape[1])), drift]) + 100,
        "down": np.concatenate([np.zeros((1, shape[1])), walk]) + 100,
    }
    parts = {
        f"model.layers.{i}.mlp.{name}.weight": v[:, i * SIZE : (i + 1) * SIZE]
        for name, v in whole.items()
        for i in range(LAYERS)
    }
    split, merged = fit_of(tmp_path / "split", parts), fit_of(tmp_path / "merged", whole)
    modules = {row["module"]: row for row in split.modules}
    rows = {row["name"]: row for row in merged.rows()}
    assert modules.keys() == {"model.layers.*.mlp.up", "model.layers.*.mlp.down"}
    for name in whole:
        module, row = modules[f"model.layers.*.mlp.{name}"], rows[name]
        assert module["elements"] == row["elements"] == LAYERS * SIZE
        assert module["fitted"] == row["fitted"]
        assert module["drift_share"] * LAYERS * SIZE == pytest.approx(row["drifting"])
        assert module["verdict"] == row["verdict"]
        assert module["median_rsq"] == pytest.approx(row["median_rsq"])
        assert module["null_median_rsq"] == pytest.approx(row["null_median_rsq"])
    assert modules["model.layers.*.mlp.up"]["verdict"] == "drifting"
    assert modules["model.layers.*.mlp.down"]["verdict"] == "wandering"
    votes = Counter(r["verdict"] for r in split.rows() if ".up." in r["name"])
    assert votes.most_common(1)[0][0] == "wandering"  # what a vote would have said


def test_modules_add_up_and_are_shown(tmp_path: Path, adder_store: Path) -> None:
    fit = trajkit.open(adder_store).fits["default"]
    assert sum(row["elements"] for row in fit.modules) == fit.describe()["elements"]
    assert {row["verdict"] for row in fit.modules} <= {
        "static",
        "drifting",
        "wandering",
        "straight",
    }
    result = trajkit.report(adder_store, tmp_path / "out")
    page = Path(result.path).read_text()
    assert "module, layers folded" in page
    assert ", its walks 0." in page
    assert "dashed: its walks" in page
