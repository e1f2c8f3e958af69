"""The compiled CPU kernels against the float64 reference, and the reference against scipy.

Tolerances: within 64 frames the CPU sums in float32, each addition off by 2^-24 of the running sum;
after that in float64. A line over T frames is therefore off by at most about 64 * 2^-24 (4e-6) of
the size of its sums, whatever T.
"""

import os
import platform
import shutil
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress, ttest_1samp
from scipy.stats import t as student

from trajkit.kernels import api, reference
from trajkit.kernels.flags import FLAG_FEW_DISTINCT
from trajkit.kernels.formats import FORMATS, values_of
from trajkit.kernels.gate import Gate
from trajkit.kernels.rounding import Mode, Rounding
from trajkit.kernels.state import Solution, Stats
from trajkit.stats.walks import reference_walks

BAND = 64 * 2.0**-24


def encode(bits_TN: np.ndarray, is_key_T: np.ndarray) -> np.ndarray:
    codes = bits_TN.copy()
    for t in range(1, len(bits_TN)):
        if not is_key_T[t]:
            api.encode_frame(bits_TN[t], bits_TN[t - 1], codes[t])
    return codes


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    import ml_dtypes

    scalar = np.dtype(getattr(ml_dtypes, dtype, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values beyond a narrow format's range become Inf or NaN
        return values.astype(scalar).view(FORMATS[dtype].bits)


def series(dtype: str, n_frames: int, n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(0, 1e-3, (n_frames, n)), axis=0) + rng.normal(0, 0.1, n)
    walk[:, ::5] = walk[0, ::5]
    if n > 30:
        walk[n_frames // 2, 3] = np.nan
        walk[-1, 7] = np.inf
        walk[::2, 11], walk[1::2, 11] = 0.0, -0.0
    is_key = rng.random(n_frames) < 0.1
    is_key[0] = True
    steps = np.cumsum(rng.integers(1, 30, n_frames)).astype(float)
    return encode(to_bits(walk, dtype), is_key), is_key, steps


def compare(got: Solution, want: Solution, rsq_band: float = 2e-5) -> None:
    np.testing.assert_array_equal(got.flags, want.flags)
    np.testing.assert_array_equal(got.bits_last, want.bits_last)
    for name in ("slope", "mean", "rsq", "dw", "drift_t"):
        a, b = getattr(got, name), getattr(want, name)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
    largest = np.nanmax(np.abs(want.slope), initial=1e-300)
    assert np.nanmax(np.abs(got.slope - want.slope), initial=0) <= BAND * largest
    size = np.nanmax(np.abs(want.mean), initial=1e-300)
    np.testing.assert_allclose(got.mean, want.mean, rtol=BAND, atol=BAND * size)
    np.testing.assert_allclose(got.rsq, want.rsq, atol=rsq_band)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("n_frames", "n"), [(1, 63), (2, 0), (3, 1), (17, 500), (64, 257), (65, 1000), (130, 100)]
)
def test_fit_equals_the_reference(dtype: str, n_frames: int, n: int) -> None:
    codes, is_key, steps = series(dtype, n_frames, n)
    want = api.fit_frames(codes, is_key, steps, dtype, min_range=2e-3, backend="reference")
    compare(api.fit_frames(codes, is_key, steps, dtype, min_range=2e-3), want)


@given(
    st.sampled_from(["bfloat16", "float32"]),
    st.integers(1, 150),
    st.lists(st.integers(1, 149), max_size=4),
    st.integers(0, 2**31),
)
def test_any_split_into_batches_gives_the_same_sums(
    dtype: str, n_frames: int, cuts: list[int], seed: int
) -> None:
    codes, is_key, steps = series(dtype, n_frames, 70, seed)
    whole = api.new_sums(70, dtype, *api.span_units(steps))
    api.accumulate_frames(codes, is_key, steps, whole, backend="reference")
    parts = api.new_sums(70, dtype, *api.span_units(steps))
    edges = [0, *sorted({c for c in cuts if c < n_frames}), n_frames]
    for start, stop in pairwise(edges):
        part = slice(start, stop)
        api.accumulate_frames(codes[part], is_key[part], steps[part], parts)
    valid = whole.invalid == 0
    np.testing.assert_array_equal(parts.invalid, whole.invalid)
    for name in ("y_first", "y_min", "y_max", "bits_last", "changes", "distinct"):
        np.testing.assert_array_equal(getattr(parts, name)[valid], getattr(whole, name)[valid])
    np.testing.assert_allclose(parts.v[valid], whole.v[valid], rtol=BAND, atol=1e-30)
    compare(api.solve(parts), api.solve(whole, backend="reference"))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_merging_is_associative_and_equals_the_whole(a: int, b: int, c: int, seed: int) -> None:
    codes, _, steps = series("float32", a + b + c, 60, seed)
    is_key = np.zeros(len(steps), bool)
    is_key[[0, a, a + b]] = True
    bits = codes.copy()
    keys = series("float32", a + b + c, 60, seed)[1]
    for t in range(1, len(bits)):
        if not keys[t]:
            api.decode_frame(codes[t], bits[t - 1], bits[t])
    codes = encode(bits, is_key)

    def sums_of(start: int, stop: int) -> api.Sums:
        part = slice(start, stop)
        sums = api.new_sums(60, "float32", *api.span_units(steps[part]))
        api.accumulate_frames(codes[part], is_key[part], steps[part], sums)
        return sums

    def three() -> tuple[api.Sums, ...]:
        return sums_of(0, a), sums_of(a, a + b), sums_of(a + b, a + b + c)

    one, two, last = three()
    left = api.merge_sums(api.merge_sums(one, two), last)
    one, two, last = three()
    right = api.merge_sums(one, api.merge_sums(two, last))
    whole = api.fit_frames(codes, is_key, steps, "float32", backend="reference")
    for merged in (left, right):
        assert merged.count == a + b + c
        compare(api.solve(merged), whole, rsq_band=1e-4)
        valid = merged.invalid == 0
        alike = api.new_sums(60, "float32", merged.x_ref, merged.x_unit)
        api.accumulate_frames(bits, np.ones(len(bits), bool), steps, alike, backend="reference")
        np.testing.assert_allclose(merged.v[valid], alike.v[valid], rtol=BAND, atol=1e-30)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_coding_is_exact_for_every_bit_pattern(width: int) -> None:
    rng = np.random.default_rng(width)
    kind = np.dtype(f"uint{width}")
    info = np.iinfo(kind)
    bits = rng.integers(0, info.max, (3, 5000), kind, endpoint=True)
    bits[0, :4], bits[1, :4] = [0, info.max, info.max, 0], [info.max, 0, info.max, info.max // 2]
    if width == 8:
        bits = np.stack([np.repeat(np.arange(256), 256), np.tile(np.arange(256), 256)]).astype(kind)
    codes, back = np.empty_like(bits[0]), np.empty_like(bits[0])
    for backend in ("cpu", "reference"):
        api.encode_frame(bits[1], bits[0], codes, backend=backend)
        api.decode_frame(codes, bits[0], back, backend=backend)
        np.testing.assert_array_equal(back, bits[1])
        api.decode_frame(codes, bits[0], codes, backend=backend)  # in place
        np.testing.assert_array_equal(codes, bits[1])


def adversaries() -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Families that break naive sums: (values [T, N], steps [T], dtype)."""
    rng = np.random.default_rng(0)
    x64, x5 = np.arange(64.0), np.cumsum(rng.integers(1, 50, 64)).astype(float)
    noise = rng.normal(0, 1, (64, 50))
    walk = np.cumsum(noise, axis=0)
    many = np.cumsum(rng.normal(0, 1, (10_000, 8)), axis=0)
    flips = np.where(np.arange(64)[:, None] % 2, 1.0, -1.0)
    outlier = walk.copy()
    outlier[0] += 1e4
    return {
        "offset 1e8 times the drift": (1e8 + walk, x64, "float64"),
        "offset, float32": (1e3 + 1e-3 * walk, x64, "float32"),
        "tiny weights": (1e-30 * walk, x64, "float32"),
        "tiny bf16 weights": (1e-30 * walk, x64, "bfloat16"),
        "huge weights": (1e25 * walk, x64, "float32"),
        "10,000 checkpoints": (many, np.arange(10_000.0), "float32"),
        "alternating signs": (flips + 0.01 * walk, x64, "float32"),
        "one outlier checkpoint": (outlier, x64, "float32"),
        "far from step 0": (walk, 1e6 + x64, "float32"),
        "uneven steps": (walk, x5, "float16"),
    }  # fmt: skip


@pytest.mark.parametrize("family", adversaries())
def test_adversaries_agree_with_float64(family: str) -> None:
    values, steps, dtype = adversaries()[family]
    bits = to_bits(values, dtype)
    is_key = np.arange(len(steps)) % 64 == 0
    got = api.fit_frames(encode(bits, is_key), is_key, steps, dtype)
    exact = values_of(bits, dtype).astype(np.longdouble)
    u = steps - steps.mean()
    d = exact - exact.mean(axis=0)
    rsq = (u @ d) ** 2 / ((u @ u) * (d * d).sum(axis=0))
    slope = u @ d / (u @ u)
    finite = np.isfinite(got.rsq)
    assert finite.mean() > 0.9
    assert np.abs(got.rsq - rsq)[finite].max() < 1e-4
    assert np.abs(got.slope - slope)[finite].max() <= 1e-5 * np.abs(slope).max()


def test_durbin_watson_and_drift_against_their_formulas() -> None:
    rng = np.random.default_rng(4)
    steps = np.cumsum(rng.integers(1, 20, 40)).astype(float)
    y = np.cumsum(rng.normal(0.1, 1, (40, 30)), axis=0)
    got = api.fit_frames(y.view(np.uint64), np.ones(40, bool), steps, "float64")
    for i in range(30):
        line = linregress(steps, y[:, i])
        residuals = y[:, i] - line.intercept - line.slope * steps
        dw = (np.diff(residuals) ** 2).sum() / (residuals**2).sum()
        assert got.dw[i] == pytest.approx(dw, rel=1e-6)
        span = steps[-1] - steps[0]
        drift = (y[-1, i] - y[0, i]) / span
        spread = ((np.diff(y[:, i]) - drift * np.diff(steps)) ** 2 / np.diff(steps)).sum() / 38
        assert got.drift_t[i] == pytest.approx(drift * np.sqrt(span / spread), rel=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_on_an_even_axis_drift_is_the_t_of_the_mean_difference(backend: Any) -> None:
    """Where all steps are alike their weights are, too."""
    y = np.cumsum(np.random.default_rng(6).normal(0.3, 1, (70, 500)), axis=0)
    got = api.fit_frames(
        y.view(np.uint64), np.ones(70, bool), np.arange(70) * 50, "float64", backend=backend
    )
    want = ttest_1samp(np.diff(y, axis=0), 0, axis=0).statistic
    np.testing.assert_allclose(got.drift_t, want, rtol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_driftless_walks_pass_as_students_t_says_on_any_axis(backend: Any, dtype: str) -> None:
    """Differences were weighted alike once: 30 % of these walks passed |t| >= 2, not 7 %."""
    steps = np.array([0, *range(1000, 1130, 10)])
    rng = np.random.default_rng(7)
    d = rng.standard_normal((len(steps) - 1, 20_000)) * np.sqrt(np.diff(steps))[:, None]
    y = np.concatenate([np.zeros((1, 20_000)), np.cumsum(d, axis=0)]).astype(dtype)
    got = api.fit_frames(
        y.view(FORMATS[dtype].bits), np.ones(len(y), bool), steps, dtype, backend=backend
    )
    nominal = 2 * student.sf(2, len(steps) - 2)
    deviation = np.sqrt(nominal * (1 - nominal) / 20_000)
    assert abs((np.abs(got.drift_t) >= 2).mean() - nominal) < 4 * deviation
    walk = reference_walks(tuple(steps.tolist()))
    assert walk is not None
    assert walk.share_drift_t_above_2 == pytest.approx(nominal, abs=0.012)  # 8,192 walks


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", list(FORMATS))
def test_distinct_values_are_counted_in_bfloat16_where_asked(backend: Any, dtype: str) -> None:
    import ml_dtypes

    rng = np.random.default_rng(8)
    y = rng.choice([0.1, 1.0, 30.0], 600) * (1 + np.cumsum(rng.normal(0, 1e-3, (90, 600)), axis=0))
    y[:, :40] *= 1e-7
    y[:, 40:50] = np.where(rng.random((90, 10)) < 0.5, 0.0, -1e-45)  # -0.0 once rounded
    bits = to_bits(y, dtype)
    values = values_of(bits.ravel(), dtype).reshape(bits.shape)
    rounded = values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    distinct = np.array([len(np.unique(column)) for column in rounded.T])
    steps = np.arange(90)
    sums = api.new_sums(600, dtype, *api.span_units(steps), distinct_in="bfloat16")
    for start, stop in pairwise((0, 1, 2, 5, 70, 90)):
        part = slice(start, stop)
        api.accumulate_frames(
            bits[part], np.ones(stop - start, bool), steps[part], sums, backend=backend
        )
    finite = sums.invalid == 0
    np.testing.assert_array_equal(sums.distinct[finite], np.minimum(distinct, 4)[finite])
    for few in (2, 3, 4):
        got = api.fit_frames(
            bits, np.ones(90, bool), steps, dtype, few=few, distinct_in="bfloat16", backend=backend
        )
        flagged = (got.flags & FLAG_FEW_DISTINCT) != 0
        np.testing.assert_array_equal(flagged[finite], (distinct < few)[finite])


def test_distinct_values_in_two_formats_do_not_merge() -> None:
    a, b = (api.new_sums(1, "float32", 1, 1, distinct_in=d) for d in (None, "bfloat16"))
    key, frame = np.array([True]), np.zeros((1, 1), np.uint32)
    api.accumulate_frames(frame, key, [0], a)
    api.accumulate_frames(frame, key, [1], b)
    with pytest.raises(ValueError, match="tell values apart in float32 and in bfloat16"):
        api.merge_sums(a, b)
    with pytest.raises(ValueError, match="as they are or in bfloat16, got float16"):
        api.new_sums(1, "float32", 1, 1, distinct_in="float16")


def test_driftless_walks_score_as_published() -> None:
    """REFERENCE: 14 checkpoints, mean .444, median .451, P(R² > .7) .268, Durbin-Watson 1.08."""
    walks = np.cumsum(np.random.default_rng(1).standard_normal((14, 40_000)), axis=0)
    bits = walks.astype(np.float32).view(np.uint32)
    got = api.fit_frames(bits, np.ones(14, bool), np.arange(14.0), "float32")
    assert got.rsq.mean() == pytest.approx(0.444, abs=0.01)
    assert np.median(got.rsq) == pytest.approx(0.451, abs=0.01)
    assert (got.rsq > 0.7).mean() == pytest.approx(0.268, abs=0.01)
    assert np.median(got.dw) == pytest.approx(1.08, abs=0.02)


def test_statistics_equal_the_reference_and_add_up() -> None:
    codes, is_key, steps = series("bfloat16", 33, 3000)
    solution = api.fit_frames(codes, is_key, steps, "bfloat16", min_range=2e-3)
    want = reference.summarise(solution, 0.7, 100.0, "bfloat16")
    whole = api.summarise(solution, 0.7, 100.0, "bfloat16")
    halves: list[Stats] = []
    for part in (slice(0, 1234), slice(1234, None)):
        pieces = {f: getattr(solution, f)[part] for f in Solution.__slots__}
        halves.append(api.summarise(Solution(**pieces), 0.7, 100.0, "bfloat16"))
    for got in (whole, halves[0] + halves[1]):
        for name in Stats.__slots__:
            a, b = getattr(got, name), getattr(want, name)
            if isinstance(b, float):
                assert a == pytest.approx(b, rel=1e-9)
            else:
                np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_extrapolation_equals_the_reference_bit_for_bit(dtype: str, rounding: Mode) -> None:
    codes, is_key, steps = series(dtype, 9, 1500)
    fit = api.fit_frames(codes, is_key, steps, dtype)
    gate = Gate(fit.rsq, fit.flags, threshold=0.2)
    for base, dx in (("last", 200.0), ("mean", 333.5)):
        bits = {}
        for backend in ("cpu", "reference"):
            out = np.full_like(fit.bits_last, 1)
            counts = api.extrapolate_line(
                base, fit.bits_last, fit.slope, fit.mean, dtype, dx=dx, gate=gate,
                rounding=Rounding(rounding, 5, 2**40), out_bits=out, backend=backend,
            )  # fmt: skip
            bits[backend] = (out, counts)
        np.testing.assert_array_equal(bits["cpu"][0], bits["reference"][0])
        assert bits["cpu"][1] == bits["reference"][1]
        assert sum(bits["cpu"][1]) == 1500


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_every_bfloat16_is_gated_and_rounded_as_the_reference_does(rounding: Mode) -> None:
    """All bit patterns, NaN and Inf with them, moved far and a little, held by flags alone."""
    last = np.arange(2**16, dtype=np.uint16)
    rng = np.random.default_rng(4)
    flags = rng.integers(0, 256, 2**16).astype(np.uint8)
    for scale in (1e36, 1.0, 1e-30):
        slope = (rng.standard_normal(2**16) * scale).astype(np.float32)
        found = {}
        for backend in ("cpu", "reference"):
            for held_flags in (0, 35):
                out = np.empty_like(last)
                counts = api.extrapolate_line(
                    "last", last, slope, slope, "bfloat16", dx=300.0,
                    gate=Gate(None, flags, held_flags), rounding=Rounding(rounding),
                    out_bits=out, backend=backend,
                )  # fmt: skip
                found[backend, held_flags] = (out.tobytes(), counts)
                np.testing.assert_array_equal(
                    out[flags & held_flags != 0], last[flags & held_flags != 0]
                )
        assert found["cpu", 0] == found["reference", 0]
        assert found["cpu", 35] == found["reference", 35]


def test_the_pair_rule_rounds_once() -> None:
    import ml_dtypes

    rng = np.random.default_rng(2)
    a = rng.normal(0, 0.05, 4000).astype(ml_dtypes.bfloat16)
    b = (a.astype(np.float32) + rng.normal(0, 1e-3, 4000)).astype(ml_dtypes.bfloat16)
    beta = np.float32(1.83)
    wanted = a.astype(np.float32) + beta * (b.astype(np.float32) - a.astype(np.float32))
    out = np.empty(4000, np.uint16)
    bits_a, bits_b = a.view(np.uint16), b.view(np.uint16)
    api.extrapolate_pair(bits_a, bits_b, float(beta), bits_b, "bfloat16", out_bits=out)
    np.testing.assert_array_equal(out, wanted.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_stochastic_rounding_is_unbiased_and_independent_of_blocking() -> None:
    n = 200_000
    last = np.full(n, 0x3F80, np.uint16)  # 1.0, whose bf16 ulp is 2^-7
    slope = np.full(n, 2.0**-7 * 0.3, np.float32)
    ones, flags = np.ones(n, np.float32), np.zeros(n, np.uint8)

    def run(start: int, stop: int) -> np.ndarray:
        out = np.empty(stop - start, np.uint16)
        part = slice(start, stop)
        api.extrapolate_line(
            "last", last[part], slope[part], ones[part], "bfloat16", dx=1.0,
            gate=Gate(ones[part], flags[part], threshold=0.5),
            rounding=Rounding("stochastic", 1, start), out_bits=out,
        )  # fmt: skip
        return out

    whole = run(0, n)
    np.testing.assert_array_equal(whole, np.concatenate([run(0, 777), run(777, n)]))
    # 200,000 draws of probability .3: standard deviation .001
    assert (whole == 0x3F81).mean() == pytest.approx(0.3, abs=0.006)
    assert set(np.unique(whole)) == {0x3F80, 0x3F81}


def test_requests_that_cannot_be_met_raise() -> None:
    codes, is_key, steps = series("bfloat16", 3, 10)
    with pytest.raises(ValueError, match="unknown backend"):
        api.fit_frames(codes, is_key, steps, "bfloat16", backend="tpu")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="no line is fitted"):
        api.fit_frames(codes, is_key, steps, "int16")
    with pytest.raises(ValueError, match="delta"):
        api.fit_frames(codes, ~is_key, steps, "bfloat16")
    with pytest.raises(ValueError, match="must increase"):
        api.fit_frames(codes, is_key, steps[::-1], "bfloat16")


def test_code_is_compiled_again_when_a_file_it_calls_changes(tmp_path: Path) -> None:
    """numba itself looks at a function's own file only, and went on with what it had."""
    (tmp_path / "house").mkdir()
    package = tmp_path / "house" / "trajkit"
    shutil.copytree(Path(api.__file__).parent, package / "kernels")
    (package / "__init__.py").write_text("")
    code = "from trajkit.kernels.cpu.extra import outer; print(outer(1))"
    (package / "kernels" / "cpu" / "extra.py").write_text(
        "from trajkit.kernels.cpu.compile import compiled\n"
        "from trajkit.kernels.cpu.inner import inner\n"
        "@compiled\ndef outer(x):\n    return inner(x) + 1\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "house"),
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }
    for factor, term in ((10, 0), (20, 0), (20, 5), (20, 5)):
        (package / "kernels" / "cpu" / "inner.py").write_text(
            "from trajkit.kernels.cpu.compile import compiled\n"
            "from trajkit.kernels.terms import TERM\n"
            f"@compiled\ndef inner(x):\n    return {factor} * x + TERM\n"
        )
        (package / "kernels" / "terms.py").write_text(f"TERM = {term}\n")
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert int(done.stdout) == factor + term + 1
    kept = list((tmp_path / "cache").rglob("extra.outer*.nbc"))
    assert len(kept) == 3  # one for each of the sources, and the last run compiled nothing


@pytest.mark.parametrize("processor", ["generic", "haswell"])
def test_bit_planes_on_processors_without_mask_registers(tmp_path: Path, processor: str) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("names of x86-64 processors")
    code = (
        "import numpy as np; from trajkit.kernels import reference\n"
        "from trajkit.kernels.cpu.shuffle import unshuffle\n"
        "planes = np.random.default_rng(0).integers(0, 2**16, 1024, np.uint16)\n"
        "planes[600:] = 0\n"
        "a, b = np.empty_like(planes), np.empty_like(planes)\n"
        "unshuffle(planes, 512, a); reference.unshuffle(planes, 512, b)\n"
        "assert (a == b).all()"
    )
    environment = os.environ | {
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
