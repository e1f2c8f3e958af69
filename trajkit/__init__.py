"""trajkit: the checkpoints of a training run, kept, fitted and extended.

The names below are the public API (DESIGN.md, section 2). They load on first use, so that
``import trajkit`` and ``trajkit.kernels`` need none of the heavy libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_HOME = {
    "ingest": "trajkit.store.ingest",
    "fit": "trajkit.fits.fit",
    "backtest": "trajkit.evidence.backtest",
    "Backtest": "trajkit.evidence.kept",
    "measure_evidence": "trajkit.evidence.movement",
    "Evidence": "trajkit.evidence.movement",
    "extrapolate": "trajkit.forecast.extrapolate",
    "guide": "trajkit.outputs.guide.guided",
    "extrapolate_guided": "trajkit.outputs.guide.guided",
    "report": "trajkit.reports.report",
    "restore": "trajkit.store.restore",
    "export_deltas": "trajkit.store.export",
    "convert": "trajkit.store.convert",
    "verify": "trajkit.reports.verify",
    "open": "trajkit.trajectory",
    "Trajectory": "trajkit.trajectory",
    "Recorder": "trajkit.training.recorder",
    "LogitsExtrapolation": "trajkit.outputs.logits",
    "load_model": "trajkit.outputs.models",
    "load_weights": "trajkit.outputs.models",
    "reground": "trajkit.training.driver",
    "Fit": "trajkit.fits.kept",
    "TrajkitError": "trajkit.errors",
    "TrajkitWarning": "trajkit.errors",
}

__all__ = [
    "Backtest",
    "Evidence",
    "Fit",
    "LogitsExtrapolation",
    "Recorder",
    "Trajectory",
    "TrajkitError",
    "TrajkitWarning",
    "__version__",
    "backtest",
    "convert",
    "extrapolate",
    "extrapolate_guided",
    "fit",
    "guide",
    "ingest",
    "load_model",
    "load_weights",
    "measure_evidence",
    "open",
    "reground",
    "report",
    "restore",
    "verify",
]

if TYPE_CHECKING:
    from trajkit.errors import TrajkitError as TrajkitError
    from trajkit.errors import TrajkitWarning as TrajkitWarning
    from trajkit.evidence.backtest import backtest as backtest
    from trajkit.evidence.kept import Backtest as Backtest
    from trajkit.evidence.movement import Evidence as Evidence
    from trajkit.evidence.movement import measure_evidence as measure_evidence
    from trajkit.fits.fit import fit as fit
    from trajkit.fits.kept import Fit as Fit
    from trajkit.forecast.extrapolate import extrapolate as extrapolate
    from trajkit.outputs.guide.guided import extrapolate_guided as extrapolate_guided
    from trajkit.outputs.guide.guided import guide as guide
    from trajkit.outputs.logits import LogitsExtrapolation as LogitsExtrapolation
    from trajkit.outputs.models import load_model as load_model
    from trajkit.outputs.models import load_weights as load_weights
    from trajkit.reports.report import report as report
    from trajkit.reports.verify import verify as verify
    from trajkit.store.convert import convert as convert
    from trajkit.store.export import export_deltas as export_deltas
    from trajkit.store.ingest import ingest as ingest
    from trajkit.store.restore import restore as restore
    from trajkit.training.driver import reground as reground
    from trajkit.training.recorder import Recorder as Recorder
    from trajkit.trajectory import Trajectory as Trajectory
    from trajkit.trajectory import open as open  # noqa: A004 - as in zarr.open


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trajkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
