"""Parameters moved by n steps at once, and put back bit for bit.

The arithmetic is that of an extrapolated checkpoint (``kernels.extrapolate_line`` through the last
value): θ + rate · n in float32, product and sum each rounded, then once to the parameter's dtype.
An element whose rate is zero, or whose new value would not be finite, keeps its bits.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trajkit.forecast.rules import is_copied
from trajkit.training.rules import Rule


@dataclass(frozen=True, slots=True)
class Jump:
    """What a jump did."""

    n: float
    """training steps jumped, after the cap"""
    moved: int
    """elements with new bits"""
    elements: int
    norm: float
    """Euclidean norm of the move, all parameters together"""
    relative_norm: float
    """the same over the norm of the parameters before"""

    @property
    def share_moved(self) -> float:
        """Elements with new bits over all elements."""
        return self.moved / self.elements if self.elements else 0.0


def movable(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The floating-point parameters that a jump may move: normalisation tensors stay."""
    return {
        name: p for name, p in parameters.items() if p.is_floating_point() and not is_copied(name)
    }


@torch.no_grad()
def jump(
    parameters: Mapping[str, Tensor], rule: Rule, n: float, max_norm: float | None = None
) -> Jump:
    """Move parameters in place by ``n`` steps along a rule's drift.

    Args:
        parameters: those that may move, by name; see :func:`movable`.
        rule: over the same names.
        n: training steps to jump; 0 changes no bit.
        max_norm: the largest norm of the move over that of the parameters; a longer jump is
            shortened to it.

    Returns:
        What was done.
    """
    elements = sum(p.numel() for p in parameters.values())
    if n == 0:
        return Jump(0, 0, elements, 0.0, 0.0)
    drift, size = measure(parameters, rule)
    n = shorten(n, drift, size, max_norm)
    moved, squares = move(parameters, rule, n)
    return describe(n, moved, elements, squares, size)


@torch.no_grad()
def measure(parameters: Mapping[str, Tensor], rule: Rule) -> tuple[float, float]:
    """Sums of squares of the drift a step and of the parameters; those of parts add up."""
    drift, size = 0.0, 0.0
    for name, parameter in parameters.items():
        drift += float(rule.rate(name).double().square().sum())
        size += float(parameter.double().square().sum())
    return drift, size


def shorten(n: float, drift: float, size: float, max_norm: float | None) -> float:
    """The steps that a jump may have under the cap; ``drift`` and ``size`` of :func:`measure`.

    >>> shorten(100, 4.0, 900.0, 0.5), shorten(100, 4.0, 900.0, None)
    (7.5, 100)
    """
    rate, norm = math.sqrt(drift), math.sqrt(size)
    return max_norm * norm / rate if max_norm is not None and rate * n > max_norm * norm else n


@torch.no_grad()
def move(parameters: Mapping[str, Tensor], rule: Rule, n: float) -> tuple[int, float]:
    """Move in place by ``n`` steps; elements with new bits, and the squares of their moves."""
    moved, squares = 0, 0.0
    for name, parameter in parameters.items():
        rate = rule.rate(name)
        target = (parameter.float() + rate * n).to(parameter.dtype)
        takes = (rate != 0) & target.isfinite() & (target != parameter)
        squares += float(torch.where(takes, target.double() - parameter.double(), 0).square().sum())
        moved += int(takes.sum())
        parameter.copy_(torch.where(takes, target, parameter))
    return moved, squares


def describe(n: float, moved: int, elements: int, squares: float, size: float) -> Jump:
    """What a jump did, of the sums of its parts."""
    norm, before = math.sqrt(squares), math.sqrt(size)
    return Jump(n, moved, elements, norm, norm / before if before else 0.0)


class Snapshot:
    """Parameters, and an optimizer's state, as they were at a moment."""

    def __init__(self, parameters: Mapping[str, Tensor], optimizer: Any | None = None) -> None:
        self._parameters = parameters
        self._values = {name: p.detach().clone() for name, p in parameters.items()}
        self._optimizer = optimizer
        self._state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())

    @torch.no_grad()
    def restore(self) -> None:
        """Put every bit back, the optimizer's state included."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._values[name])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(copy.deepcopy(self._state))
