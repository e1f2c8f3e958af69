"""Which backend does a call: one ``match``, importing inside the branch; nothing falls back."""

from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import numpy as np

from trajkit.kernels.state import Array

Backend: TypeAlias = Literal["auto", "reference", "cpu", "cuda"]


def choose_backend(backend: Backend, array: Array, for_numpy: Backend = "cpu") -> Backend:
    """The backend that is meant, "auto" resolved by the kind of the array."""
    is_numpy = isinstance(array, np.ndarray)
    if backend == "auto":
        return for_numpy if is_numpy else "cuda"
    if backend in ("reference", "cpu") and not is_numpy:
        raise ValueError(f"backend {backend!r} takes numpy arrays, got {type(array).__name__}")
    if backend == "cuda" and is_numpy:
        raise ValueError("backend 'cuda' takes torch tensors on the device, got numpy arrays")
    return backend


def open_backend(backend: Backend) -> Any:
    """The module of a backend, imported now; ModuleNotFoundError where what it needs is missing."""
    match backend:
        case "reference":
            from trajkit.kernels import reference

            return reference
        case "cpu":
            if find_spec("numba") is None:
                raise _missing("backend 'cpu' needs numba: pip install numba", "numba")
            from trajkit.kernels.cpu import launch as cpu

            return cpu
        case "cuda":
            if find_spec("triton") is None:
                raise _missing("backend 'cuda' needs triton: pip install triton", "triton")
            from trajkit.kernels.gpu import launch as gpu

            return gpu
        case _:
            raise ValueError(unknown_backend(backend))


def _missing(line: str, library: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(line, name=library)


def unknown_backend(backend: str) -> str:
    """The line for a name that is no backend."""
    return f"unknown backend {backend!r}; choose auto, reference, cpu or cuda"
