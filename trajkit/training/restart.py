"""The folder that a trainer starts its next segment from: weights, and what belongs beside them.

Weights lie in the files, and under the names, of the segment's last checkpoint; config and tokenizer
are its own, and where it has none, those of the model that the segment started from. TRL and the HF
Trainer resume from a folder that holds the optimizer's state as well: those files are copied byte for
byte, never opened. Other trainers keep the weights inside of their own state, where a jump would be
undone by resuming, so they start anew from the weights.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trajkit import __version__
from trajkit.checkpoints.checkpoint import Checkpoint
from trajkit.checkpoints.folder import FolderWriter
from trajkit.checkpoints.layout import FlatVector
from trajkit.checkpoints.metrics import TRAINER_STATE
from trajkit.checkpoints.record import describe_source
from trajkit.checkpoints.shards import plan_file, plan_files
from trajkit.checkpoints.target import check_target
from trajkit.disk import canonical_json
from trajkit.errors import Unsupported
from trajkit.training.stream import SegmentFiles

STATE_FILES = (
    *(TRAINER_STATE, "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"),
    *("training_args.bin",),
)
"""of the HF Trainer, beside ``rng_state*.pth``"""
WEIGHTS_FILE = "model.safetensors"
SUMS_FILE = "sums.safetensors"


def can_resume(last: Checkpoint) -> bool:
    """Whether a checkpoint holds what the HF Trainer goes on from."""
    return (last.root / TRAINER_STATE).is_file()


def state_files(last: Checkpoint) -> list[str]:
    """The files of a checkpoint that hold the trainer's state.

    Raises:
        Unsupported: there is none, or it holds the weights too (DeepSpeed, FSDP).
    """
    names = sorted(os.listdir(last.root))  # noqa: PTH208 - names alone
    if not can_resume(last):
        raise Unsupported(
            f"{last.root}: no {TRAINER_STATE}: only the HF Trainer's and TRL's checkpoints keep an "
            "optimizer's state to resume from; use --optimizer reset"
        )
    for name in names:
        if name.startswith(("global_step", "pytorch_model_fsdp", "optimizer_")):
            raise Unsupported(
                f"{last.root}: {name} holds weights beside the optimizer's state, which would undo "
                "the jump; use --optimizer reset"
            )
    return [n for n in names if n in STATE_FILES or (n.startswith("rng_state") and ".pth" in n)]


def stands_alone(last: Checkpoint, start: Checkpoint) -> bool:
    """Whether a trainer can start from a checkpoint's folder: one set of weights, and a config."""
    weights = [n for n in os.listdir(last.root) if n.endswith(".safetensors")]  # noqa: PTH208
    whole = {file.name for file in last.files} >= set(weights)
    return whole and start.side_files.keys() <= last.side_files.keys()


def facts_of(last: Checkpoint, **facts: Any) -> dict[str, Any]:
    """What a folder says of its origin."""
    return {"from": str(last.root), "step": last.step, **facts}


@contextmanager
def writing_model(
    out: Path, files: SegmentFiles, start: Checkpoint, facts: Mapping[str, Any], *, resumes: bool
) -> Iterator[FolderWriter]:
    """A folder to start from, all but the weights' bits; it is there when the block ends well."""
    last = files.last
    names = state_files(last) if resumes else []
    record = describe_source(files.reader, lambda name, path: (str(path), ""))
    if len(record.files) == 1 and record.index is None:  # whatever the trainer calls it
        record = replace(record, files=((WEIGHTS_FILE, record.files[0][1]),))
    with FolderWriter(check_target(out, force=True), files.vectors) as writer:
        writer.add_files(plan_files(record, files.vectors))
        if record.index is not None:
            writer.write_side_file(record.index[0], record.index[1].encode())
        for name, path in {**start.side_files, **last.side_files}.items():
            writer.copy_side_file(name, path)
        for name in names:
            writer.copy_side_file(name, last.root / name)
        _sign(writer, facts)
        yield writer
        writer.commit()


@contextmanager
def writing_sums(
    out: Path, layout: Mapping[str, FlatVector], facts: Mapping[str, Any]
) -> Iterator[FolderWriter]:
    """A folder for what a rule keeps; it is there when the block ends well."""
    with FolderWriter(check_target(out, force=True), layout) as writer:
        writer.add_files([plan_file(SUMS_FILE, layout)])
        _sign(writer, facts)
        yield writer
        writer.commit()


def _sign(writer: FolderWriter, facts: Mapping[str, Any]) -> None:
    document = {"made_by": f"trajkit {__version__}", **facts}
    writer.write_side_file("trajkit.json", canonical_json(document))
