"""The trainer's command: what the user wrote, with the places that each segment fills.

The text is split as a shell would split it, then every place is filled, so that a path with spaces or
quotes stays within its argument; no shell ever sees it. It is the user's own command and may do
whatever the user may; trajkit only refuses one that cannot train a segment.

    {model}    the folder that the segment starts from
    {output}   an empty folder for the trainer's checkpoints
    {steps}    real steps of this segment
    {total}    the trainer's own count at the segment's end: {steps}, or more where it resumes
    {resume}   {model}, where the trainer shall go on from the optimizer's state in it; otherwise its
               argument is left out, and an option of its own before it
    {segment}  the segment's number from 1, to seed the order of the data with
"""

import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from trajkit.errors import InvalidInput, NotFound
from trajkit.text import quoted

_PLACE = re.compile(r"\{(model|output|steps|total|resume|segment)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A command with places to fill.

    >>> template = Template.parse("python t.py --model={model} -o {output} --max_steps {steps}")
    >>> template.fill({"model": "/a b", "output": "/c", "steps": "15"})
    ('python', 't.py', '--model=/a b', '-o', '/c', '--max_steps', '15')
    """

    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a command.

        Raises:
            InvalidInput: quotes that do not close, no program, or a place that is missing.
            NotFound: there is no such program.
        """
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise InvalidInput(f"the command cannot be read: {error}") from None
        if not words:
            raise InvalidInput("the command is empty: expected a trainer and its arguments")
        for place, why in (
            ("model", "nothing says what to train from"),
            ("output", "nothing says where to save checkpoints"),
        ):
            if not any(f"{{{place}}}" in word for word in words):
                raise InvalidInput(f"the command has no {{{place}}}: {why}")
        if not any("{steps}" in word or "{total}" in word for word in words):
            raise InvalidInput("the command has no {steps}: nothing says when a segment ends")
        if "{" not in words[0] and shutil.which(words[0]) is None:
            raise NotFound(f"{quoted(words[0])}: no such program for the command")
        return cls(words)

    @property
    def resumes(self) -> bool:
        """Whether the trainer can be told to go on from an optimizer's state."""
        return any("{resume}" in word for word in self.words)

    def fill(self, values: Mapping[str, str]) -> tuple[str, ...]:
        """The arguments of one call; ``resume`` may be left out of the values.

        >>> words = Template(("t", "--resume", "{resume}", "-n", "{total}", "--r={resume}"))
        >>> words.fill({"total": "9"}), words.fill({"total": "9", "resume": "/m"})
        (('t', '-n', '9'), ('t', '--resume', '/m', '-n', '9', '--r=/m'))
        """
        filled: list[str] = []
        for word in self.words:
            if "{resume}" in word and "resume" not in values:
                if word == "{resume}" and filled and filled[-1].startswith("-"):
                    filled.pop()
                continue
            filled.append(_PLACE.sub(lambda found: values.get(found[1], found[0]), word))
        return tuple(filled)
