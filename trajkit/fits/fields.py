"""What a record's fields may be: each check gives the value back, or says what it expected.

A store may come from anybody, so nothing of its records is used before it was looked at here.
"""

import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

Check = Callable[[Any], Any]
"""gives the value; raises ValueError with what was expected"""

LARGEST_STEP = 2**53
"""training steps up to here are whole numbers in float64, which the arithmetic is in"""
_MOST_STEPS = 10**7


def whole(low: int, high: int) -> Check:
    """A whole number in [low, high]."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number in [low, high].

    >>> number(0, 1)(0.5)
    0.5
    """

    def check(value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not abs(value) < 1e308 or not low <= value <= high:
            raise ValueError(f"a finite number from {low:g} to {high:g}")
        return float(value) if isinstance(value, float) else value

    return check


def text(pattern: str, what: str) -> Check:
    """A text that matches the whole pattern."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(what)
        return value

    return check


def hexadecimal(digits: int) -> Check:
    """A digest of so many hexadecimal digits."""
    return text(f"[0-9a-f]{{{digits}}}", f"{digits} hexadecimal digits")


def optional(check: Check) -> Check:
    """None, or what ``check`` takes."""
    return lambda value: None if value is None else check(value)


def any_of(*checks: Check) -> Check:
    """What one of the checks takes."""

    def check(value: Any) -> Any:
        expected = []
        for one in checks:
            try:
                return one(value)
            except ValueError as error:
                expected.append(str(error))
        raise ValueError(" or ".join(expected))

    return check


def mapping(key: Check, value: Check, most: int) -> Check:
    """An object of at most so many entries."""

    def check(document: Any) -> Mapping[str, Any]:
        if not isinstance(document, dict) or len(document) > most:
            raise ValueError(f"an object of {most} entries at most")
        return {key(k): value(v) for k, v in document.items()}

    return check


def sequence(item: Check, most: int, least: int = 0) -> Check:
    """A list of so many items, as a tuple."""

    def check(document: Any) -> tuple[Any, ...]:
        if not isinstance(document, list) or not least <= len(document) <= most:
            raise ValueError(f"a list of {least} to {most} items")
        return tuple(item(v) for v in document)

    return check


def ascending_steps(value: Any) -> tuple[int, ...]:
    """Two training steps or more, each after the one before.

    >>> ascending_steps([0, 10])
    (0, 10)
    """
    steps: tuple[int, ...] = sequence(whole(-LARGEST_STEP, LARGEST_STEP), _MOST_STEPS)(value)
    if len(steps) < 2 or not all(a < b for a, b in pairwise(steps)):
        raise ValueError("two ascending training steps or more")
    return steps
