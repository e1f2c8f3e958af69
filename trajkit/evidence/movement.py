"""Evidence: how the weights moved from checkpoint to checkpoint, where they turned; kept in the store.

    evidence/zarr.json     a Zarr group; its attributes are the record, with its own sha256

One record a store: of the window asked for last.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import trajkit
from trajkit.arrays import Array
from trajkit.defaults import DEFAULT_MEMORY_BYTES
from trajkit.disk import canonical_json, disk_errors, replace_file
from trajkit.errors import FormatError, InvalidInput, Locked, NotFound, StorageError
from trajkit.evidence.gram import (
    GroupMovement,
    choose_frames,
    group_modules,
    measure_grams,
    plan_gram,
)
from trajkit.fits.window import Window, choose_window, window_digest
from trajkit.progress import Finished, Progress, Started, silent
from trajkit.stats.gram import describe_gram
from trajkit.stats.turning import find_breaks, linear_regime
from trajkit.store.documents import group_document
from trajkit.store.lock import ResultsLock
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store
from trajkit.text import format_bytes, format_rate, parse_bytes

FORMAT = "trajkit-evidence"
_LARGEST_RECORD = 1 << 26


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

    def document(self) -> dict[str, Any]:
        """The group's ``zarr.json``, its own digest included."""
        attributes = {"format": FORMAT, "version": 1, **asdict(self)}
        attributes["made_by"] = f"trajkit {trajkit.__version__}"
        attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
        return group_document(attributes)


def measure_evidence(
    traj: Source,
    *,
    from_step: int | None = None,
    to_step: int | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    progress: Progress = silent,
) -> Evidence:
    """How the weights moved between checkpoints and where they turned; kept in the store.

    One pass over the frames of the window. See :mod:`trajkit.stats.gram` for the figures and
    :mod:`trajkit.stats.turning` for the breaks.

    Args:
        traj: the trajectory.
        from_step: first training step of the window (default: the first in the store).
        to_step: last training step of the window (default: the last in the store).
        memory: budget, such as ``"512MiB"``, above the interpreter and its libraries.
        progress: receives :mod:`trajkit.progress` events.

    Raises:
        InvalidInput: fewer than three checkpoints in the window, or nothing in floating point.
        OverBudget: the budget is too small. FormatError: a damaged chunk.
    """
    store = as_store(traj)
    record = _measure(store, choose_window(store, from_step, to_step), memory, progress)
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
    return _parse(store.path / "evidence" / "zarr.json", canonical_json(record.document()))


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
    folder = store.path / "evidence"
    with ResultsLock(store.path), disk_errors(folder):
        folder.mkdir(exist_ok=True)
        replace_file(folder / "zarr.json", canonical_json(record.document()))


def read_evidence(store: Store) -> Evidence:
    """The record kept in a store.

    Raises:
        NotFound: there is none. FormatError: it is damaged, or not what trajkit writes.
    """
    path = store.path / "evidence" / "zarr.json"
    return _parse(path, _content(path))


def _parse(path: Path, content: bytes) -> Evidence:
    """The record in a ``zarr.json``; raises :class:`FormatError` where it is not one."""
    try:
        attributes = json.loads(content)["attributes"]
        digest = attributes.pop("sha256")
        intact = hashlib.sha256(canonical_json(attributes)).hexdigest() == digest
        record = Evidence(
            tuple(int(s) for s in attributes["steps"]),
            str(attributes["frames_digest"]),
            attributes["overall"],
            attributes["modules"],
            float(attributes["seconds"]),
        )
        checked = intact and attributes["format"] == FORMAT
        parts = [record.overall, *record.modules.values()]
        checked = checked and all(_adds_up(p, len(record.steps) - 1) for p in parts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path}: not readable ({error!r}); run trajkit evidence again"
        ) from error
    if not checked:
        raise FormatError(f"{path}: damaged; run trajkit evidence again")
    return record


def _adds_up(part: Mapping[str, Any], n_changes: int) -> bool:
    """Whether one group's figures have the form in which they are written."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    columns = [part["changed"], part["speed"], [c or 0.0 for c in part["cosine"]]]
    single = ("successive_cosine", "net_over_path", "growth", "drift_part", "first_component")
    return (
        all(len(c) == n_changes and all(map(number, c)) for c in columns)
        and all(part[name] is None or number(part[name]) for name in single)
        and all(number(part[n]) for n in ("elements", "net_squared", "linear_from", "linear_to"))
        and number(part["walk_first_component"])
        and all(number(b["step"]) and number(b["p_value"]) for b in part["breaks"])
        and all(
            b[n] is None or number(b[n]) for b in part["breaks"] for n in ("cosine", "speed_ratio")
        )
    )


def _content(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise NotFound(f"{path.parent.parent}: no evidence yet; run trajkit evidence")
    try:
        if path.stat().st_size > _LARGEST_RECORD:
            raise FormatError(f"{path}: too large for a record")
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from error


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
