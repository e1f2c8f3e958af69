"""What a long operation tells whoever listens: plain events, no printing.

A verb takes ``progress``, a function of one event, and calls it from its own thread. The command
line draws bars from the events; a notebook or a log can do what it likes.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """A stage begins; ``total`` is its work in ``unit`` (bytes, checkpoints, tensors)."""

    stage: str
    total: int
    unit: str = "B"


@dataclass(frozen=True, slots=True)
class Advanced:
    """Some of the stage's work is done."""

    amount: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage is over; ``summary`` is one line for a log."""

    summary: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a line: a skipped checkpoint, a stripped prefix."""

    text: str


Event = Started | Advanced | Finished | Note
Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The subscriber of those who want none."""
    del event
