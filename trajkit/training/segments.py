"""Rules that look at one segment of real steps alone: the published one, and a gate on R².

``TwoPoint`` follows the line through the segment's two ends, every element of it (arXiv 2601.04537,
equation 4: θ + n (θ_end - θ_start)/m). ``RsqGate`` follows the least-squares line where its R² is
above a threshold. On small GRPO runs both collapse when they are repeated: a
segment of 15 to 50 steps is too short to tell a drift from a walk.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

THRESHOLD = 0.7


class TwoPoint:
    """The line through the start and the end of the segment."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.steps = 0
        self._start = {name: p.detach().clone() for name, p in parameters.items()}

    def begin(self) -> None:
        """A segment starts where the parameters are now."""
        for name, parameter in self.parameters.items():
            self._start[name].copy_(parameter.detach())
        self.steps = 0

    def observe(self, steps: int = 1) -> None:
        """Count real steps."""
        self.steps += steps

    @property
    def is_ready(self) -> bool:
        """Whether there is a line at all."""
        return self.steps > 0

    def rate(self, name: str) -> Tensor:
        """The mean change a step, float32 in the parameter's shape."""
        change = self.parameters[name].detach().float() - self._start[name].float()
        return change / self.steps


class RsqGate:
    """The least-squares line of the segment, where R² is above a threshold.

    Five values an element: the segment's start, and float32 sums of d, x d and d², with d the
    change since the start and x the steps since it.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, threshold: float = THRESHOLD) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"the threshold on R² lies in [0, 1], not {threshold}")
        self.parameters = parameters
        self.threshold = threshold
        self._start = {name: p.detach().clone() for name, p in parameters.items()}
        self._sums = {
            name: torch.zeros((3, *p.shape), dtype=torch.float32, device=p.device)
            for name, p in parameters.items()
        }
        self._axis: list[int] = [0]

    def begin(self) -> None:
        """A segment starts where the parameters are now."""
        for name, parameter in self.parameters.items():
            self._start[name].copy_(parameter.detach())
            self._sums[name].zero_()
        self._axis = [0]

    def observe(self, steps: int = 1) -> None:
        """Take the parameters as they are ``steps`` real steps after the last look."""
        x = self._axis[-1] + steps
        self._axis.append(x)
        for name, parameter in self.parameters.items():
            d = parameter.detach().float() - self._start[name].float()
            self._sums[name] += torch.stack([d, x * d, d * d])

    @property
    def is_ready(self) -> bool:
        """Whether R² says anything: with two points it is 1."""
        return len(self._axis) > 2

    def rate(self, name: str) -> Tensor:
        """The slope a step, float32 in the parameter's shape; zero where the gate is closed."""
        n, mean = len(self._axis), sum(self._axis) / len(self._axis)
        s_xx = sum((x - mean) ** 2 for x in self._axis)
        s_d, s_xd, s_dd = self._sums[name]
        s_ud = s_xd - mean * s_d
        total = s_dd - s_d.square() / n
        rsq = s_ud.square() / (s_xx * total)
        return torch.where(rsq > self.threshold, s_ud / s_xx, torch.zeros_like(s_d))
