"""How far a run of segments has come, in one file that is written whole after every step of it."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from trajkit import __version__
from trajkit.disk import canonical_json, read_file, replace_file
from trajkit.errors import FormatError, Mismatch
from trajkit.text import quoted, shown

FILE = "reground.json"
LEDGER = "jumps.jsonl"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a segment starts from."""

    model: str
    """folder of weights"""
    resumes: bool = False
    """whether the trainer goes on from the optimizer's state in it"""
    step: int = 0
    """the trainer's own count there"""


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the next segment needs to know."""

    settings: dict[str, Any]
    """what was asked for, and must not change on the way"""
    origin: Origin
    n: int
    """training steps of the next jump"""
    segment: int = 1
    """the one that is being made, from 1"""
    trained: str | None = None
    """its trainer's output, once the trainer has ended well"""
    sums: str | None = None
    """folder of what the rule keeps"""
    counts: list[float] | None = None
    """what the rule has counted"""
    rewards: list[float] = field(default_factory=list)
    """of the segment before the last jump"""
    undo: Origin | None = None
    """where the last jump was made from, while it may be taken back"""
    jumped: float = 0.0
    """steps of that jump"""
    real_steps: int = 0
    virtual_steps: float = 0.0
    lines: list[dict[str, Any]] = field(default_factory=list)
    """of the ledger"""

    @classmethod
    def read(cls, work: Path) -> Self | None:
        """The state of a run of segments; None where none was begun.

        Raises:
            FormatError: the file is not one that trajkit wrote.
        """
        path = work / FILE
        try:
            document = json.loads(read_file(path))
            document.pop("made_by")
            for name in ("origin", "undo"):
                if document[name] is not None:
                    document[name] = Origin(**document[name])
            if document.keys() != {f.name for f in fields(cls)}:
                raise ValueError("other fields than expected")
            return cls(**document)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FormatError(f"{shown(path)}: not a state of trajkit reground: {error}") from None

    def write(self, work: Path) -> None:
        """Put the ledger and the state on the disk, the state last: it alone decides."""
        lines = "".join(json.dumps(line, sort_keys=True) + "\n" for line in self.lines)
        replace_file(work / LEDGER, lines.encode())
        replace_file(
            work / FILE, canonical_json({"made_by": f"trajkit {__version__}", **asdict(self)})
        )

    def check_settings(self, settings: dict[str, Any], work: Path) -> None:
        """Raise :class:`Mismatch` where something else is asked for than the run began with."""
        for name in sorted(settings.keys() | self.settings.keys()):
            was, now = self.settings.get(name), settings.get(name)
            if was != now:
                raise Mismatch(
                    f"{shown(work)}: begun with {name} {quoted(was)}, asked for {quoted(now)}; "
                    "continue with what it was begun with, or choose another --work"
                )

    def noted(self, **line: Any) -> "State":
        """The state with a line more in its ledger."""
        return replace(self, lines=[*self.lines, line])
