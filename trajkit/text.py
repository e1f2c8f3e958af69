"""Text that comes from files, made fit for one line of a message or of a terminal."""

import json
import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SHOWN_CHARACTERS = 240


def printable(text: str) -> str:
    r"""The text with control and formatting characters and lone surrogates written out.

    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c
        for c in text
    )


def shown(text: object) -> str:
    r"""Fit `text` into a message: one line of bounded length, whatever a hostile name holds.

    >>> shown("a" * 300)[-8:], shown("two\nlines")
    ('aaaaa...', "'two\\nlines'")
    """
    line = str(text)
    if not line.isprintable():
        line = repr(line[:1000])
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."


def quoted(value: object) -> str:
    """Fit a JSON value into a message, as JSON writes it; long ones are cut.

    >>> quoted([1, True, "x"]), quoted("a/b")
    ('[1, true, "x"]', '"a/b"')
    """
    if isinstance(value, dict | list) and len(value) > _SHOWN_CHARACTERS:
        value = list(value)[:_SHOWN_CHARACTERS]  # the rest would be cut from the message anyway
    try:
        return shown(json.dumps(value)[:1000])
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a {type(value).__name__} too long to print"
