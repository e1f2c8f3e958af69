"""JSON that comes from a store or a checkpoint: bounded, typed, one error.

Whoever wrote such a file is not trusted, whatever its digests say: they only tell that the writer
of the digest and of the content is the same. :func:`parse_json` refuses what takes more memory or
depth than a document of this size should; a :class:`Node` gives a field's value in the type and
range that the reader names, or raises :class:`FormatError` with the file, the field, what was
expected and what was found.
"""

import json
import math
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from trajkit.errors import FormatError
from trajkit.text import quoted, shown

MAX_JSON_VALUES = 8_000_000
"""commas and brackets a document may hold, so that parsing one stays under about 1 GB"""
MAX_NAME_CHARACTERS = 4096
INT64_MAX = 2**63 - 1

_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a parsed document, and where it stands.

    >>> node = Node({"steps": [1, None]}, "zarr.json")
    >>> node["steps"][0].whole()
    1
    >>> node["steps"][1].whole()
    Traceback (most recent call last):
    trajkit.errors.FormatError: zarr.json: steps[1]: expected a whole number, found null
    """

    value: Any
    file: str
    """what messages call the file"""
    trail: str = ""
    """the place in the document: ``attributes.steps[3]``"""

    def refuse(self, expected: str) -> FormatError:
        """The error that says what was expected here; for the caller to raise."""
        at = f"{shown(self.trail)}: " if self.trail else ""
        return FormatError(f"{self.file}: {at}expected {expected}, found {quoted(self.value)}")

    def __getitem__(self, key: str | int) -> "Node":
        """A field of an object, or an item of a list; raises where there is none."""
        if isinstance(key, int):
            return Node(self.value[key], self.file, f"{self.trail}[{key}]")
        if not isinstance(self.value, dict):
            raise self.refuse("an object")
        if key not in self.value:
            raise FormatError(f"{self.file}: {shown(self._below(key))} is missing")
        return Node(self.value[key], self.file, self._below(key))

    def get(self, key: str) -> "Node | None":
        """A field of an object; None where it is missing or null."""
        if not isinstance(self.value, dict):
            raise self.refuse("an object")
        found = self.value.get(key)
        return None if found is None else Node(found, self.file, self._below(key))

    def _below(self, key: str) -> str:
        return f"{self.trail}.{key}" if self.trail else key

    def entries(self) -> Iterator[tuple[str, "Node"]]:
        """The fields of an object, whatever their names."""
        if not isinstance(self.value, dict):
            raise self.refuse("an object")
        return ((k, Node(v, self.file, self._below(k))) for k, v in self.value.items())

    def items(self, length: int | None = None) -> list["Node"]:
        """The items of a list, of this length where one is given."""
        if not isinstance(self.value, list):
            raise self.refuse("a list")
        if length is not None and len(self.value) != length:
            raise self.refuse(f"a list of {length}")
        return [self[i] for i in range(len(self.value))]

    def text(self, max_characters: int = MAX_NAME_CHARACTERS) -> str:
        """A line of text: 1 to so many printable characters."""
        value = self.value
        if not isinstance(value, str) or not 0 < len(value) <= max_characters:
            raise self.refuse(f"text of 1 to {max_characters} characters")
        if not value.isprintable():
            raise self.refuse("printable characters")
        return value

    def content(self) -> str:
        """Text of any length and lines that UTF-8 can write."""
        if not isinstance(self.value, str):
            raise self.refuse("text")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise self.refuse("text that UTF-8 can write") from None
        return self.value

    def digest(self, digits: int) -> str:
        """A digest in hexadecimal, of so many digits."""
        value = self.value
        if not isinstance(value, str) or len(value) != digits or not _HEX.fullmatch(value):
            raise self.refuse(f"a digest of {digits} hexadecimal digits")
        return value

    def one_of(self, choices: Collection[str]) -> str:
        """One of some words."""
        if not isinstance(self.value, str) or self.value not in choices:
            raise self.refuse(f"one of {', '.join(choices)}")
        return self.value

    def whole(self, low: int = 0, high: int = INT64_MAX) -> int:
        """A whole number from ``low`` to ``high``; True is none."""
        if type(self.value) is not int:
            raise self.refuse("a whole number")
        if not low <= self.value <= high:
            raise self.refuse(f"a whole number from {low} to {high}")
        return self.value

    def wholes(self, low: int = 0, high: int = INT64_MAX) -> tuple[int, ...]:
        """A list of whole numbers."""
        if isinstance(self.value, list) and all(
            type(n) is int and low <= n <= high for n in self.value
        ):
            return tuple(self.value)
        return tuple(node.whole(low, high) for node in self.items())  # says which is not

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number from ``low`` to ``high``."""
        found = self.real()
        if not math.isfinite(found) or not low <= found <= high:
            between = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
            raise self.refuse(f"a finite number{between}")
        return found

    def real(self) -> float:
        """A number; NaN and the infinities too, where the parser let them pass."""
        if type(self.value) not in (int, float):
            raise self.refuse("a number")
        try:
            return float(self.value)
        except OverflowError:
            raise self.refuse("a number that a float64 can hold") from None


def parse_json(content: bytes, where: str, *, constants: bool = False) -> Node:
    """The document in ``content``: one JSON object, no key of it twice, of bounded size and depth.

    Args:
        content: UTF-8 JSON.
        where: what messages call the file.
        constants: whether NaN and Infinity, which JSON does not have but Python writes, may pass.

    Raises:
        FormatError: it is anything else.
    """
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise FormatError(f"{where}: more than {MAX_JSON_VALUES} JSON values")
    if not content.startswith(b"{"):
        raise FormatError(f"{where}: expected a JSON object, found {content[:16]!r}")
    try:
        parsed: dict[str, Any] = json.loads(
            content.decode(),
            object_pairs_hook=_unique,
            parse_constant=float if constants else _refuse_constant,
        )
    except _DuplicateKeyError as error:
        raise FormatError(f"{where}: key {quoted(error.args[0])} occurs twice") from None
    except RecursionError:
        raise FormatError(f"{where}: JSON is nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"{where}: is not JSON: {shown(error)}") from None
    return Node(parsed, where)


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The one JSON object in ``content``, not yet typed; raises as :func:`parse_json`."""
    parsed: dict[str, Any] = parse_json(content, where).value
    return parsed


class _DuplicateKeyError(Exception):
    """A JSON object holds a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object's pairs, unless a key comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = sorted(key for key, _ in pairs)
        raise _DuplicateKeyError(next(a for a, b in pairwise(keys) if a == b))
    return found


def _refuse_constant(text: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{text} is not JSON")


def unzip(content: bytes, where: str, max_bytes: int) -> bytes:
    """What one gzip member holds, at most ``max_bytes`` of it.

    Raises:
        FormatError: it is not gzip, is cut, has something behind it, or holds more.
    """
    unpacker = zlib.decompressobj(wbits=31)  # 16 + 15: with gzip's header and checksum
    try:
        found = unpacker.decompress(content, max_bytes)
    except zlib.error as error:
        raise FormatError(f"{where}: is not gzip: {error}") from None
    if unpacker.unconsumed_tail or (not unpacker.eof and len(found) == max_bytes):
        raise FormatError(f"{where}: unpacks to more than the {max_bytes} bytes allowed")
    if not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"{where}: is not one whole gzip member")
    return found
