"""What measuring a probe set under many checkpoints begins with: the models, the probes, the place."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trajkit
from trajkit.checkpoints.series import find_series
from trajkit.errors import InvalidInput, Mismatch
from trajkit.outputs.generate import identify
from trajkit.outputs.libraries import torch, transformers
from trajkit.outputs.models import load_tokenizer, read_config
from trajkit.outputs.probes import Probe, read_probes
from trajkit.outputs.rows import RowsRecord, make_group, rows_path
from trajkit.outputs.sampling import context_of
from trajkit.outputs.weights import FolderWeights, StoredWeights, Weights
from trajkit.store.tensors import Source, as_store


def choose_sources(
    traj: Source | None, steps: Sequence[int] | None, checkpoints: Sequence[str | Path]
) -> list[Weights]:
    """The models, ascending by step: the store's steps, or these folders.

    Raises:
        InvalidInput: both are chosen, or neither is there. NotFound: no such step or folder.
    """
    if checkpoints:
        if steps is not None:
            raise InvalidInput("steps are of the store: give steps or checkpoint folders")
        series = find_series([Path(p) for p in checkpoints])
        return [FolderWeights(f.path, f.step) for f in series.found]
    store = as_store(need_store(traj))
    chosen = store.steps.tolist() if steps is None else sorted(set(steps))
    if not chosen:
        raise InvalidInput(f"{store.path}: holds no step yet; run trajkit ingest first")
    return [StoredWeights(store, step) for step in chosen]


def choose_missing(sources: Sequence[Weights], record: RowsRecord) -> list[Weights]:
    """The sources that have no row yet, checked against those that have.

    Raises:
        Mismatch: a row is of other weights. InvalidInput: a step before the last one that has a row.
    """
    known = dict(zip(record.steps, record.weights, strict=True))
    missing = []
    for source in sources:
        if source.step not in known:
            missing.append(source)
        elif known[source.step] != weights_digest(source):
            raise Mismatch(
                f"{source.label}: other weights than those {record.DONE} before as step {source.step}; "
                "choose another --name, or pass --force"
            )
    if missing and record.steps and missing[0].step < record.steps[-1]:
        raise InvalidInput(
            f"{missing[0].label}: steps are {record.DONE} in order, and step {record.steps[-1]} is; "
            "choose another --name, or pass --force"
        )
    return missing


def choose_place(
    traj: Source | None, kind: type[RowsRecord], name: str, out: str | Path | None
) -> Path:
    """Where the rows go: a folder, or the place of that name in the store; what it lies in is made.

    Raises:
        InvalidInput: a bad name, or neither a store nor a folder.
    """
    if out is not None:
        path = Path(out)
    else:
        store = as_store(need_store(traj))
        path = rows_path(store, kind, name)
        make_group(store, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def open_probes(
    source: Weights, probes: str | Path, kind: type[RowsRecord]
) -> tuple[list[Probe], Any]:
    """The probes, in the tokens of a model, and its tokenizer.

    Raises:
        NotFound: no such file. InvalidInput: a probe is not one, or none has a response. Mismatch:
            they are of another tokenizer.
    """
    tokenizer, config = load_tokenizer(source), read_config(source)
    found = read_probes(
        probes, tokenizer, context=context_of(config), vocabulary=vocabulary_of(config)
    )
    if not any(p.response_ids for p in found):
        raise InvalidInput(
            f"{probes}: no response in it has a token; there is nothing to {kind.DO}"
        )
    return found, tokenizer


def need_store(traj: Source | None) -> Source:
    """The store; raises :class:`InvalidInput` where none is given."""
    if traj is None:
        raise InvalidInput("without a store, give checkpoint folders and a folder to write (out)")
    return traj


def weights_digest(source: Weights) -> str:
    """What tells one checkpoint's weights from another's."""
    found = identify(source)
    return (
        found if isinstance(found, str) else hashlib.sha256(repr(found).encode()).hexdigest()[:32]
    )


def probes_digest(probes: Sequence[Probe]) -> str:
    """What tells one probe set's tokens from another's."""
    content = repr([(p.prompt_ids, p.response_ids) for p in probes])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def vocabulary_of(config: Any) -> int:
    """Rows of the model's logits."""
    return int(config.get_text_config().vocab_size)


def library_versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "trajkit": trajkit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
