"""Info: what a store holds, as one record."""

from dataclasses import dataclass
from typing import Any

from trajkit.fits.kept import read_fits
from trajkit.store.store import Store


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """A store in numbers."""

    path: str
    codec: str
    keyframes: int
    cast: str | None
    steps: list[int]
    tensors: list[dict[str, Any]]
    elements: dict[str, int]
    """elements a checkpoint, by dtype"""
    raw_bytes: int
    stored_bytes: int
    fits: dict[str, list[int]]
    """training steps of each fit, by name"""


def describe_store(store: Store) -> StoreInfo:
    """What the store holds at its last commit; reads no frames."""
    return StoreInfo(
        path=str(store.path),
        codec=store.commit.codec,
        keyframes=store.commit.keyframes,
        cast=store.commit.cast,
        steps=store.steps.tolist(),
        tensors=[
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape)}
            for t in store.tensors.values()
        ],
        elements={d: v.size for d, v in store.vectors.items()},
        raw_bytes=store.raw_bytes,
        stored_bytes=store.stored_bytes,
        fits={name: list(fit.record.steps) for name, fit in read_fits(store).items()},
    )
