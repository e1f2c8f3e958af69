"""Fits from changes: the sums of the frames, and the same fit of a store, chunk by chunk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_series import write_checkpoint

import trajkit
from trajkit.arrays import DTYPES
from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.reader import FlatReader
from trajkit.errors import FormatError
from trajkit.kernels import api
from trajkit.kernels.events import Events, accumulate_events, fit_events
from trajkit.kernels.formats import format_of
from trajkit.store.store import Store
from trajkit.store.writer import StoreWriter

FLOATS = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


def draw_events(seed: int, dtype: str, n: int, frames: int, density: float, wild: bool) -> Events:
    """Changes of ``n`` elements: small steps of the bits, or any bits at all, NaN and Inf among them."""
    rng = np.random.default_rng(seed)
    bits = format_of(dtype).bits
    first = rng.standard_normal(n).astype(DTYPES[dtype].scalar).view(bits)
    if wild:
        first = rng.integers(0, np.iinfo(bits).max, n, bits, endpoint=True)
    places, codes, starts = [], [], [0, 0]
    for _ in range(1, frames):
        where = np.flatnonzero(rng.random(n) < density).astype(np.int32)
        most = np.iinfo(bits).max if wild and rng.random() < 0.3 else 9
        places.append(where)
        codes.append(rng.integers(1, most, len(where), bits, endpoint=True))
        starts.append(starts[-1] + len(where))
    empty = [np.empty(0, np.int32)], [np.empty(0, bits)]
    return Events(
        first,
        np.concatenate(places or empty[0]),
        np.concatenate(codes or empty[1]),
        np.array(starts[: frames + 1], np.int64),
    )


def assert_sums_agree(got: api.Sums, want: api.Sums, frames: int) -> None:
    """Equal but for the order of additions in float64: some ulps of the largest term, times T."""
    valid = want.invalid == 0
    np.testing.assert_array_equal(got.invalid, want.invalid)
    for name in ("bits_last", "changes", "distinct"):
        np.testing.assert_array_equal(getattr(got, name)[valid], getattr(want, name)[valid])
    for name in ("y_first", "y_min", "y_max"):
        np.testing.assert_array_equal(getattr(got, name)[valid], getattr(want, name)[valid])
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (want.y_min.astype(float), want.y_max.astype(float))
        reach = 2 * (high - low)
        u, least = 4.0, 2.0 / frames / 8
        scales = {"s_d": reach, "s_ud": u * reach, "s_dd": reach**2, "q": reach**2}
        scales |= {"p": u * reach, "v": reach**2 / least}
        for name, scale in scales.items():
            far = np.abs(getattr(got, name) - getattr(want, name))
            fine = far <= 2.0**-48 * frames**2 * scale + 16 * frames**2 * 2.0**-1074  # subnormal
            same = getattr(got, name) == getattr(want, name)  # infinite where squares overflow
            nan = np.isnan(getattr(got, name)) & np.isnan(getattr(want, name))
            assert (fine | same | nan | ~np.isfinite(frames**2 * scale) | ~valid).all(), name


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(FLOATS),
    n=st.sampled_from([1, 2, 255, 511, 512, 513, 1500]),
    frames=st.integers(1, 40),  # more changes of one element than may wait, twice
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    wild=st.booleans(),
    paper=st.booleans(),
    cut=st.integers(1, 40),
)
def test_changes_have_the_sums_of_their_frames(
    seed: int,
    dtype: str,
    n: int,
    frames: int,
    density: float,
    wild: bool,
    paper: bool,
    cut: int,
) -> None:
    """In one call and in two, NaN, Inf and negative zeros among them, against the float64 reference."""
    events = draw_events(seed, dtype, n, frames, density, wild)
    steps = np.cumsum(np.random.default_rng(seed).integers(1, 9, frames)).astype(float)
    middle, unit = float(steps.mean()), max(float(steps[-1] - steps[0]) / 2, 1.0)
    told = "bfloat16" if paper and dtype != "float64" else None
    want, got, parts = (api.new_sums(n, dtype, middle, unit, told) for _ in range(3))
    with np.errstate(over="ignore", invalid="ignore"):
        accumulate_events(events, steps, want, backend="reference")
    accumulate_events(events, steps, got)
    assert_sums_agree(got, want, frames)
    cut = min(cut, frames)
    at = int(events.starts[cut])
    head = Events(events.first, events.places[:at], events.codes[:at], events.starts[: cut + 1])
    tail = Events(None, events.places[at:], events.codes[at:], events.starts[cut:] - at)
    accumulate_events(head, steps[:cut], parts)
    accumulate_events(tail, steps[cut:], parts)
    assert_sums_agree(parts, want, frames)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_fit_from_changes_is_that_of_their_frames(dtype: str) -> None:
    events = draw_events(5, dtype, 1300, 40, 0.05, False)
    steps = np.arange(40) * 10.0
    got = fit_events(events, steps, dtype, few=4, min_range=1e-3)
    want = fit_events(events, steps, dtype, few=4, min_range=1e-3, backend="reference")
    np.testing.assert_array_equal(got.bits_last, want.bits_last)
    np.testing.assert_array_equal(got.flags, want.flags)
    for name in ("slope", "mean", "rsq", "drift_t"):
        a, b = getattr(got, name), getattr(want, name)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-15, err_msg=name)


def test_events_that_do_not_fit_together_are_refused() -> None:
    events = draw_events(5, "bfloat16", 30, 5, 0.3, False)
    steps = np.arange(5.0)
    with pytest.raises(ValueError, match="beyond the 20 elements"):
        fit_events(
            Events(events.first[:20], events.places, events.codes, events.starts),  # type: ignore[index]
            steps,
            "bfloat16",
        )
    with pytest.raises(ValueError, match="5 frames at 4 steps"):
        fit_events(events, steps[:4], "bfloat16")
    with pytest.raises(ValueError, match="first frame"):
        accumulate_events(
            Events(None, events.places, events.codes, events.starts),
            steps,
            api.new_sums(30, "bfloat16", 0.0, 1.0),
        )


def make_store(path: Path, codec: str, keyframes: int | None, busy: bool) -> list[np.ndarray]:
    """14 checkpoints of 5,000 bf16 elements in chunks of 1,024, 1 % changing; one chunk busy or not."""
    rng = np.random.default_rng(11)
    bits = (rng.standard_normal(5000).astype(np.float32) * 0.02).view(np.uint32) >> 16
    bits = bits.astype(np.uint16)
    bits[7] = 0x7FC0  # a NaN
    series = []
    with StoreWriter(path / "s.zarr", 1) as writer:
        for t in range(14):
            if t:
                density = np.full(5000, 0.01)
                if busy:
                    density[1024:1500] = 0.25
                moved = rng.random(5000) < density
                bits = (bits + moved * rng.integers(1, 4, 5000)).astype(np.uint16)
            series.append(bits)
            state = {
                "a.weight": bits[:3000].view(DTYPES["bfloat16"].scalar),
                "b.weight": bits[3000:].view(DTYPES["bfloat16"].scalar),
            }
            checkpoint = open_checkpoint(write_checkpoint(path / str(t), state), 10 * t)
            if not t:
                writer.create(checkpoint, codec, keyframes, None, chunk=1024)
            with FlatReader(checkpoint, writer.layout().vectors) as reader:
                writer.append(reader, None)
    return series


@pytest.mark.parametrize("keyframes", [None, 5])
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("first", [0, 20])
def test_a_store_is_fitted_alike_from_changes_and_from_frames(
    tmp_path: Path, keyframes: int | None, busy: bool, first: int
) -> None:
    """With keys in the middle, a chunk too busy for it, a window that begins at a delta."""
    for codec in ("sparse", "zstd"):
        (tmp_path / codec).mkdir()
        make_store(tmp_path / codec, codec, keyframes, busy)
    stores = [tmp_path / codec / "s.zarr" for codec in ("sparse", "zstd")]
    sparse, dense = (trajkit.fit(path, from_step=first) for path in stores)
    assert (sparse.describe()["path"], dense.describe()["path"]) == (
        "mixed" if busy else "events",
        "dense",
    )
    assert sparse.describe()["result_bytes"] > 5000 * 15
    kept = trajkit.fit(stores[0], from_step=first, name="kept", keep_sums=True)
    for fit in (sparse, kept):
        for name in ("a.weight", "b.weight"):
            np.testing.assert_array_equal(fit.flags(name), dense.flags(name))
            for quantity in ("slope", "mean", "rsq"):
                theirs, ours = getattr(dense, quantity)(name), getattr(fit, quantity)(name)
                np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-12)
    counts = ("elements", "static", "invalid", "fitted", "few_distinct")
    for ours, theirs in zip(sparse.rows(), dense.rows(), strict=True):
        assert {k: ours[k] for k in counts if k in ours} == {
            k: theirs[k] for k in counts if k in theirs
        }
    assert sparse.record.found.null.keys() == dense.record.found.null.keys()


def test_a_fit_goes_on_from_kept_sums_by_changes(tmp_path: Path) -> None:
    """More checkpoints after a fit that kept its sums: as if all had been fitted at once."""
    make_store(tmp_path, "sparse", None, False)
    path = tmp_path / "s.zarr"
    trajkit.fit(path, to_step=80, keep_sums=True, name="x")
    on = trajkit.fit(path, keep_sums=True, name="x")
    whole = trajkit.fit(path, name="whole")
    assert on.describe()["frames_read"] == 5
    assert on.describe()["path"] == "events"
    for quantity in ("slope", "mean", "rsq", "flags"):
        ours, theirs = getattr(on, quantity)("a.weight"), getattr(whole, quantity)("a.weight")
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("frame", [0, 6, 13])
def test_a_damaged_or_misplaced_frame_is_refused(tmp_path: Path, frame: int) -> None:
    make_store(tmp_path, "sparse", None, False)
    store = Store.open(tmp_path / "s.zarr")
    shard = store.frames["bfloat16"].row_path(frame) / "0"
    content = shard.read_bytes()
    shard.write_bytes(content[:30] + bytes([content[30] ^ 1]) + content[31:])
    with pytest.raises(FormatError, match="crc32c"):
        trajkit.fit(store.path)
    other = store.frames["bfloat16"].row_path(frame - 1 if frame else 1) / "0"
    shard.write_bytes(other.read_bytes())
    with pytest.raises(FormatError, match="do not match"):
        trajkit.fit(store.path)


@pytest.mark.parametrize("where", [slice(0, 300, 1), slice(100, 290, 7), slice(299, 300, 3)])
def test_sampled_columns_are_those_of_the_frames(where: slice) -> None:
    events = draw_events(9, "bfloat16", 300, 20, 0.1, False)
    np.testing.assert_array_equal(events.sampled(where), events.frames()[:, where])
