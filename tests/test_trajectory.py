"""A trajectory: tensors by name and step, elements over the steps."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_series import any_bits, drift, write_checkpoint

import trajkit
from trajkit.arrays import DTYPES
from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.reader import FlatReader
from trajkit.errors import InvalidInput, NotFound
from trajkit.store.tensors import element_bits, read_bits
from trajkit.store.writer import StoreWriter
from trajkit.trajectory import Trajectory

DTYPE_NAMES = ["bfloat16", "float32", "float64", "float8_e5m2", "int32"]
CHECKPOINTS = 11


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Trajectory, list[dict[str, np.ndarray]]]:
    """Steps 0, 5, 10, ... of one tensor a dtype, in chunks of 10 elements, K = 4."""
    root = tmp_path_factory.mktemp("trajectory")
    rng = np.random.default_rng(0)
    first = {d: any_bits(rng, d, (7, 6)) for d in DTYPE_NAMES}
    first["scalar"] = any_bits(rng, "bfloat16", ())
    first["none"] = any_bits(rng, "bfloat16", (3, 0))
    series = drift(rng, first, CHECKPOINTS, 0.4)
    with StoreWriter(root / "s.zarr", 1) as writer:
        for t, state in enumerate(series):
            checkpoint = open_checkpoint(write_checkpoint(root / str(t), state), 5 * t)
            if not t:
                writer.create(checkpoint, "zstd", 4, None, chunk=10)
            with FlatReader(checkpoint, writer.layout().vectors) as reader:
                writer.append(reader, None)
    return trajkit.open(root / "s.zarr"), series


@given(name=st.sampled_from(DTYPE_NAMES), row=st.integers(-7, 6), column=st.integers(-6, 5))
def test_an_element_over_the_steps(
    made: tuple[Trajectory, list[dict[str, np.ndarray]]], name: str, row: int, column: int
) -> None:
    traj, series = made
    got = traj.trajectory(name, (row, column))
    wide = np.float64 if name == "float64" else np.float32
    assert got.dtype == wide
    np.testing.assert_array_equal(got, [s[name][row, column].astype(wide) for s in series])


@given(name=st.sampled_from(DTYPE_NAMES), elements=st.lists(st.integers(0, 41), max_size=9))
def test_elements_in_any_order(
    made: tuple[Trajectory, list[dict[str, np.ndarray]]], name: str, elements: list[int]
) -> None:
    traj, series = made
    at = np.array(elements, np.int64) + traj.tensors[name].offset
    got = element_bits(traj.store, name, at)
    bits = np.stack([s[name].reshape(-1).view(DTYPES[name].bits) for s in series])
    np.testing.assert_array_equal(got, bits[:, elements])


@given(t=st.integers(0, CHECKPOINTS - 1), a=st.integers(0, 42), b=st.integers(0, 42))
def test_any_range_of_a_flat_vector(
    made: tuple[Trajectory, list[dict[str, np.ndarray]]], t: int, a: int, b: int
) -> None:
    traj, series = made
    a, b = sorted((a, b))
    expected = series[t]["float32"].reshape(-1).view(np.uint32)[a:b]
    np.testing.assert_array_equal(read_bits(traj.store, "float32", a, b, t), expected)


def test_scalars_and_empty_tensors(
    made: tuple[Trajectory, list[dict[str, np.ndarray]]],
) -> None:
    traj, series = made
    assert traj.read("none", 10).shape == (3, 0)
    assert traj.read("scalar", 10).shape == ()
    np.testing.assert_array_equal(
        traj.trajectory("scalar"), [s["scalar"].astype(np.float32) for s in series]
    )


def test_what_is_not_there_is_named(
    made: tuple[Trajectory, list[dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    traj, _ = made
    with pytest.raises(NotFound, match="no tensor 'float33'; did you mean 'float32'"):
        traj.read("float33", 0)
    with pytest.raises(NotFound, match="step 3 is not in the store; it holds 11 steps from 0 to"):
        traj.read("float32", 3)
    with pytest.raises(InvalidInput, match="has 2 axes, the index 1"):
        traj.trajectory("float32", 3)
    with pytest.raises(InvalidInput, match="is outside 'float32'"):
        traj.trajectory("float32", (7, 0))
    with pytest.raises(NotFound, match="no store at"):
        trajkit.open(tmp_path / "none.zarr")
    assert repr(traj).endswith(": 11 steps, 7 tensors, 211 elements>")
    assert traj.fits == {}


def test_a_trajectory_is_a_snapshot(tmp_path: Path) -> None:
    from store_series import small_series

    folders = small_series(tmp_path / "ckpts", 3)
    trajkit.ingest(folders[:2], tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    trajkit.ingest(folders, tmp_path / "s.zarr")
    assert traj.steps.tolist() == [10, 20]
    assert trajkit.open(tmp_path / "s.zarr").steps.tolist() == [10, 20, 30]
    assert len(traj.trajectory("model.norm.weight", 0)) == 2
