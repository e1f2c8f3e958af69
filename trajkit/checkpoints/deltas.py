"""A stream of weight deltas on disk: full anchors now and then, sparse files of what changed between.

The form is the one that TRL's delta weight sync documents (https://huggingface.co/blog/delta-weight-sync
and huggingface/trl pull request 5417), safetensors throughout:

    anchors/step_000010.safetensors   every tensor
    deltas/step_000011.safetensors    of every tensor that changed: NAME.indices (int32 [n], into the
                                      flat tensor) and NAME.values (the tensor's dtype, [n])

A delta is of the step before it: the one that its metadata call ``prev_model_version``, else its own
number less one. ``__empty_delta__`` stands in a delta without changes, since a file needs a tensor.
All of it is hostile until checked: an index outside of its tensor or given twice, values of another
dtype or number, a tensor that the anchor lacks, a delta whose step before is not there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.checkpoint import Checkpoint, TensorEntry, open_checkpoint, read_into
from trajkit.checkpoints.header import is_folder
from trajkit.checkpoints.layout import TensorInfo
from trajkit.checkpoints.parse import parse_object
from trajkit.errors import FormatError, InvalidInput, Mismatch
from trajkit.remote.source import LocalFile
from trajkit.text import quoted, shown

ANCHORS, DELTAS = "anchors", "deltas"
EMPTY = "__empty_delta__"
INDICES, VALUES = ".indices", ".values"
_NAME = re.compile(r"step_([0-9]{1,18})\.safetensors")


@dataclass(frozen=True, slots=True)
class StreamFile:
    """One file of a stream."""

    step: int
    path: Path
    is_anchor: bool
    previous: int | None
    """the step that a delta changes; None for an anchor"""


def is_stream(path: Path) -> bool:
    """Whether a folder holds a stream: anchors and deltas."""
    return is_folder(path / ANCHORS) and is_folder(path / DELTAS)


def find_stream(path: Path) -> list[StreamFile]:
    """The files of a stream, ascending by step, each delta with its step before at hand.

    Raises:
        FormatError: it does not begin with an anchor, or a delta's step before is missing.
    """
    anchors, deltas = (_list_steps(path / name) for name in (ANCHORS, DELTAS))
    files: list[StreamFile] = []
    for step in sorted(anchors.keys() | deltas.keys()):
        if step in anchors:
            files.append(StreamFile(step, anchors[step], True, None))
            continue
        previous = _previous_of(deltas[step], step)
        if not files or files[-1].step != previous:
            have = f"step {files[-1].step}" if files else "nothing"
            raise FormatError(
                f"{shown(deltas[step])}: a delta of step {previous}, and before it lies {have}; the "
                "stream has a gap, and goes on at the next anchor: name another --store for that"
            )
        files.append(StreamFile(step, deltas[step], False, previous))
    if not files:
        raise InvalidInput(f"{shown(path)}: no step_N.safetensors in {ANCHORS} or {DELTAS}")
    return files


def _list_steps(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            if int(match[1]) in found:
                raise InvalidInput(f"{shown(path)}: step {int(match[1])} is there twice")
            found[int(match[1])] = path
    return found


def _previous_of(path: Path, step: int) -> int:
    """The step that a delta is of."""
    checkpoint = open_checkpoint(path, step)
    header = parse_object(checkpoint.files[0].header, shown(path))
    given = header.get("__metadata__", {}).get("prev_model_version")
    if given is None:
        return step - 1
    if not re.fullmatch(r"[0-9]{1,18}", given) or int(given) >= step:
        raise FormatError(
            f"{shown(path)}: prev_model_version {quoted(given)}: expected a step before"
        )
    return int(given)


@dataclass(frozen=True, slots=True)
class Change:
    """What a delta says of one tensor."""

    indices: Array
    """int64 [n], ascending, each once, into the flat tensor"""
    bits: Array
    """unsigned [n]: the elements' new bits"""


def read_delta(
    path: Path, step: int, tensors: Mapping[str, TensorInfo], prefix: str = ""
) -> dict[str, Change]:
    """The changes of a delta, by tensor.

    Args:
        path: the file.
        step: its step.
        tensors: what the stream's anchors hold.
        prefix: a wrapper's, which the anchors' names carry in their files.

    Raises:
        FormatError: an index outside of its tensor or given twice; values and indices that are not
            as many. Mismatch: a tensor that is not among `tensors`, or of another dtype.
    """
    checkpoint = open_checkpoint(path, step)
    entries = {entry.stored_name: entry for entry in checkpoint.tensors.values()}
    entries.pop(EMPTY, None)
    changes: dict[str, Change] = {}
    with LocalFile.open(path, shown(path)) as file:
        for stored in sorted(entries):
            if stored.endswith(VALUES) and stored.removesuffix(VALUES) + INDICES in entries:
                continue
            name, where = stored.removesuffix(INDICES), f"{shown(path)}: tensor {quoted(stored)}"
            info = tensors.get(name.removeprefix(prefix))
            values = entries.get(name + VALUES)
            if not stored.endswith(INDICES) or values is None:
                raise FormatError(f"{where}: expected pairs of NAME{INDICES} and NAME{VALUES}")
            if info is None:
                raise Mismatch(f"{where}: the anchors have no tensor {quoted(name)}")
            change = _read_change(file, entries[stored], values, info, where)
            changes[info.name] = change
    return changes


def _read_change(
    file: LocalFile, indices: TensorEntry, values: TensorEntry, info: TensorInfo, where: str
) -> Change:
    """One pair of tensors, checked."""
    if indices.dtype != "int32" or len(indices.shape) != 1 or indices.shape != values.shape:
        raise FormatError(
            f"{where}: expected int32 [n] and as many values, found {indices.dtype} "
            f"{list(indices.shape)} and {list(values.shape)}"
        )
    if values.dtype != info.dtype:
        raise Mismatch(f"{where}: its values are {values.dtype}, the anchors' {info.dtype}")
    at = np.empty(indices.shape, np.int32)
    bits = np.empty(values.shape, DTYPES[info.dtype].bits)
    for array, entry in ((at, indices), (bits, values)):
        read_into(file, array.view(np.uint8).data, entry.begin, where)
    places = at.astype(np.int64)
    if places.size and (places.min() < 0 or places.max() >= info.size):
        raise FormatError(f"{where}: an index outside of the tensor's {info.size} elements")
    if not (np.diff(places) > 0).all():
        order = np.argsort(places, kind="stable")
        places, bits = places[order], bits[order]
        if not (np.diff(places) > 0).all():
            raise FormatError(f"{where}: an index is given twice")
    return Change(places, bits)


def open_anchor(file: StreamFile) -> Checkpoint:
    """The checkpoint that an anchor is."""
    return open_checkpoint(file.path, file.step)
