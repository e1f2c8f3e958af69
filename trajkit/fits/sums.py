"""Sums that are kept, and the fit that goes on from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trajkit.errors import FormatError, NotFound, Unsupported
from trajkit.fits.arrays import sums_arrays
from trajkit.fits.kept import Fit, read_fit
from trajkit.fits.window import Window, window_digest
from trajkit.kernels.state import SUMS_SCALARS, SUMS_VERSION
from trajkit.store.store import Store

KEEP_SUMS_FRAMES = 256
"""windows of so many checkpoints keep their sums: below, reading the frames again costs less"""


@dataclass(frozen=True, slots=True)
class KeptSums:
    """Sums in the store of the first checkpoints of a window, to go on from."""

    path: Path
    """the folder of the arrays of the fit that kept them"""
    n_frames: int
    """checkpoints in them"""
    scalars: Mapping[str, Mapping[str, float]]
    """what the arrays of each dtype are about: ``Sums.scalars``"""


def find_prior(
    store: Store, name: str, window: Window, paper: bool, tell: Callable[[str], None]
) -> KeptSums | None:
    """The sums kept by the fit of that name, where this window goes on from its own.

    To be called under the store's lock. Sums of other checkpoints, of another version of the
    kernels, or that count distinct values otherwise (``paper``) are passed over; damaged ones too,
    and ``tell`` gets a line that says so.
    """
    try:
        prior = read_fit(store, name)
    except NotFound:
        return None
    except (FormatError, Unsupported) as error:
        tell(f"{error}; reading all checkpoints")
        return None
    record = prior.record
    n_frames = len(record.steps)
    if (
        record.found.sums is None
        or record.found.sums_version != SUMS_VERSION
        or n_frames > window.n_frames
    ):
        return None
    if (record.found.paper is not None) != paper:
        return None
    begun = replace(window, stop=window.first + n_frames)
    if record.steps != window.axis.steps[:n_frames]:
        return None
    if record.frames_digest != window_digest(store, begun):
        return None
    fault = _find_fault(prior) or _find_odd_scalars(prior)
    if fault is not None:
        tell(f"{fault}: the sums that fit {name!r} kept are damaged; reading all checkpoints")
        return None
    return KeptSums(prior.folder, n_frames, record.found.sums)


def _find_fault(fit: Fit) -> Path | None:
    """The first array that a later fit would go on from and that is not as it was written."""
    for dtype, arrays in fit.arrays.items():
        needed = {"last": arrays["last"], **sums_arrays(fit.folder, fit.store.vectors[dtype])}
        for array in needed.values():
            place = array.path.relative_to(fit.folder).as_posix()
            try:
                if array.row_digest() != fit.record.found.digests.get(place):
                    return array.path
            except (OSError, FormatError):
                return array.path
    return None


def _find_odd_scalars(fit: Fit) -> str | None:
    """A line where the scalars of kept sums are not those of the fit's own steps."""
    steps = fit.record.steps
    of_steps = {"count": len(steps), "x_first": steps[0], "x_last": steps[-1]}
    for dtype in fit.record.asked.dtypes:
        kept = (fit.record.found.sums or {}).get(dtype)
        scalars = kept if isinstance(kept, Mapping) else {}
        numeric = all(type(scalars.get(name)) in (int, float) for name in SUMS_SCALARS)
        if (
            not numeric
            or not scalars["x_unit"] > 0
            or any(scalars[name] != value for name, value in of_steps.items())
        ):
            return f"{fit.path}: the scalars of the {dtype} sums are not those of its steps"
    return None
