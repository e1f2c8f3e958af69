"""What is asked of an extrapolation: a frozen value, checked on its own, before any file is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from trajkit.defaults import DEFAULT_ESTIMATOR, DEFAULT_FIT, DEFAULT_MEMORY_BYTES, DEFAULT_ROUNDING
from trajkit.errors import InvalidInput
from trajkit.fits.estimators.estimator import Estimator
from trajkit.fits.estimators.gates import GateRule, parse_gate
from trajkit.fits.estimators.table import make_estimator
from trajkit.fits.kept import Fit
from trajkit.forecast.guidance import Guidance
from trajkit.kernels.rounding import Rounding
from trajkit.store.tensors import Source, as_store

AUTO = "auto"
"""in place of an estimator: what the backtest says (:mod:`trajkit.forecast.auto`)"""
ROUNDINGS = ("nearest", "stochastic")
MOST_DIGITS = 15
"""of a training step: beyond 2^53 a step is not itself in float64"""


@dataclass(frozen=True)
class Request:
    """The arguments of :func:`trajkit.extrapolate`, which says what they mean.

    Raises:
        InvalidInput: options that make no sense, whatever the store.
    """

    traj: Source
    steps: tuple[int, ...] = ()
    """none: what the estimator's parameters amount to"""
    out: Path | None = None
    """None: nothing is written"""
    estimator: str = DEFAULT_ESTIMATOR
    parameters: Mapping[str, float | None] = field(default_factory=dict)
    """the estimator's own, by name; None for the default"""
    fit: str | Fit = DEFAULT_FIT
    rsq_threshold: float | None = None
    gate: str | GateRule | None = None
    from_step: int | None = None
    to_step: int | None = None
    tensors: tuple[str, ...] = ()
    rounding: str = DEFAULT_ROUNDING
    seed: int = 0
    like: str | Path | None = None
    max_norm: float | None = None
    device: str = "cpu"
    check: bool = False
    force: bool = False
    strict: bool = False
    memory: str | int = DEFAULT_MEMORY_BYTES
    factors: Mapping[str, float] = field(default_factory=dict)
    """name pattern -> what the damping of ``damped`` is multiplied by in tensors of such names that
    are extrapolated; where several match, the last one holds"""
    guide: Guidance | None = None
    """what chose the rule, to be written down beside it"""

    @classmethod
    def make(
        cls,
        traj: Source,
        steps: int | Sequence[int] | None = None,
        out: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """A request from the arguments as people give them.

        ``options`` are the fields of this class; any other is a parameter of the estimator.
        """
        own = {f.name for f in fields(cls)}
        asked = {name: value for name, value in options.items() if name in own}
        asked["parameters"] = {k: v for k, v in options.items() if k not in own}
        asked["tensors"] = tuple(asked.get("tensors", ()))
        several = () if steps is None else (steps,) if isinstance(steps, int) else tuple(steps)
        return cls(traj, several, None if out is None else Path(out), **asked)

    def __post_init__(self) -> None:
        self._check_auto()
        by_fit = self.estimator == AUTO or self.make_estimator().needs_fit
        if by_fit and not (self.from_step is None and self.to_step is None):
            raise InvalidInput(
                "from_step and to_step select the checkpoints of two-point, expo, ema and rank-k, "
                f"not of {self.estimator}; the window of a fit is chosen when it is made: trajkit fit "
                "--from-step A --to-step B"
            )
        if self.rsq_threshold is not None and self.gate is not None:
            raise InvalidInput("rsq_threshold and gate say the same: give one of them")
        self.gate_asked()
        if self.max_norm is not None and not 0 < self.max_norm < float("inf"):
            raise InvalidInput(f"max_norm must be a number above 0, not {self.max_norm:g}")
        if self.factors and self.estimator != "damped":
            raise InvalidInput(f"factors multiply the damping of damped, not {self.estimator}")
        if self.rounding not in ROUNDINGS:
            choices = ", ".join(ROUNDINGS)
            raise InvalidInput(f"unknown rounding {self.rounding!r}: choose from {choices}")
        if not 0 <= self.seed < 2**64:
            raise InvalidInput(f"seed must lie in [0, 2^64), not {self.seed}")
        if len(set(self.steps)) != len(self.steps):
            raise InvalidInput("a target step is given twice")
        for step in self.steps:
            if abs(step) >= 10**MOST_DIGITS:
                raise InvalidInput(
                    f"a training step has up to {MOST_DIGITS} digits; one given has more"
                )

    def _check_auto(self) -> None:
        if self.estimator != AUTO:
            if self.strict:
                raise InvalidInput("strict is of the estimator auto, which goes by the backtest")
            return
        given = [name for name, value in self.parameters.items() if value is not None]
        given += ["rsq_threshold"] * (self.rsq_threshold is not None)
        given += ["gate"] * (self.gate is not None)
        if given:
            raise InvalidInput(f"auto takes its own {given[0]} from the backtest")

    def make_estimator(self) -> Estimator:
        """The estimator with its parameters."""
        return make_estimator(self.estimator, self.parameters)

    def make_rounding(self) -> Rounding:
        """The rounding, from element 0 on."""
        return Rounding("stochastic" if self.rounding == "stochastic" else "nearest", self.seed)

    def gate_asked(self) -> GateRule | None:
        """The gate that is asked for; None where none is, or where it says ``none``."""
        if self.rsq_threshold is not None:
            return GateRule("rsq", self.rsq_threshold)
        return parse_gate(self.gate) if isinstance(self.gate, str) else self.gate

    @property
    def has_gate(self) -> bool:
        """Whether anything is said about the gate."""
        return self.rsq_threshold is not None or self.gate is not None


def parse_steps(text: str, traj: Source) -> list[int]:
    """Target steps from ``"1500,2000,+300"``; ``+`` counts from the last ingested step.

    Raises:
        InvalidInput: not whole numbers, or none.
    """
    targets = []
    for part in text.split(","):
        part = part.strip()
        digits = part.removeprefix("+")
        if not (digits.isascii() and digits.isdecimal()):
            raise InvalidInput(f"--steps takes whole numbers such as 1500,2000,+300, not {part!r}")
        if len(digits) > MOST_DIGITS:
            raise InvalidInput(f"--steps takes numbers of up to {MOST_DIGITS} digits, not {part!r}")
        targets.append(int(digits) + (_last_step(traj, part) if part.startswith("+") else 0))
    return targets


def _last_step(traj: Source, part: str) -> int:
    store = as_store(traj)
    if not len(store.steps):
        raise InvalidInput(f"{store.path}: holds no step that {part!r} could count from")
    return int(store.steps[-1])
