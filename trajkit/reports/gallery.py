"""Elements worth looking at: the best, median and worst fit, the biggest mover, and random ones.

The fit's arrays are scanned chunk by chunk; of a large model, a seeded sample of chunks. Memory:
two chunks, whatever N is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.fits.arrays import read_elements
from trajkit.fits.kept import Fit
from trajkit.kernels.flags import FLAG_FEW_DISTINCT, FLAG_SMALL_RANGE
from trajkit.kernels.formats import ulp_of, values_of
from trajkit.kernels.noise import uniform_noise
from trajkit.store.store import Store
from trajkit.store.tensors import element_bits

SCAN_CHUNKS = 1024
"""chunks looked at (2.7e8 elements of the default size); of more, a sample"""
RANDOM = 5
_SEED = 0


@dataclass(frozen=True)
class Pick:
    """One element, its values and its line."""

    role: str
    """why it was chosen: ``best``, ``median``, ``worst``, ``biggest mover``, ``random``"""
    tensor: str
    index: tuple[int, ...]
    """its place in the tensor's shape"""
    dtype: str
    rsq: float
    slope: float
    mean: float
    ulp: float
    """the format's spacing at the mean"""
    steps: Array
    """all committed training steps, int64 [T]"""
    values: Array
    """float64 [T]"""
    fitted: Array
    """whether the step was in the fit's window, bool [T]"""


@dataclass(frozen=True)
class Gallery:
    """The elements chosen, and among how many."""

    picks: tuple[Pick, ...]
    scanned: int
    """elements looked at"""
    whole: bool
    """whether that was all of them"""


@dataclass
class _Candidate:
    score: float
    """the smallest wins"""
    dtype: str = ""
    at: int = -1
    """index into the dtype's flat vector"""


def choose_elements(store: Store, fit: Fit, numbers_median: float | None) -> Gallery:
    """Pick the gallery's elements and read their trajectories.

    Best, median, worst and biggest mover are chosen among kept elements (of four or more distinct
    values) where there are any; random ones among all fitted.

    Args:
        store: the run.
        fit: its fit.
        numbers_median: median R² of the elements that the first ones are chosen among.

    """
    best, median, worst, mover = (_Candidate(np.inf) for _ in range(4))
    lots: list[_Candidate] = []
    use_kept = fit.stats.kept > 0
    scanned = 0
    for dtype, start, rsq, slope, flags in _read_chunks(fit):
        scanned += len(rsq)
        fitted_N = np.isfinite(rsq)
        few_N = (flags & (FLAG_FEW_DISTINCT | FLAG_SMALL_RANGE)) != 0
        pool_N = fitted_N & ~few_N if use_kept else fitted_N
        _challenge(best, dtype, start, np.where(pool_N, -rsq, np.inf))
        _challenge(worst, dtype, start, np.where(pool_N, rsq, np.inf))
        _challenge(mover, dtype, start, np.where(pool_N, -np.abs(slope), np.inf))
        if numbers_median is not None:
            far = np.abs(rsq - np.float32(numbers_median))
            _challenge(median, dtype, start, np.where(pool_N, far, np.inf))
        lots += _draw_lots(dtype, start, fitted_N)
        lots = sorted(lots, key=lambda c: c.score)[: RANDOM + 4]
    named = [("best", best), ("median", median), ("worst", worst), ("biggest mover", mover)]
    chosen: list[tuple[str, _Candidate]] = []
    for role, candidate in [*named, *(("random", lot) for lot in lots)]:
        taken = {(c.dtype, c.at) for _, c in chosen}
        if candidate.at < 0 or (candidate.dtype, candidate.at) in taken:
            continue
        if role == "random" and len(chosen) >= len(named) + RANDOM:
            break
        chosen.append((role, candidate))
    return Gallery(
        tuple(_read_picks(store, fit, chosen)),
        scanned,
        whole=scanned == sum(arrays["rsq"].size for arrays in fit.arrays.values()),
    )


def _read_chunks(fit: Fit) -> Iterator[tuple[str, int, Array, Array, Array]]:
    """(dtype, index of the first element, rsq, slope, flags) of the chunks to look at."""
    places = [(d, k) for d, arrays in fit.arrays.items() for k in range(arrays["rsq"].n_chunks)]
    if len(places) > SCAN_CHUNKS:
        rng = np.random.default_rng(_SEED)
        sample = np.sort(rng.choice(len(places), SCAN_CHUNKS, replace=False))
        places = [places[i] for i in sample]
    for dtype, k in places:
        start, stop = fit.arrays[dtype]["rsq"].span(k)
        columns = []
        for name in ("rsq", "slope", "flags"):
            array = fit.arrays[dtype][name]
            chunk = np.empty(array.chunk, array.dtype)
            with fit.reading():
                array.read_chunk(0, k, chunk)
            columns.append(chunk[: stop - start])
        yield dtype, start, columns[0], columns[1], columns[2]


def _challenge(candidate: _Candidate, dtype: str, start: int, score_N: Array) -> None:
    """Put the chunk's lowest score in the candidate's place if it is lower still."""
    if len(score_N):
        i = int(np.argmin(score_N))
        if score_N[i] < candidate.score:
            candidate.score, candidate.dtype, candidate.at = float(score_N[i]), dtype, start + i


def _draw_lots(dtype: str, start: int, fitted_N: Array) -> list[_Candidate]:
    """The chunk's fitted elements with the lowest lots; lots go by element, not by chunk."""
    seed = _SEED + sum(dtype.encode())
    lots_N = uniform_noise(seed, start, len(fitted_N)).astype(np.float64)
    lots_N[~fitted_N] = np.inf
    n = min(RANDOM + 4, len(lots_N))
    lowest: Array | list[int] = np.argpartition(lots_N, n - 1)[:n] if n else np.empty(0, np.int64)
    return [
        _Candidate(float(lots_N[i]), dtype, start + int(i))
        for i in lowest
        if np.isfinite(lots_N[i])
    ]


def _read_picks(store: Store, fit: Fit, chosen: list[tuple[str, _Candidate]]) -> Iterator[Pick]:
    """The chosen elements with their values over all committed steps."""
    traces: dict[tuple[str, int], Array] = {}
    for dtype in fit.arrays:
        places = [c.at for _, c in chosen if c.dtype == dtype]
        if places:
            bits_TM = element_bits(store, dtype, np.array(places))
            for m, at in enumerate(places):
                values_T = values_of(np.ascontiguousarray(bits_TM[:, m]), dtype)
                traces[dtype, at] = values_T.astype(np.float64)
    in_window_T = np.isin(store.steps, fit.steps)
    for role, c in chosen:
        info = _tensor_at(store, c.dtype, c.at)
        with fit.reading():
            rsq, slope, mean = (
                float(read_elements(fit.arrays[c.dtype][name], c.at, c.at + 1)[0])
                for name in ("rsq", "slope", "mean")
            )
        yield Pick(
            role=role,
            tensor=info.name,
            index=tuple(int(i) for i in np.unravel_index(c.at - info.offset, info.shape)),
            dtype=c.dtype,
            rsq=rsq,
            slope=slope,
            mean=mean,
            ulp=float(ulp_of(np.array([mean]), c.dtype)[0]),
            steps=store.steps,
            values=traces[c.dtype, c.at],
            fitted=in_window_T,
        )


def _tensor_at(store: Store, dtype: str, at: int) -> TensorInfo:
    """The tensor that element ``at`` of a flat vector belongs to."""
    return next(store.vectors[dtype].spans(at, at + 1)).tensor
