"""Compiling takes seconds, once: whoever listens hears of it before it begins."""

from collections.abc import Callable

_FIRST = "compiling, once: about 12 s"
_UNKEPT = (
    "compiling, about 12 s, and again next time: no place to keep compiled code can be written "
    "(NUMBA_CACHE_DIR names another)"
)
_listener: Callable[[str], None] | None = None
_said: set[str] = set()


def listen(listener: Callable[[str], None] | None) -> None:
    """Have ``listener`` called with a line when compiling begins; None: nobody any more.

    It is called from whichever thread compiles, once a process for each line.
    """
    global _listener
    _listener = listener


def tell_compiling(kept: bool) -> None:
    """Say that compiling begins, and whether what comes of it will be ``kept``."""
    _tell(_FIRST if kept else _UNKEPT)


def tell_unkept(why: str) -> None:
    """Say that compiled code could not be kept."""
    _tell(f"compiled code is not kept ({why}): the next run compiles again")


def _tell(line: str) -> None:
    if _listener is not None and line not in _said:
        _said.add(line)
        _listener(line)
