"""A JSONL file that is there whole or not at all, made batch by batch, and gone on with when killed.

While it is being made its lines are in ``NAME.part``, whose first line says what was asked for; the
same request continues after the last whole batch, any other is refused.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from trajkit.disk import disk_errors, sync_directory
from trajkit.errors import AlreadyExists, Locked, Mismatch

_MARK = "trajkit journal"


class Journal:
    """Lines of an output file in the making; use it in a ``with`` block.

    Raises:
        AlreadyExists: the file is there already, and ``force`` was not given; or something that
            trajkit did not write stands where the part would be.
        Mismatch: a part is there that was begun with another request.
        Locked: another process is making the same file.
    """

    def __init__(self, path: str | Path, request: Mapping[str, Any], force: bool = False) -> None:
        self.path = Path(path)
        self.part = self.path.with_name(self.path.name + ".part")
        self.request = dict(request)
        self.force = force
        self.lines: list[dict[str, Any]] = []
        """those of whole batches"""
        self.batches = 0
        """whole batches that the part held"""
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if os.path.lexists(self.path) and not self.force:
            self._clear_finished()
            raise AlreadyExists(f"{self.path}: is there already; pass --force to replace it")
        with disk_errors(self.part):
            self._file = self.part.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise Locked(f"{self.part}: another process is writing it") from None
            try:
                self._resume(self._file)
            except BaseException:
                self._file.close()
                raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add one batch; it is on the disk when this returns."""
        assert self._file is not None
        content = b"".join(_encode(line) for line in lines) + _encode({_MARK: "batch"})
        with disk_errors(self.part):
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        self.lines += [dict(line) for line in lines]
        self.batches += 1

    def commit(self) -> None:
        """Give the file its name: the lines alone, whole."""
        assert self._file is not None
        beside = self.path.with_name(f".{self.path.name}.whole")
        with disk_errors(self.path):
            with beside.open("wb") as file:
                file.writelines(_encode(line) for line in self.lines)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
            self.part.unlink(missing_ok=True)
            sync_directory(self.path.parent)

    def _clear_finished(self) -> None:
        """Take away the part of a process that was killed after it had given the file its name."""
        with disk_errors(self.part), suppress(FileNotFoundError):
            with self.part.open("rb") as file:
                head = _decode(file.readline())
            if head == self._head():
                self.part.unlink()

    def _resume(self, file: IO[bytes]) -> None:
        """Read what a killed process left, and cut off what is not a whole batch."""
        file.seek(0)
        content = file.read()
        head, _, _ = content.partition(b"\n")
        asked = _decode(head)
        if content and (asked is None or _MARK not in asked):
            if b"\n" in content or not _encode(self._head()).startswith(content):
                raise AlreadyExists(f"{self.part}: stands in the way, and is not trajkit's")
            content = b""  # killed in its very first line
        if content and asked is not None and asked[_MARK] != self.request:
            if not self.force:
                differing = sorted(
                    k
                    for k in {*self.request, *asked[_MARK]}
                    if self.request.get(k) != asked[_MARK].get(k)
                )
                raise Mismatch(
                    f"{self.part}: was begun with another {differing[0].replace('_', ' ')}; run that "
                    "again to finish it, or pass --force to begin anew"
                )
            content = b""
        if not content:
            file.truncate(0)
            file.write(_encode(self._head()))
            file.flush()
            return
        whole = len(head) + 1
        at = whole
        pending: list[dict[str, Any]] = []
        for raw in content[whole:].splitlines(keepends=True):
            line = _decode(raw) if raw.endswith(b"\n") else None
            if line is None:
                break
            at += len(raw)
            if line == {_MARK: "batch"}:
                self.lines += pending
                self.batches += 1
                whole, pending = at, []
            else:
                pending.append(line)
        file.truncate(whole)

    def _head(self) -> dict[str, Any]:
        return {_MARK: self.request}


def _encode(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def _decode(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
