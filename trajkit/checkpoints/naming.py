"""Steps that the user names: by a regular expression over names, or one by one as ``STEP=PATH``."""

import os
import re
from pathlib import Path

from trajkit.checkpoints.header import is_folder
from trajkit.checkpoints.trainers import (
    CONTAINERS,
    TEMPORARY,
    Found,
    Incomplete,
    locate_weights,
    why_empty,
)
from trajkit.errors import InvalidInput, NotFound, StorageError
from trajkit.text import shown

STEP_AND_PATH = re.compile(r"([0-9]{1,18})=(.+)", re.DOTALL)
_SUFFIX = ".safetensors"


def read_pattern(text: str) -> re.Pattern[str]:
    r"""Compile a pattern whose one group is the step.

    >>> read_pattern(r"epoch_(\d+)").groups
    1

    Raises:
        InvalidInput: not a regular expression, or not one group.
    """
    try:
        pattern = re.compile(text, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidInput(f"--pattern {text!r}: not a regular expression: {error}") from None
    if pattern.groups != 1:
        raise InvalidInput(
            f"--pattern {text!r}: has {pattern.groups} groups, not one; put the step's digits into "
            r"parentheses: 'epoch_(\d+)'"
        )
    return pattern


def find_named(step: int, path: Path) -> Found:
    """The checkpoint that ``STEP=PATH`` names; raises :class:`NotFound` where there is none."""
    if not os.path.lexists(path):
        raise NotFound(f"{shown(f'{step}={path}')}: no such file or folder: {shown(path)}")
    if not is_folder(path):
        return Found(step, path, "named")
    weights = locate_weights(path)
    if weights is None:
        raise NotFound(f"{shown(path)}: no weights for step {step}: {why_empty(path)}")
    return Found(step, weights, "named", path)


def find_matching(path: Path, pattern: re.Pattern[str]) -> list[Found | Incomplete]:
    """The checkpoint at `path` if its own name matches, or those in it whose names do.

    Raises:
        NotFound: no name matches. InvalidInput: a name matches, and its group is no number.
    """
    own = _judge(Path(os.path.abspath(path)), pattern)  # noqa: PTH100 - links are kept
    if own is not None:
        return [own]
    seen: list[str] = []
    for folder in (path, *(path / name for name in CONTAINERS)):
        names = _list(folder)
        seen += names
        found = [look for name in names if (look := _judge(folder / name, pattern)) is not None]
        if found:
            return found
    there = f"; there are {', '.join(map(shown, seen[:3]))}" if seen else ""
    raise NotFound(
        f"{shown(path)}: no name in it matches --pattern {pattern.pattern!r} from end to end{there}"
    )


def _judge(path: Path, pattern: re.Pattern[str]) -> Found | Incomplete | None:
    """The checkpoint that a file or folder is, if its name matches."""
    name = path.name
    match = pattern.fullmatch(name) or pattern.fullmatch(name.removesuffix(_SUFFIX))
    if match is None or TEMPORARY.fullmatch(name):
        return None
    digits = match[1] or ""
    if not re.fullmatch(r"[0-9]{1,18}", digits):
        raise InvalidInput(
            f"--pattern {pattern.pattern!r}: takes {shown(repr(digits))} of {shown(name)} for the "
            "step, which is no whole number; put only digits into the parentheses"
        )
    step = int(digits)
    if not is_folder(path):
        return Found(step, path, "pattern") if name.endswith(_SUFFIX) else None
    weights = locate_weights(path)
    if weights is None:
        return Incomplete(step, path, why_empty(path))
    return Found(step, weights, "pattern", path)


def _list(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder)) if is_folder(folder) else []
    except OSError as error:
        raise StorageError(f"{shown(folder)}: cannot be listed: {error.strerror}") from error
