"""trajkit: the checkpoints of a training run, kept, fitted and extended.

The names below are the public API (DESIGN.md, section 8). They load on first use, so that
``import trajkit`` and ``trajkit.kernels`` need none of the heavy libraries.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_HOME = {
    "ingest": "trajkit.ingest",
    "fit": "trajkit.fit",
    "extrapolate": "trajkit.extrapolate",
    "report": "trajkit.report",
    "restore": "trajkit.restore",
    "verify": "trajkit.verify",
    "open": "trajkit.trajectory",
    "Trajectory": "trajkit.trajectory",
    "Fit": "trajkit.fits",
    "TrajkitError": "trajkit.errors",
}

__all__ = [
    "Fit",
    "Trajectory",
    "TrajkitError",
    "__version__",
    "extrapolate",
    "fit",
    "ingest",
    "open",
    "report",
    "restore",
    "verify",
]

if TYPE_CHECKING:
    from trajkit.errors import TrajkitError as TrajkitError
    from trajkit.extrapolate import extrapolate as extrapolate
    from trajkit.fit import fit as fit
    from trajkit.fits import Fit as Fit
    from trajkit.ingest import ingest as ingest
    from trajkit.report import report as report
    from trajkit.restore import restore as restore
    from trajkit.trajectory import Trajectory as Trajectory
    from trajkit.trajectory import open as open  # noqa: A004 - as in zarr.open
    from trajkit.verify import verify as verify


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trajkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """A package in which each verb's name is the function, although a module has it too.

    Importing ``trajkit.fit`` makes Python set the package's attribute ``fit`` to the module, at
    whatever moment that happens first; ``trajkit.fit(...)`` must be the call all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and hasattr(value, name):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
