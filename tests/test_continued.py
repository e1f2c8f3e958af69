"""Fits that go on from kept sums: whatever the cuts, what one pass over all checkpoints gives."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from series_on_disk import rounded, write_values

import trajkit
from trajkit.errors import Locked, Mismatch
from trajkit.fits import sums as sums_module
from trajkit.fits.kept import Fit, read_fit
from trajkit.progress import Event, Note
from trajkit.store.lock import ResultsLock


def ingest_part(folder: Path, steps: list[int], values_TN: np.ndarray, dtype: str) -> None:
    part = write_values(folder / f"from-{steps[0]}", steps, values_TN, dtype)
    trajkit.ingest(part, folder / "s.zarr", keyframes=5)


def check_against_float64(fit: Fit, steps: list[int], values_TN: np.ndarray, dtype: str) -> None:
    """Slope, mean and R² by their definitions in float64; within what float32 sums are off by."""
    u = np.asarray(steps, np.float64) - np.mean(steps)
    exact_TN = rounded(values_TN, dtype)
    y = exact_TN - exact_TN.mean(axis=0)
    s_uy, s_yy = u @ y, (y**2).sum(axis=0)
    slope, rsq = s_uy / (u @ u), s_uy**2 / ((u @ u) * np.where(s_yy > 0, s_yy, np.nan))
    assert np.abs(fit.slope("w") - slope).max() <= 1e-5 * np.abs(slope).max()
    np.testing.assert_allclose(fit.rsq("w"), rsq, atol=1e-4)
    scale = np.abs(exact_TN).max(axis=0)
    assert (np.abs(fit.mean("w") - exact_TN.mean(axis=0)) <= 2**-22 * scale).all()


@settings(max_examples=settings().max_examples // 2)
@given(
    st.lists(st.integers(1, 12), min_size=3, max_size=5),
    st.sampled_from(["bfloat16", "float16", "float32", "float64"]),
    st.sampled_from([(1, 2), (10, 10_000), (1, 100_000)]),
    st.integers(0, 2**32 - 1),
)
def test_continued_any_number_of_times_equals_one_pass(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    dtype: str,
    gaps: tuple[int, int],
    seed: int,
) -> None:
    """The scalars kept once were those of a later window: slopes 14 % off at 256, 266, 276."""
    folder = tmp_path_factory.mktemp("cuts")
    rng = np.random.default_rng(seed)
    cuts = np.cumsum([0, 1, *lengths]).tolist()
    cuts.remove(1)  # the first window has two checkpoints or more
    steps = (rng.integers(0, 10**6) + np.cumsum(rng.choice(gaps, cuts[-1]))).tolist()
    drift_TN = np.outer(np.linspace(0, 1, cuts[-1]), rng.normal(0, 1e-2, 100))
    values_TN = drift_TN + np.cumsum(rng.normal(0, 1e-3, drift_TN.shape), axis=0) + 0.05
    values_TN[:, 0] = 1.0
    for i, (start, stop) in enumerate(pairwise(cuts)):
        ingest_part(folder, steps[start:stop], values_TN[start:stop], dtype)
        fit = trajkit.fit(folder / "s.zarr", keep_sums=True)
        assert fit.record.found.frames_read == stop - start, f"fit {i} read more than what was new"
        check_against_float64(fit, steps[:stop], values_TN[:stop], dtype)
    scratch = trajkit.fit(folder / "s.zarr", name="scratch")
    np.testing.assert_array_equal(fit.flags("w"), scratch.flags("w"))
    for key in ("few_distinct", "static", "fitted", "invalid"):
        assert fit.record.found.stats[key] == scratch.record.found.stats[key]
    assert trajkit.verify(folder / "s.zarr").ok


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, list[int], np.ndarray]:
    """A store of nine checkpoints, of which a fit with sums has seen six."""
    rng = np.random.default_rng(3)
    steps, values_TN = list(range(0, 90, 10)), np.cumsum(rng.normal(0, 1e-3, (9, 300)), axis=0)
    ingest_part(tmp_path, steps[:6], values_TN[:6], "bfloat16")
    trajkit.fit(tmp_path / "s.zarr", keep_sums=True)
    ingest_part(tmp_path, steps[6:], values_TN[6:], "bfloat16")
    return tmp_path / "s.zarr", steps, values_TN


def test_sums_of_another_version_are_not_continued(
    grown: tuple[Path, list[int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps, values_TN = grown
    monkeypatch.setattr(sums_module, "SUMS_VERSION", -1)
    fit = trajkit.fit(store)
    assert fit.record.found.frames_read == 9
    check_against_float64(fit, steps, values_TN, "bfloat16")


@pytest.mark.parametrize("array", ["sums/s_ud", "sums/slot_1", "last"])
def test_damaged_sums_are_replaced_by_the_next_fit(
    grown: tuple[Path, list[int], np.ndarray], array: str
) -> None:
    """Damage once could not be mended by the command that the message named."""
    store, steps, values_TN = grown
    shard = read_fit(trajkit.open(store).store).arrays["bfloat16"]["slope"].path.parent
    shard = shard / array / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[3] ^= 16
    shard.write_bytes(content)
    assert not trajkit.verify(store).ok
    said: list[Event] = []
    fit = trajkit.fit(store, keep_sums=True, progress=said.append)
    assert fit.record.found.frames_read == 9
    notes = [e.text for e in said if isinstance(e, Note)]
    assert notes[0] == "replaces the fit 'default' of 6 checkpoints, steps 0 to 50"
    assert len(notes) == 2
    assert array in notes[1]
    assert "reading all checkpoints" in notes[1]
    check_against_float64(fit, steps, values_TN, "bfloat16")
    assert trajkit.verify(store).ok


def test_intact_sums_of_another_fit_are_not_continued(
    grown: tuple[Path, list[int], np.ndarray],
) -> None:
    """Every chunk has its checksum, yet the array is not this fit's: its digest tells."""
    store, steps, values_TN = grown
    trajkit.fit(store, name="other", from_step=30, keep_sums=True)
    mine, other = (
        fit.arrays["bfloat16"]["slope"].path.parent / "sums" / "s_d" / "c" / "0"
        for fit in (trajkit.open(store).fits[name] for name in ("default", "other"))
    )
    mine.write_bytes(other.read_bytes())
    fit = trajkit.fit(store)
    assert fit.record.found.frames_read == 9
    check_against_float64(fit, steps, values_TN, "bfloat16")


def test_a_prior_is_looked_for_under_the_lock(
    grown: tuple[Path, list[int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, _ = grown
    find = sums_module.read_fit
    seen = []

    def locked(*arguments: object) -> object:
        with pytest.raises(Locked), ResultsLock(store):
            pass
        seen.append(arguments)
        return find(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sums_module, "read_fit", locked)
    assert trajkit.fit(store).record.found.frames_read == 3
    assert seen


def test_a_store_made_anew_since_it_was_opened_is_not_fitted(tmp_path: Path) -> None:
    values_TN = np.outer(np.arange(4.0), np.ones(4))
    ingest_part(tmp_path, [0, 1, 2, 3], values_TN, "float32")
    traj = trajkit.open(tmp_path / "s.zarr")
    root = tmp_path / "s.zarr" / "zarr.json"
    assert json.loads(root.read_bytes())["attributes"]["steps"] == [0, 1, 2, 3]
    (tmp_path / "s.zarr").rename(tmp_path / "old.zarr")
    write_values(tmp_path / "other", [0, 1, 2, 3], values_TN + 1, "float32")
    trajkit.ingest(tmp_path / "other", tmp_path / "s.zarr")
    with pytest.raises(Mismatch, match="replaced meanwhile; run it again"):
        trajkit.fit(traj)


@pytest.mark.parametrize(
    "change", [{"x_unit": "wide"}, {"x_unit": 0}, {"count": 3}, {"x_last": -1.0}, {"s_u": None}]
)
def test_scalars_that_are_not_of_the_steps_are_not_continued(
    tmp_path: Path, change: dict[str, object]
) -> None:
    """With every digest made right again; the frames are read once more, and it is said."""
    from dataclasses import replace

    from trajkit.disk import canonical_json
    from trajkit.fits.sums import find_prior
    from trajkit.fits.window import choose_window
    from trajkit.store.store import Store

    write_values(tmp_path / "c", range(0, 60, 10), np.random.default_rng(0).normal(size=(6, 40)))
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr", keep_sums=True)
    store = Store.open(tmp_path / "s.zarr")
    window = choose_window(store, None, None)
    told: list[str] = []
    assert find_prior(store, "default", window, False, told.append) is not None
    record = read_fit(store, "default").record
    sums = {d: {**dict(s), **change} for d, s in (record.found.sums or {}).items()}
    odd = replace(record, found=replace(record.found, sums=sums))
    (tmp_path / "s.zarr" / "fits" / "default" / "zarr.json").write_bytes(
        canonical_json(odd.document())
    )
    assert find_prior(store, "default", window, False, told.append) is None
    assert len(told) == 1
