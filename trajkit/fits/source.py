"""Where a fit's codes come from: a store's frames today, any series of coded frames tomorrow."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

from trajkit.arrays import Array
from trajkit.checkpoints.layout import FlatVector
from trajkit.errors import Mismatch
from trajkit.fits.window import Window, digest_of, window_digest
from trajkit.kernels.events import Events
from trajkit.parallel import Plan, Scratch
from trajkit.store.chunks import KEPT_OPEN, ChunkReader
from trajkit.store.events import read_events
from trajkit.store.store import Store


class CodeSource(Protocol):
    """A series of T coded frames of flat vectors, open for reading from many threads at once.

    Frame t holds, element by element, the bits (a *key* frame) or their zigzag difference to frame
    t - 1; vectors are cut into chunks of C elements, the last one padded with zeros.
    """

    @property
    def vectors(self) -> Mapping[str, FlatVector]:
        """The flat vectors, by dtype."""

    def is_key(self, t: int) -> bool:
        """Whether frame ``t`` holds the bits themselves; a window may begin elsewhere."""

    def read_codes(self, dtype: str, frames: range, k: int, out_TN: Array) -> None:
        """Fill ``out_TN`` (unsigned [T, C], contiguous) with chunk ``k`` of some frames.

        Raises:
            FormatError: a chunk is damaged or missing.
        """

    def read_events(
        self, dtype: str, frames: range, k: int, arena: Array, fresh: bool
    ) -> Events | None:
        """The changes of chunk ``k`` over some frames, in the memory of ``arena``.

        With the bits of the first frame where ``fresh``. None where :meth:`read_codes` is cheaper;
        raises likewise.
        """

    def read_bits(self, dtype: str, t: int, k: int, out: Array) -> None:
        """Fill ``out`` (unsigned [C]) with the bits of chunk ``k`` at frame ``t``; raises likewise."""

    def check_bits(self, dtype: str, t: int, k: int, bits: Array) -> None:
        """Raise :class:`FormatError` unless these are chunk ``k``'s bits at frame ``t``, unpadded."""

    def close(self) -> None:
        """Close what is open; nobody reads any more."""


class SourceName(Hashable, Protocol):
    """What a task calls its source by: a small value that goes to any process."""

    def open(self) -> CodeSource:
        """The source, opened in this process."""


@dataclass(frozen=True, slots=True)
class StoreName:
    """The window of a store that a fit is of."""

    path: str
    first: int
    stop: int
    """frames [first, stop)"""
    frames_digest: str
    """:func:`trajkit.fits.window.window_digest` of them: a store made anew is not taken for it"""
    kept_open: int
    """files kept open by all threads of a process together"""
    at_once: int
    """files that each of them opens besides"""

    @classmethod
    def of(cls, store: Store, window: Window, plan: Plan) -> "StoreName":
        """The name of a store's window, with the plan's files shared out among its workers."""
        kept = min(KEPT_OPEN, plan.files // 2)
        at_once = max((plan.files - kept) // plan.workers, 1)
        digest = window_digest(store, window)
        return cls(str(store.path), window.first, window.stop, digest, kept, at_once)

    def open(self) -> "StoreCodes":
        """The store's frames; raises :class:`Mismatch` where they are others by now."""
        store = Store.open(Path(self.path))
        frames = store.commit.frames[self.first : self.stop]
        if digest_of(frames) != self.frames_digest:
            raise Mismatch(f"{self.path}: its checkpoints were replaced meanwhile; run it again")
        return StoreCodes(store, self.kept_open, self.at_once)


class StoreCodes:
    """The frames of a store as a :class:`CodeSource`."""

    def __init__(self, store: Store, kept_open: int, at_once: int) -> None:
        self.store = store
        self._readers = {d: ChunkReader(a, kept_open, at_once) for d, a in store.frames.items()}
        self._scratch = Scratch()

    @property
    def vectors(self) -> Mapping[str, FlatVector]:
        return self.store.vectors

    def is_key(self, t: int) -> bool:
        return self.store.is_key(t)

    def read_codes(self, dtype: str, frames: range, k: int, out_TN: Array) -> None:
        self.store.read_code_rows(self._readers[dtype], frames, k, out_TN)

    def read_events(
        self, dtype: str, frames: range, k: int, arena: Array, fresh: bool
    ) -> Events | None:
        return read_events(self.store, self._readers[dtype], frames, k, arena, fresh)

    def read_bits(self, dtype: str, t: int, k: int, out: Array) -> None:
        self.store.read_bits(dtype, t, k, out, self._scratch.array("codes", out.shape, out.dtype))

    def check_bits(self, dtype: str, t: int, k: int, bits: Array) -> None:
        self.store.check_bits(dtype, t, k, bits)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


class Closes(Protocol):
    """Anything that is closed when it is done with."""

    def close(self) -> None: ...


Key = TypeVar("Key", bound=Hashable)
Opened = TypeVar("Opened", bound=Closes)


class OpenOnce(Generic[Key, Opened]):
    """What the threads of a process have opened together, by name.

    It stays open between tasks; of what no task is using, so many are kept (``idle``), and nothing
    is closed while somebody reads from it.
    """

    def __init__(self, open_: Callable[[Key], Opened], idle: int = 1) -> None:
        self._open = open_
        self._idle = idle
        self._opened: dict[Key, Opened] = {}
        self._users: dict[Key, int] = {}
        self._lock = Lock()

    @contextmanager
    def using(self, key: Key) -> Iterator[Opened]:
        """What has that name, opened now if it is not."""
        with self._lock:
            opened = self._opened.pop(key) if key in self._opened else self._open(key)
            self._opened[key] = opened  # the one used last comes last
            self._users[key] = self._users.get(key, 0) + 1
        try:
            yield opened
        finally:
            with self._lock:
                self._users[key] -= 1
                self._shrink(self._idle)

    def close(self) -> None:
        """Close all that nobody is using."""
        with self._lock:
            self._shrink(0)

    def _shrink(self, idle: int) -> None:
        unused = [key for key in self._opened if not self._users[key]]
        for key in unused[: max(len(unused) - idle, 0)]:
            del self._users[key]
            self._opened.pop(key).close()


def _open_source(name: Any) -> CodeSource:
    source: CodeSource = name.open()
    return source


SOURCES: OpenOnce[Any, CodeSource] = OpenOnce(_open_source)
"""the sources that tasks of this process have open"""
