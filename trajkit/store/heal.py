"""What a killed writer left beyond the commit, removed by the next one."""

import shutil
from pathlib import Path

from trajkit.checkpoints.parse import parse_json
from trajkit.disk import read_file, refuse_links
from trajkit.errors import FormatError
from trajkit.store.place import unmark_place
from trajkit.store.rows import write_row
from trajkit.store.store import Store


def refuse_linked_folders(store: Store) -> None:
    """Raise where a folder that is written to, or healed, is a link to somebody else's."""
    arrays = (*store.frames.values(), *store.digests.values(), store.steps_array)
    folders = (store.path / name for name in ("tensors", "assets", "fits"))
    refuse_links(store.path, *folders, *(a.path / "c" for a in arrays))


def heal(store: Store) -> None:
    """Remove what a killed writer left beyond the commit.

    Metadata goes back first: an array that claims a row which is gone would look damaged if
    this is killed as well, while a row beyond the metadata is only ignored.
    """
    rows = len(store.commit.frames)
    for array in (*store.frames.values(), *store.digests.values()):
        if _rows_on_disk(array.path) != rows:
            array.write_metadata()
        for row in sorted(_list_rows(array.path), reverse=True):
            if row >= rows:
                shutil.rmtree(array.row_path(row))
    if _rows_on_disk(store.path / "steps") != rows:
        store.steps_array.write_metadata()
        write_row(store.steps_array, store.steps)
    unmark_place(store.path)
    (store.path / "zarr.json.part").unlink(missing_ok=True)
    for name in ("tensors", "assets"):
        for part in (store.path / name).glob("*.part"):
            part.unlink(missing_ok=True)


def _list_rows(path: Path) -> list[int]:
    """The rows of which an array has files."""
    chunks = path / "c"
    return [int(p.name) for p in chunks.iterdir() if p.name.isdecimal()] if chunks.is_dir() else []


def _rows_on_disk(path: Path) -> int | None:
    """The first dimension of an array's metadata on disk, if it can be read."""
    try:
        document = parse_json(read_file(path / "zarr.json"), str(path))
        return document["shape"].wholes()[0]
    except (OSError, FormatError, IndexError):
        return None
