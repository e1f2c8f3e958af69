"""Loading a written folder the way its users will, with transformers, and no weights in memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trajkit.checkpoints.config import architectures_of
from trajkit.errors import InvalidInput, Mismatch, Unsupported

_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def check_loads(folder: Path, called: Path | None = None) -> None:
    """Load a checkpoint folder with transformers on the meta device.

    Args:
        folder: config.json and safetensors files.
        called: the name to use in messages.

    Raises:
        InvalidInput: there is no config.json. Unsupported: transformers has no such model (code
            from the folder is never run), or accelerate, which it needs for this, is missing.
        Mismatch: keys are missing, unexpected or of another shape, or it does not load at all.
    """
    name = called or folder
    if not (folder / "config.json").is_file():
        raise InvalidInput(
            f"{name}: no config.json, so transformers cannot load it; take one with --like DIR"
        )
    if find_spec("accelerate") is None:
        raise Unsupported("--check loads on the meta device, which needs: pip install accelerate")
    with _silent_transformers() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # a config.json may hold anything
            line = _first_line(error)
            raise Unsupported(f"{name}: transformers does not know this model: {line}") from error
        architectures = architectures_of({"architectures": getattr(config, "architectures", None)})
        architecture = architectures[0] if architectures else ""
        loader = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
        try:
            _, info = loader.from_pretrained(
                folder,
                config=config,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # whatever it is, the folder does not load
            raise Mismatch(f"{name}: transformers cannot load it: {_first_line(error)}") from error
    problems = [_describe(what, info[what]) for what in _PROBLEMS if info.get(what)]
    if problems:
        raise Mismatch(f"{name}: transformers loads it with {'; '.join(problems)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _describe(what: str, found: Any) -> str:
    keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what.replace('_', ' ')}: {', '.join(keys[:3])}{more}"


@contextmanager
def _silent_transformers() -> Iterator[Any]:
    """The module, its bars and reports off for the time being: the outcome is what it returns."""
    import transformers

    talk: Any = transformers.utils.logging
    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity(logging.CRITICAL)
    talk.disable_progress_bar()
    try:
        yield transformers
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()
