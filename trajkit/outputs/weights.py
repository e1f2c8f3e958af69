"""The weights of one model, wherever they are: a stored step, a step to come, or a folder.

All three are read the same way, tensor by tensor, so that what needs a model's weights need not know
where they lie. Nothing here needs torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trajkit.checkpoints.layout import FlatVector, TensorInfo, tensors_of
from trajkit.checkpoints.reader import FlatReader, lay_out_checkpoint
from trajkit.checkpoints.record import SourceRecord
from trajkit.errors import InvalidInput, NotFound, StorageError
from trajkit.parallel import count_workers, map_in_order
from trajkit.store.restore import side_files
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store


class Weights(Protocol):
    """One model's tensors and the small files beside them."""

    @property
    def label(self) -> str:
        """What messages call it: ``step 300``, or a folder."""

    @property
    def step(self) -> int:
        """Its training step; 0 for a folder without a number."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's name, dtype and shape, in the order in which they come."""

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Every tensor as (name, array of its shape and dtype), one at a time.

        Memory: the tensor at hand, and a few chunks.
        """

    def side_files(self) -> Mapping[str, bytes]:
        """config.json, tokenizer files and the like, by name."""


class StoredWeights:
    """A committed step of a store, bit for bit."""

    def __init__(self, store: Store, step: int) -> None:
        """Raises :class:`NotFound` where the step is not in the store."""
        self.store = store
        self.step = step
        self.frame = store.index_of(step)

    @property
    def label(self) -> str:
        """``step N``."""
        return f"step {self.step}"

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self.store.tensors

    def tensors(self) -> Iterator[tuple[str, Array]]:
        for vector in self.store.vectors.values():
            yield from assemble_tensors(vector, self._chunks(vector))

    def _chunks(self, vector: FlatVector) -> Iterator[tuple[int, Array]]:
        """(first element, bits) of each chunk in order, decoded by all cores."""

        def decode(k: int) -> Array:
            start, stop = vector.chunk_span(k)
            bits = np.empty(vector.chunk, vector.dtype.bits)
            self.store.read_bits(vector.dtype.name, self.frame, k, bits, np.empty_like(bits))
            return bits[: stop - start]

        workers = count_workers()
        with ThreadPoolExecutor(workers) as pool:
            for k, bits in map_in_order(pool, decode, range(vector.n_chunks), 2 * workers):
                yield vector.chunk_span(k)[0], bits

    def side_files(self) -> Mapping[str, bytes]:
        return stored_side_files(self.store, self.frame)


class FolderWeights:
    """A checkpoint folder of safetensors files."""

    def __init__(self, folder: str | Path, step: int = 0) -> None:
        """Raises :class:`NotFound` where there is no checkpoint, and as opening one does."""
        self.folder = Path(folder)
        self.step = step
        self.checkpoint: Checkpoint = open_checkpoint(self.folder, step)
        self.vectors = lay_out_checkpoint(self.checkpoint, None)

    @property
    def label(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return tensors_of(self.vectors)

    def tensors(self) -> Iterator[tuple[str, Array]]:
        with FlatReader(self.checkpoint, self.vectors) as reader:
            for vector in self.vectors.values():
                for info in vector.tensors:
                    bits = np.empty(info.size, vector.dtype.bits)
                    reader.fill(vector.dtype.name, info.offset, info.stop, bits)
                    yield info.name, _as_values(bits, info)
            reader.check_unchanged()

    def side_files(self) -> Mapping[str, bytes]:
        found = {}
        for name, path in self.checkpoint.side_files.items():
            try:
                found[name] = path.read_bytes()
            except OSError as error:
                raise StorageError(f"{path}: {error.strerror or error}") from error
        return found


class ForecastWeights:
    """A training step to come, as :func:`trajkit.extrapolate` would write it; nothing is written."""

    def __init__(self, store: Store, step: int, **options: Any) -> None:
        """``options`` are those of :func:`trajkit.extrapolate`, from ``estimator`` to ``device``.

        Raises :class:`NotFound` and :class:`InvalidInput` as that does.
        """
        from trajkit.forecast.values import open_values

        self.store = store
        self.step = step
        self.values = open_values(store, step, **options)

    @property
    def label(self) -> str:
        """``step N by ESTIMATOR``."""
        return f"step {self.step} by {self.values.estimator.name}"

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self.store.tensors

    def tensors(self) -> Iterator[tuple[str, Array]]:
        for vector in self.store.vectors.values():
            yield from assemble_tensors(vector, self.values.chunks(vector))

    def side_files(self) -> Mapping[str, bytes]:
        return stored_side_files(self.store, self.values.last)


def open_weights(
    traj: Source, step: int, *, estimator: str | None = None, **options: Any
) -> StoredWeights | ForecastWeights:
    """The weights of a step: stored, or extrapolated where ``estimator`` names how.

    Args:
        traj: the run.
        step: a committed training step; with ``estimator``, any.
        estimator: one of :data:`trajkit.fits.estimators.ESTIMATORS`.
        options: those of :func:`trajkit.extrapolate`: ``fit``, ``rsq_threshold``, ``damping``, ...

    Raises:
        NotFound: the step is not in the store and no estimator is named; no such fit.
        InvalidInput: options without an estimator, or that make no sense.
    """
    store = as_store(traj)
    if estimator is not None:
        return ForecastWeights(store, step, estimator=estimator, **options)
    if options:
        raise InvalidInput(f"{next(iter(options))} goes with an estimator: pass estimator= too")
    if step not in store.steps:
        store_says = _not_there(store, step)
        raise NotFound(f"{store_says}; pass an estimator to extrapolate to it")
    return StoredWeights(store, step)


def parse_weights(text: str, traj: Source | None) -> Weights:
    """What a person names by ``300`` (a stored step) or ``ckpts/checkpoint-300`` (a folder).

    A whole number is a step, even where a folder has that name; write ``./300`` for the folder.

    Raises:
        NotFound: no such step or folder.
    """
    if text.isascii() and text.isdecimal():
        if traj is None:
            raise NotFound(f"{text} names a step of a store, and there is no store")
        return StoredWeights(as_store(traj), int(text))
    from trajkit.checkpoints.series import find_series

    found = find_series([Path(text)]).found
    if len(found) != 1:
        raise InvalidInput(f"{text}: holds {len(found)} checkpoints; name one of them")
    return FolderWeights(found[0].path, found[0].step)


def open_store(path: Path, models: Sequence[str | None]) -> Store | None:
    """The store, or None where there is none and every model named is a folder.

    Raises:
        NotFound: there is no store, and a model is a step of it.
    """
    try:
        return Store.open(path)
    except NotFound:
        if all(name is not None and not name.isdecimal() for name in models):
            return None
        raise


def stored_side_files(store: Store, frame: int) -> dict[str, bytes]:
    """The small files that came with a committed checkpoint, by name, digests checked."""
    return side_files(store, SourceRecord.read(store.path, store.commit.frames[frame].source))


def _not_there(store: Store, step: int) -> str:
    try:
        store.index_of(step)
    except NotFound as error:
        return str(error)
    return ""


def assemble_tensors(
    vector: FlatVector, chunks: Iterator[tuple[int, Array]]
) -> Iterator[tuple[str, Array]]:
    """Whole tensors from a vector's chunks, which come in order; empty tensors last."""
    bits: Array | None = None
    for start, piece in chunks:
        for span in vector.spans(start, start + len(piece)):
            info = span.tensor
            if span.start == 0:
                bits = np.empty(info.size, vector.dtype.bits)
            assert bits is not None
            bits[span.start : span.stop] = piece[span.at : span.at + span.stop - span.start]
            if span.stop == info.size:
                yield info.name, _as_values(bits, info)
    for info in vector.tensors:
        if not info.size:
            yield info.name, _as_values(np.empty(0, vector.dtype.bits), info)


def _as_values(bits: Array, info: TensorInfo) -> Array:
    return bits.view(DTYPES[info.dtype].scalar).reshape(info.shape)
