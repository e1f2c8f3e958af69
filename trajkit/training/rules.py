"""Which drift a jump follows. A new rule is a class of this shape, and one line in the table."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from trajkit.errors import InvalidInput
from trajkit.training.pooled import PooledDrift
from trajkit.training.segments import RsqGate, TwoPoint


class Rule(Protocol):
    """What real steps say of the way that the parameters take."""

    def begin(self) -> None:
        """A segment of real steps starts where the parameters are now."""

    def observe(self, steps: int = 1) -> None:
        """The parameters are now ``steps`` real steps further."""

    @property
    def is_ready(self) -> bool:
        """Whether a jump can be trusted to it yet."""

    def rate(self, name: str) -> Tensor:
        """The change a step to jump by, float32 in the parameter's shape; zero: stay."""


@runtime_checkable
class Resumable(Protocol):
    """A rule that keeps something from one segment to the next."""

    def state(self) -> dict[str, Tensor]:
        """What it keeps; its counts under the empty name."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""


RULES: dict[str, Callable[..., Rule]] = {
    "pooled": PooledDrift,
    "two-point": TwoPoint,
    "rsq": RsqGate,
}
"""by name; each takes the parameters by name, then its own options"""
ENDS_ONLY = frozenset({"two-point"})
"""rules that look at the start and the end of a segment, and at nothing between"""
KEPT = {"pooled": ("sum", "squares")}
"""what a rule keeps of each parameter from one segment to the next, as its ``state`` names it"""


def make_rule(name: str, parameters: Mapping[str, Tensor], **options: Any) -> Rule:
    """The rule of that name over these parameters.

    Raises:
        InvalidInput: an unknown rule, or an option that it does not take.
    """
    if name not in RULES:
        raise InvalidInput(f"unknown rule {name!r}: choose from {', '.join(RULES)}")
    try:
        return RULES[name](parameters, **options)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"rule {name}: {error}") from error
