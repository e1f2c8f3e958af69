"""Every byte of a store's outputs against its digests."""

from collections.abc import Iterator

from trajkit.errors import FormatError, NotFound
from trajkit.outputs.kept import outputs_names, read_outputs
from trajkit.outputs.rows import check_arrays
from trajkit.store.documents import GROUP, check_content
from trajkit.store.store import Store


def check_outputs(store: Store) -> Iterator[str]:
    """One line for every damaged thing in the store's outputs."""
    names = outputs_names(store)
    if names:
        yield from check_content(store.path / "outputs" / "zarr.json", [GROUP])
    for name in names:
        try:
            outputs = read_outputs(store, name)
        except (FormatError, NotFound) as error:
            yield str(error)
            continue
        yield from check_arrays(outputs)


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
