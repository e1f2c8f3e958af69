"""The specification against scipy, and the CPU path at its edges.

Where a tolerance is derived, it comes from counting roundings. Within a batch of 64 frames the CPU
path sums in float32 about the batch's first value: a term takes part in at most ROUNDINGS of them
(its difference, product and step; two additions in its group of four; sixteen groups). With
unit = 2^-24 and gamma = ROUNDINGS * unit, Cauchy-Schwarz turns that into, for S' = the sum of
squares about the batches' first values and kappa = S' / SST,

    |error of S_xd| <= gamma sqrt(S_xx S')    |error of SST| <= gamma (3 S' + 3 sqrt(S' (SST + S')))

and so |error of R²| <= gamma (2 sqrt(kappa) + 3 kappa + 3 sqrt(kappa (1 + kappa))) + unit, to first
order. Everything else is float64.
"""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress

from trajkit.kernels import api
from trajkit.kernels.flags import (
    FLAG_BELOW_HALF_ULP,
    FLAG_FEW_DISTINCT,
    FLAG_INVALID,
    FLAG_SMALL_RANGE,
    FLAG_STATIC,
)
from trajkit.kernels.formats import FORMATS, bits_of, values_of
from trajkit.kernels.state import Solution, new_stats

UNIT = 2.0**-24
ROUNDINGS = 24
BATCH = 64


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    work = FORMATS[dtype].work
    return bits_of(values.astype(work).ravel(), dtype)[0].reshape(values.shape)


def to_codes(bits_TN: np.ndarray, is_key_T: np.ndarray) -> np.ndarray:
    codes = bits_TN.copy()
    for t in np.flatnonzero(~is_key_T):
        api.encode_frame(bits_TN[t], bits_TN[t - 1], codes[t], backend="reference")
    return codes


def keys_only(n_frames: int) -> np.ndarray:
    return np.ones(n_frames, dtype=bool)


def assert_same(got: Solution, want: Solution) -> None:
    for name in Solution.__slots__:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)


# ---- the reference against scipy ----


@given(st.integers(3, 40), st.integers(0, 10**6), st.integers(0, 2**31))
def test_reference_is_least_squares(n_frames: int, first_step: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = first_step + np.cumsum(rng.integers(1, 100, n_frames))
    y = rng.normal(0, 1, (n_frames, 3)).cumsum(axis=0) + 100 * rng.normal()
    got = api.fit_frames(
        y.view(np.uint64), keys_only(n_frames), steps, "float64", backend="reference"
    )
    for i in range(3):
        line = linregress(steps - first_step, y[:, i])
        # outputs are rounded to float32 (unit); R² = 0 leaves scipy's own error of 1e-16 * T
        size = y[:, i].std() / steps.std()
        assert got.slope[i] == pytest.approx(line.slope, rel=2 * UNIT, abs=1e-9 * size)
        assert got.mean[i] == pytest.approx(y[:, i].mean(), rel=2 * UNIT, abs=1e-9)
        assert got.rsq[i] == pytest.approx(line.rvalue**2, rel=2 * UNIT, abs=1e-9)


# ---- the meaning of the outputs ----


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_static_invalid_one_and_two_checkpoints(backend: str) -> None:
    nan, inf = np.nan, np.inf
    y = np.array([[1, 0.0, nan, 3, 0], [1, -0.0, 2, inf, 1], [1, 0.0, 2, 3, 4]], np.float32)
    bits, steps = y.view(np.uint32), np.array([5, 7, 10])

    def fit(n_frames: int) -> Solution:
        return api.fit_frames(
            bits[:n_frames], keys_only(n_frames), steps[:n_frames], "float32", backend=backend
        )

    one, two, three = fit(1), fit(2), fit(3)
    np.testing.assert_array_equal(one.flags & (FLAG_STATIC | FLAG_INVALID), [0, 0, 2, 0, 0])
    np.testing.assert_array_equal(one.slope, [0, 0, nan, 0, 0])
    np.testing.assert_array_equal(one.mean, [1, 0, nan, 3, 0])
    assert np.isnan([one.rsq, one.dw, one.drift_t]).all()
    np.testing.assert_array_equal(two.flags & (FLAG_STATIC | FLAG_INVALID), [1, 1, 2, 2, 0])
    np.testing.assert_array_equal(two.rsq, [nan, nan, nan, nan, 1])
    np.testing.assert_array_equal(two.slope, [0, 0, nan, nan, 0.5])
    assert np.isnan([two.dw, two.drift_t]).all()
    np.testing.assert_array_equal(three.flags[:4] & 3, [1, 1, 2, 2])
    np.testing.assert_array_equal(three.mean[:4], [1, 0, nan, nan])
    assert np.isfinite([three.dw[4], three.drift_t[4]]).all()
    assert np.isnan([three.dw[:4], three.drift_t[:4]]).all()
    np.testing.assert_array_equal(three.bits_last, bits[2])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_exact_line_has_no_durbin_watson_and_a_certain_drift(backend: str) -> None:
    y = np.arange(20.0)[:, None] * np.array([1.0, -2.0]) + 8
    got = api.fit_frames(
        y.view(np.uint64), keys_only(20), np.arange(20) * 10, "float64", backend=backend
    )
    np.testing.assert_array_equal(got.rsq, [1, 1])
    assert np.isnan(got.dw).all()
    np.testing.assert_array_equal(got.drift_t, [np.inf, -np.inf])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_filters_by_distinct_values_range_and_ulp(backend: str) -> None:
    ulp = 2.0**-7  # of bfloat16 in [1, 2)
    up = np.arange(8)[:, None] >= np.array([8, 7, 4, 1])  # jumps of one ulp at frame 8, 7, 4, 1
    staircase = 1 + ulp * np.stack([np.arange(8) // 4, np.arange(8) // 3, np.arange(8) // 2], 1)
    y = np.concatenate([1 + ulp * up, staircase], axis=1)
    steps = np.arange(8) * 10
    bits = to_bits(y, "bfloat16")

    def flags(mask: int, **filters: float) -> list[int]:
        got = api.fit_frames(bits, keys_only(8), steps, "bfloat16", backend=backend, **filters)
        return (got.flags & mask != 0).astype(int).tolist()

    distinct = np.array([len(set(column)) for column in y.T])
    for few in (1, 2, 3, 4):
        assert flags(FLAG_FEW_DISTINCT, few=few) == (distinct < few).astype(int).tolist()
    assert flags(FLAG_SMALL_RANGE) == [0] * 7
    for min_range in (ulp / 2, ulp, 2 * ulp):
        small = (np.ptp(y, axis=0) <= min_range).astype(int).tolist()
        assert flags(FLAG_SMALL_RANGE, min_range=min_range) == small
    slope = np.array([linregress(steps, column).slope for column in y.T])
    below = (np.abs(slope) * 70 < ulp / 2).astype(int).tolist()
    assert flags(FLAG_BELOW_HALF_ULP) == below
    assert 0 < sum(below) < 7


def test_changes_stop_at_the_top_of_their_counter() -> None:
    frames = 65_600
    bits = np.where(np.arange(frames) % 2, 0x3F80, 0x4000).astype(np.uint16)[:, None]
    sums = api.new_sums(1, "bfloat16", 0, 1)
    api.accumulate_frames(bits, keys_only(frames), np.arange(frames), sums)
    assert (sums.changes[0], sums.distinct[0], sums.count) == (65535, 2, frames)


# ---- the CPU path at its edges ----


@pytest.mark.parametrize("dtype", FORMATS)
def test_where_key_frames_lie_makes_no_difference(dtype: str) -> None:
    rng = np.random.default_rng(7)
    walk = np.cumsum(rng.normal(0, 0.01, (100, 4097)) * (rng.random((100, 4097)) < 0.2), axis=0)
    bits = to_bits(walk + rng.normal(0, 0.1, 4097), dtype)
    steps = np.cumsum(rng.integers(1, 30, 100))
    fits = []
    for keys in ([0], [0, 1, 33, 64, 65, 99], range(100)):
        is_key = np.isin(np.arange(100), list(keys))
        fits.append(api.fit_frames(to_codes(bits, is_key), is_key, steps, dtype))
    assert_same(fits[1], fits[0])
    assert_same(fits[2], fits[0])


@given(st.sampled_from(list(FORMATS)), st.integers(1, 70), st.integers(0, 2**31))
def test_any_codes_at_all_decode_to_the_reference(dtype: str, n_frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = FORMATS[dtype].bits
    codes = rng.integers(0, np.iinfo(kind).max, (n_frames, 300), kind, endpoint=True)
    is_key = rng.random(n_frames) < 0.2
    is_key[0] = True
    sums = []
    for backend in ("cpu", "reference"):
        sums.append(api.new_sums(300, dtype, *api.span_units(np.arange(n_frames))))
        api.accumulate_frames(codes, is_key, np.arange(n_frames), sums[-1], backend=backend)
    np.testing.assert_array_equal(sums[0].bits_last, sums[1].bits_last)
    np.testing.assert_array_equal(sums[0].invalid, sums[1].invalid)
    valid = sums[1].invalid == 0
    for name in ("y_first", "y_min", "y_max", "changes", "distinct"):
        np.testing.assert_array_equal(
            getattr(sums[0], name)[valid], getattr(sums[1], name)[valid], err_msg=name
        )


def test_not_a_number_stays_in_its_element() -> None:
    rng = np.random.default_rng(8)
    bits = to_bits(rng.normal(0, 1, (40, 600)), "bfloat16")
    steps = np.arange(40)
    clean = api.fit_frames(bits, keys_only(40), steps, "bfloat16")
    spoiled = bits.copy()
    at = rng.choice(600, 60, replace=False)
    spoiled[rng.integers(0, 40, 60), at] = rng.choice([0x7F80, 0xFF80, 0x7FC0, 0xFFFF], 60)
    got = api.fit_frames(spoiled, keys_only(40), steps, "bfloat16")
    np.testing.assert_array_equal(np.flatnonzero(got.flags & FLAG_INVALID), np.sort(at))
    rest = np.setdiff1d(np.arange(600), at)
    for name in ("slope", "mean", "rsq", "dw", "drift_t", "flags"):
        np.testing.assert_array_equal(getattr(got, name)[rest], getattr(clean, name)[rest])
    assert np.isnan(got.mean[at]).all()


def test_slices_of_wider_rows_and_read_only_frames_are_read_as_they_are() -> None:
    rng = np.random.default_rng(9)
    wide = to_bits(rng.normal(0, 1, (20, 1000)), "float16")
    part = wide[:, 100:700]
    part.setflags(write=False)
    want = api.fit_frames(part.copy(), keys_only(20), np.arange(20), "float16")
    assert_same(api.fit_frames(part, keys_only(20), np.arange(20), "float16"), want)
    sums = api.new_sums(600, "float16", *api.span_units(np.arange(20)))
    api.accumulate_frames(wide[:, 100:], keys_only(20), np.arange(20), sums)  # columns beyond N
    assert_same(api.solve(sums), want)


@pytest.mark.parametrize("n", [0, 1, 63, 500, 4097])
def test_no_output_is_left_unwritten(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    bits = to_bits(rng.normal(0, 1, (17, n)), "bfloat16")
    want = api.fit_frames(bits, keys_only(17), np.arange(17), "bfloat16", backend="reference")
    empty = np.empty

    def poisoned(*args: object, **kwargs: object) -> np.ndarray:
        array = empty(*args, **kwargs)
        array.view(np.uint8)[...] = 0xFF  # a NaN as a number, all flags as a mask
        return array

    monkeypatch.setattr("trajkit.kernels.cpu.launch.np.empty", poisoned)
    got = api.fit_frames(bits, keys_only(17), np.arange(17), "bfloat16")
    np.testing.assert_array_equal(got.flags, want.flags)
    np.testing.assert_array_equal(got.bits_last, want.bits_last)
    for name in ("slope", "mean", "rsq", "dw", "drift_t"):
        assert np.isfinite(getattr(got, name)).all(), name


def test_threads_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(11)
    frames = [to_bits(rng.normal(0, 1, (30, 3000)), "bfloat16") for _ in range(4)]
    want = [api.fit_frames(f, keys_only(30), np.arange(30), "bfloat16") for f in frames]
    got: dict[int, Solution] = {}

    def work(i: int) -> None:
        for _ in range(5):
            got[i] = api.fit_frames(frames[i], keys_only(30), np.arange(30), "bfloat16")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(4):
        assert_same(got[i], want[i])


# ---- rounding ----


def hard_series() -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Dtype, values [T, N] and steps [T] that break naive sums."""
    rng = np.random.default_rng(12)
    x = np.arange(64.0)
    walk = np.cumsum(rng.normal(0.2, 1, (64, 60)), axis=0)
    long = np.cumsum(rng.normal(0, 1, (10_000, 4)), axis=0)
    first, middle = walk.copy(), walk.copy()
    first[0] += 1e4
    middle[31] -= 1e4
    signs = np.where(np.arange(64)[:, None] % 2, 1.0, -1.0)
    late = long.copy()
    late[0] += 1e5
    return {
        "walks": ("bfloat16", walk, x),
        "offset": ("float32", 1e3 + 1e-3 * walk, x),
        "1e-30": ("float32", 1e-30 * walk, x),
        "1e-30 in bfloat16": ("bfloat16", 1e-30 * walk, x),
        "1e20": ("bfloat16", 1e20 * walk, x),
        "alternating": ("float32", signs + 0.01 * walk, x),
        "first far off": ("float32", first, x),
        "middle far off": ("float32", middle, x),
        "10,000": ("float32", long, np.arange(10_000.0)),
        "10,000, first far off": ("float32", late, np.arange(10_000.0)),
        "step 1,000,000": ("float32", walk, 1e6 + 10 * x),
        "uneven": ("float16", walk, np.cumsum(rng.integers(1, 500, 64)).astype(float)),
    }


def rounding_band(y_TN: np.ndarray) -> np.ndarray:
    """The bound on R²'s error, [N]; see the head of this file."""
    total = ((y_TN - y_TN.mean(axis=0)) ** 2).sum(axis=0)
    about_first = np.zeros_like(total)
    for start in range(0, len(y_TN), BATCH):
        origin = y_TN[max(start - 1, 0)]
        about_first += ((y_TN[start : start + BATCH] - origin) ** 2).sum(axis=0)
    kappa = (about_first / total).astype(np.float64)
    cross = np.sqrt(kappa * (1 + kappa))
    return ROUNDINGS * UNIT * (2 * np.sqrt(kappa) + 3 * kappa + 3 * cross) + UNIT


@pytest.mark.parametrize("family", hard_series())
def test_errors_stay_within_the_derived_band(family: str) -> None:
    dtype, values, steps = hard_series()[family]
    bits = to_bits(values, dtype)
    y = values_of(bits.ravel(), dtype).reshape(bits.shape).astype(np.longdouble)
    u, d = (steps - steps.mean()).astype(np.longdouble), y - y.mean(axis=0)
    rsq = (u @ d) ** 2 / ((u @ u) * (d * d).sum(axis=0))
    band = rounding_band(y)
    got = api.fit_frames(bits, keys_only(len(steps)), steps, dtype)
    assert (np.abs(got.rsq - rsq) <= band).all()
    again = api.new_sums(bits.shape[1], dtype, *api.span_units(steps))
    for start in range(0, len(steps), 1000):  # uneven batches, and a state that goes on
        part = slice(start, start + 1000)
        api.accumulate_frames(bits[part], keys_only(len(steps[part])), steps[part], again)
    assert (np.abs(api.solve(again).rsq - rsq) <= band).all()


# ---- what R² cannot tell: REFERENCE, section 3 ----

WALKS = 20_000


@pytest.mark.parametrize(
    ("n_frames", "mean", "median", "above", "quantile", "durbin_watson"),
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
def test_driftless_walks_score_as_tabled(
    n_frames: int, mean: float, median: float, above: float, quantile: float, durbin_watson: float
) -> None:
    # Over 20,000 walks: standard deviation of the mean .0021 (.29 / sqrt(n)), of the median .004,
    # of the share .0034, of the 95 % quantile .0035 (density .45 there), of the median DW .006.
    # Four of them, for the table's sampling as much again, and half a digit of the table.
    y = np.cumsum(np.random.default_rng(n_frames).normal(0, 1, (n_frames, WALKS)), axis=0)
    bits = to_bits(y, "float32")
    got = api.fit_frames(bits, keys_only(n_frames), np.arange(n_frames), "float32")
    assert got.rsq.mean() == pytest.approx(mean, abs=4 * 1.5 * 0.0021)
    assert np.median(got.rsq) == pytest.approx(median, abs=4 * 1.5 * 0.004)
    assert (got.rsq > 0.7).mean() == pytest.approx(above, abs=4 * 1.5 * 0.0034)
    assert np.quantile(got.rsq, 0.95) == pytest.approx(quantile, abs=4 * 1.5 * 0.0035)
    assert np.median(got.dw) == pytest.approx(durbin_watson, abs=4 * 1.5 * 0.006)


def test_noise_drift_and_curves_score_as_tabled() -> None:
    rng = np.random.default_rng(13)

    def fit(y: np.ndarray) -> Solution:
        bits = to_bits(y, "float32")
        return api.fit_frames(bits, keys_only(len(y)), np.arange(len(y)), "float32")

    noise = fit(rng.normal(0, 1, (14, WALKS)))
    assert noise.rsq.mean() == pytest.approx(0.077, abs=0.004)
    assert (noise.rsq > 0.7).mean() < 0.001
    assert np.median(noise.dw) == pytest.approx(2.16, abs=0.03)
    for drift, median, above in ((0.25, 0.61, 0.41), (0.5, 0.835, 0.70), (1.0, 0.954, 0.98)):
        walks = fit(np.cumsum(rng.normal(drift, 1, (14, WALKS)), axis=0))
        assert np.median(walks.rsq) == pytest.approx(median, abs=0.02)
        assert (walks.rsq > 0.7).mean() == pytest.approx(above, abs=0.02)
    t = (np.arange(1000) + 0.5) / 1000  # the table's curves are continuous: .960, .9375, .879
    curves = fit(np.stack([np.sqrt(t), t**2, 1 - np.exp(-3 * t)], axis=1))
    np.testing.assert_allclose(curves.rsq, [0.96, 0.94, 0.88], atol=0.005)


# ---- refusals ----


def test_statistics_by_different_rules_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="threshold"):
        new_stats(0.7, 10.0) + new_stats(0.8, 10.0)
    with pytest.raises(ValueError, match="steps_window"):
        new_stats(0.7, 10.0) + new_stats(0.7, 20.0)


def test_arguments_that_do_not_fit_together_are_refused() -> None:
    bits, keys, steps = np.zeros((3, 4), np.uint16), keys_only(3), np.arange(3)
    sums = api.new_sums(5, "bfloat16", 0, 1)
    with pytest.raises(ValueError, match="frames of 4 elements for sums of 5"):
        api.accumulate_frames(bits, keys, steps, sums)
    with pytest.raises(ValueError, match="must be uint16"):
        api.fit_frames(bits.astype(np.uint8), keys, steps, "bfloat16")
    with pytest.raises(ValueError, match="unit stride"):
        api.fit_frames(bits.repeat(2, axis=1)[:, ::2], keys, steps, "bfloat16")
    with pytest.raises(ValueError, match="as many key marks"):
        api.fit_frames(bits, keys[:2], steps, "bfloat16")
    with pytest.raises(ValueError, match="few"):
        api.fit_frames(bits, keys, steps, "bfloat16", few=5)
    with pytest.raises(ValueError, match="x_unit"):
        api.new_sums(5, "bfloat16", 0, 0)
    with pytest.raises(ValueError, match="no checkpoint"):
        api.solve(sums)
    with pytest.raises(ValueError, match="unknown backend"):
        api.fit_frames(bits, keys, steps, "bfloat16", backend="cuda")
    out = np.zeros(4, np.uint16)
    out.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        api.decode_frame(bits[0], bits[1], out)
    with pytest.raises(ValueError, match="alike"):
        api.decode_frame(bits[0], bits[1], np.zeros(5, np.uint16))


def test_sums_merge_in_order_only_and_the_empty_one_is_neutral() -> None:
    def sums_of(first: int) -> api.Sums:
        sums = api.new_sums(2, "float32", 0, 1)
        bits = to_bits(np.arange(6.0).reshape(3, 2), "float32")
        api.accumulate_frames(bits, keys_only(3), first + np.arange(3), sums)
        return sums

    empty = api.new_sums(2, "float32", 0, 1)
    early, late = sums_of(0), sums_of(5)
    assert api.merge_sums(early, empty).count == api.merge_sums(empty, early).count == 3
    with pytest.raises(ValueError, match="order of their steps"):
        api.merge_sums(late, early)
    with pytest.raises(ValueError, match="do not merge"):
        api.merge_sums(early, api.new_sums(3, "float32", 0, 1))
