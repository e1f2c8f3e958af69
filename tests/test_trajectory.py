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


def test_a_checkpoint_is_given_tensor_by_tensor(adder_store: Path) -> None:
    traj = trajkit.open(adder_store)
    for step in (0, 204):
        given = dict(traj.checkpoint(step))
        assert list(given) == list(traj.tensors)
        for name, array in given.items():
            want = traj.read(name, step)
            assert (array.dtype, array.shape) == (want.dtype, want.shape)
            assert array.tobytes() == want.tobytes()
    with pytest.raises(NotFound, match="step 7"):
        traj.checkpoint(7)


def test_a_checkpoint_of_many_chunks_dtypes_and_empty_tensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"none": (0, 4), "a": (3,), "b": (700, 900), "gap": (0,), "c": (), "d": (500, 600)}
    states = []
    for step in range(4):
        state = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        state |= {"ids": np.arange(5) + step, "mask": rng.random(9) < 0.5}
        states.append(state)
        write_checkpoint(tmp_path / "c" / f"step_{step}", state)
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr", keyframes=3)
    traj = trajkit.open(tmp_path / "s.zarr")
    for step, state in enumerate(states):
        given = dict(traj.checkpoint(step, memory="20MB"))
        assert given.keys() == state.keys()
        for name, array in state.items():
            assert (given[name].dtype, given[name].shape) == (array.dtype, array.shape), name
            assert given[name].tobytes() == array.tobytes(), name
    for name in states[0]:
        history = traj.history(name)
        assert history.shape == (4, *states[0][name].shape)
        assert all(h.tobytes() == s[name].tobytes() for h, s in zip(history, states, strict=True))


def test_a_trajectory_is_a_sequence_of_steps_that_can_grow(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        values = np.full(3, step, np.float32)
        write_checkpoint(tmp_path / "c" / f"step_{step}", {"w": values})
    trajkit.ingest([tmp_path / "c" / "step_0", tmp_path / "c" / "step_10"], tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    assert (len(traj), list(traj)) == (2, [0, 10])
    trajkit.ingest(tmp_path / "c", traj)  # a trajectory names its store
    assert len(traj) == 2
    assert traj.refresh() is traj
    assert (len(traj), list(traj)) == (3, [0, 10, 20])


def test_a_fit_predicts(adder_store: Path) -> None:
    traj = trajkit.open(adder_store)
    fit = traj.fits["default"]
    name = next(n for n, info in traj.tensors.items() if len(info.shape) == 2)
    line = fit.predict(name, 500)
    assert (line.dtype, line.shape) == (np.float32, traj.tensors[name].shape)
    want = fit.mean(name).astype(np.float64) + fit.slope(name).astype(np.float64) * (
        500 - fit.x_mean
    )
    np.testing.assert_allclose(line, want, rtol=1e-6, atol=1e-7)
    at_mean = fit.predict(name, fit.x_mean)
    np.testing.assert_array_equal(at_mean, fit.mean(name))


@pytest.mark.parametrize("kind", ["str", "path", "store", "trajectory"])
def test_every_verb_takes_every_source(tmp_path: Path, kind: str) -> None:
    for step in (0, 10, 20):
        values = np.float32([step, 1, -step])
        write_checkpoint(tmp_path / "c" / f"step_{step}", {"w": values})
    trajkit.ingest(tmp_path / "c" / "step_0", tmp_path / "s.zarr")
    path = tmp_path / "s.zarr"

    def source() -> object:
        opened = trajkit.open(path)
        return {"str": str(path), "path": path, "store": opened.store, "trajectory": opened}[kind]

    assert trajkit.ingest(tmp_path / "c", source()).steps == 3
    assert len(trajkit.fit(source()).steps) == 3
    assert trajkit.extrapolate(source(), 25, tmp_path / "out").targets[0].step == 25
    assert trajkit.restore(source(), 10, tmp_path / "back").step == 10
    assert trajkit.report(source(), tmp_path / "page").n_bytes
    assert trajkit.verify(source(), against=tmp_path / "c").ok
    assert trajkit.open(source()).steps.tolist() == [0, 10, 20]


def test_progress_true_shows_what_the_command_line_shows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for step in (0, 10, 20):
        write_checkpoint(tmp_path / "c" / f"step_{step}", {"w": np.float32([step, 1])})
    store = tmp_path / "s.zarr"
    calls = {
        "ingest": lambda p: trajkit.ingest(tmp_path / "c", store, progress=p),
        "fit": lambda p: trajkit.fit(store, progress=p),
        "extrapolate": lambda p: trajkit.extrapolate(store, 25, tmp_path / f"o{p}", progress=p),
        "restore": lambda p: trajkit.restore(store, 10, tmp_path / f"r{p}", progress=p),
        "report": lambda p: trajkit.report(store, tmp_path / f"p{p}", progress=p),
        "verify": lambda p: trajkit.verify(store, progress=p),
    }
    for verb, call in calls.items():
        capfd.readouterr()
        call(True)
        shown = capfd.readouterr()
        assert verb in shown.err, (verb, shown.err)
        assert shown.out == ""
        if verb != "ingest":
            call(False)
            assert capfd.readouterr().err == "", verb
