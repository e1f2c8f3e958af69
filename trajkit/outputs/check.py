"""Every byte of a store's outputs against its digests."""

from collections.abc import Callable, Iterator
from typing import Any

from trajkit.errors import FormatError, NotFound
from trajkit.outputs.activations_kept import (
    ActivationsRecord,
    activations_names,
    read_activations,
)
from trajkit.outputs.kept import Record, outputs_names, read_outputs
from trajkit.outputs.rows import KeptRows, check_arrays
from trajkit.store.documents import GROUP, check_content
from trajkit.store.store import Store


def check_outputs(store: Store) -> Iterator[str]:
    """One line for every damaged thing in the store's outputs and activations."""
    yield from _check_kind(store, Record.FOLDER, outputs_names(store), read_outputs)
    names = activations_names(store)
    yield from _check_kind(store, ActivationsRecord.FOLDER, names, read_activations)


def _check_kind(
    store: Store, folder: str, names: list[str], read: Callable[[Store, str], KeptRows[Any]]
) -> Iterator[str]:
    if names:
        yield from check_content(store.path / folder / "zarr.json", [GROUP])
    for name in names:
        try:
            kept = read(store, name)
        except (FormatError, NotFound) as error:
            yield str(error)
            continue
        yield from check_arrays(kept)


def describe_outputs(store: Store) -> dict[str, dict[str, object]]:
    """What outputs a store holds, by name: steps, tokens and responses, or what is ``damaged``."""
    found: dict[str, dict[str, object]] = {}
    for name in outputs_names(store):
        try:
            record = read_outputs(store, name).record
        except (FormatError, NotFound) as error:
            found[name] = {"steps": [], "tokens": 0, "responses": 0, "damaged": str(error)}
            continue
        found[name] = {
            "steps": list(record.steps),
            "tokens": record.tokens,
            "responses": record.responses,
        }
    return found


def describe_activations(store: Store) -> dict[str, dict[str, object]]:
    """What activations a store holds, by name: steps, layers and columns, or what is ``damaged``."""
    found: dict[str, dict[str, object]] = {}
    for name in activations_names(store):
        try:
            record = read_activations(store, name).record
        except (FormatError, NotFound) as error:
            found[name] = {"steps": [], "layers": [], "columns": 0, "damaged": str(error)}
            continue
        found[name] = {
            "steps": list(record.steps),
            "layers": list(record.layers),
            "columns": sum(record.widths),
        }
    return found
