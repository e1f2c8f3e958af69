"""Where a checkpoint's tensors go in a model: by name, or through transformers' conversions.

A model in memory need not have its checkpoint's names: since version 5, transformers merges the
experts of a mixture into one parameter, among other things. Its own table of conversions says what
becomes of which tensor; it is applied here a group at a time, and the results are copied into the
parameters in place, so that optimizers and tied weights keep what they point to.
"""

import re
from collections.abc import Collection, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from trajkit.arrays import Array
from trajkit.errors import Mismatch
from trajkit.outputs.libraries import torch

_LEFT_OUT = (r"rotary_emb\.inv_freq$", r"\.attn\.(masked_)?bias$")
"""buffers that older files hold and newer models compute"""


@dataclass(slots=True)
class _Group:
    """Tensors of a checkpoint that become one or several parameters together."""

    target: str
    sources: dict[str, str | None]
    """names in the checkpoint -> the pattern of the conversion, None for a plain copy"""
    converter: Any = None
    arrived: dict[str, Any] = field(default_factory=dict)


class Placement:
    """The way of a checkpoint's tensors into one model, worked out before any is moved.

    Args:
        model: a transformers model, on any device but meta.
        names: every tensor of the checkpoint.
        label: what messages call the checkpoint.

    Raises:
        Mismatch: a tensor has no place in the model, or a parameter of it no tensor.
    """

    def __init__(self, model: Any, names: Collection[str], label: str) -> None:
        self.model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        self.label = label
        self.targets: dict[str, torch.Tensor] = self.model.state_dict()
        self._group_of: dict[str, _Group | None] = {}
        self._filled: set[int] = set()
        groups = _group_names(self.model, names, self.targets)
        for group in groups:
            self._group_of |= dict.fromkeys(group.sources, group)
        self._check(names)

    def fill(self, tensors: Iterable[tuple[str, Array]]) -> None:
        """Copy the tensors into the model, in place, casting to its dtypes.

        Raises:
            Mismatch: a shape differs; a tensor is missing.

        Memory: one tensor, or those that one conversion needs together (a layer's experts).
        """
        filled: set[str] = set()
        with torch.no_grad():
            for name, array in tensors:
                group = self._group_of[name]
                if group is None:
                    continue
                group.arrived[name] = to_torch(array)
                if len(group.arrived) == len(group.sources):
                    filled |= self._place(group)
        self._check_filled(filled)

    def _place(self, group: _Group) -> set[str]:
        if group.converter is None:
            (tensor,) = group.arrived.values()
            found = {group.target: tensor}
        else:
            converter = deepcopy(group.converter)
            for name in sorted(group.arrived, key=_natural):
                pattern = group.sources[name]
                converter.add_tensor(group.target, name, pattern, group.arrived[name])
            found = converter.convert(group.target, model=self.model, config=self.model.config)
            found = {n: t[0] if isinstance(t, list) else t for n, t in found.items()}
        group.arrived = {}
        for name, tensor in found.items():
            target = self.targets[name]
            if target.shape != tensor.shape:
                raise Mismatch(
                    f"{self.label}: {name!r} is {list(tensor.shape)}, the model's "
                    f"{list(target.shape)}; is this another model's checkpoint?"
                )
            target.copy_(tensor)
        return set(found)

    def _check(self, names: Collection[str]) -> None:
        """Raise before anything is moved where a tensor has no place, or a plain copy is missing."""
        ignored = [*_LEFT_OUT, *_patterns(self.model, "_keys_to_ignore_on_load_unexpected")]
        for name in names:
            group = self._group_of[name]
            if group is not None and group.converter is None and group.target not in self.targets:
                if not any(re.search(pattern, name) for pattern in ignored):
                    raise Mismatch(
                        f"{self.label}: the model has no place for tensor {name!r}; is this another "
                        "model's checkpoint?"
                    )
                self._group_of[name] = None
        kept = (group for group in self._group_of.values() if group is not None)
        if all(group.converter is None for group in kept):
            named = {g.target for g in self._group_of.values() if g is not None}
            self._check_filled(named)

    def _check_filled(self, filled: set[str]) -> None:
        """Raise unless every tensor of the model has its values, its own or a tied one's."""
        reached = {_storage(self.targets[name]) for name in filled}
        allowed = _patterns(self.model, "_keys_to_ignore_on_load_missing")
        for name, target in self.targets.items():
            if name in filled or _storage(target) in reached or not target.numel():
                continue
            if not any(re.search(pattern, name) for pattern in allowed):
                raise Mismatch(
                    f"{self.label}: has no tensor for the model's {name!r}; is this another model's "
                    "checkpoint?"
                )


def to_torch(array: Array) -> "torch.Tensor":
    """A numpy array, of any dtype that a store holds, as a CPU tensor of the same bits.

    Shares the array's memory where it can.

    >>> import ml_dtypes, numpy as np
    >>> to_torch(np.array([1.5], ml_dtypes.bfloat16))
    tensor([1.5000], dtype=torch.bfloat16)
    """
    dtype: torch.dtype = getattr(torch, array.dtype.name)
    if not array.size:
        return torch.empty(array.shape, dtype=dtype)
    raw = array.reshape(-1).view("u1")
    if not raw.flags.writeable:
        raw = raw.copy()
    return torch.from_numpy(raw).view(dtype).reshape(array.shape)


def _group_names(
    model: Any, names: Collection[str], targets: dict[str, "torch.Tensor"]
) -> list[_Group]:
    """Every tensor with where it goes; those of one conversion together."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError:  # before version 5 a model has its checkpoint's names
        return [_Group(_with_prefix(model, name, targets), {name: None}) for name in names]
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    groups: dict[str, _Group] = {}
    plain = []
    for name in names:
        prefix = model.base_model_prefix
        target, pattern = rename_source_key(name, renamings, converters, prefix, targets)
        if target not in targets and name in targets:
            target, pattern = name, None
        if pattern is None or target not in targets:
            plain.append(_Group(target, {name: None}))
            continue
        group = groups.setdefault(target, _Group(target, {}, by_pattern[pattern]))
        group.sources[name] = pattern
    return [*plain, *groups.values()]


def _with_prefix(model: Any, name: str, targets: dict[str, "torch.Tensor"]) -> str:
    """The name as the model has it: files of a bare model lack its prefix, or have one too many."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        if candidate in targets:
            return candidate
    return name


def _patterns(model: Any, what: str) -> tuple[str, ...]:
    return tuple(getattr(model, what, None) or ())


def _storage(tensor: "torch.Tensor") -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Experts in the order of their numbers."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in name.split(".")]
