"""What a frame is made of: a checkpoint's files, or a copy of a model in memory."""

from collections.abc import Callable
from typing import Protocol

from trajkit.arrays import Array


class FrameSource(Protocol):
    """One checkpoint as the store's flat vectors; read from many threads at once."""

    @property
    def step(self) -> int:
        """Training step."""

    @property
    def label(self) -> str:
        """What messages call it."""

    def fill(self, dtype: str, start: int, stop: int, out: Array) -> None:
        """Fill ``out`` (unsigned [stop - start]) with bits [start, stop) of a vector."""

    def check_tied(self) -> None:
        """Raise :class:`Mismatch` where tensors taken for tied hold other bits."""

    def check_unchanged(self) -> None:
        """Raise :class:`HalfWritten` where it was written to while it was read."""

    def describe(self, keep: Callable[[str, bytes], tuple[str, str]]) -> tuple[str, bytes]:
        """The name and the bytes of the record of its files; see ``SourceRecord.pack``.

        Args:
            keep: gives (file under ``assets/``, sha256) for a side file's name and content.
        """
