"""What every estimator is: parameters, the steps it goes by, what it reads, how it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from trajkit.errors import InvalidInput

if TYPE_CHECKING:
    from trajkit.arrays import Array
    from trajkit.fits.devices import Arithmetic
    from trajkit.kernels.gate import Gate
    from trajkit.kernels.rounding import Rounding


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a target's elements; moved + held + unchanged is all of them."""

    moved: int = 0
    held: int = 0
    """kept at their last value: by the gate (R², static, invalid) or by a rule"""
    unchanged: int = 0
    """passed the gate, but rounded back to their last value"""
    copied: int = 0
    """of those held: in tensors that are copied, or integers"""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.moved + other.moved,
            self.held + other.held,
            self.unchanged + other.unchanged,
            self.copied + other.copied,
        )


@dataclass(frozen=True, slots=True)
class Points:
    """The training steps that an estimator goes by."""

    first_step: int
    """x_a, and the first step of the fit's window"""
    last_step: int
    """x_b, and x_T"""
    x_mean: float = 0.0
    """x̄ of the fit's window"""
    null_rsq: float = 0.0
    """median R² of a driftless walk on that window; 0 where no estimator asks for it"""

    @property
    def span(self) -> int:
        """Training steps from the first to the last."""
        return self.last_step - self.first_step


@dataclass(frozen=True, slots=True)
class Values:
    """What is known of some elements of one dtype."""

    dtype: str
    fit: Mapping[str, Array]
    """the fit's arrays that are read, by name, [N] each"""
    first: Array
    """bits of the checkpoint a, unsigned [N]; the last one's where it is not read"""
    last: Array
    """bits of the checkpoint b, and what held elements keep, unsigned [N]"""
    move: Array | None = None
    """of a combination of checkpoints: what it says less the checkpoint b, float64 [N]"""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that an estimator takes: a field of its class, an option of the command line."""

    name: str
    metavar: str
    help: str
    low: float | None = None
    high: float | None = None
    whole: bool = False
    """whether only whole numbers make sense"""

    def check(self, value: float) -> None:
        """Raise :class:`InvalidInput` for a number that makes no sense.

        >>> Parameter("damping", "L", "", 0, 2).check(3)
        Traceback (most recent call last):
        ...
        trajkit.errors.InvalidInput: damping must lie in [0, 2], not 3
        """
        if not isfinite(value):
            raise InvalidInput(f"{self.name} must be a finite number, not {value}")
        if self.whole and value != int(value):
            raise InvalidInput(f"{self.name} must be a whole number, not {value:g}")
        low, high = self.low, self.high
        if (low is not None and value < low) or (high is not None and value > high):
            raise InvalidInput(f"{self.name} must lie in [{low:g}, {high:g}], not {value:g}")


class Estimator(Protocol):
    """A frozen dataclass of parameters: picklable, the same wherever it is evaluated."""

    name: ClassVar[str]
    """as ``--estimator`` takes it"""
    formula: ClassVar[str]
    """one line for the help"""
    parameters: ClassVar[tuple[Parameter, ...]]
    """of the dataclass's fields, those that people set"""
    asks_for: ClassVar[str]
    """the option without which it has no target"""
    needs_fit: ClassVar[bool]
    """whether it goes by a fit; one that goes by checkpoints needs none unless a gate does"""
    reads_first: ClassVar[bool]
    """whether it reads the checkpoint a"""
    combines: ClassVar[bool]
    """whether it adds up all checkpoints from a to b"""
    gates_itself: ClassVar[bool]
    """whether every element may move unless a gate is asked for"""
    reads: ClassVar[tuple[str, ...]]
    """the fit's arrays that it reads, beside those of its gate"""

    def coefficient(self, points: Points, step: int) -> float:
        """What a slope, or a difference of two points, is multiplied by for a target."""

    def target_step(self, points: Points) -> int | None:
        """The step that the parameters alone amount to, if they do."""

    def evaluate(
        self,
        values: Values,
        points: Points,
        step: int,
        *,
        gate: Gate,
        rounding: Rounding,
        out: Array,
        arithmetic: Arithmetic,
        scale: float = 1.0,
    ) -> Counts:
        """Write the values at a training step to ``out``, unsigned [N].

        With a scale other than 1 only that part of the way from the checkpoint b is gone.
        """


def describe_parameters(estimator: Estimator) -> dict[str, Any]:
    """The parameters that are set, by name, in the order of the class.

    >>> from trajkit.fits.estimators.damped import Damped
    >>> describe_parameters(Damped(0.25))
    {'damping': 0.25}
    """
    names = [f.name for f in fields(estimator)]  # type: ignore[arg-type]
    return {n: getattr(estimator, n) for n in names}
