"""How runs move: the Gram matrix, its figures, breaks, intervals; synthetic truth first."""

import numpy as np
import pytest

from trajkit.stats.axis import StepAxis
from trajkit.stats.gram import describe_gram
from trajkit.stats.intervals import diffusion_interval, iid_interval, student_quantile
from trajkit.stats.turning import find_breaks, linear_regime

N, K = 3000, 33
ONES = np.ones(K)


def gram_of(walk_TN: np.ndarray) -> np.ndarray:
    d_KN = np.diff(walk_TN, axis=0)
    return d_KN @ d_KN.T


def turned(at: int, noise: float, seed: int = 0) -> np.ndarray:
    """Straight until checkpoint ``at``, then straight another way, with noise in each change."""
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(2, N))
    d_KN = np.where(np.arange(K)[:, None] < at, one, two) + noise * rng.normal(size=(K, N))
    return np.concatenate([np.zeros((1, N)), np.cumsum(d_KN, axis=0)])


def test_driftless_walks_diffuse() -> None:
    rng = np.random.default_rng(0)
    found = describe_gram(gram_of(np.cumsum(rng.normal(size=(K + 1, 100_000)), axis=0)), ONES)
    assert found.growth == pytest.approx(1, abs=0.03)
    assert found.net_over_path == pytest.approx(1 / np.sqrt(K), abs=0.01)
    assert found.successive_cosine == pytest.approx(0, abs=0.01)
    assert found.drift_part is not None
    assert found.drift_part < 0.03
    assert found.first_component == pytest.approx(found.walk_first_component, abs=0.01)
    assert found.walk_first_component == pytest.approx(8 / np.pi**2, abs=0.02)


@pytest.mark.parametrize("drift", [0.25, 0.5, 1.0])
def test_drift_adds_to_diffusion_as_computed(drift: float) -> None:
    rng = np.random.default_rng(1)
    walk = np.cumsum(rng.normal(size=(K + 1, 100_000)) + drift, axis=0)
    found = describe_gram(gram_of(walk), ONES)
    square = drift**2
    assert found.successive_cosine == pytest.approx(square / (1 + square), abs=0.01)
    expected = np.sqrt((square * K + 1) / (K * (1 + square)))
    assert found.net_over_path == pytest.approx(expected, abs=0.01)
    assert found.drift_part == pytest.approx(square * K / (square * K + 1), abs=0.02)


def test_curves_grow_as_their_power() -> None:
    t = np.arange(K + 1)[:, None]
    slopes = np.random.default_rng(2).normal(size=50)
    for power, growth in ((0.5, 1.0), (1.0, 2.0), (2.0, 4.0)):
        found = describe_gram(gram_of(t**power * slopes), ONES)
        assert found.growth == pytest.approx(growth, abs=1e-6)
        assert found.first_component == pytest.approx(1)
        assert found.net_over_path == pytest.approx(1)


@pytest.mark.parametrize("at", [5, 16, 28])
@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_a_turn_is_found_within_one_checkpoint(at: int, noise: float) -> None:
    breaks = find_breaks(gram_of(turned(at, noise)), ONES)
    assert len(breaks) == 1
    assert abs(breaks[0].after - at) <= 1
    assert breaks[0].p_value <= 0.01
    assert breaks[0].cosine == pytest.approx(0, abs=0.15)


def test_the_linear_regime_is_the_longest_piece() -> None:
    rng = np.random.default_rng(3)
    way = rng.normal(size=(3, N))
    d_KN = np.repeat(way, [6, 20, 7], axis=0) + 0.5 * rng.normal(size=(K, N))
    breaks = find_breaks(d_KN @ d_KN.T, ONES)
    assert [b.after for b in breaks] == [6, 26]
    assert linear_regime(breaks, ONES) == (6, 26)


def test_breaks_are_rare_where_nothing_turns() -> None:
    """False positives: 1 % of runs nominally, lines with noise and driftless walks."""
    rng = np.random.default_rng(4)
    found = 0
    for i in range(60):
        d_KN = rng.normal(size=(20, 200)) + (i % 2) * rng.normal(size=200)
        found += bool(find_breaks(d_KN @ d_KN.T, np.ones(20), seed=i))
    assert found <= 4  # P(5 or more of 60 at 1 %) = .0003


def test_intervals_cover_what_they_say_of_their_own_kind() -> None:
    rng = np.random.default_rng(5)
    axis = StepAxis.of([0, 10, 20, 25, 50, 60, 80, 100, 110, 130])
    x_T = np.array(axis.steps, float)
    ulp, n = 2.0**-7, 20_000
    for step in (140, 200, 390):
        slope = rng.normal(size=n) * 0.05
        y_TN = slope * x_T[:, None] + rng.normal(size=(len(x_T), n))
        new_N = np.rint((slope * step + rng.normal(size=n)) / ulp) * ulp
        u_T = x_T - axis.mean
        fitted = u_T @ y_TN / axis.s_xx
        mean = y_TN.mean(axis=0)
        sse = ((y_TN - mean - fitted * u_T[:, None]) ** 2).sum(axis=0)
        low, high = iid_interval(mean, fitted, sse, axis, step, ulp)
        assert 0.93 < ((low <= new_N) & (new_N <= high)).mean() < 0.97

        dx_K = np.diff(x_T)[:, None]
        d_KN = 0.05 * dx_K + rng.normal(size=(len(x_T) - 1, n)) * np.sqrt(dx_K)
        last, ahead = d_KN.sum(axis=0), step - x_T[-1]
        drift = last / axis.span
        variance = ((d_KN - drift * dx_K) ** 2 / dx_K).sum(axis=0) / (len(x_T) - 2)
        new_N = last + 0.05 * ahead + rng.normal(size=n) * np.sqrt(ahead)
        low, high = diffusion_interval(last, drift, variance, axis, step, ulp)
        assert 0.93 < ((low <= new_N) & (new_N <= high)).mean() < 0.97


def test_half_an_ulp_keeps_coarse_values_covered() -> None:
    """Noise far below the spacing: without the widening a rounded value is mostly outside."""
    rng = np.random.default_rng(6)
    axis = StepAxis.of(list(range(20)))
    true_N = rng.uniform(1, 2, 5000)
    stored_N = np.rint(true_N * 128) / 128
    zero = np.zeros(5000)
    low, high = iid_interval(true_N, zero, zero, axis, 25, 2.0**-7)
    assert ((low <= stored_N) & (stored_N <= high)).all()
    low, high = iid_interval(true_N, zero, zero, axis, 25)
    assert ((low <= stored_N) & (stored_N <= high)).mean() < 0.01


def test_quantiles_are_students() -> None:
    from scipy import stats

    for degrees in (1, 2, 12, 60, 3000):
        exact = stats.t.ppf(0.975, degrees)
        assert student_quantile(0.95, degrees) == pytest.approx(exact, rel=1e-5)
