"""The nulls against REFERENCE section 3, and verdicts where the truth is known."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats
from series_on_disk import write_values

import trajkit
from trajkit.stats.drift import count_drifting
from trajkit.stats.movement import measure_movement
from trajkit.stats.nulls import noise_reference, null_rsq
from trajkit.stats.rounding import (
    T_EDGES_E,
    count_changes,
    draw_walks,
    rounded_walks,
    score_values,
)
from trajkit.stats.student import student_tail
from trajkit.stats.walks import durbin_watson, reference_walks

UNEVEN = tuple(s for k in range(17) for s in (1000 * k, 1000 * k + 10))


@pytest.mark.parametrize(
    ("checkpoints", "mean", "median", "above", "high", "dw"),
    [
        (5, 0.498, 0.528, 0.350, 0.950, 2.32),
        (8, 0.459, 0.474, 0.291, 0.916, 1.67),
        (14, 0.444, 0.451, 0.268, 0.899, 1.08),
        (20, 0.440, 0.446, 0.262, 0.893, 0.79),
        (50, 0.436, 0.440, 0.256, 0.887, 0.34),
        (80, 0.432, 0.435, 0.252, 0.888, 0.22),
        (160, 0.432, 0.435, 0.253, 0.888, 0.11),
    ],
)
def test_continuous_walks_score_as_the_reference_table_says(
    checkpoints: int, mean: float, median: float, above: float, high: float, dw: float
) -> None:
    steps = tuple(range(checkpoints))
    rsq = null_rsq(steps)
    assert rsq.mean() == pytest.approx(mean, abs=0.01)
    assert np.median(rsq) == pytest.approx(median, abs=0.01)
    assert (rsq > 0.7).mean() == pytest.approx(above, abs=0.01)
    assert np.quantile(rsq, 0.95) == pytest.approx(high, abs=0.01)
    assert np.median(durbin_watson(steps)) == pytest.approx(dw, abs=0.01)


def test_noise_about_a_constant_is_the_second_null() -> None:
    noise = noise_reference(tuple(range(14)), 0.7)
    assert noise is not None
    assert noise.mean_rsq == pytest.approx(0.077, abs=0.002)  # 1 / (T - 1) exactly
    assert noise.above == pytest.approx(0.0002, abs=0.0002)
    assert noise.dw_median == pytest.approx(2.16, abs=0.02)


@pytest.mark.parametrize(
    ("drift", "median", "above"), [(0.25, 0.61, 0.41), (0.5, 0.835, 0.70), (1, 0.954, 0.98)]
)
def test_walks_with_drift_score_as_the_reference_says(
    drift: float, median: float, above: float
) -> None:
    rng = np.random.default_rng(0)
    walk_WT = np.cumsum(rng.normal(drift, 1, (60_000, 14)), axis=1)
    rsq = score_values(walk_WT, tuple(range(14))).rsq
    assert np.median(rsq) == pytest.approx(median, abs=0.01)
    assert (rsq > 0.7).mean() == pytest.approx(above, abs=0.01)


def test_noiseless_curves_score_as_the_reference_says() -> None:
    t = np.arange(2000) / 1999  # the reference is of a dense axis: with 14 points .92, .93, .86
    curves = np.stack([np.sqrt(t), t**2, 1 - np.exp(-3 * t)])
    rsq = score_values(curves, tuple(range(2000))).rsq
    np.testing.assert_allclose(rsq, [0.96, 0.94, 0.88], atol=0.01)


@pytest.mark.parametrize(("ulps", "median"), [(0.03, 0.20), (0.1, 0.22), (0.2, 0.30), (0.4, 0.38)])
@pytest.mark.parametrize("seed", [1, 2])
def test_rounded_walks_score_less_and_their_size_is_found_from_changes(
    ulps: float, median: float, seed: int
) -> None:
    """34 checkpoints, R² over the elements that move; the null knows only how often each changed."""
    steps = tuple(range(34))
    rng = np.random.default_rng(seed)
    scores = score_values(draw_walks(steps, "master", np.full(20_000, ulps), rng), steps)
    assert np.median(scores.rsq) == pytest.approx(median, abs=0.012)
    changes_B = count_changes(scores.changes, 34)
    changes_B[0] = 20_000 - len(scores.changes)
    null = rounded_walks(steps, "master").mix(changes_B)
    assert null is not None
    assert null.median_rsq == pytest.approx(np.median(scores.rsq), abs=0.015)
    assert null.above(0.7) == pytest.approx((scores.rsq > 0.7).mean(), abs=0.012)
    assert null.median_dw == pytest.approx(np.median(scores.dw), abs=0.06)
    assert null.t_tail_E[2] == pytest.approx((np.abs(scores.drift_t) >= 1).mean(), abs=0.02)


def test_mixed_sizes_and_elements_that_never_move_are_told_apart() -> None:
    steps = tuple(range(34))
    rng = np.random.default_rng(3)
    ulps = np.concatenate([np.full(10_000, 0.03), np.full(10_000, 1.0)])
    scores = score_values(draw_walks(steps, "master", ulps, rng), steps)
    changes_B = count_changes(scores.changes, 34)
    changes_B[0] = 20_000 - len(scores.changes) + 50_000
    null = rounded_walks(steps, "master").mix(changes_B)
    assert null is not None
    assert null.median_rsq == pytest.approx(np.median(scores.rsq), abs=0.02)
    assert null.above(0.7) == pytest.approx((scores.rsq > 0.7).mean(), abs=0.015)


def test_large_increments_score_as_the_continuous_walk_does() -> None:
    for process in ("master", "stored"):
        changes_B = np.zeros(16)
        changes_B[-1] = 1000
        null = rounded_walks(tuple(range(34)), process).mix(changes_B)
        assert null is not None
        assert null.median_rsq == pytest.approx(np.median(null_rsq(tuple(range(34)))), abs=0.01)
    assert null.t_tail_E[4] == pytest.approx(student_tail(np.array(2.0), 32), abs=1e-3)


def test_student_tails_are_scipys() -> None:
    t = np.array([0, 0.1, 1, 2, 3.5, 8, 20])
    for degrees in (1, 2, 3, 4, 7, 12, 32, 63, 500, 2000, 5000):
        exact = 2 * scipy_stats.t.sf(t, degrees)
        np.testing.assert_allclose(student_tail(t, degrees), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [tuple(range(14)), UNEVEN], ids=["even", "uneven"])
def test_drift_t_is_students_on_any_axis(steps: tuple[int, ...]) -> None:
    """Issue 9 A3: 30 % of driftless walks passed |t| >= 2 on an axis like 0, 10, 1000, 1010."""
    rng = np.random.default_rng(0)
    d_WT = rng.normal(size=(40_000, len(steps) - 1)) * np.sqrt(np.diff(steps))
    walk_WT = np.concatenate([np.zeros((40_000, 1)), np.cumsum(d_WT, axis=1)], axis=1)
    t = score_values(walk_WT, steps).drift_t
    for level in (1.0, 2.0, 3.0):
        expected = float(student_tail(np.array(level), len(steps) - 2))
        assert (np.abs(t) >= level).mean() == pytest.approx(expected, abs=0.006)
    reference = reference_walks(steps)
    assert reference is not None
    assert reference.share_drift_t_above_2 == pytest.approx((np.abs(t) >= 2).mean(), abs=0.006)


def test_false_discoveries_stay_below_their_rate() -> None:
    """1,000 elements, 34 checkpoints: driftless, one run in twenty rejects any; with a tenth
    drifting, one rejected element in twenty is driftless."""
    steps, tail_E = tuple(range(34)), student_tail(T_EDGES_E, 32)
    rng = np.random.default_rng(5)
    any_rejected, false_shares = 0, []
    for _ in range(300):
        d_NT = rng.normal(size=(1000, 33))
        t_N = _drift_t(d_NT)
        any_rejected += count_drifting(_histogram(t_N), tail_E).significant > 0
        d_NT[:100] += 1.0
        t_N = _drift_t(d_NT)
        n = count_drifting(_histogram(t_N), tail_E).significant
        edge = np.sort(np.abs(t_N))[::-1][n - 1] if n else np.inf
        false_shares.append((np.abs(t_N[100:]) >= edge).sum() / max(n, 1))
        assert n > 50
    assert any_rejected <= 0.05 * 300 + 3 * np.sqrt(300 * 0.05 * 0.95)
    assert np.mean(false_shares) < 0.05
    assert len(steps) == d_NT.shape[1] + 1


def _drift_t(d_NT: np.ndarray) -> np.ndarray:
    n = d_NT.shape[1]
    return d_NT.mean(axis=1) / (d_NT.std(axis=1, ddof=1) / np.sqrt(n))


def _histogram(t_N: np.ndarray) -> np.ndarray:
    return np.histogram(np.clip(t_N, -19.99, 19.99), 80, (-20, 20))[0]


def test_movement_counts_changes_and_reversals() -> None:
    values = np.array([[0, 0, 1, np.nan], [1, 0, 2, 0], [1, 0, 1, 0], [0, 0, 3, 0]], float)
    moves = measure_movement(values, weight=2.0)
    assert moves.changes_B.tolist() == [2, 0, 2, 2]
    assert (moves.pairs, moves.reversals) == (6.0, 6.0)
    assert moves.reversal_share == 1.0


# Verdicts from files to words.

STEPS = list(range(0, 340, 10))
N = 1500


def verdict_of(tmp_path: Path, values_TN: np.ndarray, dtype: str = "float32") -> dict:
    store = tmp_path / "trajkit.zarr"
    trajkit.ingest(write_values(tmp_path / "ckpts", STEPS, values_TN, dtype), store)
    fit = trajkit.fit(store)
    return fit.describe() | {f"null.{k}": v for k, v in fit.record.found.null.items()}


def _walk(rng: np.random.Generator, drift: float = 0.0) -> np.ndarray:
    signs = rng.choice([-1, 1], N)
    return np.cumsum(rng.normal(0, 1, (34, N)) + drift * signs, axis=0)


def _truth(kind: str, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(34)[:, None] / 33
    slopes = rng.normal(size=N)
    match kind:
        case "line":
            return t * slopes
        case "line and noise":
            return t * slopes + 0.02 * rng.normal(size=(34, N))
        case "walk":
            return _walk(rng)
        case "drift .25" | "drift .5" | "drift 1":
            return _walk(rng, float(kind.split()[1]))
        case "sqrt":
            return np.sqrt(t) * slopes
        case "square":
            return t**2 * slopes
        case "saturating":
            return (1 - np.exp(-3 * t)) * slopes
        case "jump":
            return (t > rng.uniform(0.1, 0.9, N)) * slopes
        case "turn":
            return np.minimum(t, 0.5) * slopes + np.maximum(t - 0.5, 0) * rng.normal(size=N)
        case "noise":
            return rng.normal(size=(34, N))
        case _:
            return np.zeros((34, N))


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("line", "straight"),
        ("line and noise", "straight"),
        ("walk", "wandering"),
        ("noise", "wandering"),
        ("drift .25", "drifting"),
        ("drift .5", "drifting"),
        ("drift 1", "drifting"),
        ("sqrt", "drifting"),
        ("square", "drifting"),
        ("saturating", "drifting"),
        ("jump", "wandering"),
        ("turn", "drifting"),
        ("nothing", "static"),
    ],
)
def test_verdicts_where_the_truth_is_known(tmp_path: Path, kind: str, verdict: str) -> None:
    numbers = verdict_of(tmp_path, 100 + _truth(kind, np.random.default_rng(7)))
    assert numbers["verdict"] == verdict, numbers
    if verdict == "wandering":
        assert numbers["drift_share"] <= 2 / N  # one run in twenty rejects an element or two


@pytest.mark.parametrize("ulps", [0.03, 0.1, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("process", ["master", "stored"])
def test_driftless_walks_in_bf16_wander(tmp_path: Path, ulps: float, process: str) -> None:
    """A walk with an fp32 master seen through bf16, and one whose updates bf16 rounds each time."""
    rng = np.random.default_rng(int(100 * ulps))
    bits_TN = draw_walks(tuple(STEPS), process, np.full(N, ulps), rng).T  # type: ignore[arg-type]
    numbers = verdict_of(tmp_path, 1.5 + bits_TN * 2.0**-7, "bfloat16")
    assert numbers["verdict"] == "wandering"
    assert numbers["drift_share"] <= 2 / N
    key = "null.median_rsq" if process == "master" else "null.stored_median_rsq"
    sampling = 2 / np.sqrt(numbers["fitted"])
    assert numbers[key] == pytest.approx(numbers["median_rsq"], abs=0.02 + sampling)


@pytest.mark.parametrize(
    ("slope", "verdict"), [(0.1, "drifting"), (0.3, "straight"), (2.0, "straight")]
)
def test_lines_in_bf16_drift_and_are_straight(tmp_path: Path, slope: float, verdict: str) -> None:
    """Staircases: their residuals are the rounding's, not a walk's. Three steps one way in all are
    too few to tell an element's drift by, but not a model's."""
    rng = np.random.default_rng(2)
    bits_TN = draw_walks(tuple(STEPS), "line", np.full(N, slope), rng).T
    numbers = verdict_of(tmp_path, 1.25 + bits_TN * 2.0**-7, "bfloat16")
    assert numbers["verdict"] == verdict, numbers
