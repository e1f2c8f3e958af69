"""One streaming pass over the store: inner products of all changes, group by group of tensors.

Workers read a chunk's codes frame by frame, decode them, and keep the changes between checkpoints as
float32 (exact for narrow formats); the caller's thread has BLAS multiply them in small tiles and adds
those in float64. Elements that were NaN or Inf anywhere count as not moving. Runs of more than 65
checkpoints are looked at through 65 of them, spread evenly, so that the product costs no more than
reading does.

Axis letters: T frames of the window, A checkpoints looked at, K = A - 1 changes, C elements a chunk,
G groups.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector, module_of
from trajkit.fits.window import Window
from trajkit.kernels import api as kernels
from trajkit.parallel import Plan, count_workers, map_in_order, plan_batch
from trajkit.progress import Advanced, Progress
from trajkit.store.chunks import ChunkReader
from trajkit.store.store import Store

MOST_LOOKED_AT = 65
MOST_GROUPS = 64
"""modules told apart; the smallest others are pooled"""
OTHERS = "(other modules)"
_TILE = 256
_BATCH, _SMALLEST_BATCH = 32, 8


@dataclass(frozen=True, slots=True)
class GroupMovement:
    """What the pass gathers of one group of tensors."""

    gram_KK: Array
    """float64, <d_k, d_l>"""
    changed_K: Array
    """int64, elements that differ from the checkpoint looked at before"""
    elements: int

    def __add__(self, other: "GroupMovement") -> "GroupMovement":
        """The two groups as one."""
        return GroupMovement(
            self.gram_KK + other.gram_KK,
            self.changed_K + other.changed_K,
            self.elements + other.elements,
        )


def group_modules(store: Store) -> Mapping[str, str]:
    """Tensor name -> group, at most :data:`MOST_GROUPS` groups of floating-point tensors."""
    sizes: dict[str, int] = {}
    floats = [t for v in store.vectors.values() if v.dtype.is_float for t in v.tensors]
    for tensor in floats:
        module = module_of(tensor.name)
        sizes[module] = sizes.get(module, 0) + tensor.size
    kept = set(sorted(sizes, key=lambda m: -sizes[m])[:MOST_GROUPS])
    if len(sizes) > MOST_GROUPS:
        kept = set(sorted(sizes, key=lambda m: -sizes[m])[: MOST_GROUPS - 1])
    modules = {t.name: module_of(t.name) for t in floats}
    return {name: m if m in kept else OTHERS for name, m in modules.items()}


def choose_frames(window: Window) -> tuple[int, ...]:
    """The frames looked at: all, or :data:`MOST_LOOKED_AT` of them, first and last included."""
    n = min(window.n_frames, MOST_LOOKED_AT)
    return tuple(
        np.unique(np.linspace(window.first, window.stop - 1, n).round().astype(int)).tolist()
    )


def plan_gram(vector: FlatVector, n_looked: int, n_frames: int, budget: int) -> tuple[Plan, int]:
    """Workers and frames a batch within the budget; raises :class:`OverBudget` where none fits."""
    work = 8 if vector.dtype.itemsize == 8 else 4

    def bytes_a_worker(batch: int) -> int:
        rows = batch + 4
        looked = 2 * n_looked + 6  # of the chunk in work, and of one that waits to be multiplied
        return vector.chunk * (rows * vector.dtype.itemsize + looked * (work + 1))

    batches = min(n_frames, _BATCH), min(n_frames, _SMALLEST_BATCH)
    return plan_batch("evidence", count_workers(), *batches, bytes_a_worker, budget)


LARGEST_CHANGE = 1e140
"""elements of float64 that change by more are left out: their squares would leave float64"""


def measure_grams(
    store: Store,
    vector: FlatVector,
    window: Window,
    frames: Sequence[int],
    groups: Mapping[str, str],
    plan: tuple[Plan, int],
    progress: Progress,
) -> dict[str, GroupMovement]:
    """The movement of every group's elements in one flat vector, chunk by chunk.

    Raises:
        FormatError: a damaged chunk.
    """
    found: dict[str, GroupMovement] = {}
    dtype = vector.dtype.name
    with ChunkReader(store.frames[dtype]) as reader, ThreadPoolExecutor(plan[0].workers) as pool:

        def work(k: int) -> tuple[Array, Array]:
            return _read_changes(store, reader, vector, window, frames, k, plan[1])

        for k, changes in map_in_order(pool, work, range(vector.n_chunks), plan[0].workers + 1):
            for group, part in _multiply(vector, groups, k, *changes).items():
                found[group] = found[group] + part if group in found else part
            start, stop = vector.chunk_span(k)
            progress(Advanced((stop - start) * vector.dtype.itemsize * window.n_frames))
    return found


def _read_changes(
    store: Store,
    reader: ChunkReader,
    vector: FlatVector,
    window: Window,
    frames: Sequence[int],
    k: int,
    batch: int,
) -> tuple[Array, Array]:
    """Changes between the frames looked at in chunk ``k``, and where there are some.

    float32 (float64 for float64) and bool, both [K, n].
    """
    dtype, n = vector.dtype.name, int(np.diff(vector.chunk_span(k))[0])
    bits, spare = (np.empty(vector.chunk, vector.dtype.bits) for _ in range(2))
    codes_BC = np.empty((batch, vector.chunk), vector.dtype.bits)
    wide = np.float64 if vector.dtype.itemsize == 8 else np.float32
    changes_KC = np.empty((len(frames) - 1, n), wide)
    moved_KC = np.empty((len(frames) - 1, n), bool)
    looked = set(frames)
    before = np.empty(0, wide)
    row = 0
    for begin in range(window.first, window.stop, batch):
        end = min(begin + batch, window.stop)
        store.read_code_rows(reader, range(begin, end), k, codes_BC[: end - begin])
        for t in range(begin, end):
            if t == window.first and not store.is_key(t):
                store.read_bits(dtype, t, k, bits, spare)
            elif store.is_key(t):
                bits[:] = codes_BC[t - begin]
            else:
                kernels.decode_frame(codes_BC[t - begin], bits, bits)
            if t not in looked:
                continue
            values = kernels.values_of(bits[:n], dtype).astype(wide)  # bits are written again
            if len(before):
                with np.errstate(invalid="ignore", over="ignore"):
                    np.subtract(values, before, out=changes_KC[row])
                np.not_equal(changes_KC[row], 0, out=moved_KC[row])
                row += 1
            before = values
    with np.errstate(invalid="ignore", over="ignore"):
        unsound = ~np.isfinite(changes_KC.sum(axis=0))
    if wide is np.float64:
        unsound |= (np.abs(changes_KC) > LARGEST_CHANGE).any(axis=0)
        changes_KC[:, unsound], moved_KC[:, unsound] = 0, False
    if unsound.any():
        bad = unsound & ~np.isfinite(changes_KC).all(axis=0)
        changes_KC[:, bad], moved_KC[:, bad] = 0, False
    return changes_KC, moved_KC


def _multiply(
    vector: FlatVector, groups: Mapping[str, str], k: int, changes_KC: Array, moved_KC: Array
) -> dict[str, GroupMovement]:
    """Inner products of a chunk's changes, by group."""
    parts: dict[str, GroupMovement] = {}
    for span in vector.spans(*vector.chunk_span(k)):
        inside = slice(span.at, span.at + span.stop - span.start)
        gram_KK = inner_products(changes_KC[:, inside])
        changed_K = np.array([np.count_nonzero(row) for row in moved_KC[:, inside]], np.int64)
        part = GroupMovement(gram_KK, changed_K, span.stop - span.start)
        group = groups[span.tensor.name]
        parts[group] = parts[group] + part if group in parts else part
    return parts


def inner_products(changes_KN: Array) -> Array:
    """<d_k, d_l>, float64 [K, K], of finite changes, scaled where their squares leave the format."""
    with np.errstate(over="ignore", invalid="ignore"):
        gram_KK = _multiply_tiles(changes_KN)
    if not _in_range(gram_KK):
        scale = float(np.abs(changes_KN).max(initial=0.0)) or 1.0
        unit_KN = changes_KN / changes_KN.dtype.type(scale)
        gram_KK = _multiply_tiles(unit_KN) * scale**2
    return gram_KK


def _multiply_tiles(changes_KN: Array) -> Array:
    """Products of tiles by BLAS, their sum in float64.

    Tiles of 256 columns are too small for BLAS to share among threads, which cost more than they
    gain where other work is on the machine (33 changes of 262,144 elements: 14 ms of one core, and
    seconds with threads that wait for each other).
    """
    whole = changes_KN.shape[1] // _TILE * _TILE
    rest_KN = changes_KN[:, whole:]
    gram_KK = (rest_KN @ rest_KN.T).astype(np.float64)
    if whole:
        tiles = changes_KN[:, :whole].reshape(len(changes_KN), -1, _TILE).transpose(1, 0, 2)
        gram_KK += np.matmul(tiles, tiles.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64)
    return np.asarray(gram_KK)


def _in_range(gram_KK: Array) -> bool:
    """Whether float32 holds the squares: finite, and not so small that they were rounded to zero."""
    size_K = np.diag(gram_KK)
    known_K = size_K[size_K > 0]
    return bool(np.isfinite(gram_KK).all()) and len(known_K) > 0 and float(known_K.min()) > 1e-25
