"""Which safetensors files a checkpoint folder consists of, and which bytes of them are whose."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import FlatVector, TensorInfo, tensors_of
from trajkit.checkpoints.record import SourceRecord
from trajkit.errors import Mismatch


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


def plan_files(record: SourceRecord, vectors: Mapping[str, FlatVector]) -> tuple[PlannedFile, ...]:
    """The files of a source layout, byte for byte as they were where dtypes are unchanged.

    Where the store holds a tensor in another dtype than the source did (``--dtype``), the header is
    written anew with the same tensors in the same order.
    """
    table = tensors_of(vectors)
    return tuple(_plan_file(name, header, record, table) for name, header in record.files)


def _plan_file(
    name: str, header: str, record: SourceRecord, table: Mapping[str, TensorInfo]
) -> PlannedFile:
    entries: dict[str, Any] = json.loads(header)
    metadata = entries.pop("__metadata__", None)
    ordered = sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"]))
    kept: list[tuple[str, TensorInfo]] = []
    for stored_name, _ in ordered:
        canonical = stored_name.removeprefix(record.prefix)
        canonical = record.tied.get(canonical, canonical)
        if canonical not in table:
            raise Mismatch(f"{name}: tensor {stored_name!r} of the layout is not in the store")
        kept.append((stored_name, table[canonical]))
    if any(DTYPES[i.dtype].code != entries[n]["dtype"] for n, i in kept):
        header = _make_header(kept, metadata)
        entries = json.loads(header)
    raw = header.encode()
    start = 8 + len(raw)
    places = tuple((info.name, start + entries[n]["data_offsets"][0]) for n, info in kept)
    end = max((entries[n]["data_offsets"][1] for n, _ in kept), default=0)
    return PlannedFile(name, raw, start + end, places)


def _make_header(kept: Sequence[tuple[str, TensorInfo]], metadata: Any) -> str:
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
