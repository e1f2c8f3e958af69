"""The ordered series of checkpoints that lie in folders, whichever trainer wrote them.

:mod:`trajkit.checkpoints.trainers` knows the layouts. What is not complete is passed over and
listed, never read: a temporary name, a missing marker, a step without any safetensors (wherever
it stands in the series), and the last steps if their files are cut or missing: they are still
being written. A damaged step *before* a complete one stays in the series, so that reading it
fails loudly instead of leaving a gap.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trajkit.checkpoints.checkpoint import HalfWritten, is_shard, open_checkpoint
from trajkit.checkpoints.header import is_folder
from trajkit.checkpoints.naming import STEP_AND_PATH, find_matching, find_named, read_pattern
from trajkit.checkpoints.trainers import (
    CONTAINERS,
    LOOKED_FOR,
    STEP_FILE,
    TEMPORARY,
    Found,
    Incomplete,
    judge_step,
    locate_weights,
    own_step,
    parse_step,
    why_empty,
)
from trajkit.errors import InvalidInput, NotFound, StorageError, TrajkitError
from trajkit.text import count, shown


@dataclass(frozen=True, slots=True)
class Series:
    """Checkpoints in the order of their steps."""

    found: tuple[Found, ...]
    """ascending by step; no step twice; at least one"""
    incomplete: tuple[Incomplete, ...]


def as_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several, as a list.

    >>> as_paths("ckpts")
    [PosixPath('ckpts')]
    """
    return [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]


def find_series(
    paths: Sequence[Path], base: Path | None = None, pattern: str | None = None
) -> Series:
    """Find the checkpoints in `paths`, and `base` as step 0.

    Each path is a folder of step folders (or a run's folder with ``weights/`` or ``checkpoints/``
    in it), a step folder, a folder within one (``global_step_5/actor/huggingface``), a folder of
    plain files, one ``.safetensors`` file, or a shell pattern of these. A folder of weights without
    a number beside step folders (the final model, as TRL saves it) is left out; alone it is step 0.
    ``300=PATH`` says that the weights at PATH are step 300. `pattern` is a regular expression that
    a name must match in full, ``.safetensors`` left out or not, and whose one group is the step; it
    takes the place of the trainers' names.

    Raises :class:`NotFound` where a path is missing or nothing complete is there (the line names
    what was looked for, or the converter to run), :class:`InvalidInput` where two checkpoints claim
    one step. Only the headers of the last checkpoint, and of `base`, are read.
    """
    naming = None if pattern is None else read_pattern(pattern)
    looks = [look for path in paths for look in _look(Path(path), naming)]
    found = _unique(look for look in looks if isinstance(look, Found))
    incomplete = [look for look in looks if isinstance(look, Incomplete)]
    while found:
        try:
            open_checkpoint(found[-1].path, found[-1].step)
        except (HalfWritten, NotFound) as error:  # NotFound: removed since it was listed
            last = found.pop()
            incomplete.append(Incomplete(last.step, last.path, str(error)))
            continue
        except TrajkitError:
            pass  # not half-written but wrong: whoever reads it gets this line
        break
    incomplete.sort(key=lambda item: (item.step is None, item.step or 0))
    if not found:
        last_reason = incomplete[-1].reason if incomplete else LOOKED_FOR
        where = ", ".join(shown(path) for path in paths[:3]) or "no path given"
        more = f" (and {len(incomplete) - 1} more like it)" if len(incomplete) > 1 else ""
        raise NotFound(f"{where}: no complete checkpoint: {last_reason}{more}")
    if base is not None:
        found = _unique([_find_base(Path(base)), *found])
    return Series(tuple(found), tuple(incomplete))


def _unique(found: Iterable[Found]) -> list[Found]:
    """Sort by step; the same place twice is one, two places for one step are refused."""
    by_step: dict[int, Found] = {}
    for item in found:
        other = by_step.setdefault(item.step, item)
        if os.path.realpath(other.path) != os.path.realpath(item.path):
            hint = "; rename them to checkpoint-N" if item.layout == "unnumbered" else ""
            raise InvalidInput(
                f"two checkpoints claim step {item.step}: {shown(other.path)} and "
                f"{shown(item.path)}{hint}"
            )
    return [by_step[step] for step in sorted(by_step)]


def _find_base(path: Path) -> Found:
    """Find the base model, checked to be readable."""
    if not os.path.lexists(path):
        raise NotFound(
            f"{shown(path)}: no such file or folder for the base model "
            "(a model of the Hub must be downloaded first: hf download NAME --local-dir DIR)"
        )
    weights = locate_weights(path) if is_folder(path) else path
    if weights is None:
        raise NotFound(f"{shown(path)}: no weights of a base model: {why_empty(path)}")
    open_checkpoint(weights)
    return Found(0, weights, "base", path if is_folder(path) else None)


def _look(path: Path, naming: re.Pattern[str] | None = None) -> list[Found | Incomplete]:
    """Find all checkpoints that one given path means; raises where there is nothing."""
    named = STEP_AND_PATH.fullmatch(str(path))
    if named is not None and not os.path.lexists(path):
        return [find_named(int(named[1]), Path(named[2]))]
    if naming is not None and os.path.lexists(path):
        return find_matching(path, naming)
    if not os.path.lexists(path):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (may be absolute)
        looks = [look for match in matches for look in _look_at(Path(match))]
        if looks:
            return looks
        missing = "matches no checkpoint" if matches else "no such file or folder"
        raise NotFound(f"{shown(path)}: {missing}; {LOOKED_FOR}")
    looks = _look_at(path)
    if not looks and (runs := list_runs(path)):
        names = ", ".join(shown(run) for run in runs[:5]) + (", ..." if runs[5:] else "")
        raise NotFound(
            f"{shown(path)}: holds no step itself, but {count(len(runs), 'run')}: {names}; pass the "
            "one that is meant, each run into a --store of its own"
        )
    if not looks:
        raise NotFound(f"{shown(path)}: no checkpoint: {why_empty(path)}")
    return looks


def _look_at(path: Path) -> list[Found | Incomplete]:
    """Find all checkpoints that an existing path means, perhaps none."""
    if not is_folder(path):
        return _look_at_file(path)
    own = own_step(path)
    if isinstance(own, Found):
        return [own]
    below: list[Found | Incomplete] = []
    for folder in (path, *(path / name for name in CONTAINERS)):
        inner = list(_look_below(folder))
        if any(isinstance(look, Found) for look in inner):
            return inner
        below = below or inner
    if own is not None:
        return [own]
    if not below and (weights := locate_weights(path)) is not None:
        return [Found(0, weights, "unnumbered", path)]
    return below


def _look_at_file(path: Path) -> list[Found | Incomplete]:
    """Find the step of a file given by name: its own number, or its step folder's."""
    if match := STEP_FILE.fullmatch(path.name):
        return [Found(int(match[1]), path, "file")]
    if not path.name.endswith((".safetensors", ".safetensors.index.json")):
        return []
    own = own_step(path.parent)
    if isinstance(own, Found) and not is_shard(path.name):
        return [Found(own.step, path, own.layout, own.folder)]
    return [own or Found(0, path, "unnumbered")]


def _look_below(folder: Path) -> Iterator[Found | Incomplete]:
    """Find the step folders and step files that lie directly in a folder."""
    if not is_folder(folder):
        return
    for name in _list(folder):
        path = folder / name
        if temporary := TEMPORARY.fullmatch(name):
            final = temporary[1] or temporary[2]
            file = STEP_FILE.fullmatch(final)
            if step := parse_step(final) or (file and (int(file[1]), "file")):
                yield Incomplete(step[0], path, "a temporary name: still being written")
        elif is_folder(path):
            if parse_step(name):
                yield judge_step(path)
        elif file := STEP_FILE.fullmatch(name):
            yield Found(int(file[1]), path, "file")


def list_runs(path: Path) -> list[Path]:
    """The folders up to two levels below `path` in which step folders or step files lie."""
    runs: list[Path] = []
    for folder in _folders(path):
        below = (
            [folder] if _holds_steps(folder) else [f for f in _folders(folder) if _holds_steps(f)]
        )
        runs += below
    return runs


def _holds_steps(folder: Path) -> bool:
    places = (folder, *(folder / name for name in CONTAINERS))
    return any(isinstance(look, Found) for place in places for look in _look_below(place))


def _folders(path: Path) -> list[Path]:
    try:
        names = _list(path) if is_folder(path) else []
    except StorageError:  # one that may not be looked into holds nothing for us
        return []
    return [path / name for name in names if is_folder(path / name) and not name.startswith(".")]


def _list(folder: Path) -> list[str]:
    """List the names in a folder, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise StorageError(f"{shown(folder)}: cannot be listed: {error.strerror}") from error
