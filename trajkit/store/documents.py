"""The JSON documents of a store: one spelling, so that any changed byte shows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trajkit.disk import canonical_json, read_file
from trajkit.errors import FormatError, StorageError


def group_document(attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ``zarr.json`` of a Zarr group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}}


GROUP = canonical_json(group_document())
"""the ``zarr.json`` of a group without attributes, as trajkit writes it"""


def check_content(path: Path, contents: Sequence[bytes]) -> Iterator[str]:
    """A line for a file that holds none of the contents trajkit may have written there."""
    try:
        if read_file(path) not in contents:
            yield f"{path}: damaged: not what trajkit wrote"
    except (FileNotFoundError, NotADirectoryError) as error:
        yield f"{path}: {error.strerror}"
    except (FormatError, StorageError) as error:
        yield str(error)
