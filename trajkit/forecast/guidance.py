"""What outputs said of a rule, as a value that goes with a request and is written down."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Guidance:
    """Why the outputs of a run's models chose a rule (:mod:`trajkit.outputs.guide`)."""

    record: Mapping[str, Any]
    """for ``trajkit.json``: rule, KLs on the probes that chose and on those that did not; JSON types"""
    sentence: str
    """the same in words"""
    rows: tuple[tuple[str, str], ...] = ()
    """(name, value) for the model card"""
    cautions: tuple[str, ...] = ()
