"""Estimators: how a value is extended beyond the window, chunk by chunk.

With x_T and ``last`` the window's last step and the value there, h = x* - x_T, (mean, slope) the
fitted line about x̄, and (x_a, a), (x_b, b) two checkpoints:

    anchored    last + slope h
    line        mean + slope (x* - x̄)
    damped      last + slope (L h)                           L: the damping, 0 to 1
    two-point   a + (x* - x_a)/(x_b - x_a) (b - a)           arXiv 2601.04537, equation 4
    expo        b + alpha (b - a)                            arXiv 2404.16792

Float32 (float64 for float64), each operation rounded once, and one rounding into the tensor's own
dtype. The first three read the fit; the last two read two checkpoints, and move every element, as
published, unless a threshold is given. Each comes down to one number, the *coefficient* of a
target, and one of two kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from trajkit.arrays import Array
from trajkit.defaults import DEFAULT_DAMPING
from trajkit.errors import InvalidInput
from trajkit.fits.devices import Arithmetic
from trajkit.kernels.flags import FLAG_BELOW_THRESHOLD, HELD_FLAGS
from trajkit.kernels.gate import Gate
from trajkit.kernels.rounding import NEAREST, Rounding

ESTIMATORS = ("anchored", "line", "two-point", "damped", "expo")
ROUNDINGS = ("nearest", "stochastic")


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

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.moved + other.moved,
            self.held + other.held,
            self.unchanged + other.unchanged,
            self.copied + other.copied,
        )


@dataclass(frozen=True, slots=True)
class Estimator:
    """One of :data:`ESTIMATORS`, with its parameters and its two steps.

    >>> Estimator("anchored", 0, 100, 50.0).coefficient(120)
    20.0
    >>> Estimator("damped", 0, 100, 50.0, damping=0.25).coefficient(120)
    5.0
    >>> Estimator("expo", 0, 100, 50.0).coefficient(150)
    0.5
    """

    name: str
    first_step: int
    """x_a, and the first step of the fit's window"""
    last_step: int
    """x_b, and x_T"""
    x_mean: float
    """x̄ of the fit's window"""
    threshold: float | None = None
    """elements whose R² is not above it are held; None: a pair's elements all move"""
    damping: float = DEFAULT_DAMPING
    alpha: float | None = None
    """of ``expo``; None: the one that reaches the target's step"""
    by_flag: bool = False
    """the threshold is the fit's own, so that its flags say where the gate is closed"""
    rounding: Rounding = NEAREST

    @property
    def is_pair(self) -> bool:
        """Whether it reads two checkpoints, not the fitted line."""
        return is_pair(self.name)

    @property
    def reads(self) -> tuple[str, ...]:
        """The arrays of the fit that it reads, those first that tell whether to read the rest."""
        rsq = () if self.by_flag else ("rsq",)
        if self.is_pair:
            return () if self.threshold is None else ("flags", *rsq)
        mean = ("mean",) if self.name == "line" else ()
        return ("flags", "last", "slope", *mean, *rsq)

    @property
    def held_flags(self) -> int:
        """Elements with any of these flags are held."""
        return HELD_FLAGS | (FLAG_BELOW_THRESHOLD if self.by_flag else 0)

    @property
    def parameters(self) -> dict[str, Any]:
        """What to record beside the name."""
        found: dict[str, Any] = {"rounding": self.rounding.mode}
        if self.rounding.is_stochastic:
            found["seed"] = self.rounding.seed
        if self.name == "damped":
            found["damping"] = self.damping
        if self.is_pair:
            found |= {"from_step": self.first_step, "to_step": self.last_step}
        return found

    def coefficient(self, step: int) -> float:
        """What a slope, or a difference of two points, is multiplied by for a target."""
        horizon = step - self.last_step
        span = self.last_step - self.first_step
        match self.name:
            case "anchored":
                return float(horizon)
            case "line":
                return step - self.x_mean
            case "damped":
                return self.damping * horizon
            case "two-point":
                return (step - self.first_step) / span
            case _:
                return horizon / span if self.alpha is None else self.alpha

    def evaluate(
        self,
        dtype: str,
        step: int,
        fit: Mapping[str, Array],
        first: Array,
        last: Array,
        first_index: int,
        out: Array,
        arithmetic: Arithmetic,
    ) -> Counts:
        """Write the values at a training step.

        Args:
            dtype: of the elements.
            step: x*.
            fit: the arrays of :attr:`reads`, [N] each.
            first: bits of the checkpoint a, unsigned [N]; read by pairs only.
            last: bits of the checkpoint b, and what held elements keep, unsigned [N].
            first_index: index of element 0 in its flat vector, for stochastic rounding.
            out: unsigned [N], written.
            arithmetic: where it is computed.
        """
        factor = self.coefficient(step)
        gate = Gate(fit.get("rsq"), fit.get("flags"), self.held_flags, self.threshold)
        rounding = self.rounding.at(first_index)
        if self.is_pair:
            if (
                self.name == "expo"
            ):  # b + alpha (b - a) as b + (-alpha)(a - b): the same, bit by bit
                first, last_point, factor = last, first, -factor
            else:
                last_point = last
            counts = arithmetic.extrapolate_pair(
                first, last_point, factor, last, dtype, gate=gate, rounding=rounding, out_bits=out
            )
        else:
            slope = fit["slope"]
            counts = arithmetic.extrapolate_line(
                "mean" if self.name == "line" else "last",
                last,
                slope,
                fit.get("mean", slope),  # not read where the base is the last checkpoint
                dtype,
                dx=factor,
                gate=gate,
                rounding=rounding,
                out_bits=out,
            )
        if factor == 0 and self.name in ("anchored", "damped", "expo"):
            out[...] = last  # all its bits: -0.0 + 0.0 would be 0.0
            return Counts(0, counts[1], counts[0] + counts[2])
        return Counts(*counts)


def is_pair(name: str) -> bool:
    """Whether an estimator reads two checkpoints, not the fitted line."""
    return name in ("two-point", "expo")


def check_options(
    name: str,
    *,
    damping: float | None,
    alpha: float | None,
    from_step: int | None,
    to_step: int | None,
    rsq_threshold: float | None,
    rounding: str,
    seed: int,
) -> None:
    """Raise :class:`InvalidInput` for an unknown estimator, or a parameter that is not its own."""
    if name not in ESTIMATORS:
        raise InvalidInput(f"unknown estimator {name!r}: choose from {', '.join(ESTIMATORS)}")
    if not is_pair(name) and not (from_step is None and to_step is None):
        raise InvalidInput(
            f"from_step and to_step select the points of two-point and expo, not of {name}; the "
            "window of a fit is chosen when it is made: trajkit fit --from-step A --to-step B"
        )
    for what, value, owner in (("damping", damping, "damped"), ("alpha", alpha, "expo")):
        if value is not None and name != owner:
            raise InvalidInput(f"{what} is a parameter of the estimator {owner}, not of {name}")
    if damping is not None and not 0 <= damping <= 1:
        raise InvalidInput(f"damping must lie in [0, 1], not {damping}")
    if alpha is not None and not isfinite(alpha):
        raise InvalidInput(f"alpha must be a finite number, not {alpha}")
    if rsq_threshold is not None and not 0 <= rsq_threshold <= 1:
        raise InvalidInput(f"rsq_threshold must lie in [0, 1], not {rsq_threshold}")
    if rounding not in ROUNDINGS:
        raise InvalidInput(f"unknown rounding {rounding!r}: choose from {', '.join(ROUNDINGS)}")
    if not 0 <= seed < 2**64:
        raise InvalidInput(f"seed must lie in [0, 2^64), not {seed}")
