"""An extrapolation as values: a request, a plan, tasks that any process can do."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import FrozenInstanceError
from multiprocessing import get_context
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from store_series import contents, write_checkpoint

import trajkit
from trajkit.errors import InvalidInput, Mismatch, NotFound, TrajkitWarning
from trajkit.fits.estimators.gates import GateRule, parse_gate
from trajkit.fits.estimators.table import ESTIMATORS, OWNERS, PARAMETERS, make_estimator
from trajkit.forecast.chunks import ChunkTask, Evaluator, evaluate_chunks, make_tasks
from trajkit.forecast.combine import weigh
from trajkit.forecast.evaluation import resolve
from trajkit.forecast.extrapolate import run
from trajkit.forecast.plan import plan
from trajkit.forecast.request import Request, parse_steps
from trajkit.progress import silent
from trajkit.trajectory import Trajectory


@pytest.fixture(scope="module")
def traj(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    """Two chunks and a half of bf16 that drift, and a norm."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    start, slope = rng.normal(0, 0.05, 600_000), rng.normal(0, 1e-4, 600_000)
    for step in (0, 10, 30, 40):
        values = (start + slope * step).astype(ml_dtypes.bfloat16)
        state = {"w": values.reshape(600, 1000), "norm": np.full(7, step, ml_dtypes.bfloat16)}
        write_checkpoint(folder / "c" / f"step_{step}", state)
    trajkit.ingest(folder / "c", folder / "s.zarr")
    traj = trajkit.open(folder / "s.zarr")
    trajkit.fit(traj, 0.5)
    return traj


@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "stochastic", "seed": 3},
        {"estimator": "two-point", "from_step": 10},
        {"estimator": "expo", "rsq_threshold": 0.2},
        {"estimator": "line", "gate": "none"},
        {"estimator": "rank-k-anchored", "rank": 2},
    ],
)
def test_a_task_gives_the_same_bits_in_another_process(
    traj: Trajectory, options: dict[str, object]
) -> None:
    evaluation = resolve(Request.make(traj, 90, **options))
    evaluation = weigh(evaluation, (90, 55), 2**30, silent)
    (vector,) = evaluation.store.vectors.values()
    tasks = make_tasks(evaluation.rule, vector, 2, (90, 55))
    assert [list(t.chunks) for t in tasks] == [[0, 1], [2]]
    assert pickle.loads(pickle.dumps(tasks)) == tasks
    with pytest.raises(FrozenInstanceError):
        tasks[0].dtype = "float32"  # type: ignore[misc]
    here = []
    with Evaluator.of(evaluation) as evaluator:
        for task in tasks:
            pieces: list[bytes] = []
            counts = evaluator.run(task, lambda _, __, bits, p=pieces: p.append(bits.tobytes()))
            here.append((pieces, counts))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = list(pool.map(evaluate_chunks, tasks))
    assert [([b.tobytes() for b in pieces], counts) for pieces, counts in there] == here
    assert sum(c.moved for _, counts in here for c in counts) > 1000


def test_a_task_notices_that_its_fit_was_replaced(traj: Trajectory) -> None:
    evaluation = resolve(Request.make(traj, 90, fit=trajkit.fit(traj, 0.5, name="gone")))
    (vector,) = evaluation.store.vectors.values()
    task = make_tasks(evaluation.rule, vector, 1, (90,))[0]
    trajkit.fit(traj, 0.5, name="gone", to_step=30)
    with pytest.raises((Mismatch, NotFound), match="replaced"):
        evaluate_chunks(task)


def test_request_plan_and_run_are_the_verb(traj: Trajectory, tmp_path: Path) -> None:
    trajkit.extrapolate(traj, [50, 60], tmp_path / "verb", estimator="damped", damping=0.5)
    request = Request.make(traj, [50, 60], tmp_path / "parts", estimator="damped", damping=0.5)
    forecast = plan(request)
    assert not (tmp_path / "parts").exists()
    result = run(forecast, silent)
    assert contents(tmp_path / "parts") == contents(tmp_path / "verb")
    assert [t.step for t in result.targets] == [t.step for t in forecast.targets] == [50, 60]


def test_every_estimator_is_a_line_in_the_table(traj: Trajectory) -> None:
    for name, kind in ESTIMATORS.items():
        estimator = make_estimator(name, {})
        assert estimator.name == kind.name == name
        assert hash(estimator) == hash(pickle.loads(pickle.dumps(estimator)))
        assert all(name in OWNERS[p.name] for p in estimator.parameters)
    assert PARAMETERS.keys() == {"damping", "decay", "rank", "alpha"}
    with pytest.raises(InvalidInput, match="there are: damping, decay, rank, alpha"):
        trajkit.extrapolate(traj, 90, "out", thresold=0.5)  # type: ignore[call-arg]


def test_gates_as_people_write_them(traj: Trajectory, tmp_path: Path) -> None:
    assert parse_gate("rsq:.25") == GateRule("rsq", 0.25)
    for text in ("", "rsq", "rsq:", "rsq:x", "rsq:nan", "rsq:1.5", "loss:1"):
        with pytest.raises(InvalidInput):
            parse_gate(text)
    by_gate = trajkit.extrapolate(traj, 45, tmp_path / "gate", gate="rsq:0.9")
    by_rsq = trajkit.extrapolate(traj, 45, tmp_path / "rsq", rsq_threshold=0.9)
    free = trajkit.extrapolate(traj, 45, tmp_path / "free", gate="none")
    assert contents(tmp_path / "gate") == contents(tmp_path / "rsq")
    assert free.held < by_gate.held == by_rsq.held
    with pytest.raises(InvalidInput, match="give one"):
        trajkit.extrapolate(traj, 45, tmp_path / "both", gate="rsq:0.9", rsq_threshold=0.9)


def test_numbers_that_no_run_reaches(traj: Trajectory, tmp_path: Path) -> None:
    for alpha in (1e308, -1e308, 1e7):
        with pytest.raises(InvalidInput, match="alpha must lie"):
            trajkit.extrapolate(traj, None, tmp_path / "out", estimator="expo", alpha=alpha)
    for text in ("9" * 24, "+" + "9" * 24, "9" * 5000):
        with pytest.raises(InvalidInput, match="digits"):
            parse_steps(text, traj)
    for step in (10**24, -(10**24), 10**400):
        with pytest.raises(InvalidInput, match="digits"):
            trajkit.extrapolate(traj, step, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_warnings_reach_the_caller(traj: Trajectory, tmp_path: Path) -> None:
    with pytest.warns(TrajkitWarning, match=r"2\.5 windows beyond the data") as caught:
        result = trajkit.extrapolate(traj, 140, tmp_path / "out")
    assert Path(caught[0].filename) == Path(__file__)
    assert [str(w.message) for w in caught] == list(result.warnings)


def test_the_task_module_opens_no_more_than_it_says(traj: Trajectory) -> None:
    """One evaluator a process: tasks of one rule share it."""
    evaluation = resolve(Request.make(traj, 90))
    (vector,) = evaluation.store.vectors.values()
    task = ChunkTask(evaluation.rule, vector.dtype.name, range(1), (90,))
    from trajkit.forecast import chunks

    evaluate_chunks(task)
    before = chunks._opened.cache_info().misses
    evaluate_chunks(pickle.loads(pickle.dumps(task)))
    assert chunks._opened.cache_info().misses == before
