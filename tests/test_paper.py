"""Paper mode against the paper's definitions, written out in numpy and scipy."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import linregress

import trajkit
from trajkit.fits.paper import fit_sample
from trajkit.fits.window import choose_window


def by_definition(traj: trajkit.Trajectory, threshold: float) -> dict[str, float]:
    looked, rsqs = 0, []
    for name, info in traj.tensors.items():
        if not name.endswith(".weight"):
            continue
        looked += info.size
        values_TN = np.stack([traj.read(name, s).astype(np.float64).ravel() for s in traj.steps])
        for y in values_TN.T:
            if y.max() - y.min() > 1e-4 and len(np.unique(y)) >= 4:
                rsqs.append(linregress(traj.steps, y).rvalue ** 2)
    rsq = np.array(rsqs)
    return {
        "elements": looked,
        "kept": len(rsq),
        "mean_rsq": rsq.mean(),
        "median_rsq": np.median(rsq),
        "share_above": (rsq > threshold).mean(),
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> trajkit.Trajectory:
    import torch
    from series_on_disk import write_series

    folder = tmp_path_factory.mktemp("paper")
    rng = np.random.default_rng(5)
    walk = np.cumsum(rng.normal(0, 2e-4, (14, 4000)), axis=0) + rng.normal(0, 0.02, 4000)
    states = [
        {
            "a.weight": torch.tensor(y[:2500]).bfloat16(),
            "a.bias": torch.tensor(y[2500:2600]).bfloat16(),
            "b.weight": torch.tensor(y[2600:]).bfloat16().reshape(100, 14),
        }
        for y in walk
    ]
    trajkit.ingest(write_series(folder / "c", range(0, 1400, 100), states), folder / "s.zarr")
    return trajkit.open(folder / "s.zarr")


def test_all_elements(small: trajkit.Trajectory) -> None:
    stats = trajkit.fit(small, 0.7, paper=True, name="paper").record.found.paper
    exact = by_definition(small, 0.7)
    assert stats is not None
    assert (stats["elements"], stats["kept"]) == (exact["elements"], exact["kept"])
    assert 0 < stats["kept"] < stats["elements"]
    assert stats["mean_rsq"] == pytest.approx(exact["mean_rsq"], abs=5e-4)  # half a bin
    assert stats["median_rsq"] == pytest.approx(exact["median_rsq"], abs=2e-3)
    assert stats["share_above"] == pytest.approx(exact["share_above"], abs=1e-9)


def test_a_full_sample_is_exact_and_a_small_one_is_seeded(small: trajkit.Trajectory) -> None:
    window = choose_window(small.store, None, None)
    whole = fit_sample(small, window, 1.0, seed=0, threshold=0.7, budget_bytes=2**30)
    exact = by_definition(small, 0.7)
    for name, value in exact.items():
        assert getattr(whole, name) == pytest.approx(value, rel=1e-9)
    in_groups = fit_sample(small, window, 1.0, seed=0, threshold=0.7, budget_bytes=2**18)
    assert in_groups.kept == whole.kept
    few = fit_sample(small, window, 0.001, seed=1, threshold=0.7, budget_bytes=2**30)
    assert few.elements == 100  # at least 50 of each .weight tensor
    assert few == fit_sample(small, window, 0.001, seed=1, threshold=0.7, budget_bytes=2**30)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_the_fit_and_the_sample_keep_the_same_elements_in_every_dtype(
    dtype: str, tmp_path: Path
) -> None:
    """The fit once counted distinct values as stored: in float32 it kept ten times as many."""
    import torch
    from series_on_disk import write_series

    rng = np.random.default_rng(6)
    steps = np.sort(rng.choice(2000, 15, replace=False))
    walk = np.cumsum(rng.normal(0, 1e-4, (15, 3000)), axis=0) + rng.normal(0, 0.05, 3000)
    states = [{"a.weight": torch.tensor(y).to(getattr(torch, dtype))} for y in walk]
    trajkit.ingest(write_series(tmp_path / "c", steps.tolist(), states), tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    window = choose_window(traj.store, None, None)
    sample = fit_sample(traj, window, 1.0, seed=0, threshold=0.7, budget_bytes=2**30)
    assert 0 < sample.kept < sample.elements
    for keep_sums in (False, True):
        paper = trajkit.fit(
            traj, 0.7, paper=True, name="paper", keep_sums=keep_sums
        ).record.found.paper
        assert paper is not None
        assert (paper["elements"], paper["kept"]) == (sample.elements, sample.kept)
        assert paper["share_above"] == pytest.approx(sample.share_above, abs=1.5 / sample.kept)


def test_sums_that_count_in_another_format_are_not_continued(
    small: trajkit.Trajectory,
) -> None:
    for paper, read in ((False, 14), (True, 14), (True, 0), (False, 14)):
        kept = trajkit.fit(small, 0.7, paper=paper, name="turns", keep_sums=True)
        assert kept.record.found.frames_read == read


def test_real_run_scores_near_the_published_figures(adder_store: Path) -> None:
    """Not a claim about this run: the same code path on real data gives sane numbers."""
    traj = trajkit.open(adder_store)
    window = choose_window(traj.store, None, None)
    sample = fit_sample(traj, window, 0.05, seed=0, threshold=0.7, budget_bytes=2**30)
    assert 0.5 < sample.median_rsq <= 1
    assert 0 < sample.share_kept < 1
