"""The tensors of a model or a state dict by their names in a checkpoint; what cannot be kept is refused.

torch.compile puts ``_orig_mod.`` into names, DDP ``module.`` before them, activation checkpointing
and FSDP names of their own; a checkpoint has none of these. A tensor that shares its memory with
another (a tied head) is kept once, as safetensors files do.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from trajkit.arrays import DTYPES
from trajkit.checkpoints.layout import TensorInfo
from trajkit.checkpoints.tied import possible_partners
from trajkit.errors import InvalidInput, Mismatch, Unsupported
from trajkit.text import quoted

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""parts of names that wrappers put anywhere"""
_OUTER = "module."
_IN_PARTS = "FullyShardedDataParallel"


def named_tensors(model: Any) -> dict[str, Tensor]:
    """Every tensor that a checkpoint of this model would hold, by name, as it lies in memory.

    Args:
        model: a module, or a state dict; buffers that are not persistent are in neither.

    Raises:
        Unsupported: parameters in parts (FSDP, ZeRO-3, DTensor), on the meta device, sparse or
            quantised, of a dtype that safetensors lacks; a PEFT model.
        InvalidInput: neither a module nor a state dict; no tensor; two of one name.
    """
    state: Mapping[str, Any]
    if isinstance(model, torch.nn.Module):
        refuse_parts(model)
        state = model.state_dict()
    elif isinstance(model, Mapping):
        state = model
    else:
        raise InvalidInput(f"expected a torch module or a state dict, found {type(model).__name__}")
    found: dict[str, Tensor] = {}
    for given, tensor in state.items():
        if str(given).endswith("_extra_state"):  # what a layer keeps for itself, no weight
            continue
        name = clean_name(str(given))
        _check_tensor(name, tensor)
        if name in found:
            raise InvalidInput(f"two tensors are called {quoted(name)} once wrappers are left out")
        found[name] = tensor.detach()
    while found and all(name.startswith(_OUTER) and name != _OUTER for name in found):
        found = {name.removeprefix(_OUTER): tensor for name, tensor in found.items()}
    if not found:
        raise InvalidInput("no tensor to record")
    return found


def clean_name(name: str) -> str:
    """A tensor's name without what torch.compile and other wrappers put into it.

    >>> clean_name("_orig_mod.model.layers.0._checkpoint_wrapped_module.mlp.weight")
    'model.layers.0.mlp.weight'
    """
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def refuse_parts(model: torch.nn.Module) -> None:
    """Raise :class:`Unsupported` for a module whose state dict is not its whole checkpoint."""
    if any(type(module).__name__ == _IN_PARTS for module in model.modules()):
        raise Unsupported(
            "the model's parameters are in parts (FSDP): record a full state dict gathered on one "
            "rank, or ingest the trainer's checkpoints"
        )
    if hasattr(model, "peft_config"):
        raise Unsupported(
            "a PEFT model: record its adapter's state dict (peft.get_peft_model_state_dict), or "
            "ingest the trainer's checkpoints"
        )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise Unsupported(
                f"parameter {quoted(name)} is in parts (DeepSpeed ZeRO-3): record a state dict "
                "gathered on one rank, or ingest the trainer's checkpoints"
            )


def _check_tensor(name: str, tensor: Any) -> None:
    """Raise for what has no bits here that could be kept."""
    if not isinstance(tensor, Tensor):
        raise InvalidInput(f"{quoted(name)} is a {type(tensor).__name__}, not a tensor")
    if hasattr(tensor, "full_tensor") or hasattr(tensor, "local_shards"):
        raise Unsupported(
            f"tensor {quoted(name)} is in parts ({type(tensor).__name__}): gather it first "
            "(full_tensor), or ingest the trainer's checkpoints"
        )
    if tensor.is_meta:
        raise Unsupported(f"tensor {quoted(name)} is on the meta device: it has no values to keep")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise Unsupported(f"tensor {quoted(name)} is sparse or quantised: no file could hold it")
    if dtype_of(tensor) not in DTYPES:
        raise Unsupported(f"tensor {quoted(name)} is {dtype_of(tensor)}, which safetensors lacks")


def dtype_of(tensor: Tensor) -> str:
    """A tensor's dtype by its name in :data:`trajkit.arrays.DTYPES`.

    >>> dtype_of(torch.zeros(1, dtype=torch.bfloat16))
    'bfloat16'
    """
    return str(tensor.dtype).removeprefix("torch.")


def distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without those that are another's memory once more; the first name stays."""
    kept: dict[object, str] = {}
    for name, tensor in tensors.items():
        kept.setdefault(_place(name, tensor), name)
    return {name: tensors[name] for name in kept.values()}


def match(tensors: Mapping[str, Tensor], wanted: Iterable[str], label: str) -> dict[str, Tensor]:
    """The tensors that a store holds, found among a model's.

    Raises:
        Mismatch: one is missing; or one is left over that is not tied to one of the store's.
    """
    names = list(wanted)
    for name in names:
        if name not in tensors:
            raise Mismatch(
                f"{label}: tensor {quoted(name)} of the store is missing; is this another model? "
                "each run needs a store of its own"
            )
    found = {name: tensors[name] for name in names}
    places = {_place(name, tensor) for name, tensor in found.items()}
    infos = {n: TensorInfo(n, dtype_of(t), tuple(t.shape), 0) for n, t in found.items()}
    for name in tensors.keys() - found.keys():
        tensor = tensors[name]
        if _place(name, tensor) in places:
            continue
        partners = possible_partners(name, tuple(tensor.shape), infos)
        if not any(_same_bits(tensor, found[partner]) for partner in partners):
            raise Mismatch(
                f"{label}: tensor {quoted(name)} is not in the store; is this another model? each "
                "run needs a store of its own"
            )
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8).cpu() for t in (a, b)))


def _place(name: str, tensor: Tensor) -> object:
    """What two names of the same memory have in common; tensors without elements have none."""
    if not tensor.numel():
        return name
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
