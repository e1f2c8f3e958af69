"""The fit from files to numbers, against float64 and scipy."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress
from series_on_disk import rounded, write_series, write_values

import trajkit
from trajkit.checkpoints.layout import lay_out
from trajkit.errors import InvalidInput, NotFound, OverBudget
from trajkit.fits.plan import plan_vector
from trajkit.kernels import api as kernels
from trajkit.store.store import Store
from trajkit.store.tensors import element_bits


def fit_of(tmp_path: Path, steps: list[int], values_TN: np.ndarray, dtype: str, **options):
    store = tmp_path / "trajkit.zarr"
    trajkit.ingest(write_values(tmp_path / "ckpts", steps, values_TN, dtype), store)
    return trajkit.fit(trajkit.open(store), **options)


def oracle(steps: list[int], values_TN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope, mean and R² of every column in float64, by the definitions."""
    x = np.asarray(steps, np.float64)
    u = x - x.mean()
    y = values_TN - values_TN.mean(axis=0)
    sxy, syy = u @ y, (y**2).sum(axis=0)
    slope = sxy / (u @ u)
    with np.errstate(invalid="ignore", divide="ignore"):
        rsq = sxy**2 / ((u @ u) * syy)
    return slope, values_TN.mean(axis=0), rsq


def test_real_trajectory_agrees_with_scipy(adder_store: Path) -> None:
    traj = trajkit.open(adder_store)
    fit = traj.fits["default"]
    rng = np.random.default_rng(0)
    checked = 0
    for name, info in traj.tensors.items():
        slopes, means, rsqs = fit.slope(name).ravel(), fit.mean(name).ravel(), fit.rsq(name).ravel()
        elements = rng.choice(info.size, min(150, info.size), replace=False)
        bits_TM = element_bits(traj.store, info.dtype, info.offset + elements)
        values_TM = (bits_TM.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        largest = np.abs(slopes).max()
        for m, element in enumerate(elements):
            if np.ptp(values_TM[:, m]) == 0:
                assert slopes[element] == 0
                assert np.isnan(rsqs[element])
                assert means[element] == values_TM[0, m]
                continue
            exact = linregress(traj.steps, values_TM[:, m])
            assert abs(slopes[element] - exact.slope) <= 1e-5 * largest
            assert abs(rsqs[element] - exact.rvalue**2) < 1e-4
            mean = values_TM[:, m].mean()
            # a float32 result is off by half an ulp at most, plus float32 partial sums about y_1
            assert abs(means[element] - mean) <= 2**-22 * np.abs(values_TM[:, m]).max()
            checked += 1
    assert checked >= 2000


def test_static_elements_are_nan_counted_and_in_no_average(adder_store: Path) -> None:
    traj = trajkit.open(adder_store)
    fit = traj.fits["default"]
    rsq = np.concatenate([fit.rsq(name).ravel() for name in traj.tensors])
    flags = np.concatenate([fit.flags(name).ravel() for name in traj.tensors])
    static = (flags & kernels.FLAG_STATIC) != 0
    numbers = fit.describe()
    assert numbers["static"] == static.sum() > 0
    np.testing.assert_array_equal(np.isnan(rsq), static)
    assert numbers["fitted"] == numbers["elements"] - numbers["static"]
    assert numbers["above_threshold"] == (rsq[~static] > np.float32(0.7)).sum()
    assert numbers["mean_rsq"] == pytest.approx(rsq[~static].mean(dtype=np.float64), abs=1e-6)
    assert numbers["median_rsq"] == pytest.approx(np.median(rsq[~static]), abs=1e-3)
    table = fit.summary()
    assert table["name"].to_list() == list(traj.tensors)
    for column in ("elements", "static", "fitted", "above_threshold", "kept"):
        assert table[column].sum() == numbers[column]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [[0, 10], [5, 6, 50], [0, 1, 7, 8, 100, 1000]])
def test_exact_lines_are_recovered(tmp_path: Path, steps: list[int], dtype: str) -> None:
    slopes = np.array([1.0, -2.0, 0.5, 2.0**-10, 0.0])
    starts = np.array([3.0, 0.0, -7.0, 1.0, 4.0])
    values_TN = starts + np.outer(steps, slopes)
    fit = fit_of(tmp_path, steps, values_TN, dtype)
    np.testing.assert_allclose(fit.slope("w"), slopes, rtol=1e-6)
    np.testing.assert_allclose(fit.rsq("w")[:4], 1.0, rtol=1e-6)
    assert np.isnan(fit.rsq("w")[4])
    np.testing.assert_allclose(fit.mean("w"), starts + slopes * fit.x_mean, rtol=1e-6)


@pytest.mark.parametrize(
    "steps",
    [
        [0, 1],
        [0, 20, 30],
        [100_000, 100_010, 100_020, 100_050, 100_051, 100_200],
        [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987],
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_walks_agree_with_float64(tmp_path: Path, steps: list[int], dtype: str) -> None:
    rng = np.random.default_rng(len(steps))
    walk_TN = np.cumsum(rng.normal(0, 1e-3, (len(steps), 700)), axis=0) + rng.normal(0, 0.05, 700)
    fit = fit_of(tmp_path, steps, walk_TN, dtype)
    slope, mean, rsq = oracle(steps, rounded(walk_TN, dtype))
    moved = np.isfinite(rsq)
    assert np.abs(fit.slope("w") - slope).max() <= 1e-5 * np.abs(slope).max()
    np.testing.assert_allclose(fit.mean("w"), mean, rtol=0, atol=2**-22 * np.abs(mean).max())
    assert np.abs(fit.rsq("w")[moved] - rsq[moved]).max() < 1e-4
    assert np.isnan(fit.rsq("w")[~moved]).all()


def test_windows_may_start_between_key_frames(tmp_path: Path) -> None:
    steps = list(range(0, 90, 3))
    rng = np.random.default_rng(1)
    values_TN = np.cumsum(rng.normal(0, 1e-3, (len(steps), 300)), axis=0)
    store = tmp_path / "trajkit.zarr"
    trajkit.ingest(write_values(tmp_path / "c", steps, values_TN), store, keyframes=8)
    for first, last in ((0, 30), (1, 9), (5, 7), (8, 16), (13, 30)):
        fit = trajkit.fit(
            trajkit.open(store), from_step=steps[first], to_step=steps[last - 1], name="part"
        )
        slope, _, rsq = oracle(steps[first:last], rounded(values_TN[first:last], "bfloat16"))
        moved = np.isfinite(rsq)
        assert fit.steps.tolist() == steps[first:last]
        assert np.abs(fit.slope("w") - slope).max() <= 1e-5 * np.abs(slope).max()
        assert np.abs(fit.rsq("w")[moved] - rsq[moved]).max() < 1e-4


@settings(max_examples=settings().max_examples // 3)
@given(st.integers(8, 40), st.integers(0, 2**32 - 1))
def test_a_small_budget_gives_the_same_fit(
    tmp_path_factory: pytest.TempPathFactory, n_frames: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("fit")
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, 9, n_frames)).tolist()
    values_TN = np.cumsum(rng.normal(0, 1e-3, (n_frames, 200)), axis=0)
    whole = fit_of(folder, steps, values_TN, "bfloat16")
    smallest = plan_vector(whole.store.vectors["bfloat16"], 8, 2**30)[0].bytes_a_worker
    parts = trajkit.fit(trajkit.open(whole.store.path), name="parts", memory=smallest)
    # sums of the same float32 terms in another order, about x̄ in float64
    np.testing.assert_allclose(parts.slope("w"), whole.slope("w"), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(parts.rsq("w"), whole.rsq("w"), atol=1e-5)
    np.testing.assert_array_equal(parts.flags("w"), whole.flags("w"))


def test_invalid_elements_are_named_and_alone(tmp_path: Path) -> None:
    steps = [0, 1, 2, 3]
    values_TN = np.outer(steps, np.ones(5)) + np.arange(5)
    values_TN[2, 1] = np.nan
    values_TN[3, 3] = np.inf
    fit = fit_of(tmp_path, steps, values_TN, "float32")
    assert fit.describe()["invalid"] == 2
    for wrong in (1, 3):
        assert np.isnan([fit.slope("w")[wrong], fit.mean("w")[wrong], fit.rsq("w")[wrong]]).all()
    np.testing.assert_allclose(fit.slope("w")[[0, 2, 4]], 1.0)
    assert fit.summary()["invalid"].to_list() == [2]


def test_integers_are_not_fitted_and_empty_tensors_do_no_harm(tmp_path: Path) -> None:
    import torch

    states = [
        {
            "w": torch.tensor([1.0, 2.0]) * t,
            "ids": torch.tensor([t, 7]),
            "none": torch.zeros(0, 3),
            "one": torch.tensor(float(t)),
        }
        for t in range(3)
    ]
    store = tmp_path / "trajkit.zarr"
    trajkit.ingest(write_series(tmp_path / "c", [0, 1, 2], states), store)
    fit = trajkit.fit(trajkit.open(store))
    assert fit.slope("one").shape == ()
    assert fit.slope("one") == 1.0
    assert fit.rsq("none").shape == (0, 3)
    assert set(fit.summary()["name"]) == {"w", "none", "one"}
    with pytest.raises(NotFound, match="no line is fitted to integers"):
        fit.slope("ids")


def test_refusals(adder_store: Path, tmp_path: Path) -> None:
    traj = trajkit.open(adder_store)
    with pytest.raises(InvalidInput, match="2 checkpoints or more, the window has 1"):
        trajkit.fit(traj, from_step=396, name="x")
    with pytest.raises(InvalidInput, match=r"threshold must lie in \[0, 1\]"):
        trajkit.fit(traj, 1.5, name="x")
    with pytest.raises(InvalidInput, match="not a fit name"):
        trajkit.fit(traj, name="../x")
    with pytest.raises(OverBudget, match="raise --memory"):
        trajkit.fit(traj, memory="1kB", name="x")
    with pytest.raises(NotFound, match="trajkit ingest"):
        trajkit.open(tmp_path / "nothing")
    assert list(trajkit.open(adder_store).fits) == ["default"]


def test_a_failed_fit_leaves_the_old_one(tmp_path: Path) -> None:
    steps, values_TN = [0, 1, 2], np.outer([0.0, 1.0, 2.0], np.ones(9))
    before = fit_of(tmp_path, steps, values_TN, "float32").slope("w")
    shard = next((tmp_path / "trajkit.zarr" / "frames" / "float32" / "c" / "1").iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:5] + bytes([whole[5] ^ 1]) + whole[6:])
    with pytest.raises(trajkit.TrajkitError, match="damaged"):
        trajkit.fit(trajkit.open(tmp_path / "trajkit.zarr"))
    after = trajkit.open(tmp_path / "trajkit.zarr").fits["default"]
    np.testing.assert_array_equal(after.slope("w"), before)


def test_plans_fit_their_budget() -> None:
    vector = lay_out([("w", "bfloat16", (2**20, 300))])["bfloat16"]
    for budget in (2**26, 2**28, 2**30, 2**34):
        for n_frames in (2, 16, 64, 1000):
            plan, batch = plan_vector(vector, n_frames, budget)
            assert plan.n_bytes <= budget
            assert 1 <= batch <= n_frames


def test_zarr_reads_a_fit(adder_store: Path) -> None:
    import zarr

    fit = Store.open(adder_store)
    group = zarr.open_group(adder_store, mode="r")
    ours = trajkit.open(adder_store).fits["default"]
    slope = group[f"fits/default/{ours.folder.name}/bfloat16/slope"][:]
    name, info = next(iter(fit.tensors.items()))
    np.testing.assert_array_equal(slope[info.offset : info.stop], ours.slope(name).ravel())


@settings(max_examples=settings().max_examples // 3)
@given(st.integers(2, 30), st.integers(0, 6), st.sampled_from(["bfloat16", "float32"]))
def test_a_continued_fit_reads_new_frames_and_equals_one_from_scratch(
    tmp_path_factory: pytest.TempPathFactory, before: int, more: int, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("continued")
    rng = np.random.default_rng(before * 31 + more)
    steps = np.cumsum(rng.integers(1, 9, before + more)).tolist()
    values_TN = np.cumsum(rng.normal(0, 1e-3, (before + more, 150)), axis=0)
    values_TN[:, 0] = 1.0
    store = folder / "trajkit.zarr"
    ckpts = write_values(folder / "a", steps[:before], values_TN[:before], dtype)
    trajkit.ingest(ckpts, store, keyframes=4)
    first = trajkit.fit(trajkit.open(store), keep_sums=True)
    assert first.record.found.frames_read == before
    if more:
        later = write_values(folder / "b", steps[before:], values_TN[before:], dtype)
        trajkit.ingest(later, store)
    continued = trajkit.fit(trajkit.open(store), keep_sums=True)
    assert continued.record.found.frames_read == more
    scratch = trajkit.fit(trajkit.open(store), name="scratch")
    # the same float32 differences, summed in batches cut elsewhere: float32 partial sums of at
    # most 64 terms, each off by 2^-24 of its size
    np.testing.assert_allclose(continued.slope("w"), scratch.slope("w"), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(continued.rsq("w"), scratch.rsq("w"), atol=1e-5)
    spread = np.ptp(rounded(values_TN, dtype), axis=0)
    assert (np.abs(continued.mean("w") - scratch.mean("w")) <= 1e-6 * spread).all()
    np.testing.assert_array_equal(continued.flags("w"), scratch.flags("w"))
    assert (
        continued.record.found.stats["few_distinct"] == scratch.record.found.stats["few_distinct"]
    )
    assert trajkit.verify(store).ok


def test_a_fit_of_other_frames_is_not_continued(tmp_path: Path) -> None:
    values_TN = np.outer(np.arange(6.0), np.ones(4))
    fit = fit_of(tmp_path, [0, 1, 2, 3, 4, 5], values_TN, "float32", keep_sums=True)
    traj = trajkit.open(fit.store.path)
    assert trajkit.fit(traj, from_step=1, keep_sums=True).record.found.frames_read == 5
    assert trajkit.fit(traj, to_step=3).record.found.frames_read == 4
    assert trajkit.fit(traj).record.found.frames_read == 6  # the one before kept no sums
