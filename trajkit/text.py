"""Words for people: sizes, rates, times and counts; text from files made fit for one line."""

import json
import re
import unicodedata

from trajkit.errors import InvalidInput

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


_FACTORS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_bytes(text: str | int) -> int:
    """A number of bytes from what a person writes; decimal and binary units.

    >>> parse_bytes("512MiB"), parse_bytes("2 GB"), parse_bytes(10)
    (536870912, 2000000000, 10)
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if not match:
        raise InvalidInput(f"not a size: {text[:40]!r}; write it like 512MiB or 2GB")
    n_bytes = float(match[1]) * _FACTORS[match[2] or ""]
    if n_bytes >= 2**63:
        raise InvalidInput(
            f"{text[:40]!r} is more memory than there is; write it like 512MiB or 2GB"
        )
    return int(n_bytes)


def format_bytes(n: float) -> str:
    """A number of bytes in three digits and a decimal unit.

    >>> format_bytes(0), format_bytes(1536), format_bytes(8_260_000)
    ('0 B', '1.54 kB', '8.26 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 1000 or unit == "TB":
            break
        n /= 1000
    return f"{n:.0f} B" if unit == "B" else f"{n:.3g} {unit}" if n < 1000 else f"{n:.0f} {unit}"


def count(n: int, thing: str) -> str:
    """So many of a thing.

    >>> count(1, "checkpoint"), count(2000, "checkpoint")
    ('1 checkpoint', '2,000 checkpoints')
    """
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def format_rate(n_bytes: float, seconds: float) -> str:
    """Bytes over seconds.

    >>> format_rate(3e9, 2.0)
    '1.5 GB/s'
    """
    return f"{format_bytes(n_bytes / max(seconds, 1e-9))}/s"


def format_seconds(seconds: float) -> str:
    """A duration in the two units that matter.

    >>> format_seconds(0.25), format_seconds(75), format_seconds(7300)
    ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
