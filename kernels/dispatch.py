"""Which backend does a call: one ``match``, importing inside the branch; nothing falls back."""

from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

Backend: TypeAlias = Literal["auto", "reference", "cpu"]


def open_backend(backend: Backend) -> Any:
    """The module of a backend, imported now; ModuleNotFoundError where what it needs is missing."""
    match backend:
        case "reference":
            from trajkit.kernels import reference

            return reference
        case "auto" | "cpu":
            if find_spec("numba") is None:
                raise _missing("backend 'cpu' needs numba: pip install numba", "numba")
            from trajkit.kernels.cpu import launch as cpu

            return cpu
        case _:
            raise ValueError(f"unknown backend {backend!r}; choose auto, reference or cpu")


def _missing(line: str, library: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(line, name=library)
