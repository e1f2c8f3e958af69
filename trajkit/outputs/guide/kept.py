"""The last searches of a guide as a store keeps them, for the report.

guide/zarr.json     a Zarr group; its attributes: searches by target step, with their own sha256
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trajkit.disk import canonical_json, disk_errors, read_file, replace_file
from trajkit.errors import FormatError, NotFound
from trajkit.store.documents import group_document
from trajkit.store.lock import ResultsLock
from trajkit.store.store import Store

FORMAT = "trajkit-guide"
VERSION = 1
FOLDER = "guide"
MOST = 16
"""searches kept, the latest"""
_MAX_BYTES = 1 << 24
_NUMBERS = ("kl", "kl_hold", "kl_anchored", "kl_two_point", "noise")


def keep_searches(store: Store, searches: Sequence[Mapping[str, Any]]) -> None:
    """Keep searches, each in place of an earlier one of its step.

    What an earlier trajkit, or damage, left there is replaced.

    Args:
        store: the run.
        searches: as :meth:`trajkit.outputs.guide.choice.Guided.as_json` gives them.

    Raises:
        Locked: another writer holds the store. StorageError: it cannot be written.
    """
    with ResultsLock(store.path):
        try:
            before = read_searches(store)
        except (NotFound, FormatError):
            before = []
        new = {search["step"] for search in searches}
        kept = [search for search in before if search["step"] not in new]
        kept = [*kept, *json.loads(canonical_json(list(searches)))][-MOST:]
        attributes: dict[str, Any] = {"format": FORMAT, "version": VERSION, "searches": kept}
        attributes["sha256"] = hashlib.sha256(canonical_json(attributes)).hexdigest()
        folder = store.path / FOLDER
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            replace_file(folder / "zarr.json", canonical_json(group_document(attributes)))


def read_searches(store: Store) -> list[dict[str, Any]]:
    """The searches that a store keeps, oldest first.

    Raises:
        NotFound: it keeps none. FormatError: they are damaged.
    """
    path = store.path / FOLDER / "zarr.json"
    try:
        content = read_file(path, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{store.path}: no guided search yet; trajkit extrapolate --guide makes one"
        ) from None
    try:
        attributes = dict(json.loads(content)["attributes"])
        digest = attributes.pop("sha256")
        intact = hashlib.sha256(canonical_json(attributes)).hexdigest() == digest
        intact = intact and (attributes["format"], attributes["version"]) == (FORMAT, VERSION)
        searches: list[dict[str, Any]] = attributes["searches"]
        intact = intact and all(map(_adds_up, searches))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise FormatError(_damaged(path))
    return searches


def check_searches(store: Store) -> Iterator[str]:
    """One line where what a store keeps of searches is damaged."""
    try:
        read_searches(store)
    except NotFound:
        return
    except FormatError as error:
        yield str(error)


def _adds_up(search: Mapping[str, Any]) -> bool:
    """Whether a search has the shape that everything else relies on."""
    tried, curve = search["candidates"], search["curve"]
    return (
        all(type(search[key]) is int and abs(search[key]) < 2**53 for key in ("step", "horizon"))
        and len(search["window"]) == 2
        and all(type(step) is int for step in search["window"])
        and all(type(search[key]) is float for key in _NUMBERS)
        and type(search["rule"]) is str
        and (search["refusal"] is None or type(search["refusal"]) is str)
        and type(search["sentence"]) is str
        and all(type(t["rule"]) is str and type(t["kl"]) is float for t in tried)
        and all(type(point["horizon"]) is int for point in curve)
        and all(type(k) is str and type(v) is float for p in curve for k, v in p["kl"].items())
    )


def _damaged(path: Path) -> str:
    return f"{path}: damaged, or of another version; trajkit extrapolate --guide makes it anew"
