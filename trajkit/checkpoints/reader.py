"""One checkpoint read as flat vectors, range by range."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.cast import convert_bits, stored_dtype
from trajkit.checkpoints.checkpoint import Checkpoint, HalfWritten, TensorEntry, read_into
from trajkit.checkpoints.layout import CHUNK_ELEMENTS, FlatVector, Span, TensorInfo, lay_out
from trajkit.checkpoints.record import describe_source
from trajkit.checkpoints.tied import _COMPARE_BYTES, match_tensors
from trajkit.disk import disk_errors, read_file
from trajkit.errors import Mismatch, NotFound, StorageError
from trajkit.remote.source import ByteSource, LocalFile


def lay_out_checkpoint(
    checkpoint: Checkpoint, cast: str | None, chunk: int = CHUNK_ELEMENTS
) -> dict[str, FlatVector]:
    """The flat vectors of a store that begins with this checkpoint."""
    entries = checkpoint.tensors.values()
    return lay_out(((e.name, stored_dtype(e, cast), e.shape) for e in entries), chunk)


class FlatReader:
    """Reads one checkpoint as the store's flat vectors; safe to use from many threads.

    Raises:
        Mismatch: the checkpoint's tensors are not the store's; the message names the first that
            differs and what to do.
    """

    def __init__(
        self, checkpoint: Checkpoint, vectors: Mapping[str, FlatVector], cast: str | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.cast = cast
        self._sources: dict[int, ByteSource] = {}
        self._marks: dict[int, tuple[int, int]] = {}
        self._lock = Lock()
        wanted = {t.name: t for v in vectors.values() for t in v.tensors}
        self.entries, self.tied, self.absent = match_tensors(checkpoint, wanted, cast)
        self._vectors = vectors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; they are opened again when they are read again."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()

    def fill(self, dtype: str, start: int, stop: int, out: Array) -> None:
        """Fill ``out`` (unsigned [stop - start]) with bits [start, stop) of a vector."""
        for entry, info, span_start, n, at in self._runs(dtype, start, stop):
            self._read(entry, info, span_start, out[at : at + n])

    @property
    def step(self) -> int:
        """Training step."""
        return self.checkpoint.step

    @property
    def label(self) -> str:
        """What messages call it: the folder of its files."""
        return str(self.checkpoint.root)

    def describe(self, keep: Callable[[str, bytes], tuple[str, str]]) -> tuple[str, bytes]:
        """The name and the bytes of the record of its files; ``keep`` takes side files."""

        def keep_file(name: str, path: Path) -> tuple[str, str]:
            with disk_errors(path):
                return keep(name, read_file(path))

        return describe_source(self, keep_file).pack()

    @property
    def converted(self) -> list[str]:
        """Names of the tensors that the store keeps in another dtype than the files."""
        return [
            t.name
            for vector in self._vectors.values()
            for t in vector.tensors
            if self.entries[t.name].dtype != t.dtype
        ]

    def check_unchanged(self) -> None:
        """Check that no file was written to since its first byte was read here.

        Raises:
            HalfWritten: one was; what was read of it may be neither the old nor the new content.
        """
        for file, source in self._sources.items():
            if source.mark() != self._marks[file]:
                raise HalfWritten(
                    f"{self.checkpoint.files[file].path}: changed while it was being read; "
                    "nothing of this checkpoint is kept: run again when it is complete"
                )

    def stamps(self) -> dict[str, tuple[int, int]]:
        """(bytes, ns of the last change) of each file that was read, as it was when opened."""
        files = self.checkpoint.files
        return {files[i].name: mark for i, mark in self._marks.items()}

    def check_tied(self) -> None:
        """Prove that tensors taken for tied hold the same bits as their partners.

        Raises:
            Mismatch: they do not.
        """
        for alias, partner in self.tied.items():
            a, b = self.checkpoint.tensors[alias], self.entries[partner]
            if a == b:
                continue  # it stands in for its partner, which is absent
            for at in range(0, a.n_bytes, _COMPARE_BYTES):
                n = min(_COMPARE_BYTES, a.n_bytes - at)
                parts = np.empty((2, n), np.uint8)
                read_into(self._source(a.file), parts[0].data, a.begin + at)
                read_into(self._source(b.file), parts[1].data, b.begin + at)
                if not np.array_equal(parts[0], parts[1]):
                    raise Mismatch(
                        f"{self.checkpoint.root}: tensor {alias!r} is not in the store and differs "
                        f"from {partner!r}, to which the config ties it"
                    )

    def _runs(
        self, dtype: str, start: int, stop: int
    ) -> Iterator[tuple[TensorEntry, TensorInfo, int, int, int]]:
        """Ranges that lie together in one file: (entry, tensor, first element, elements, at)."""
        pending: tuple[TensorEntry, Span, int] | None = None
        end_byte = -1
        for span in self._vectors[dtype].spans(start, stop):
            entry = self.entries[span.tensor.name]
            itemsize = DTYPES[entry.dtype].itemsize
            begin = entry.begin + span.start * itemsize
            n = span.stop - span.start
            if (
                pending is not None
                and entry.file == pending[0].file
                and begin == end_byte
                and entry.dtype == pending[0].dtype
            ):
                pending = (pending[0], pending[1], pending[2] + n)
            else:
                if pending is not None:
                    yield pending[0], pending[1].tensor, pending[1].start, pending[2], pending[1].at
                pending = (entry, span, n)
            end_byte = begin + n * itemsize
        if pending is not None:
            yield pending[0], pending[1].tensor, pending[1].start, pending[2], pending[1].at

    def _read(self, entry: TensorEntry, info: TensorInfo, start: int, out: Array) -> None:
        source = DTYPES[entry.dtype]
        offset = entry.begin + start * source.itemsize
        if source.name == info.dtype:
            read_into(self._source(entry.file), out.view(np.uint8).data, offset)
            return
        raw = np.empty(len(out), source.bits)
        read_into(self._source(entry.file), raw.view(np.uint8).data, offset)
        out[:] = convert_bits(raw, source, DTYPES[info.dtype])

    def _source(self, file: int) -> ByteSource:
        with self._lock:
            if file not in self._sources:
                self._open(file)
            return self._sources[file]

    def _open(self, file: int) -> None:
        """Open a file of the checkpoint and check that it is the one whose header was read."""
        known = self.checkpoint.files[file]
        try:
            source = LocalFile.open(known.path)
        except FileNotFoundError:
            raise NotFound(
                f"{known.path}: removed since the checkpoint was opened; run again to go on with "
                "what is there"
            ) from None
        except OSError as error:
            raise StorageError(f"{known.path}: {error.strerror or error}") from error
        self._sources[file], self._marks[file] = source, source.mark()
        header = bytearray(len(known.header))
        read_into(source, memoryview(header), 8, str(known.path))
        if source.size != known.size or header != known.header:
            raise HalfWritten(f"{known.path}: changed since its header was read; run again")
