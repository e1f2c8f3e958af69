"""The formats bit by bit against ml_dtypes, and the noise of stochastic rounding."""

import warnings

import ml_dtypes
import numpy as np
import pytest

from trajkit.kernels.formats import FORMATS, bits_of, ulp_of, values_of
from trajkit.kernels.noise import uniform_noise

NARROW = [name for name, form in FORMATS.items() if form.width <= 16]


def scalar_of(dtype: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_every_bit_pattern_has_the_value_ml_dtypes_gives_it(dtype: str) -> None:
    bits = np.arange(1 << FORMATS[dtype].width).astype(FORMATS[dtype].bits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = bits.view(scalar_of(dtype)).astype(np.float32)
    got = values_of(bits, dtype)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_is_that_of_ml_dtypes_ties_subnormals_and_overflow_included(dtype: str) -> None:
    rng = np.random.default_rng(0)
    every = values_of(np.arange(1 << FORMATS[dtype].width).astype(FORMATS[dtype].bits), dtype)
    every = np.sort(every[np.isfinite(every)])
    with np.errstate(over="ignore"):
        between = (every[:-1] / 2 + every[1:] / 2).astype(np.float32)
    patterns = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    above, below = np.nextafter(between, np.float32(9)), np.nextafter(between, np.float32(-9))
    values = np.concatenate([every, between, above, below, patterns])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = values.astype(scalar_of(dtype))
        want_finite = np.isfinite(want.astype(np.float32))
    got, finite = bits_of(values, dtype)
    np.testing.assert_array_equal(finite, want_finite)
    np.testing.assert_array_equal(got[finite], want.view(FORMATS[dtype].bits)[finite])


def test_ulp_is_the_distance_to_the_next_number() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 0x7F00, 1000).astype(np.uint16)
    value, after = values_of(bits, "bfloat16"), values_of(bits + np.uint16(1), "bfloat16")
    np.testing.assert_array_equal(ulp_of(value, "bfloat16"), after.astype(np.float64) - value)


def test_noise_is_uniform_and_differs_between_seeds() -> None:
    noise = uniform_noise(3, 0, 1 << 18) / 2**32
    # the mean of 2^18 uniform numbers has standard deviation 1 / sqrt(12 * 2^18) = 5.6e-4
    assert abs(noise.mean() - 0.5) < 5 * 5.6e-4
    other = uniform_noise(4, 0, 1 << 18) / 2**32
    assert abs(np.corrcoef(noise, other)[0, 1]) < 5 / 512
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 5 / 512
