"""What a store keeps beside its checkpoints: a Zarr group whose attributes carry their own digest.

    <folder>/zarr.json     attributes: ``format``, ``version``, the record's fields, and ``sha256``
                           over all of these as trajkit spells them

The whole document has one spelling, so that any changed byte shows.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajkit.checkpoints.parse import Node, parse_json
from trajkit.disk import canonical_json, disk_errors, read_file, refuse_links, replace_file
from trajkit.errors import FormatError
from trajkit.store.documents import group_document
from trajkit.text import shown

LARGEST_RECORD = 1 << 26


def signed_document(form: str, version: int, fields: Mapping[str, Any]) -> bytes:
    """The group's ``zarr.json`` with these fields."""
    attributes = {"format": form, "version": version, **fields}
    attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
    return canonical_json(group_document(attributes))


def write_signed(root: Path, folder: str, content: bytes) -> None:
    """Put a record into a store; its lock must be held.

    Raises:
        FormatError: the folder is a symbolic link. StorageError: the disk refused.
    """
    path = root / folder
    refuse_links(root, path)
    with disk_errors(path):
        path.mkdir(exist_ok=True)
        replace_file(path / "zarr.json", content)


def parse_signed(path: Path, content: bytes, form: str, version: int) -> Node:
    """The fields of a record, its digest checked.

    Raises:
        FormatError: it is no such record, of another version, or damaged.
    """
    document = parse_json(content, shown(path), constants=True)
    attributes = document["attributes"]
    attributes["format"].one_of([form])
    if attributes["version"].whole() != version:
        raise FormatError(f"{shown(path)}: is of another version")
    fields = {k: v for k, v in attributes.value.items() if k not in ("format", "version", "sha256")}
    try:
        intact = signed_document(form, version, fields) == content
    except (ValueError, RecursionError):  # lone surrogates, or numbers of thousands of digits
        intact = False
    if not intact:
        raise FormatError(f"{shown(path)}: damaged: not what trajkit wrote")
    return attributes


def read_signed(
    path: Path, form: str, version: int, max_bytes: int = LARGEST_RECORD
) -> Node | None:
    """The record in a store's folder; None where there is none; raises as :func:`parse_signed`."""
    file = path / "zarr.json"
    try:
        content = read_file(file, max_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_signed(file, content, form, version)
