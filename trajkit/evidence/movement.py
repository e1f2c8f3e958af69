"""Evidence: how the weights moved from checkpoint to checkpoint, where they turned; kept in the store.

    evidence/zarr.json     a Zarr group; its attributes are the record, with its own sha256

One record a store: of the window asked for last.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

import trajkit
from trajkit.arrays import Array
from trajkit.checkpoints.parse import Node
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.errors import FormatError, InvalidInput, Locked, NotFound, StorageError
from trajkit.evidence.gram import (
    GroupMovement,
    choose_frames,
    group_modules,
    measure_grams,
    plan_gram,
)
from trajkit.fits.fields import LARGEST_STEP
from trajkit.fits.window import Window, choose_window, window_digest
from trajkit.progress import (
    Finished,
    Progress,
    Started,
    as_subscriber,
    shows_progress,
    silent,
)
from trajkit.stats.gram import describe_gram
from trajkit.stats.turning import find_breaks, linear_regime
from trajkit.store.lock import ResultsLock
from trajkit.store.signed import parse_signed, read_signed, signed_document, write_signed
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store
from trajkit.text import format_bytes, format_rate, parse_bytes

FORMAT = "trajkit-evidence"
VERSION = 1
FOLDER = "evidence"


@dataclass(frozen=True, slots=True)
class Evidence:
    """How a run moved, as kept in the store."""

    steps: tuple[int, ...]
    """training steps of the checkpoints looked at, A of them: all, or 65 spread evenly"""
    frames_digest: str
    """which bits of the window this is of"""
    overall: Mapping[str, Any]
    """:class:`trajkit.stats.gram.Movement`, ``elements``, ``changed`` (share of the elements that
    differ from the checkpoint looked at before, [A - 1]), ``breaks``, ``linear_from``, ``linear_to``,
    and ``net_squared``, |W_T - W_1|²"""
    modules: Mapping[str, Mapping[str, Any]]
    """the same of each module, layers and experts folded"""
    seconds: float

    @property
    def linear_from(self) -> int:
        """The training step at which the longest piece without a turn begins."""
        return int(self.overall["linear_from"])

    def document(self) -> bytes:
        """The group's ``zarr.json``, its own digest included."""
        fields = {**asdict(self), "made_by": f"trajkit {trajkit.__version__}"}
        return signed_document(FORMAT, VERSION, fields)


@shows_progress
def measure_evidence(
    traj: Source,
    *,
    from_step: int | None = None,
    to_step: int | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress | bool = False,
) -> Evidence:
    """How the weights moved between checkpoints and where they turned; kept in the store.

    One pass over the frames of the window. See :mod:`trajkit.stats.gram` for the figures and
    :mod:`trajkit.stats.turning` for the breaks.

    Args:
        traj: the trajectory.
        from_step: first training step of the window (default: the first in the store).
        to_step: last training step of the window (default: the last in the store).
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: fewer than three checkpoints in the window, or nothing in floating point.
        OverBudget: the budget is too small. FormatError: a damaged chunk.
    """
    store = as_store(traj)
    window = choose_window(store, from_step, to_step)
    record = _measure(store, window, memory, as_subscriber(progress))
    _keep(store, record)
    return record


def _measure(store: Store, window: Window, memory: str | int, progress: Progress) -> Evidence:
    """The evidence on a window, as it reads when it has been kept."""
    if window.n_frames < 3:
        raise InvalidInput(f"{store.path}: movement takes 3 checkpoints or more")
    started = time.perf_counter()
    floats = [v for v in store.vectors.values() if v.dtype.is_float]
    frames = choose_frames(window)
    budget = parse_bytes(memory)
    plans = [plan_gram(v, len(frames), window.n_frames, budget) for v in floats]
    groups = group_modules(store)
    raw_bytes = window.n_frames * sum(v.n_bytes for v in floats)
    progress(Started(f"evidence of {window.n_frames} checkpoints", raw_bytes))
    found: dict[str, GroupMovement] = {}
    for vector, plan in zip(floats, plans, strict=True):
        parts = measure_grams(store, vector, window, frames, groups, plan, progress)
        for group, part in parts.items():
            found[group] = found[group] + part if group in found else part
    if not found:
        raise InvalidInput(f"{store.path}: no floating-point element to look at")
    steps = store.steps[list(frames)]
    total = sum(list(found.values())[1:], next(iter(found.values())))
    record = Evidence(
        tuple(steps.tolist()),
        window_digest(store, window),
        _describe(total, steps),
        {name: _describe(part, steps) for name, part in sorted(found.items())},
        time.perf_counter() - started,
    )
    progress(Finished(f"{format_bytes(raw_bytes)} at {format_rate(raw_bytes, record.seconds)}"))
    return _parse(parse_signed(store.path / FOLDER, record.document(), FORMAT, VERSION))


def _describe(part: GroupMovement, steps: Array) -> dict[str, Any]:
    dx_K = np.diff(steps).astype(np.float64)
    breaks = find_breaks(part.gram_KK, dx_K)
    start, stop = linear_regime(breaks, dx_K)
    return {
        "elements": part.elements,
        "changed": (part.changed_K / max(part.elements, 1)).tolist(),
        **asdict(describe_gram(part.gram_KK, dx_K)),
        "net_squared": float(part.gram_KK.sum()),
        "breaks": [
            {"step": int(steps[b.after]), **{k: v for k, v in asdict(b).items() if k != "after"}}
            for b in breaks
        ],
        "linear_from": int(steps[start]),
        "linear_to": int(steps[stop]),
    }


def _keep(store: Store, record: Evidence) -> None:
    with ResultsLock(store.path):
        write_signed(store.path, FOLDER, record.document())


def read_evidence(store: Store) -> Evidence:
    """The record kept in a store.

    Raises:
        NotFound: there is none. FormatError: it is damaged, or not what trajkit writes.
    """
    try:
        record = read_signed(store.path / FOLDER, FORMAT, VERSION)
        if record is not None:
            return _parse(record)
    except FormatError as error:
        raise FormatError(f"{error}; run trajkit evidence again") from None
    raise NotFound(f"{store.path}: no evidence yet; run trajkit evidence")


def check_evidence(store: Store) -> Iterator[str]:
    """One line where a store's evidence is not as it was written; none where there is none."""
    if os.path.lexists(store.path / FOLDER):
        try:
            read_evidence(store)
        except (FormatError, NotFound, StorageError) as error:
            yield str(error)


def _parse(record: Node) -> Evidence:
    """The record, every field of the type that everything else relies on."""
    steps = record["steps"].wholes(-LARGEST_STEP, LARGEST_STEP)
    if len(steps) < 3 or any(b <= a for a, b in pairwise(steps)):
        raise record["steps"].refuse("three ascending training steps or more")
    modules = dict(record["modules"].entries())
    for part in (record["overall"], *modules.values()):
        _check_part(part, len(steps) - 1)
    return Evidence(
        steps,
        record["frames_digest"].digest(32),
        record["overall"].value,
        {name: part.value for name, part in modules.items()},
        record["seconds"].number(0),
    )


def _check_part(part: Node, n_changes: int) -> None:
    """Raise unless one group's figures have the form in which they are written."""
    for name in ("changed", "speed"):
        for value in part[name].items(n_changes):
            value.number(0)
    for value in part["cosine"].items(n_changes):
        if value.value is not None:
            value.number(-1, 1)
    single = ("successive_cosine", "net_over_path", "growth", "drift_part", "first_component")
    for name in single:
        if (figure := part.get(name)) is not None:
            figure.number()
    part["walk_first_component"].number(0, 1)
    part["net_squared"].number()
    part["elements"].whole()
    for name in ("linear_from", "linear_to"):
        part[name].whole(-LARGEST_STEP, LARGEST_STEP)
    for found in part["breaks"].items():
        found["step"].whole(-LARGEST_STEP, LARGEST_STEP)
        found["p_value"].number(0, 1)
        for name in ("cosine", "speed_ratio"):
            if (figure := found.get(name)) is not None:
                figure.number()


def find_evidence(
    traj: Source, steps: tuple[int, ...], *, memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress = silent,
) -> Evidence:  # fmt: skip
    """The evidence on the window from the first of ``steps`` to the last: kept, or measured now."""
    store = as_store(traj)
    window = choose_window(store, steps[0], steps[-1])
    try:
        kept = read_evidence(store)
        if kept.frames_digest == window_digest(store, window):
            return kept
    except (NotFound, FormatError):
        pass
    record = _measure(store, window, memory, progress)
    with suppress(Locked, StorageError):  # a store that cannot be written can still be reported on
        _keep(store, record)
    return record
