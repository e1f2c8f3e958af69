"""The errors trajkit raises, as a tree by what a handler would do.

Every message is one line: which thing (path, tensor, step), what was expected, what was found,
what to do. The library raises; the command line prints the line and exits 1.
"""


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


class Locked(TrajkitError, BlockingIOError):
    """Another writer holds the store."""


class StorageError(TrajkitError, OSError):
    """The disk refused: full, read-only, or gone; what was committed is intact."""


# FileNotFoundError and friends print their arguments as a tuple when given an errno; trajkit always
# passes one text, so ``str(error)`` is the line itself.
