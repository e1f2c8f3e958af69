"""What an ingest would do, and what it did, in numbers."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """What an ingest would do."""

    steps: tuple[int, ...]
    """training steps to append"""
    skipped: tuple[int, ...]
    """training steps the store already holds"""
    raw_bytes: int
    """bytes of the tensors to append"""
    memory_bytes: int
    """the plan's peak, above the interpreter and its libraries"""
    workers: int
    cut: tuple[int, ...] = ()
    """training steps to be cut from the store first (``replace_from``)"""


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What an ingest did."""

    store: str
    steps: int
    """committed steps in the store now"""
    ingested: int
    skipped: int
    raw_bytes: int
    """bytes of all committed checkpoints' tensors, uncoded"""
    stored_bytes: int
    """bytes of everything in the store but its fits"""
    seconds: float
    bytes_per_second: float
    """raw bytes appended over the time taken"""
    bottleneck: str | None
    """the stage that set the pace: read, code, compress or write; None when nothing was appended"""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    """whether an interrupt ended it (with ``watch``)"""
    cut: tuple[int, ...] = ()
    """training steps that were cut from the store first (``replace_from``)"""
    density: float | None = None
    """mean share of elements that change from one checkpoint to the next, where it is known: a store
    with a key every K checkpoints does not keep it"""
    rewritten: tuple[int, ...] = ()
    """training steps in the store whose files were written again since they were ingested"""
    deleted: tuple[int, ...] = ()
    """training steps whose files were deleted since the store gives them back (``delete_ingested``)"""
    deleted_bytes: int = 0
