"""The errors trajkit raises, as a tree by what a handler would do.

Every message is one line: which thing (path, tensor, step), what was expected, what was found,
what to do. The library raises; the command line prints the line and exits 1.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class TrajkitError(Exception):
    """Anything trajkit refuses or cannot do; the parent of all errors below."""


class NotFound(TrajkitError, FileNotFoundError):
    """A path, step, tensor or fit that was asked for does not exist."""


class AlreadyExists(TrajkitError, FileExistsError):
    """Writing would replace something; pass ``force`` or choose another place."""


class InvalidInput(TrajkitError, ValueError):
    """An argument or a file's content is not what the operation takes."""


class Mismatch(TrajkitError, ValueError):
    """Two things that must agree (a checkpoint and its store, say) do not."""


class FormatError(TrajkitError, ValueError):
    """A file is damaged, or is not in the format it claims."""


class OverBudget(TrajkitError, MemoryError):
    """The plan needs more memory than the budget; the message says what would fit."""


class Unsupported(TrajkitError, NotImplementedError):
    """A request that is understood, but cannot be met on this input or machine."""


class Refused(TrajkitError, RuntimeError):
    """What was measured speaks against what was asked; the message says how to do it all the same."""


class Locked(TrajkitError, BlockingIOError):
    """Another writer holds the store."""


class StorageError(TrajkitError, OSError):
    """The disk refused: full, read-only, or gone; what was committed is intact."""


class MissingLibrary(Unsupported, ImportError):
    """An optional library is not installed; the message says what to install."""


class TrajkitWarning(UserWarning):
    """Something that a reader of an outcome should know; the outcome stands."""


# FileNotFoundError and friends print their arguments as a tuple when given an errno; trajkit always
# passes one text, so ``str(error)`` is the line itself.


def warn(text: str) -> None:
    """Give a :class:`TrajkitWarning` as coming from whoever called trajkit."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("trajkit."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, TrajkitWarning, stacklevel=level)


@contextmanager
def needing(what: str, extra: str | None = None) -> Iterator[None]:
    """Import optional libraries inside of it: one that is missing gives one line.

    Args:
        what: what needs them, up to the verb: ``--check needs``.
        extra: trajkit's extra that brings them; None where the library is named itself.

    Raises:
        MissingLibrary: a library is not installed.

    >>> with needing("the figures need", "figures"):
    ...     import no_such_library
    Traceback (most recent call last):
    ...
    trajkit.errors.MissingLibrary: the figures need no_such_library: pip install 'trajkit[figures]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_library(error, what, extra) from error


def missing_library(
    error: ModuleNotFoundError, what: str = "this command needs", extra: str | None = None
) -> MissingLibrary:
    """The line for a library that could not be imported."""
    library = (error.name or "a library").split(".")[0]
    wanted = f"'trajkit[{extra}]'" if extra else DISTRIBUTIONS.get(library, library)
    return MissingLibrary(f"{what} {library}: pip install {wanted}")


DISTRIBUTIONS = {
    "google_crc32c": "google-crc32c",
    "ml_dtypes": "ml-dtypes",
}
"""libraries that are installed under another name"""
