"""The ordered series of checkpoints that lie in folders, whichever trainer wrote them.

The step comes from a name; where a step's weights lie below its folder, and what says that it is
complete, depends on the trainer:

=============================== ===================== ========================================
trainer                         step                  weights; complete when
=============================== ===================== ========================================
TRL, HF Trainer                 ``checkpoint-N``      there
verl                            ``global_step_N``     ``actor/huggingface``, ``hf_model`` or
                                                      there; ``latest_checkpointed_iteration.txt``
SkyRL                           ``global_step_N``     ``policy``; ``latest_ckpt_global_step.txt``
OpenRLHF                        ``global_stepN_hf``   there
prime-rl                        ``weights/step_N``    there (or ``lora_adapters``); ``STABLE``
NeMo-RL                         ``step_N``            below ``policy``; not ``tmp_step_N``
open-instruct, torchtitan       ``step_N``/``step-N`` there
slime                           ``iter_000N``         there
plain files                     ``*stepN``, ``*step_N.safetensors``, also checkpoint, ckpt, iter
=============================== ===================== ========================================

What is not complete is passed over and listed, never read: a temporary name, a missing marker, a
step without any safetensors (wherever it stands in the series), and the last steps if their files
are cut or missing: they are still being written. A damaged step *before* a complete one stays in
the series, so that reading it fails loudly instead of leaving a gap.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trajkit.checkpoint import HalfWritten, holds_weights, is_shard, open_checkpoint
from trajkit.converters import conversion
from trajkit.errors import InvalidInput, NotFound, StorageError, TrajkitError
from trajkit.header import is_folder, shown

LOOKED_FOR = (
    "looked for checkpoint-N, global_step_N, global_stepN_hf, step_N, step-N, iter_N, "
    "weights/step_N, *stepN.safetensors, model.safetensors and its shards"
)

_STEP_FOLDERS = {
    "TRL": re.compile(r"checkpoint-([0-9]{1,18})"),
    "verl": re.compile(r"global_step_([0-9]{1,18})"),
    "OpenRLHF": re.compile(r"global_step([0-9]{1,18})_hf"),
    "slime": re.compile(r"iter_([0-9]{1,18})"),
    "torchtitan": re.compile(r"step-([0-9]{1,18})"),
    "open-instruct": re.compile(r"step_([0-9]{1,18})"),  # and prime-rl and NeMo-RL: see below
}
_STEP_FILE = re.compile(
    r"(?:.*[^A-Za-z])?(?:step|checkpoint|ckpt|iter|iteration)[-_]?([0-9]{1,18})\.safetensors"
)
_TEMPORARY = re.compile(
    r"[._]?(?:tmp|temp|partial|incomplete)[-_.](.+)|(.+?)[-_.](?:tmp|temp|partial|incomplete)\b.*"
)
_BELOW = (
    *("actor/huggingface", "actor/hf_model", "hf_model", "huggingface", "."),
    *("actor", "policy", "lora_adapters"),
)
_CONTAINERS = ("weights", "checkpoints", "checkpoint", "ckpts", "exports")
_MARKERS = ("latest_checkpointed_iteration.txt", "latest_ckpt_global_step.txt")


@dataclass(frozen=True, slots=True)
class Found:
    """One checkpoint of the series."""

    step: int
    """training step"""
    path: Path
    """what :func:`trajkit.checkpoint.open_checkpoint` takes"""
    layout: str
    """the trainer whose layout this is; "file", "base", or "unnumbered" (step 0)"""


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A checkpoint that is not complete (yet)."""

    step: int | None
    path: Path
    reason: str


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


def find_series(paths: Sequence[Path], base: Path | None = None) -> Series:
    """Find the checkpoints in `paths`, and `base` as step 0.

    Each path is a folder of step folders (or a run's folder with ``weights/`` or ``checkpoints/``
    in it), a step folder, a folder within one (``global_step_5/actor/huggingface``), a folder of
    plain files, one ``.safetensors`` file, or a shell pattern of these. A folder of weights without
    a number beside step folders (the final model, as TRL saves it) is left out; alone it is step 0.

    Raises :class:`NotFound` where a path is missing or nothing complete is there (the line names
    what was looked for, or the converter to run), :class:`InvalidInput` where two checkpoints claim
    one step. Only the headers of the last checkpoint, and of `base`, are read.
    """
    looks = [look for path in paths for look in _look(Path(path))]
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
    weights = _locate(path) if is_folder(path) else path
    if weights is None:
        raise NotFound(f"{shown(path)}: no weights of a base model: {_why_empty(path)}")
    open_checkpoint(weights)
    return Found(0, weights, "base")


def _look(path: Path) -> list[Found | Incomplete]:
    """Find all checkpoints that one given path means; raises where there is nothing."""
    if not os.path.lexists(path):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (may be absolute)
        looks = [look for match in matches for look in _look_at(Path(match))]
        if looks:
            return looks
        missing = "matches no checkpoint" if matches else "no such file or folder"
        raise NotFound(f"{shown(path)}: {missing}; {LOOKED_FOR}")
    looks = _look_at(path)
    if not looks:
        raise NotFound(f"{shown(path)}: no checkpoint: {_why_empty(path)}")
    return looks


def _look_at(path: Path) -> list[Found | Incomplete]:
    """Find all checkpoints that an existing path means, perhaps none."""
    if not is_folder(path):
        return _look_at_file(path)
    own = _own_step(path)
    if isinstance(own, Found):
        return [own]
    below: list[Found | Incomplete] = []
    for folder in (path, *(path / name for name in _CONTAINERS)):
        inner = list(_look_below(folder))
        if any(isinstance(look, Found) for look in inner):
            return inner
        below = below or inner
    if own is not None:
        return [own]
    if not below and (weights := _locate(path)) is not None:
        return [Found(0, weights, "unnumbered")]
    return below


def _look_at_file(path: Path) -> list[Found | Incomplete]:
    """Find the step of a file given by name: its own number, or its step folder's."""
    if match := _STEP_FILE.fullmatch(path.name):
        return [Found(int(match[1]), path, "file")]
    if not path.name.endswith((".safetensors", ".safetensors.index.json")):
        return []
    own = _own_step(path.parent)
    if isinstance(own, Found) and not is_shard(path.name):
        return [Found(own.step, path, own.layout)]
    return [own or Found(0, path, "unnumbered")]


def _look_below(folder: Path) -> Iterator[Found | Incomplete]:
    """Find the step folders and step files that lie directly in a folder."""
    if not is_folder(folder):
        return
    for name in _list(folder):
        path = folder / name
        if temporary := _TEMPORARY.fullmatch(name):
            final = temporary[1] or temporary[2]
            file = _STEP_FILE.fullmatch(final)
            if step := _parse_step(final) or (file and (int(file[1]), "file")):
                yield Incomplete(step[0], path, "a temporary name: still being written")
        elif is_folder(path):
            if _parse_step(name):
                yield _look_at_step(path)
        elif file := _STEP_FILE.fullmatch(name):
            yield Found(int(file[1]), path, "file")


def _parse_step(name: str) -> tuple[int, str] | None:
    """Read the step and the trainer off a step folder's name."""
    for layout, pattern in _STEP_FOLDERS.items():
        if match := pattern.fullmatch(name):
            return int(match[1]), layout
    return None


def _own_step(path: Path) -> Found | Incomplete | None:
    """Find the step whose folder this is, or lies in; ``latest -> checkpoint-300`` counts."""
    for given in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):  # noqa: PTH100
        for folder in (given, *given.parents[:5]):
            below = given.relative_to(folder).as_posix()
            if _parse_step(folder.name) and (below in _BELOW or below.startswith("policy/")):
                return _look_at_step(folder, path)
    return None


def _look_at_step(folder: Path, given: Path | None = None) -> Found | Incomplete:
    """Find the weights of one step folder and judge whether they are complete."""
    step, layout = _parse_step(folder.name) or (0, "unnumbered")
    weights = _locate(given or folder)
    below = "" if weights is None else os.path.relpath(weights, folder)
    stable = os.path.lexists(folder / "STABLE")
    if layout == "open-instruct" and (stable or folder.parent.name == "weights"):
        layout = "prime-rl"
        if not stable:
            why = "no file STABLE, which prime-rl writes last (create it if the step is complete)"
            return Incomplete(step, folder, why)
    elif below.startswith("policy"):
        layout = {"verl": "SkyRL", "open-instruct": "NeMo-RL"}.get(layout, layout)
    for marker in _MARKERS if layout in ("verl", "SkyRL", "slime") else ():
        newest = _read_marker(folder.parent / marker)
        if newest is not None and newest < step:
            return Incomplete(step, folder, f"{marker} says {newest}: still being written")
    if weights is None:
        return Incomplete(step, folder, _why_empty(folder))
    return Found(step, weights, layout)


def _locate(folder: Path) -> Path | None:
    """Find the folder that holds the weights: a known place, or the first one below ``policy``."""
    for name in _BELOW:
        if is_folder(folder / name) and holds_weights(folder / name):
            return folder if name == "." else folder / name
    below = [
        Path(parent)
        for parent, _, files in os.walk(folder / "policy")
        if "optim" not in os.path.relpath(parent, folder)
        and any(name.endswith(".safetensors") for name in files)
    ]
    below.sort(key=lambda path: (path.name != "consolidated", len(path.parts), path))
    return below[0] if below else None


def _read_marker(path: Path) -> int | None:
    """Read the newest complete step from a marker file; None if it says nothing."""
    try:
        with path.open("rb") as file:
            text = file.read(64).strip()
    except OSError:
        return None
    return int(text) if re.fullmatch(rb"[0-9]{1,18}", text) else None


def _why_empty(path: Path) -> str:
    """Say what a path holds instead of weights, and what converts it."""
    return conversion(path) or (LOOKED_FOR if is_folder(path) else "expected a .safetensors file")


def _list(folder: Path) -> list[str]:
    """List the names in a folder, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise StorageError(f"{shown(folder)}: cannot be listed: {error.strerror}") from error
