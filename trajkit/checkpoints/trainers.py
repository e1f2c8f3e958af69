"""How trainers lay out their step folders: a new layout is a line in these tables.

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
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from trajkit.checkpoints.checkpoint import holds_weights
from trajkit.checkpoints.converters import conversion
from trajkit.checkpoints.header import is_folder
from trajkit.disk import read_file
from trajkit.errors import FormatError

LOOKED_FOR = (
    "looked for checkpoint-N, global_step_N, global_stepN_hf, step_N, step-N, iter_N, "
    "weights/step_N, *stepN.safetensors, model.safetensors and its shards; other names: "
    r"--pattern 'epoch_(\d+)', or STEP=PATH"
)

STEP_FOLDERS = {
    "TRL": re.compile(r"checkpoint-([0-9]{1,18})"),
    "verl": re.compile(r"global_step_([0-9]{1,18})"),
    "OpenRLHF": re.compile(r"global_step([0-9]{1,18})_hf"),
    "slime": re.compile(r"iter_([0-9]{1,18})"),
    "torchtitan": re.compile(r"step-([0-9]{1,18})"),
    "open-instruct": re.compile(r"step_([0-9]{1,18})"),  # and prime-rl and NeMo-RL: see below
}
STEP_FILE = re.compile(
    r"(?:.*[^A-Za-z])?(?:step|checkpoint|ckpt|iter|iteration)[-_]?([0-9]{1,18})\.safetensors"
)
TEMPORARY = re.compile(
    r"[._]?(?:tmp|temp|partial|incomplete)[-_.](.+)|(.+?)[-_.](?:tmp|temp|partial|incomplete)\b.*"
)
BELOW = (
    *("actor/huggingface", "actor/hf_model", "hf_model", "huggingface", "."),
    *("actor", "policy", "lora_adapters"),
)
CONTAINERS = ("weights", "checkpoints", "checkpoint", "ckpts", "exports")
MARKERS = ("latest_checkpointed_iteration.txt", "latest_ckpt_global_step.txt")


@dataclass(frozen=True, slots=True)
class Found:
    """One checkpoint of the series."""

    step: int
    """training step"""
    path: Path
    """what :func:`trajkit.checkpoints.checkpoint.open_checkpoint` takes"""
    layout: str
    """the trainer whose layout this is; "file", "base", or "unnumbered" (step 0)"""
    folder: Path | None = None
    """the step's own folder, in which the weights may lie deeper; None for a file"""


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A checkpoint that is not complete (yet)."""

    step: int | None
    path: Path
    reason: str


def parse_step(name: str) -> tuple[int, str] | None:
    """Read the step and the trainer off a step folder's name."""
    for layout, pattern in STEP_FOLDERS.items():
        if match := pattern.fullmatch(name):
            return int(match[1]), layout
    return None


def own_step(path: Path) -> Found | Incomplete | None:
    """Find the step whose folder this is, or lies in; ``latest -> checkpoint-300`` counts."""
    for given in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):  # noqa: PTH100
        for folder in (given, *given.parents[:5]):
            below = given.relative_to(folder).as_posix()
            if parse_step(folder.name) and (below in BELOW or below.startswith("policy/")):
                return judge_step(folder, path)
    return None


def locate_weights(folder: Path) -> Path | None:
    """Find the folder that holds the weights: a known place, or the first one below ``policy``."""
    for name in BELOW:
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


def read_marker(path: Path) -> int | None:
    """Read the newest complete step from a marker file; None if it says nothing."""
    try:
        text = read_file(path, 4096).strip()
    except (OSError, FormatError):
        return None
    return int(text) if re.fullmatch(rb"[0-9]{1,18}", text) else None


def judge_step(folder: Path, given: Path | None = None) -> Found | Incomplete:
    """Find the weights of one step folder and judge whether they are complete."""
    step, layout = parse_step(folder.name) or (0, "unnumbered")
    weights = locate_weights(given or folder)
    below = "" if weights is None else os.path.relpath(weights, folder)
    stable = os.path.lexists(folder / "STABLE")
    if layout == "open-instruct" and (stable or folder.parent.name == "weights"):
        layout = "prime-rl"
        if not stable:
            why = "no file STABLE, which prime-rl writes last (create it if the step is complete)"
            return Incomplete(step, folder, why)
    elif below.startswith("policy"):
        layout = {"verl": "SkyRL", "open-instruct": "NeMo-RL"}.get(layout, layout)
    for marker in MARKERS if layout in ("verl", "SkyRL", "slime") else ():
        newest = read_marker(folder.parent / marker)
        if newest is not None and newest < step:
            return Incomplete(step, folder, f"{marker} says {newest}: still being written")
    if weights is None:
        return Incomplete(step, folder, why_empty(folder))
    return Found(step, weights, layout, folder)


def why_empty(path: Path) -> str:
    """Say what a path holds instead of weights, and what converts it."""
    return conversion(path) or (LOOKED_FOR if is_folder(path) else "expected a .safetensors file")
