"""The config and tokenizer files of a model in memory, as its trainer would write them."""

import json
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trajkit.checkpoints.checkpoint import SIDE_FILES
from trajkit.disk import read_file
from trajkit.errors import InvalidInput


def collect_side_files(model: Any, config: Any, tokenizer: Any, dtype: str) -> dict[str, bytes]:
    """Config, generation config and tokenizer files by name.

    Args:
        model: where ``config`` is None, its own ``config`` and ``generation_config`` are taken.
        config: a transformers config, a dict, or a folder with a config.json and whatever else
            belongs to the model.
        tokenizer: whatever has ``save_pretrained``, or a folder.
        dtype: of the floating-point tensors as they are kept, for config.json.

    Raises:
        InvalidInput: something else.
    """
    files: dict[str, bytes] = {}
    inner = getattr(model, "_orig_mod", getattr(model, "module", model))
    if config is None:
        config = getattr(inner, "config", None)
        generation = getattr(inner, "generation_config", None)
        files |= _files_of(generation, "generation_config", None)
    files |= _files_of(config, "config", "config.json")
    files |= _files_of(tokenizer, "tokenizer", None)
    if "config.json" in files:
        document = json.loads(files["config.json"])
        if not document.get("architectures") and hasattr(inner, "config"):
            document["architectures"] = [type(inner).__name__]
        document["torch_dtype" if "torch_dtype" in document else "dtype"] = dtype
        files["config.json"] = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    return dict(sorted(files.items()))


def _files_of(source: Any, what: str, single: str | None) -> dict[str, bytes]:
    """The side files that one object or folder gives."""
    if source is None:
        return {}
    if isinstance(source, str | Path):
        return _read_folder(Path(source), what)
    if isinstance(source, Mapping) and single is not None:
        return {single: json.dumps(source).encode()}
    if not hasattr(source, "save_pretrained"):
        if what == "config":  # a module's own idea of a config: nothing that a file could hold
            return {}
        raise InvalidInput(f"{what}: expected save_pretrained or a folder, found {source!r:.80}")
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(folder)
        return _read_folder(Path(folder), what)


def _read_folder(folder: Path, what: str) -> dict[str, bytes]:
    """The files of a folder that belong to a model beside its weights."""
    if not folder.is_dir():
        raise InvalidInput(f"{what}: {folder} is not a folder")
    return {
        path.name: read_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatchcase(path.name, known) for known in SIDE_FILES)
    }
