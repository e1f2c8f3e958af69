"""How a value enters the elements' own format."""

from dataclasses import dataclass, replace
from typing import Literal, Self, TypeAlias

Mode: TypeAlias = Literal["nearest", "stochastic"]


@dataclass(frozen=True, slots=True)
class Rounding:
    """The mode, and where the noise of a stochastic one starts.

    Raises:
        ValueError: no such mode.

    >>> Rounding("stochastic", seed=3).at(2**20)
    Rounding(mode='stochastic', seed=3, first_index=1048576)
    """

    mode: Mode = "nearest"
    """"nearest" (ties to even), or "stochastic": up with the probability of the fraction cut off;
    nothing is cut off in float32 and float64"""
    seed: int = 0
    """of the noise"""
    first_index: int = 0
    """global index of element 0, so that the noise does not depend on blocks"""

    def __post_init__(self) -> None:
        if self.mode not in ("nearest", "stochastic"):
            raise ValueError(f"rounding must be 'nearest' or 'stochastic', got {self.mode!r}")

    @property
    def is_stochastic(self) -> bool:
        """Whether noise decides."""
        return self.mode == "stochastic"

    def at(self, first_index: int) -> Self:
        """The same rounding of elements that start elsewhere."""
        return replace(self, first_index=first_index)


NEAREST = Rounding()
"""to the nearest, ties to even"""
