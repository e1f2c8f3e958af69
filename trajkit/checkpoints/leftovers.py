"""What lies in step folders beside the files that somebody holds."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trajkit.checkpoints.header import is_folder
from trajkit.errors import StorageError
from trajkit.text import shown


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Files on disk, counted."""

    files: int
    n_bytes: int
    names: tuple[str, ...]
    """their names, relative to the step's folder or to the folder given; each once"""


def count_files(paths: Iterable[Path]) -> tuple[int, int]:
    """(files, bytes) of these paths; a file under two paths is one."""
    sizes = {locate(path): path.stat().st_size for path in paths}
    return len(sizes), sum(sizes.values())


def list_leftovers(
    folders: Iterable[Path], steps: Iterable[Path], held: Iterable[Path]
) -> Leftovers:
    """Everything in folders (or files) but the files held.

    Args:
        folders: what was given; walked whole. Links are passed over: removing one removes no data.
        steps: the steps' own folders, walked too; names are relative to them.
        held: files that need not be listed.

    Raises:
        StorageError: a folder cannot be listed.
    """
    known = {locate(path) for path in held}
    homes = {os.path.realpath(step) for step in steps}
    sizes: dict[str, int] = {}
    names: set[str] = set()
    for top in [*homes, *dict.fromkeys(os.path.realpath(folder) for folder in folders)]:
        for path in _walk(Path(top)):
            place = locate(path)
            if place in known or place in sizes:
                continue
            sizes[place] = path.lstat().st_size
            home = next((h for h in map(str, path.parents) if h in homes), top)
            names.add(os.path.relpath(path, home) if path != Path(top) else path.name)
    return Leftovers(len(sizes), sum(sizes.values()), tuple(sorted(names)))


def locate(path: Path) -> str:
    """A file's place, links in its folder resolved, so that two ways to it are one."""
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118 - text is kept


def _walk(top: Path) -> Iterator[Path]:
    if not is_folder(top):
        yield from [top] if top.exists() else []
        return

    def refuse(error: OSError) -> None:
        raise StorageError(f"{shown(error.filename)}: cannot be listed: {error.strerror}")

    for folder, _, files in os.walk(top, onerror=refuse):
        for name in sorted(files):
            path = Path(folder, name)
            if not path.is_symlink():
                yield path
