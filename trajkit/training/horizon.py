"""How far to jump: longer while rewards hold, shorter where one fell after a jump."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance


@dataclass(slots=True)
class Horizon:
    """The steps of the next jump, judged by the training reward before and after each.

    >>> horizon = Horizon(100, adapt=True)
    >>> horizon.judge([0.50, 0.51, 0.49], [0.51, 0.50, 0.52]), horizon.n
    (True, 125)
    >>> horizon.judge([0.50, 0.51, 0.49], [0.30, 0.31, 0.29]), horizon.n
    (False, 62)
    """

    n: int
    """steps of the next jump"""
    adapt: bool = False
    """whether rewards change ``n``, and take jumps back"""
    grow: float = 1.25
    shrink: float = 0.5
    smallest: int = 1
    largest: int = 1_000_000
    noise: float = 2.0
    """standard errors by which a mean reward must have fallen to count as fallen"""

    def judge(self, before: Sequence[float], after: Sequence[float]) -> bool:
        """Whether a jump stands, by the rewards of the real steps before and after it.

        A jump falls where mean(after) < mean(before) - noise · √(s²_before/T + s²_after/T'), the
        variances those of the rewards from step to step; ``n`` then shrinks, else it grows.
        Without ``adapt``, or with fewer than two rewards on either side, it stands and ``n`` stays.
        """
        if not self.adapt or min(len(before), len(after)) < 2:
            return True
        error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
        stands = fmean(after) >= fmean(before) - self.noise * error
        wanted = self.n * (self.grow if stands else self.shrink)
        self.n = int(min(max(wanted, self.smallest), self.largest))
        return stands
