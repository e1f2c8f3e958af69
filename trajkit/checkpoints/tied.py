"""Tensors that share their values, and names that are absent because of it."""

from collections.abc import Mapping

from trajkit.checkpoints.cast import stored_dtype
from trajkit.checkpoints.checkpoint import Checkpoint, TensorEntry
from trajkit.checkpoints.config import parse_config
from trajkit.checkpoints.layout import TensorInfo
from trajkit.disk import read_file
from trajkit.errors import InvalidInput, Mismatch
from trajkit.text import shown

_TIED_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_COMPARE_BYTES = 1 << 20


def match_tensors(
    checkpoint: Checkpoint, wanted: Mapping[str, TensorInfo], cast: str | None
) -> tuple[dict[str, TensorEntry], dict[str, str], tuple[str, ...]]:
    """Pair the store's tensors with the checkpoint's: (entries, tied, absent)."""
    have = checkpoint.tensors
    entries: dict[str, TensorEntry] = {}
    absent: list[str] = []
    for name, info in wanted.items():
        entry = have.get(name)
        if entry is None:
            partner = tied_partner(name, info.shape, have, checkpoint)
            if partner is None:
                raise Mismatch(
                    f"{checkpoint.root}: tensor {name!r} of the store is missing (step "
                    f"{checkpoint.step}); is this another run's checkpoint? "
                    "each run needs a --store of its own"
                )
            entry = have[partner]
            absent.append(name)
        if entry.shape != info.shape:
            raise Mismatch(
                f"{checkpoint.root}: tensor {name!r} has shape {list(entry.shape)}, the series has "
                f"{list(info.shape)} (step {checkpoint.step})"
            )
        if stored_dtype(entry, cast) != info.dtype:
            raise Mismatch(
                f"{checkpoint.root}: tensor {name!r} is {entry.dtype}, the series is {info.dtype} "
                f"(step {checkpoint.step}); make the store with --dtype bfloat16 (rounds once, and "
                "records it) or --dtype float32 (widens without loss)"
            )
        entries[name] = entry
    tied: dict[str, str] = {}
    for name in have.keys() - wanted.keys():
        partner = tied_partner(name, have[name].shape, wanted, checkpoint)
        if partner is None:
            raise Mismatch(
                f"{checkpoint.root}: tensor {name!r} is not in the series' first checkpoint (step "
                f"{checkpoint.step}); is this another run's checkpoint? "
                "each run needs a --store of its own"
            )
        tied[name] = partner
    return entries, dict(sorted(tied.items())), tuple(absent)


def tied_partner(
    name: str,
    shape: tuple[int, ...],
    among: Mapping[str, TensorEntry] | Mapping[str, TensorInfo],
    checkpoint: Checkpoint,
) -> str | None:
    """The tensor that ``name`` is tied to by the config: a head's embedding, or the reverse."""
    partners = possible_partners(name, shape, among)
    return partners[0] if len(partners) == 1 and ties_embeddings(checkpoint) else None


def possible_partners(
    name: str,
    shape: tuple[int, ...],
    among: Mapping[str, TensorEntry] | Mapping[str, TensorInfo],
) -> list[str]:
    """The tensors of the same shape that ``name`` can be tied to by its name.

    >>> among = {"model.wte.weight": TensorInfo("model.wte.weight", "bfloat16", (4, 2), 0)}
    >>> possible_partners("lm_head.weight", (4, 2), among), possible_partners("w", (4, 2), among)
    (['model.wte.weight'], [])
    """
    for these, those in ((_TIED_HEADS, _EMBEDDINGS), (_EMBEDDINGS, _TIED_HEADS)):
        if name.endswith(these):
            return [n for n in among if n.endswith(those) and among[n].shape == shape]
    return []


def ties_embeddings(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's config.json says ``tie_word_embeddings``."""
    path = checkpoint.side_files.get("config.json")
    if path is None:
        return False
    try:
        config = parse_config(read_file(path), shown(path))
    except OSError as error:  # removed since the folder was listed
        raise InvalidInput(f"{shown(path)}: not a readable JSON file: {error}") from error
    tied = config.get("tie_word_embeddings")
    text = config.get("text_config")
    if tied is None and isinstance(text, dict):
        tied = text.get("tie_word_embeddings")
    return bool(tied)
