"""One streaming pass over a store: the errors of every forecast, summed tensor by tensor.

A worker takes a chunk through all its frames once. At an origin the sums so far are solved, which is
the fit of the prefix; at a target the decoded values are compared with what each earlier origin says
of them (:mod:`trajkit.kernels.skill`). Nothing is written, and no checkpoint is read twice.

Of every sixteenth element (fewer of very long runs) the Gram matrix of the deltas from the first
checkpoint is summed too: it says what any fixed combination of checkpoints, an average or a line in
a few directions, is wrong by (:mod:`trajkit.stats.combinations`).

Axis letters: F forecasts, G tensors or groups of them, S sums, C elements a chunk, T checkpoints, M
sampled elements.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.evidence.origins import BacktestPlan, Forecast
from trajkit.fits.window import Window
from trajkit.kernels import api as kernels
from trajkit.kernels.cpu.skill import tally_errors
from trajkit.kernels.formats import format_of, ulp_of
from trajkit.kernels.skill import SUMS, Horizon
from trajkit.parallel import Plan, count_workers, map_in_order, plan_batch
from trajkit.progress import Advanced, Progress
from trajkit.stats.axis import StepAxis
from trajkit.stats.intervals import student_quantile
from trajkit.stats.nulls import null_median
from trajkit.store.chunks import ChunkReader
from trajkit.store.store import Store

BATCH_FRAMES = 64
"""frames of a chunk decoded into memory at once, where the budget allows"""
_STATE_BYTES = 96
"""sums of one element, and the values of a target"""
_ORIGIN_BYTES = 40
"""what one origin keeps of one element"""
SAMPLE = 16
"""one element in so many is sampled for the Gram matrix"""
SAMPLE_VALUES = 1 << 20
"""values of a chunk's sample at most, over all checkpoints"""
MAX_GRAM = 1024
"""checkpoints up to which there is a Gram matrix"""


@dataclass(frozen=True, slots=True)
class ErrorTask:
    """One chunk's share of a backtest."""

    dtype: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Errors:
    """What forecasts were wrong by."""

    sums_FGS: Array
    """float64 [F, G, S], see :mod:`trajkit.kernels.skill`"""
    gram_TT: Array | None
    """float64 [T, T], of a sample; None in runs of more than 1,024 checkpoints"""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a chunk's elements at an origin."""

    values: Mapping[str, Array]
    flags: Array


def plan_errors(
    vectors: Sequence[FlatVector], n_origins: int, n_frames: int, budget: int
) -> tuple[Plan, int]:
    """Workers, and frames a batch: fewer frames first, then fewer workers.

    Raises:
        OverBudget: one worker with the smallest batch does not fit.
    """

    def bytes_a_worker(batch: int) -> int:
        return max(
            v.chunk * ((batch + 2) * v.dtype.itemsize + _STATE_BYTES + n_origins * _ORIGIN_BYTES)
            for v in vectors
        )

    largest = min(n_frames, BATCH_FRAMES)
    return plan_batch("backtest", count_workers(), largest, 1, bytes_a_worker, budget)


def sum_errors(
    store: Store,
    window: Window,
    plan: BacktestPlan,
    groups: Mapping[str, int],
    budget: int,
    progress: Progress,
) -> Errors:
    """The errors of every forecast.

    Args:
        store: the run.
        window: the frames that the plan's indices count from.
        plan: origins and targets.
        groups: of every floating-point tensor, the row that its sums go to.
        budget: bytes of memory.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        OverBudget: the budget is too small. FormatError: a damaged chunk.
    """
    total = np.zeros((len(plan.forecasts), max(groups.values(), default=-1) + 1, len(SUMS)))
    n = len(plan.steps)
    gram = np.zeros((n, n)) if n <= MAX_GRAM else None
    vectors = [v for v in store.vectors.values() if v.dtype.is_float and v.size]
    if not vectors:
        return Errors(total, gram)
    memory, batch = plan_errors(vectors, len(plan.origins), window.n_frames, budget)
    axes, nulls = axes_and_nulls(plan)
    for vector in vectors:
        with ChunkReader(store.frames[vector.dtype.name]) as reader:
            job = _VectorErrors(store, vector, window, plan, batch, reader, axes, nulls)
            tasks = [ErrorTask(vector.dtype.name, k) for k in range(vector.n_chunks)]
            with ThreadPoolExecutor(memory.workers) as pool:
                for task, (parts, own) in map_in_order(pool, job.run, tasks, memory.workers + 1):
                    if gram is not None and own is not None:
                        gram[: len(own), : len(own)] += own
                    for f, name, sums in parts:
                        total[f, groups[name]] += sums
                    start, stop = vector.chunk_span(task.chunk)
                    progress(Advanced((stop - start) * vector.dtype.itemsize * window.n_frames))
    return Errors(total, gram)


class _VectorErrors:
    """The errors of one flat vector, chunk by chunk; safe to call from many threads at once."""

    def __init__(
        self,
        store: Store,
        vector: FlatVector,
        window: Window,
        plan: BacktestPlan,
        batch: int,
        reader: ChunkReader,
        axes: Sequence[StepAxis],
        nulls: Sequence[float],
    ) -> None:
        self.store, self.vector, self.window, self.plan = store, vector, window, plan
        self.batch, self.reader, self.axes, self.nulls = batch, reader, axes, nulls
        self.dtype = vector.dtype.name
        self.targets: dict[int, list[tuple[int, Forecast]]] = {}
        for f, forecast in enumerate(plan.forecasts):
            self.targets.setdefault(forecast.target, []).append((f, forecast))

    def run(self, task: ErrorTask) -> tuple[list[tuple[int, str, Array]], Array | None]:
        """(forecast, tensor, sums) of one chunk, and the Gram matrix of its sample."""
        start, stop = self.vector.chunk_span(task.chunk)
        spans = list(self.vector.spans(start, stop))
        known: dict[int, _Known] = {}
        found = []
        sample = Sample(stop - start, self.dtype, len(self.plan.steps))
        for t, sums, bits in self._walk(task.chunk, stop - start, sample):
            real = kernels.values_of(bits, self.dtype)
            for f, forecast in self.targets.get(t, ()):
                at_origin = known[forecast.origin]
                at = self.plan.origins.index(forecast.origin)
                horizon = horizon_of(self.plan, forecast, self.axes[at], self.nulls[at])
                for span in spans:
                    cut = slice(span.at, span.at + span.stop - span.start)
                    values = {name: v[cut] for name, v in at_origin.values.items()}
                    errors = tally_errors(
                        {**values, "real": real[cut]}, at_origin.flags[cut], horizon
                    )
                    found.append((f, span.tensor.name, errors))
            if t in self.plan.origins:
                known[t] = self._know(sums, real)
        return found, sample.gram()

    def _walk(self, k: int, n: int, sample: "Sample") -> Iterator[tuple[int, kernels.Sums, Array]]:
        """(frame, sums, bits) of chunk ``k`` at every origin and target, in order.

        The sums are up to date at origins alone: going over them costs as much as ten frames.
        """
        window, plan = self.window, self.plan
        last = max(self.targets)
        sums = kernels.new_sums(n, self.dtype, window.axis.mean, window.axis.unit)
        codes = np.empty((self.batch, self.vector.chunk), self.vector.dtype.bits)
        bits = np.empty(self.vector.chunk, self.vector.dtype.bits)
        steps = np.array(plan.steps, np.float64)
        starts = [0, *(o + 1 for o in plan.origins)]
        for begin, stop in zip(starts, [*starts[1:], last + 1], strict=True):
            for done in range(begin, stop, self.batch):
                end = min(done + self.batch, stop)
                is_key = self._read(codes[: end - done], k, done, end)
                if stop <= plan.origins[-1] + 1:
                    kernels.accumulate_frames(codes[: end - done], is_key, steps[done:end], sums)
                for t in range(done, end):
                    if is_key[t - done]:
                        bits[:] = codes[t - done]
                    else:
                        kernels.decode_frame(codes[t - done], bits, bits)
                    sample.take(bits[:n])
                    if t in self.targets or t in plan.origins:
                        yield t, sums, bits[:n]

    def _read(self, codes_TN: Array, k: int, begin: int, end: int) -> Array:
        """Read the codes of the window's frames [begin, end); which of them are keys."""
        first = self.window.first
        is_key = np.array([self.store.is_key(first + t) for t in range(begin, end)])
        if begin == 0 and not is_key[0]:
            scratch = np.empty(self.vector.chunk, self.vector.dtype.bits)
            self.store.read_bits(self.dtype, first, k, codes_TN[0], scratch)
            is_key[0] = True
            codes_TN, begin = codes_TN[1:], 1
        frames = range(first + begin, first + end)
        self.store.read_code_rows(self.reader, frames, k, codes_TN)
        return is_key

    def _know(self, sums: kernels.Sums, last: Array) -> _Known:
        """The fit of the prefix that the sums are of."""
        solution = kernels.solve(sums)
        margin = half_ulps(last, self.dtype)
        values = {
            "last": last.copy(),  # of 32 bits and more it is the running bits themselves
            "first": np.array(sums.y_first),
            "slope": solution.slope,
            "mean": solution.mean,
            "rsq": solution.rsq,
            "t": solution.drift_t,
            "margin": margin,
        }
        return _Known(values, solution.flags)


@cache
def _quantile(degrees: int) -> float:
    """Student's, for 95 %."""
    return student_quantile(0.95, degrees)


def axes_and_nulls(plan: BacktestPlan) -> tuple[list[StepAxis], list[float]]:
    """The step axis of each origin's window, and the median R² of a driftless walk on it."""
    windows = [plan.steps[: origin + 1] for origin in plan.origins]
    axes = [StepAxis.of(list(steps)) for steps in windows]
    return axes, [null_median(steps) or 0.0 for steps in windows]


def horizon_of(plan: BacktestPlan, forecast: Forecast, axis: StepAxis, null: float) -> Horizon:
    """What one forecast knows of the step axis; ``axis`` and ``null`` are of its origin's window."""
    return Horizon(
        float(plan.reach(forecast)),
        plan.steps[forecast.target] - axis.mean,
        float(axis.span),
        float(len(axis.steps)),
        axis.s_xx,
        null,
        _quantile(max(len(axis.steps) - 2, 1)),
    )


class Sample:
    """Every sixteenth element of a chunk over all its checkpoints, as deltas from the first."""

    def __init__(self, n: int, dtype: str, n_frames: int) -> None:
        self.dtype = dtype
        fewest = -(-n * n_frames // SAMPLE_VALUES)
        self._every = slice(0, n, max(SAMPLE, fewest))
        self._first: Array = np.empty(0)
        self._rows: list[Array] = []
        self._off = n_frames > MAX_GRAM

    def take(self, bits_N: Array) -> None:
        """Take the sampled elements of one checkpoint more."""
        if self._off:
            return
        values = kernels.values_of(bits_N[self._every].copy(), self.dtype)
        if not self._rows:
            self._first = values.copy()
        self._rows.append(values - self._first)

    def gram(self) -> Array | None:
        """Δ_s · Δ_t of the sample, [T, T]; elements that are not finite throughout are left out."""
        if self._off or not self._rows:
            return None
        deltas_TM = np.stack(self._rows)
        deltas_TM[:, ~np.isfinite(deltas_TM).all(axis=0)] = 0
        return np.asarray(deltas_TM @ deltas_TM.T, np.float64)


def half_ulps(values_N: Array, dtype: str) -> Array:
    """Half the spacing of a format's numbers at each value, [N] in the values' own dtype."""
    if values_N.dtype == np.float32:
        form = format_of(dtype)
        power = (values_N.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
        smallest = np.float32(2.0 ** max(form.e_min, -126))
        half: Array = np.maximum(power, smallest) * np.float32(2.0 ** -(form.mantissa + 1))
        return half
    return ulp_of(values_N, dtype) / 2
