"""Which safetensors files a checkpoint folder consists of, and which bytes of them are whose."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.header import StoredTensor, check_header
from trajkit.checkpoints.layout import FlatVector, TensorInfo, tensors_of
from trajkit.checkpoints.parse import parse_object
from trajkit.checkpoints.record import SourceRecord
from trajkit.checkpoints.tied import possible_partners
from trajkit.errors import FormatError, Mismatch
from trajkit.text import quoted, shown


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One safetensors file to write."""

    name: str
    header: bytes
    """JSON, padded; without the 8 length bytes"""
    n_bytes: int
    """size of the whole file"""
    places: tuple[tuple[str, int], ...]
    """(tensor of the store, absolute byte offset) for every tensor in the file"""


def plan_files(
    record: SourceRecord, vectors: Mapping[str, FlatVector], cast: str | None = None
) -> tuple[PlannedFile, ...]:
    """The files of a source layout, byte for byte as they were where dtypes are unchanged.

    Where the store holds a tensor in another dtype than the source did (``cast``), the header is
    written anew with the same tensors in the same order.

    Raises:
        FormatError: a header is not one, its tensors do not tile the file, or the index places
            them elsewhere.
        Mismatch: the files' tensors are not the store's: one is missing, comes twice, or has
            another shape or dtype.
    """
    table = tensors_of(vectors)
    stored = {name: check_header(header.encode(), shown(name)) for name, header in record.files}
    _check_tensors(record, table, stored, cast)
    if record.index is not None:
        _check_index(*record.index, stored)
    return tuple(
        _plan_file(name, header, stored[name], record, table) for name, header in record.files
    )


def _check_tensors(
    record: SourceRecord,
    table: Mapping[str, TensorInfo],
    stored: Mapping[str, Sequence[StoredTensor]],
    cast: str | None,
) -> None:
    """Check that the files hold every tensor of the store once, as it is in the store."""
    left, aliases = dict(table), dict(record.tied)
    for file, tensors in stored.items():
        for stored_name, dtype, shape, _, _ in tensors:
            name = f"{shown(file)}: tensor {quoted(stored_name)}"
            canonical = stored_name.removeprefix(record.prefix)
            if not stored_name.startswith(record.prefix):
                raise Mismatch(f"{name} lacks the prefix {quoted(record.prefix)} of all others")
            if (partner := aliases.pop(canonical, None)) is not None:
                info = table.get(partner)
                if canonical in table or info is None:
                    raise Mismatch(f"{name} cannot be tied to {quoted(partner)} of the store")
            else:
                info = left.pop(canonical, None)
            if info is None:
                raise Mismatch(f"{name} of the layout is not in the store, or comes twice")
            kept = cast if cast and DTYPES[dtype].is_float else dtype
            if (info.shape, info.dtype) != (shape, kept):
                raise Mismatch(
                    f"{name} is {dtype} {list(shape)}, in the store {info.dtype} {list(info.shape)}"
                )
    if aliases:
        raise Mismatch(f"no file holds the tensor {quoted(next(iter(aliases)))} of the layout")
    if left.keys() != set(record.absent):
        name = next(iter(left.keys() ^ set(record.absent)))
        raise Mismatch(f"no file of the layout holds the store's tensor {quoted(name)}")
    written = {name: info for name, info in table.items() if name not in left}
    for name, info in left.items():
        if name in record.tied.values():  # a file holds its bits, under the other's name
            continue
        if not possible_partners(name, info.shape, written):
            raise Mismatch(f"the layout leaves out {quoted(name)}, which nothing is tied to")


def _check_index(name: str, text: str, stored: Mapping[str, Sequence[StoredTensor]]) -> None:
    """Check that the index places every tensor in the file that holds it."""
    homes = {tensor[0]: file for file, tensors in stored.items() for tensor in tensors}
    if parse_object(text.lstrip().encode(), shown(name)).get("weight_map") != homes:
        raise FormatError(f"{shown(name)}: does not place the tensors where the files have them")


def _plan_file(
    name: str,
    header: str,
    stored: Sequence[StoredTensor],
    record: SourceRecord,
    table: Mapping[str, TensorInfo],
) -> PlannedFile:
    kept: list[tuple[str, TensorInfo]] = []
    for stored_name, *_ in stored:
        canonical = stored_name.removeprefix(record.prefix)
        kept.append((stored_name, table[record.tied.get(canonical, canonical)]))
    if any(info.dtype != dtype for (_, info), (_, dtype, *_) in zip(kept, stored, strict=True)):
        metadata = parse_object(header.encode(), shown(name)).get("__metadata__")
        header = make_header(kept, metadata)
        stored = check_header(header.encode(), shown(name))
    raw = header.encode()
    places = tuple(
        (info.name, begin) for (_, info), (_, _, _, begin, _) in zip(kept, stored, strict=True)
    )
    end = max((begin + n for *_, begin, n in stored), default=8 + len(raw))
    return PlannedFile(name, raw, end, places)


def plan_file(name: str, vectors: Mapping[str, FlatVector]) -> PlannedFile:
    """One new file that holds every tensor of the vectors, end to end."""
    kept = [(info.name, info) for info in tensors_of(vectors).values()]
    header = make_header(kept, None)
    stored = check_header(header.encode(), shown(name))
    places = tuple(
        (info.name, begin) for (_, info), (*_, begin, _) in zip(kept, stored, strict=True)
    )
    end = max((begin + n for *_, begin, n in stored), default=8 + len(header.encode()))
    return PlannedFile(name, header.encode(), end, places)


def make_header(kept: Sequence[tuple[str, TensorInfo]], metadata: Any) -> str:
    """The header of a safetensors file that holds tensors in this order, under these names."""
    document: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for stored_name, info in kept:
        dtype = DTYPES[info.dtype]
        end = at + info.size * dtype.itemsize
        document[stored_name] = {
            "dtype": dtype.code,
            "shape": list(info.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)


@dataclass(frozen=True, slots=True)
class Runs:
    """Disjoint ranges of a flat vector that lie in one piece in a file, ascending; int64 each."""

    starts: Array
    stops: Array
    files: Array
    offsets: Array
    """byte offset of the range's first element in its file"""


def find_runs(vector: FlatVector, files: Sequence[PlannedFile]) -> list[Runs]:
    """Where a vector's elements go: disjoint runs, and more of them for tensors written twice."""
    places: dict[str, list[tuple[int, int]]] = {}
    for i, file in enumerate(files):
        for tensor, offset in file.places:
            places.setdefault(tensor, []).append((i, offset))
    layers: list[list[list[int]]] = []
    itemsize = vector.dtype.itemsize
    for info in vector.tensors:
        for depth, (i, offset) in enumerate(places.get(info.name, ())):
            if not info.size:
                continue
            if depth == len(layers):
                layers.append([])
            rows = layers[depth]
            if rows:
                begin, end, before, at = rows[-1]
                if (end, before, at + (end - begin) * itemsize) == (info.offset, i, offset):
                    rows[-1][1] = info.stop
                    continue
            rows.append([info.offset, info.stop, i, offset])
    return [Runs(*np.array(rows, np.int64).T.copy()) for rows in layers]
