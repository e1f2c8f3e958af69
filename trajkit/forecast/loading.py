"""Loading a written folder the way its users will, with transformers, and no weights in memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trajkit.checkpoints.config import architectures_of
from trajkit.errors import InvalidInput, Mismatch, Unsupported, needing
from trajkit.forecast.adapters import CONFIG, check_adapter, check_modules

_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def check_loads(folder: Path, called: Path | None = None) -> None:
    """Load a checkpoint folder with transformers on the meta device.

    Args:
        folder: config.json and safetensors files; or an adapter, which is checked on its own, and
            against its base model where that is a folder on this disk.
        called: the name to use in messages.

    Raises:
        InvalidInput: there is no config.json. Unsupported: transformers has no such model (code
            from the folder is never run). MissingLibrary: what it needs for this is not installed.
        Mismatch: keys are missing, unexpected or of another shape, or it does not load at all.
    """
    name = called or folder
    if (folder / CONFIG).is_file():
        _check_adapter(folder, name)
        return
    if not (folder / "config.json").is_file():
        raise InvalidInput(
            f"{name}: no config.json, so transformers cannot load it; take one with --like DIR"
        )
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


def _check_adapter(folder: Path, name: Path) -> None:
    """Check an adapter, against its base model too where that is a folder on this disk."""
    base = check_adapter(folder, name)
    if base is None:
        return
    with _silent_transformers() as transformers:
        config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
        architecture = (getattr(config, "architectures", None) or [None])[0]
        with needing("--check needs", "models"):
            import accelerate
        with accelerate.init_empty_weights():
            model = getattr(transformers, architecture or "", None)
            model = (
                transformers.AutoModelForCausalLM.from_config(config)
                if model is None
                else model(config)
            )
        shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    check_modules(folder, name, shapes)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _describe(what: str, found: Any) -> str:
    keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what.replace('_', ' ')}: {', '.join(keys[:3])}{more}"


@contextmanager
def _silent_transformers() -> Iterator[Any]:
    """The module, its bars and reports off for the time being: the outcome is what it returns."""
    with needing("--check needs", "models"):
        import accelerate as accelerate  # which loading on the meta device needs
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
