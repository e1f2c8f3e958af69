"""The sums of forecasts' errors: compiled against the specification, and against plain forecasts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajkit.kernels import skill
from trajkit.kernels.cpu import skill as compiled
from trajkit.kernels.flags import FLAG_INVALID
from trajkit.kernels.skill import RSQ_LEVELS, SUMS, Horizon

HORIZON = Horizon(30.0, 75.0, 90.0, 10.0, 8250.0, 0.45, 1.96)


def draw(n: int, seed: int, scale: float = 1e-3) -> tuple[dict[str, Any], Any]:
    """Elements of all kinds: moving, static, invalid, with R² and t anywhere."""
    rng = np.random.default_rng(seed)
    values = {
        "last": rng.normal(size=n) * 0.02,
        "slope": rng.normal(size=n) * scale,
        "mean": rng.normal(size=n) * 0.02,
        "rsq": rng.uniform(size=n),
        "t": rng.normal(size=n) * 4,
        "margin": np.full(n, 1e-5),
    }
    values["first"] = values["last"] - values["slope"] * 90
    values["real"] = values["last"] + values["slope"] * 30 * rng.uniform(0, 2, size=n)
    values = {name: value.astype(np.float32) for name, value in values.items()}
    flags = np.zeros(n, np.uint8)
    still = rng.uniform(size=n) < 0.2
    values["slope"][still] = 0
    values["rsq"][still] = values["t"][still] = np.nan
    values["first"][still] = values["mean"][still] = values["last"][still]
    bad = rng.uniform(size=n) < 0.1
    flags[bad] = FLAG_INVALID
    for name in ("slope", "mean", "rsq", "t"):
        values[name][bad] = np.nan
    values["real"][bad & (rng.uniform(size=n) < 0.5)] = np.inf
    values["t"][~bad & ~still & (rng.uniform(size=n) < 0.05)] = np.inf
    return values, flags


@given(st.sampled_from([0, 1, 2, 255, 256, 257, 1000]), st.integers(0, 50))
def test_compiled_sums_are_the_specification(n: int, seed: int) -> None:
    values, flags = draw(n, seed)
    expected = skill.tally_errors(values, flags, HORIZON)
    got = compiled.tally_errors(values, flags, HORIZON)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-15)


def test_sums_of_parts_add_up() -> None:
    values, flags = draw(1000, 3)
    whole = compiled.tally_errors(values, flags, HORIZON)
    parts = [
        compiled.tally_errors({k: v[a:b] for k, v in values.items()}, flags[a:b], HORIZON)
        for a, b in ((0, 333), (333, 1000))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-9)


@pytest.mark.parametrize("damping", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("level", RSQ_LEVELS)
def test_any_gate_and_damping_follow_from_the_sums(level: float, damping: float) -> None:
    values, flags = draw(2000, 5)
    sums = dict(zip(SUMS, compiled.tally_errors(values, flags, HORIZON), strict=True))
    ok = (flags == 0) & np.isfinite(values["real"])
    real, last, slope, rsq = (
        values[k][ok].astype(np.float64) for k in ("real", "last", "slope", "rsq")
    )
    moves = np.where(rsq > np.float32(level), damping * slope * 30, 0)
    expected = ((real - last - moves) ** 2).sum()
    ep, pp = sums[f"ep_rsq:{level:g}"], sums[f"pp_rsq:{level:g}"]
    assert sums["ee"] - 2 * damping * ep + damping**2 * pp == pytest.approx(expected, rel=1e-9)
