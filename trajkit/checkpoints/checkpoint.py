"""One checkpoint on disk: which tensors lie at which bytes of which safetensors files.

Only headers are read here (:mod:`trajkit.checkpoints.header` says what is refused in them); a
reader then streams the byte ranges. What comes from the files is never trusted: shard
names of an index must be plain relative paths to files of the checkpoint's own folder, links
followed; side files too. Every tensor is in exactly one file, the one the index names.

Wrapper prefixes (``_orig_mod.``, ``module.``, and ``base_model.model.`` except for adapters) are
stripped from the names when all tensors carry them, and kept in ``Checkpoint.prefix``.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from trajkit.checkpoints.header import (
    MAX_HEADER_BYTES,
    CheckpointFile,
    HalfWritten,
    StoredTensor,
    find_file,
    is_folder,
    read_header,
    read_into,
    read_small,
)
from trajkit.checkpoints.parse import parse_object
from trajkit.disk import is_inner
from trajkit.errors import FormatError, NotFound, StorageError, Unsupported
from trajkit.text import quoted, shown

__all__ = [
    "Checkpoint",
    "CheckpointFile",
    "HalfWritten",
    "TensorEntry",
    "holds_weights",
    "is_shard",
    "open_checkpoint",
    "read_into",
]

WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")
"""Prefixes that torch.compile, DDP and PEFT put before every name."""
SIDE_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "preprocessor_config.json"),
    *("processor_config.json", "video_preprocessor_config.json", "special_tokens_map.json"),
    *("tokenizer*", "added_tokens.json", "vocab*", "merges*", "spiece.model", "sentencepiece.*"),
    *("chat_template*", "*.jinja"),
)
"""What makes a folder of weights loadable; kept with the run."""

_INDEX = ".safetensors.index.json"
_WHOLE = ("model.safetensors", "adapter_model.safetensors")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<i>[0-9]{1,9})-of-(?P<n>[0-9]{1,9})\.safetensors")
_RANK_SLICE = re.compile(r"shard-[0-9]+-model-.*\.safetensors")
_NOT_WEIGHTS = re.compile(r"(\.|tmp|optim|scheduler|rng_|random_state|training_)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor's bytes lie."""

    name: str
    """canonical: without the checkpoint's wrapper prefix"""
    stored_name: str
    """as the file spells it"""
    dtype: str
    """a name of :data:`trajkit.arrays.DTYPES`"""
    shape: tuple[int, ...]
    file: int
    """index into ``Checkpoint.files``"""
    begin: int
    """absolute byte offset in that file"""
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint: its files, and its tensors in (file, offset) order."""

    step: int
    """training step"""
    root: Path
    """the folder the files lie in"""
    files: tuple[CheckpointFile, ...]
    index_name: str | None
    """name of the ``*.safetensors.index.json``, where there is one"""
    index: bytes | None
    """its raw content"""
    tensors: Mapping[str, TensorEntry]
    side_files: Mapping[str, Path]
    """config, tokenizer and chat template files beside the weights, by name"""
    prefix: str
    """wrapper prefix that every stored name carries and no canonical name does"""
    adapter: bool
    """whether this is a PEFT adapter, whose names keep ``base_model.model.``"""


def open_checkpoint(path: Path, step: int = 0) -> Checkpoint:
    """Open the checkpoint at `path`: a folder, a ``.safetensors`` file, or an index file.

    A folder's weights are, in this order: what its ``*.safetensors.index.json`` names;
    ``model.safetensors`` or ``adapter_model.safetensors``; one complete set of numbered shards; all
    its ``.safetensors`` files together. Where other tools might choose otherwise (a whole model
    beside shards, two indexes, a model and an adapter), the folder is refused: pass the file or the
    index that is meant.

    Raises :class:`NotFound` (no such path, or no weights in it), :class:`HalfWritten` (a
    :class:`FormatError`: cut, empty or missing file), :class:`FormatError` (not what the format
    says), :class:`Unsupported` (a dtype trajkit lacks) and :class:`StorageError` (unreadable).

    Notes: 100,000 tensors open in about 0.7 s; memory grows with the headers only.
    """
    path = Path(path)
    if is_folder(path):
        root, listing = path, _list(path)
        index_name, names = _choose(root, listing)
    elif not os.path.lexists(path):
        raise NotFound(f"{shown(path)}: no such file or folder")
    elif not path.name.endswith((".safetensors", _INDEX)):
        raise FormatError(f"{shown(path)}: expected a folder or a .safetensors file")
    else:
        root, listing, names = path.parent, [], [path.name]
        index_name = path.name if path.name.endswith(_INDEX) else None
    weight_map, index = None, None
    if index_name is not None:
        index = read_small(root, index_name)
        weight_map = _read_weight_map(shown(root / index_name), index)
        names = sorted(set(weight_map.values()))
        whole = index_name.removesuffix(".index.json")
        if whole in listing and whole not in names:  # transformers would take it without a word
            raise FormatError(
                f"{shown(root)}: holds both {shown(whole)} and {shown(index_name)}, which does not "
                "name it; remove the stale one, or pass the one that is meant"
            )
    files, stored = _read_headers(root, names, index_name)
    _check_homes(files, stored, root, index_name, weight_map)
    side_files = _find_side_files(root)
    for name in (*names, *((index_name,) if index_name else ()), *side_files):
        if not is_inner(name):
            raise FormatError(
                f"{shown(root)}: the file name {quoted(name)} cannot be kept: expected printable "
                "UTF-8; rename the file"
            )
    adapter = names[0].startswith("adapter_model") or (
        path.name == names[0] != _WHOLE[0] and "adapter_config.json" in side_files
    )
    prefix = _find_prefix([t[0] for tensors in stored for t in tensors], adapter)
    entries = {
        name[len(prefix) :]: TensorEntry(name[len(prefix) :], name, dtype, shape, i, begin, n_bytes)
        for i, tensors in enumerate(stored)
        for name, dtype, shape, begin, n_bytes in tensors
    }
    if not entries:
        raise FormatError(f"{shown(root / names[0])}: holds no tensor at all")
    return Checkpoint(
        step=step,
        root=root,
        files=tuple(files),
        index_name=index_name,
        index=index,
        tensors=MappingProxyType(entries),
        side_files=MappingProxyType(side_files),
        prefix=prefix,
        adapter=adapter,
    )


def holds_weights(folder: Path) -> bool:
    """Tell whether anything in a folder is named like weights or an index of them."""
    return any(map(_is_weights, _list(folder)))


def is_shard(name: str) -> bool:
    """Tell whether a file's name says that it is one of several shards.

    >>> is_shard("model-00001-of-00002.safetensors"), is_shard("model.safetensors")
    (True, False)
    """
    return bool(_NUMBERED.fullmatch(name))


def _is_weights(name: str) -> bool:
    """Tell whether a file of this name is weights, or an index of them."""
    return name.endswith((".safetensors", _INDEX)) and not _NOT_WEIGHTS.match(name)


def _list(folder: Path) -> list[str]:
    """List the names in a folder, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise StorageError(f"{shown(folder)}: cannot be listed: {error.strerror}") from error


def _choose(root: Path, listing: Sequence[str]) -> tuple[str | None, list[str]]:
    """Choose the index to follow or the files to read; raises where that is ambiguous."""
    where = shown(root)
    indexes = [n for n in listing if _is_weights(n) and n.endswith(_INDEX)]
    names = [n for n in listing if _is_weights(n) and not n.endswith(_INDEX)]
    if set(_WHOLE) <= set(names):
        raise FormatError(f"{where}: holds both {' and '.join(_WHOLE)}; pass the one that is meant")
    if len(indexes) > 1 and "model" + _INDEX in indexes:
        indexes = ["model" + _INDEX]
    if len(indexes) > 1:
        raise FormatError(f"{where}: holds {len(indexes)} indexes; pass the one that is meant")
    if indexes:
        return indexes[0], []
    if not names:
        raise NotFound(
            f"{where}: no weights; looked for model.safetensors, model-00001-of-0000n.safetensors, "
            "adapter_model.safetensors, *.safetensors.index.json and any other *.safetensors"
        )
    if sum(map(bool, map(_RANK_SLICE.fullmatch, names))) > 1:
        raise Unsupported(
            f"{where}: holds the ranks' slices written by torch.distributed.checkpoint; "
            "consolidate them first (torch's consolidate_safetensors_files, or save consolidated)"
        )
    numbered = list(filter(None, map(_NUMBERED.fullmatch, names)))
    for whole in _WHOLE:
        if whole not in names:
            continue
        if any(match["stem"] == whole.removesuffix(".safetensors") for match in numbered):
            raise FormatError(
                f"{where}: holds both {whole} and numbered shards, and no index says which count; "
                "remove the stale ones"
            )
        return None, [whole]
    return None, _complete_set(where, numbered) if numbered else names


def _complete_set(where: str, numbered: Sequence[re.Match[str]]) -> list[str]:
    """Give the one complete set among files named STEM-i-of-n, in order of i."""
    numbered = [match for match in numbered if match["stem"] == "model"] or numbered
    sets = sorted({(match["stem"], match["n"]) for match in numbered})
    if len(sets) > 1:
        kinds = ", ".join(f"{stem}-*-of-{n}" for stem, n in sets)
        raise FormatError(f"{where}: holds shards of several sets ({shown(kinds)}), and no index")
    n = int(sets[0][1])
    present = {int(match["i"]): match.string for match in numbered}
    missing = next((i for i in range(1, n + 1) if i not in present), None)
    if missing is not None:
        raise HalfWritten(f"{where}: shard {missing} of {n} is missing, and there is no index")
    if len(numbered) != n:
        raise FormatError(f"{where}: {len(numbered)} files claim to be the {n} shards of one set")
    return [present[i] for i in sorted(present)]


def _read_weight_map(where: str, raw: bytes) -> dict[str, str]:
    """Read tensor -> shard from an index; every shard's name is a path inside the folder."""
    try:
        weight_map = parse_object(raw.lstrip(), where).get("weight_map")
    except FormatError as error:
        if raw.rstrip().endswith(b"}"):
            raise
        raise HalfWritten(str(error)) from None  # cut in the middle
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{where}: expected a weight_map object with at least one tensor")
    checked: set[str] = set()
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise FormatError(
                f"{where}: tensor {quoted(tensor)}: expected a file name, found {quoted(shard)}"
            )
        if shard in checked:
            continue
        path = PurePosixPath(shard)
        if path.is_absolute() or ".." in path.parts or "\\" in shard or ":" in shard:
            raise FormatError(
                f"{where}: tensor {quoted(tensor)} is placed in {quoted(shard)}, "
                "which leaves the checkpoint folder"
            )
        if not shard.endswith(".safetensors") or str(path) != shard or not shard.isprintable():
            raise FormatError(
                f"{where}: tensor {quoted(tensor)}: expected the name of a .safetensors file, "
                f"found {quoted(shard)}"
            )
        checked.add(shard)
    return weight_map


def _read_headers(
    root: Path, names: Sequence[str], index_name: str | None
) -> tuple[list[CheckpointFile], list[list[StoredTensor]]]:
    """Read the headers of all the files."""
    files, stored = [], []
    for name in names:
        if index_name is not None and not os.path.lexists(root / name):
            raise HalfWritten(f"{shown(root / name)}: is missing; {shown(index_name)} names it")
        file, tensors = read_header(root, name)
        files.append(file)
        stored.append(tensors)
    return files, stored


def _check_homes(
    files: Sequence[CheckpointFile],
    stored: Sequence[Sequence[StoredTensor]],
    root: Path,
    index_name: str | None,
    weight_map: Mapping[str, str] | None,
) -> None:
    """Check that each tensor is in one file, and in the one that the index says."""
    homes: dict[str, str] = {}
    for file, tensors in zip(files, stored, strict=True):
        for name, *_ in tensors:
            if name in homes:
                raise FormatError(
                    f"{shown(root)}: tensor {quoted(name)} is in two files, "
                    f"{shown(homes[name])} and {shown(file.name)}"
                )
            homes[name] = file.name
    if weight_map is None or weight_map == homes:
        return
    index = shown(root / str(index_name))
    for name, shard in weight_map.items():
        if homes.get(name) != shard:
            raise FormatError(
                f"{index}: places tensor {quoted(name)} in {shown(shard)}, which does not hold it"
            )
    name = next(name for name in homes if name not in weight_map)
    raise FormatError(f"{index}: does not list tensor {quoted(name)} of {shown(homes[name])}")


def _find_prefix(names: Collection[str], adapter: bool) -> str:
    """Find the wrapper prefixes, joined, that all names begin with and none consists of."""
    wrappers = WRAPPERS[: 2 if adapter else 3]
    prefix = ""
    while names and (
        longer := [
            prefix + wrapper
            for wrapper in wrappers
            if all(n.startswith(prefix + wrapper) and len(n) > len(prefix + wrapper) for n in names)
        ]
    ):
        prefix = longer[0]
    return prefix


def _find_side_files(root: Path) -> dict[str, Path]:
    """Find config, tokenizer and template files; one that links out of the folder is refused."""
    found: dict[str, Path] = {}
    parents = Path(os.path.abspath(root)).parents  # noqa: PTH100 (links in it are meant)
    nemo_rl = [parent / "tokenizer" for parent in parents[:4] if parent.name == "policy"]
    for folder in (root, *filter(is_folder, nemo_rl)):
        for name in _list(folder):
            path = folder / name
            if is_folder(path) or not any(fnmatchcase(name, known) for known in SIDE_FILES):
                continue
            if (size := find_file(folder, name)[1]) > MAX_HEADER_BYTES:
                raise FormatError(
                    f"{shown(path)}: {size} bytes, more than the {MAX_HEADER_BYTES} allowed"
                )
            found.setdefault(name, path)
    return found
