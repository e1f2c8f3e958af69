"""Combinations of checkpoints against plain singular values and plain sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajkit.stats.combinations import ema_weights, rank_weights, squared_distance


def draw(seed: int, n: int = 9, size: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    steps = np.cumsum([0, *rng.integers(1, 20, n - 1)]).astype(float)
    y = np.cumsum(rng.normal(size=(n, size)), axis=0) + steps[:, None] * rng.normal(size=size)
    return steps, y


@given(st.integers(0, 200), st.integers(1, 12), st.booleans(), st.integers(1, 100))
def test_rank_weights_are_the_singular_vectors_lines(
    seed: int, k: int, anchored: bool, ahead: int
) -> None:
    steps, y = draw(seed)
    deltas = y - y[0]
    u, s, vt = np.linalg.svd(deltas, full_matrices=False)
    forecast = (y[-1] if anchored else y[0]).copy()
    target = steps[-1] + ahead
    for j in range(min(k, len(s))):
        if s[j] <= s[0] * 1e-6:
            continue
        slope, at_zero = np.polyfit(steps, u[:, j] * s[j], 1)
        moves = slope * ahead if anchored else slope * target + at_zero
        forecast += moves * vt[j]
    weights = rank_weights(deltas @ deltas.T, steps, target, k, anchored)
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(weights @ y, forecast, rtol=1e-4, atol=1e-4 * np.abs(y).max())


@given(st.integers(0, 50), st.integers(0, 8))
def test_distances_follow_from_the_gram_matrix(seed: int, real: int) -> None:
    _, y = draw(seed)
    deltas = y - y[0]
    weights = ema_weights(5, 0.7)
    expected = ((weights @ y[:5] - y[real]) ** 2).sum()
    assert squared_distance(deltas @ deltas.T, weights, real) == pytest.approx(expected, rel=1e-6)


def test_all_directions_are_the_line_of_every_element() -> None:
    steps, y = draw(3)
    deltas = y - y[0]
    weights = rank_weights(deltas @ deltas.T, steps, steps[-1] + 30, 99, False)
    slope, at_zero = np.polyfit(steps, y, 1)
    np.testing.assert_allclose(weights @ y, slope * (steps[-1] + 30) + at_zero, rtol=1e-6)


def test_a_run_at_rest_stays() -> None:
    for anchored in (False, True):
        weights = rank_weights(np.zeros((4, 4)), np.arange(4.0), 9.0, 2, anchored)
        assert weights.sum() == pytest.approx(1.0)
        assert squared_distance(np.zeros((4, 4)), weights, 3) == 0.0
