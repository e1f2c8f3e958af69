"""Info: what a store holds, as one record."""

from dataclasses import dataclass
from typing import Any

from trajkit.errors import Mismatch, TrajkitError
from trajkit.fits.commit import bytes_of
from trajkit.fits.kept import fit_names, read_fit
from trajkit.fits.window import check_fit_is_current
from trajkit.outputs.check import describe_activations, describe_outputs
from trajkit.store.store import Store


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """A store in numbers."""

    path: str
    codec: str
    keyframes: int | None
    """K, a key frame every K checkpoints; None: by cost"""
    keys: int
    """key frames"""
    cast: str | None
    steps: list[int]
    tensors: list[dict[str, Any]]
    elements: dict[str, int]
    """elements a checkpoint, by dtype"""
    raw_bytes: int
    stored_bytes: int
    density: float | None
    """mean share of elements that change from one checkpoint to the next; None where not kept"""
    fits: dict[str, list[int]]
    """training steps of each fit, by name"""
    fit_bytes: dict[str, int]
    """bytes of each fit's files; ``stored_bytes`` has none of them"""
    stale_fits: list[str]
    """fits of other checkpoints than the store holds now"""
    unreadable_fits: list[str]
    """a line for each fit that cannot be read"""
    outputs: dict[str, dict[str, Any]]
    """steps, tokens and responses of each scored probe set, by name"""
    activations: dict[str, dict[str, Any]]
    """steps, layers and columns of each set of measured layers, by name"""


def describe_store(store: Store) -> StoreInfo:
    """What the store holds at its last commit; reads no frames."""
    fits: dict[str, list[int]] = {}
    unreadable, stale = [], []
    for name in fit_names(store):
        try:
            fit = read_fit(store, name)
            fits[name] = list(fit.record.steps)
            check_fit_is_current(store, fit)
        except Mismatch:
            stale.append(name)
        except TrajkitError as error:
            unreadable.append(str(error))
    return StoreInfo(
        path=str(store.path),
        codec=store.commit.codec,
        keyframes=store.commit.keyframes,
        keys=len(store.keys),
        cast=store.commit.cast,
        steps=store.steps.tolist(),
        tensors=[
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape)}
            for t in store.tensors.values()
        ],
        elements={d: v.size for d, v in store.vectors.items()},
        raw_bytes=store.raw_bytes,
        stored_bytes=store.stored_bytes,
        density=store.commit.density,
        fits=fits,
        fit_bytes={name: bytes_of(store.path / "fits" / name) for name in fits},
        stale_fits=stale,
        unreadable_fits=unreadable,
        outputs=describe_outputs(store),
        activations=describe_activations(store),
    )
