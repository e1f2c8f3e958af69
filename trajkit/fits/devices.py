"""Where the arithmetic happens: one worker's way through the CPU or a CUDA device.

Of a fit: both workers have one shape; the caller puts a batch of codes into ``codes_TN``, then either
fits a whole window in one call, or begins sums, accumulates batches and solves. Of an
extrapolation: two functions of numpy arrays.
"""

import os
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from trajkit.arrays import Array
from trajkit.errors import InvalidInput, Unsupported, needing
from trajkit.kernels import api as kernels
from trajkit.kernels.events import Events, accumulate_events, fit_events
from trajkit.kernels.state import Solution, Sums


class DeviceWorker(Protocol):
    """The sums of one chunk at a time; see :class:`trajkit.kernels.gpu.worker.GpuWorker`."""

    codes_TN: Array

    def fit(self, n: int, is_key_T: Array, steps_T: Array, **filters: Any) -> Solution:
        """The lines of the first ``n`` columns over a whole window that is in ``codes_TN``."""

    def begin(
        self,
        n: int,
        x_ref: float,
        x_unit: float,
        kept: Sums | None = None,
        *,
        distinct_in: str | None = None,
    ) -> None:
        """Start the sums of ``n`` elements, from ``kept`` where a fit goes on."""

    def accumulate(self, is_key_T: Array, steps_T: Array) -> None:
        """Add the batch in ``codes_TN`` to the sums."""

    def solve(self, **filters: Any) -> Solution:
        """The lines of the sums so far."""

    def sums(self) -> Sums:
        """The sums so far, in numpy arrays."""


class Arithmetic(Protocol):
    """The extrapolation of one chunk, as :mod:`trajkit.kernels.api` has it."""

    def extrapolate_line(self, *arguments: Any, **options: Any) -> tuple[int, int, int]:
        """Write base + slope · dx; moved, held, unchanged."""

    def extrapolate_pair(self, *arguments: Any, **options: Any) -> tuple[int, int, int]:
        """Write a + beta · (b - a); moved, held, unchanged."""


class CpuWorker:
    """The compiled loops of :mod:`trajkit.kernels.cpu.launch`, on the calling thread."""

    def __init__(self, n_batch: int, n_chunk: int, dtype: str) -> None:
        self.dtype = dtype
        self.codes_TN = np.empty((n_batch, n_chunk), kernels.FORMATS[dtype].bits)
        self._sums: Sums | None = None

    def fit(self, n: int, is_key_T: Array, steps_T: Array, **filters: Any) -> Solution:
        codes_TN = self.codes_TN[: len(steps_T), :n]
        return kernels.fit_frames(codes_TN, is_key_T, steps_T, self.dtype, **filters)

    def begin(
        self,
        n: int,
        x_ref: float,
        x_unit: float,
        kept: Sums | None = None,
        *,
        distinct_in: str | None = None,
    ) -> None:
        self._sums = kept or kernels.new_sums(n, self.dtype, x_ref, x_unit, distinct_in=distinct_in)

    def accumulate(self, is_key_T: Array, steps_T: Array) -> None:
        kernels.accumulate_frames(self.codes_TN[: len(steps_T)], is_key_T, steps_T, self.sums())

    def fit_events(self, events: Events, steps_T: Array, **filters: Any) -> Solution:
        """The lines over a whole window of changes."""
        return fit_events(events, steps_T, self.dtype, **filters)

    def accumulate_events(self, events: Events, steps_T: Array) -> None:
        """Add changes to the sums."""
        accumulate_events(events, steps_T, self.sums())

    def solve(self, **filters: Any) -> Solution:
        return kernels.solve(self.sums(), **filters)

    def sums(self) -> Sums:
        assert self._sums is not None
        return self._sums


def choose_device(device: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes a CUDA device where there is one.

    Raises:
        InvalidInput: an unknown name, or ``cuda`` where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidInput(f"unknown device {device!r}: choose auto, cpu or cuda")
    if device == "cpu" or (device == "auto" and not os.path.exists("/dev/nvidiactl")):  # noqa: PTH110 - a device node, not a file
        return "cpu"
    missing = [name for name in ("torch", "triton") if find_spec(name) is None]
    if not missing:
        from trajkit.kernels.gpu import worker as gpu_worker

        if gpu_worker.is_available():
            return "cuda"
    if device == "cuda":
        if missing:
            with needing("--device cuda needs", "gpu"):
                raise ModuleNotFoundError(name=missing[0])
        raise InvalidInput("--device cuda: no CUDA device that torch and triton can use; try cpu")
    return "cpu"


def open_worker(device: str, n_batch: int, n_chunk: int, dtype: str) -> DeviceWorker:
    """The device as one thread sees it, with memory for one chunk.

    Raises:
        Unsupported: the device does not fit elements of that dtype.
    """
    if device == "cpu":
        return CpuWorker(n_batch, n_chunk, dtype)
    from trajkit.kernels.gpu.worker import GpuWorker

    try:
        return GpuWorker(n_batch, n_chunk, dtype)
    except NotImplementedError as error:
        raise Unsupported(f"{error}; use --device cpu") from error


def open_arithmetic(device: str, dtype: str) -> Arithmetic:
    """The extrapolation of one worker, on a device of :func:`choose_device`.

    Raises:
        Unsupported: the device has no kernels for elements of that dtype.
    """
    if device == "cpu":
        return kernels
    from trajkit.kernels.gpu.worker import GpuArithmetic

    try:
        return GpuArithmetic(dtype)
    except NotImplementedError as error:
        raise Unsupported(f"{error}; use --device cpu") from error
