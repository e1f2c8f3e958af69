"""Which elements of an extrapolation may move."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from trajkit.kernels.flags import HELD_FLAGS
from trajkit.kernels.state import Array


@dataclass(frozen=True, slots=True)
class Gate:
    """An element is held by any of ``held_flags``, or where ``score`` is not above ``threshold``.

    >>> Gate().by_score, Gate().by_flags
    (False, False)
    >>> Gate(score=[0.9], threshold=0.7).by_score
    True
    """

    score: Array | None = None
    """R², or whatever is judged in its place, float32 [N]; NaN is held; None: no such gate"""
    flags: Array | None = None
    """uint8 [N], see :mod:`trajkit.kernels.flags`; None: no gate by flags"""
    held_flags: int = HELD_FLAGS
    threshold: float | None = None
    """compared as float32; None: no gate by score"""

    @property
    def by_score(self) -> bool:
        """Whether the score is compared at all."""
        return self.score is not None and self.threshold is not None

    @property
    def by_flags(self) -> bool:
        """Whether the flags are looked at."""
        return self.flags is not None

    def moved_by(self, move: Callable[[Array], Array]) -> Self:
        """The same gate with its arrays elsewhere, on a device say."""
        score, flags = (None if a is None else move(a) for a in (self.score, self.flags))
        return replace(self, score=score, flags=flags)


OPEN = Gate()
"""every element may move"""
