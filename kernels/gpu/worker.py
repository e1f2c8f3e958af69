"""What a worker has on a CUDA device: a stream, pinned host memory, and memory for one chunk.

Each worker thread decompresses frames into its pinned buffer and hands the chunk over; the copy, the
kernel and the copy back go down its own stream, so that workers overlap with one another and with
decompression. Memory of each, on the host (pinned) and on the device alike:
B · C codes and about 140 bytes an element of the chunk. Not run on a GPU by trajkit's own tests
unless there is one; the arithmetic is tested in Triton's interpreter with ``device="cpu"``.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trajkit.kernels.gpu import launch as gpu
from trajkit.kernels.gpu.prepare import bits_dtype
from trajkit.kernels.state import SUMS_SCALARS, Solution, Sums

_SCALARS = ("dtype", "distinct_in", *SUMS_SCALARS)


class GpuWorker:
    """The sums of one chunk at a time, on a device.

    Args:
        n_batch: B, frames a batch at most.
        n_chunk: C, elements a chunk at most.
        dtype: the elements' format.
        device: a CUDA device; "cpu" for Triton's interpreter.

    Raises:
        NotImplementedError: a dtype the GPU does not fit (float64).
    """

    def __init__(self, n_batch: int, n_chunk: int, dtype: str, device: str = "cuda") -> None:
        self.dtype = dtype
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        bits, shape = bits_dtype(dtype), (n_batch, n_chunk)
        self._host_codes = torch.empty(shape, dtype=bits, pin_memory=on_gpu)
        self._codes = torch.empty(shape, dtype=bits, device=self.device)
        self._stream = _open_stream(self.device)
        self._solution = gpu.new_solution(n_chunk, dtype, self.device)
        self._answer = _map(self._solution, lambda t: torch.empty_like(t, device="cpu"))
        if on_gpu:
            self._answer = _map(self._answer, lambda t: t.pin_memory())
        self._sums: Sums | None = None
        self.codes_TN: NDArray[Any] = self._host_codes.numpy()
        """where the caller puts the codes of a batch, unsigned [B, C]"""

    def fit(
        self, n: int, is_key_T: NDArray[np.bool_], steps_T: NDArray[Any], **filters: Any
    ) -> Solution:
        """The lines of the first ``n`` columns over a whole window that is in ``codes_TN``."""
        with _on_stream(self._stream):
            codes = self._upload(len(steps_T))
            out = _map(self._solution, lambda t: t[:n])
            gpu.fit_frames(codes, is_key_T, steps_T, self.dtype, out=out, **filters)
            return self._download(n)

    def begin(
        self,
        n: int,
        x_ref: float,
        x_unit: float,
        kept: Sums | None = None,
        *,
        distinct_in: str | None = None,
    ) -> None:
        """Start the sums of ``n`` elements, from ``kept`` (numpy) where a fit goes on."""
        with _on_stream(self._stream):
            if kept is None:
                self._sums = gpu.new_sums(n, self.dtype, x_ref, x_unit, self.device, distinct_in)
            else:
                self._sums = _map(kept, lambda a: torch.from_numpy(a).to(self.device))

    def accumulate(self, is_key_T: NDArray[np.bool_], steps_T: NDArray[Any]) -> None:
        """Add the batch in ``codes_TN`` to the sums; its rows may be overwritten afterwards."""
        assert self._sums is not None
        with _on_stream(self._stream):
            gpu.accumulate_frames(self._upload(len(steps_T)), is_key_T, steps_T, self._sums)
            self._wait()

    def solve(self, **filters: Any) -> Solution:
        """The lines of the sums so far."""
        assert self._sums is not None
        n = self._sums.size
        with _on_stream(self._stream):
            gpu.solve(self._sums, out=_map(self._solution, lambda t: t[:n]), **filters)
            return self._download(n)

    def sums(self) -> Sums:
        """The sums so far, in numpy arrays of the host."""
        assert self._sums is not None
        with _on_stream(self._stream):
            sums: Sums = _map(self._sums, lambda t: t.cpu().numpy())
        return sums

    def _upload(self, n_frames: int) -> torch.Tensor:
        codes = self._codes[:n_frames]
        codes.copy_(self._host_codes[:n_frames], non_blocking=True)
        return codes

    def _download(self, n: int) -> Solution:
        for field in fields(Solution):
            host, device = (getattr(s, field.name) for s in (self._answer, self._solution))
            host[:n].copy_(device[:n], non_blocking=True)
        self._wait()
        answer: Solution = _map(self._answer, lambda t: t[:n].numpy())
        return answer

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


class GpuArithmetic:
    """``extrapolate_line`` and ``extrapolate_pair`` of numpy arrays: to a device and back.

    One a thread: each has a stream of its own. Arguments and results are those of the functions of
    the same names in :mod:`trajkit.kernels.api`, which compute on the CPU.

    Args:
        dtype: the elements' format.
        device: a CUDA device; "cpu" for Triton's interpreter.

    Raises:
        NotImplementedError: a dtype the GPU has no kernels for (float64).
    """

    def __init__(self, dtype: str, device: str = "cuda") -> None:
        bits_dtype(dtype)
        self.device = torch.device(device)
        self._stream = _open_stream(self.device)

    def extrapolate_line(
        self, base: Literal["mean", "last"], *arguments: Any, out_bits: NDArray[Any], **options: Any
    ) -> tuple[int, int, int]:
        """Write base + slope · dx; returns moved, held, unchanged."""
        return self._run(gpu.extrapolate_line, (base, *arguments), out_bits, options)

    def extrapolate_pair(
        self, *arguments: Any, out_bits: NDArray[Any], **options: Any
    ) -> tuple[int, int, int]:
        """Write a + beta · (b - a); returns moved, held, unchanged."""
        return self._run(gpu.extrapolate_pair, arguments, out_bits, options)

    def _run(
        self, kernel: Any, arguments: tuple[Any, ...], out_bits: NDArray[Any], options: Any
    ) -> tuple[int, int, int]:
        with _on_stream(self._stream):
            options["gate"] = options["gate"].moved_by(self._upload)
            moved = [self._upload(a) if isinstance(a, np.ndarray) else a for a in arguments]
            out = torch.empty_like(torch.from_numpy(out_bits), device=self.device)
            counts: tuple[int, int, int] = kernel(*moved, out_bits=out, **options)
            torch.from_numpy(out_bits).copy_(out)
        return counts

    def _upload(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def is_available() -> bool:
    """Whether torch sees a CUDA device."""
    return torch.cuda.is_available()


def _open_stream(device: torch.device) -> Any:
    """A stream of one's own; None on the host, where the interpreter runs."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _on_stream(stream: Any) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _map(record: Any, change: Any) -> Any:
    """A Sums or Solution with every array changed; scalars as they are."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return type(record)(**{k: v if k in _SCALARS else change(v) for k, v in values.items()})
