"""A transformers model from a store: any step, stored or extrapolated, without a folder between.

    model = trajkit.load_model(traj, step=300)
    trajkit.load_weights(model, traj, 400)                       # the next step into the same model
    trajkit.load_weights(model, traj, 2000, estimator="anchored")  # a step to come

Weights come tensor by tensor and are copied in place; buffers that are not in checkpoints (rotary
frequencies) are computed by the model's own constructor; tied weights stay tied.
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trajkit.arrays import DTYPES
from trajkit.errors import InvalidInput, Unsupported
from trajkit.outputs.libraries import torch, transformers
from trajkit.outputs.placing import Placement, to_torch
from trajkit.outputs.weights import Weights, open_weights
from trajkit.store.tensors import Source


def load_model(
    traj: Source,
    step: int,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    estimator: str | None = None,
    **options: Any,
) -> Any:
    """A step of the run as a transformers model in memory, ready to evaluate.

    Args:
        traj: the run.
        step: a committed training step; with ``estimator``, a step to come.
        dtype: of the parameters, such as ``float32`` (default: the checkpoint's own).
        device: of the parameters, as torch names it.
        estimator: how to extrapolate (:func:`trajkit.extrapolate`).
        options: of the extrapolation: ``fit``, ``rsq_threshold``, ``damping``, ``tensors``, ...

    Returns:
        A ``PreTrainedModel`` of the class that config.json names, in ``eval`` mode.

    Raises:
        NotFound: no such step or fit. InvalidInput: the run has no config.json.
        Unsupported: transformers has no such model (code from a checkpoint is never run), or
            torch or transformers are missing.
        Mismatch: the checkpoint's tensors are not the model's.

    Notes:
        Memory: the model, one tensor (of a mixture of experts: one layer's experts), and a few
        chunks.
    """
    weights = open_weights(traj, step, estimator=estimator, **options)
    return build_model(weights, dtype=dtype, device=device)


def load_weights(
    model: Any, traj: Source, step: int, *, estimator: str | None = None, **options: Any
) -> None:
    """Put a step's weights into a model that is there already, in place.

    Names and shapes are checked before the first parameter changes. Arguments and errors are those
    of :func:`load_model`.
    """
    fill_model(model, open_weights(traj, step, estimator=estimator, **options))


def fill_model(model: Any, weights: Weights) -> None:
    """Put weights into a model in place; raises :class:`Mismatch` unless they are its own."""
    Placement(model, list(weights.infos), weights.label).fill(weights.tensors())


def build_model(weights: Weights, *, dtype: str | None = None, device: str = "cpu") -> Any:
    """A model of the class that the weights' config.json names, holding them; see above."""
    model = build_empty(weights, dtype=dtype, device=device)
    files = weights.side_files()
    if "generation_config.json" in files:
        settings = _parse(files["generation_config.json"], weights, "generation_config.json")
        with quiet_transformers():
            model.generation_config = transformers.GenerationConfig.from_dict(settings)
    fill_model(model, weights)
    return model.eval()


class OneModel:
    """One model in memory, into which checkpoints' weights are put one after another."""

    def __init__(self, dtype: str | None, device: str) -> None:
        self._dtype = dtype
        self._device = device
        self._model: Any = None
        self._held: Weights | None = None

    def holding(self, weights: Weights) -> Any:
        """The model with these weights in it; errors as :func:`build_model`."""
        if self._model is None:
            self._model = build_model(weights, dtype=self._dtype, device=self._device)
        elif self._held is not weights:
            self._held = None  # of neither, until all are in
            fill_model(self._model, weights)
        self._held = weights
        return self._model


def build_empty(weights: Weights, *, dtype: str | None = None, device: str = "cpu") -> Any:
    """The same model before any weight is in it; on the device ``meta`` it takes no memory."""
    config = read_config(weights)
    made_in = _torch_dtype(dtype or _main_dtype(weights))
    loader = _model_class(config, weights.label)
    with quiet_transformers(), _no_initial_values(), torch.device(device):
        model = loader._from_config(config, dtype=made_in)
    model.tie_weights()
    return model


def read_config(weights: Weights) -> Any:
    """The weights' config.json as transformers has it.

    Raises:
        InvalidInput: there is none, or it cannot be read. Unsupported: an unknown or a quantised
            model.
    """
    content = weights.side_files().get("config.json")
    if content is None:
        raise InvalidInput(f"{weights.label}: no config.json, so no model can be made of it")
    raw = _parse(content, weights, "config.json")
    kind = str(raw.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        raise Unsupported(f"{weights.label}: transformers does not know the model type {kind!r}")
    if raw.get("quantization_config"):
        raise Unsupported(f"{weights.label}: a quantised model; its tensors are not its weights")
    with quiet_transformers():
        return transformers.CONFIG_MAPPING[kind].from_dict(raw)


def load_tokenizer(weights: Weights) -> Any:
    """The tokenizer that came with the weights.

    Raises:
        InvalidInput: none came with them, or transformers cannot load it.
    """
    files = dict(weights.side_files())
    if not any(name.startswith(("tokenizer", "vocab")) for name in files):
        raise InvalidInput(f"{weights.label}: no tokenizer files came with it")
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # whatever it is, there is no tokenizer
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InvalidInput(f"{weights.label}: its tokenizer does not load: {first}") from error
    return tokenizer


def state_dict(
    traj: Source, step: int, *, estimator: str | None = None, **options: Any
) -> dict[str, "torch.Tensor"]:
    """A step's tensors, by their names in the checkpoint, as torch tensors on the CPU.

    Bits are the store's. Arguments and errors are those of :func:`load_model`. Memory: the whole
    checkpoint, which is what is asked for.
    """
    weights = open_weights(traj, step, estimator=estimator, **options)
    return {name: to_torch(array) for name, array in weights.tensors()}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """The library without its bars and reports for the time being."""
    talk: Any = transformers.utils.logging
    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity(logging.ERROR)
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()


@contextmanager
def _no_initial_values() -> Iterator[None]:
    """Parameters are made without drawing random values that would be overwritten."""
    try:
        from transformers import initialization as owner
    except ImportError:  # version 4 has it elsewhere
        from transformers import modeling_utils as owner  # type: ignore[no-redef]
    with owner.no_init_weights():
        yield


def _model_class(config: Any, label: str) -> Any:
    name = (config.architectures or [None])[0]
    found = getattr(transformers, name or "", None)
    if found is None:
        try:
            found = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        except KeyError:
            raise Unsupported(f"{label}: transformers has no model class {name!r}") from None
    return found


def _main_dtype(weights: Weights) -> str:
    """The floating-point dtype that most elements have."""
    sizes: dict[str, int] = {}
    for info in weights.infos.values():
        if DTYPES[info.dtype].is_float:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
    return max(sizes, key=lambda name: sizes[name]) if sizes else "float32"


def _torch_dtype(name: str) -> "torch.dtype":
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise InvalidInput(f"no model can be made in {name!r}: use bfloat16, float16 or float32")
    return found


def _parse(content: bytes, weights: Weights, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{weights.label}: {name} is not readable JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidInput(f"{weights.label}: {name} is not a JSON object")
    return raw
