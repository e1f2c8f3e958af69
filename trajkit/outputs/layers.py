"""Modules of a model chosen by name, and their outputs as they pass.

Axis letters: B rows and L columns of a batch, M places of it that are looked at, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

import numpy as np

from trajkit.arrays import Array
from trajkit.errors import InvalidInput, Unsupported
from trajkit.outputs.batching import Batch
from trajkit.outputs.libraries import torch
from trajkit.outputs.probes import Probe
from trajkit.outputs.scoring import body_and_head

Where = Literal["response", "all"]
DEFAULT_LAYERS = (
    "*.o_proj", "*.down_proj", "*.c_proj", "*.out_proj", "*.fc2", "*.fc_out",
    "*.attention.dense", "*.dense_4h_to_h", "*.attn.Wo", "*.mlp.Wo",
)  # fmt: skip
"""what attention and MLP add to the residual stream, by the names that families have for it"""
_NEAR = 3


@dataclass(frozen=True, slots=True)
class Passing:
    """What went through one module in one batch, at the places looked at."""

    layer: int
    """which of the modules"""
    module: Any
    x: Any
    """the module's first input, a tensor [B L, ...]; or something else"""
    y: "torch.Tensor"
    """its output [B L, F]"""
    rows_M: "torch.Tensor"
    """int64: the places in those"""
    places_M: Array
    """int64: where they stand in the whole probe set"""


class Spectator(Protocol):
    """Whoever wants to see it."""

    def see(self, passing: Passing) -> None:
        """One module's outputs of one batch."""


def choose_layers(model: Any, patterns: Sequence[str], label: str) -> tuple[str, ...]:
    """The names of modules that match any of the patterns, in the model's order.

    Args:
        model: on any device, meta too.
        patterns: as :mod:`fnmatch` has them, case counts; none: :data:`DEFAULT_LAYERS`.
        label: what messages call the model.

    Raises:
        InvalidInput: a pattern matches nothing; the message names near ones.
    """
    names = [n for n, m in model.named_modules() if n and not _only_holds(m)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidInput(
                f"--layers {pattern}: no module of {label} has such a name{_near(pattern, names)}"
            )
    chosen = tuple(n for n in names if any(fnmatchcase(n, p) for p in patterns or DEFAULT_LAYERS))
    if not chosen:
        raise InvalidInput(
            f"{label}: has none of the modules that are looked at by default; name some with --layers"
            f"{_near('layers.0.mlp', names)}"
        )
    return chosen


def rows_looked_at(batch: Batch, where: Where, offsets: Array) -> tuple[Array, Array]:
    """(rows in B L, places in the probe set) of a batch, int64 [M].

    ``response``: the places that predict response tokens, as log-probabilities are of: from the
    prompt's last token to the response's last but one. ``all``: those of the prompt before them,
    too. Padding is in neither.
    """
    if where == "response":
        return batch.rows_M, batch.places_M
    width = batch.ids_BL.shape[1]
    rows = [b * width + np.arange(n) for b, n in enumerate(batch.lengths_B)]
    places = [
        offsets[i] + np.arange(n) for i, n in zip(batch.probes_B, batch.lengths_B, strict=True)
    ]
    return np.concatenate(rows), np.concatenate(places)


def offsets_looked_at(probes: Sequence[Probe], where: Where) -> Array:
    """Where each probe's places begin, and how many there are in all: int64 [R + 1].

    A probe without a response has none: nothing of it is run.

    >>> two = [Probe((1, 2), (2, 3), "", ""), Probe((1,), (), "", "")]
    >>> offsets_looked_at(two, "response").tolist(), offsets_looked_at(two, "all").tolist()
    ([0, 2, 2], [0, 3, 3])
    """
    lengths = [
        0 if not p.response_ids else len(p.response_ids) if where == "response" else p.n_tokens - 1
        for p in probes
    ]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


@torch.no_grad()
def watch_layers(
    model: Any,
    layers: Sequence[str],
    batches: Sequence[Batch],
    where: Where,
    offsets: Array,
    spectators: Sequence[Spectator],
    block_bytes: int,
) -> None:
    """Run the batches through the model and show every chosen module's outputs as they pass.

    The body runs over a whole batch; modules behind it (the head) over blocks of the places that are
    looked at.

    Raises:
        Unsupported: a module is not run by the model, or gives no [B, L, F].
    """
    modules = dict(model.named_modules())
    body = getattr(model, model.base_model_prefix, None)
    whole = body in (None, model)
    inside = [name for name in layers if whole or _is_in(name, model.base_model_prefix)]
    behind = [name for name in layers if name not in set(inside)]
    stages = [_Stage(layers, modules, names, spectators) for names in (inside, behind)]
    for batch in batches:
        rows, places = rows_looked_at(batch, where, offsets)
        ids = torch.from_numpy(batch.ids_BL).to(model.device)
        rows_M = torch.from_numpy(rows).to(model.device)
        with ExitStack() as stack:
            with stages[0].watching((ids.shape[0], ids.shape[1]), rows_M, places):
                hidden, head = stack.enter_context(body_and_head(model, ids))
            if not behind:
                continue
            vocabulary = model.get_output_embeddings().weight.shape[0]
            size = max(1, block_bytes // (vocabulary * (model.dtype.itemsize + 8)))
            for at in range(0, len(rows), size):
                part = slice(at, at + size)
                n = len(rows[part])
                everything = torch.arange(n, device=model.device)
                with stages[1].watching((1, n), everything, places[part]):
                    head(hidden[rows_M[part]])


class _Stage:
    """Modules that are run together, watched while they are."""

    def __init__(
        self,
        layers: Sequence[str],
        modules: Mapping[str, Any],
        names: Sequence[str],
        spectators: Sequence[Spectator],
    ) -> None:
        self.indices = {name: layers.index(name) for name in names}
        self.modules = modules
        self.spectators = spectators
        self._seen: set[str] = set()

    @contextmanager
    def watching(
        self, shape: tuple[int, int], rows_M: "torch.Tensor", places_M: Array
    ) -> Iterator[None]:
        """Show what every module gives meanwhile, ``shape`` tokens; each is run once.

        Raises:
            Unsupported: it is not, or gives something else.
        """
        self._seen = set()
        with ExitStack() as hooks:
            for name in self.indices:
                hooks.callback(self._hook(name, shape, rows_M, places_M).remove)
            yield
        for name in self.indices:
            if name not in self._seen:
                raise Unsupported(
                    f"{name}: the model does not run this module as one; choose another with --layers"
                )

    def _hook(
        self, name: str, shape: tuple[int, int], rows_M: "torch.Tensor", places_M: Array
    ) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            y = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(y, torch.Tensor) or y.dim() != 3 or tuple(y.shape[:2]) != shape:
                raise Unsupported(
                    f"{name}: gives {_describe(y)}, not a vector for each of {list(shape)} tokens; "
                    "choose another module with --layers"
                )
            if name in self._seen:
                raise Unsupported(
                    f"{name}: the model runs it more than once; choose another module with --layers"
                )
            self._seen.add(name)
            x = x.flatten(0, -2) if isinstance(x, torch.Tensor) else x
            passing = Passing(self.indices[name], module, x, y.flatten(0, 1), rows_M, places_M)
            for spectator in self.spectators:
                spectator.see(passing)

        return self.modules[name].register_forward_hook(hook, with_kwargs=True)


def _only_holds(module: Any) -> bool:
    """Whether it is a list of modules and nothing that is run."""
    return isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict)


def _is_in(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _near(pattern: str, names: Sequence[str]) -> str:
    """``; near it: ...`` by spelling, layers' numbers aside."""
    folded = {".".join("*" if p.isdecimal() else p for p in n.split(".")): n for n in names}
    asked = ".".join("*" if p.isdecimal() else p for p in pattern.split("."))
    close = get_close_matches(asked, list(folded), _NEAR, 0.5)
    if not close:
        last = asked.rsplit(".", 1)[-1].strip("*")
        ends = {n.rsplit(".", 1)[-1]: n for n in folded}
        close = [ends[e] for e in get_close_matches(last, list(ends), _NEAR, 0.5)]
    return f"; near it: {', '.join(close)}" if close else ""


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)}"
    return f"a {type(value).__name__}"
