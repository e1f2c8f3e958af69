"""What an extrapolation is going to write, and what it has written."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One checkpoint written."""

    step: int
    horizon: int
    """training steps beyond the last checkpoint used"""
    path: str
    alpha: float | None = None
    """of ``expo``"""
    moved: int = 0
    held: int = 0
    """kept at their last value, copied ones included"""
    copied: int = 0
    """of those held: in copied tensors, or integers"""
    unchanged_after_rounding: int = 0
    relative_norm: float | None = None
    """of the jump over that of the last checkpoint, before a cap; None where none was asked for"""
    scale: float | None = None
    """what the jump was multiplied by to stay under the cap: 1 where it did"""


@dataclass(frozen=True, slots=True)
class ExtrapolateResult:
    """What was written."""

    targets: tuple[Target, ...]
    estimator: str
    last_step: int
    moved: int
    """over all targets"""
    held: int
    copied: int
    unchanged_after_rounding: int
    n_bytes: int
    """of tensors, over all targets"""
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExtrapolatePlan:
    """What would be written."""

    targets: tuple[Target, ...]
    estimator: str
    last_step: int
    files: int
    """safetensors files of one target"""
    n_bytes: int
    """to write, over all targets"""
    free_bytes: int
    """on the disk that holds ``out``"""
    extrapolated: int
    """elements of one target that the estimator may move"""
    held: int
    """by a rule"""
    copied: int
    workers: int
    memory_bytes: int
    warnings: tuple[str, ...]
