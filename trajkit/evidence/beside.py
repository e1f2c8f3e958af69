"""Two runs side by side: whether they drift the same way, module by module.

The drift direction of a run is W_last - W_first over its window. Axis letters: N elements of a piece.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.checkpoints.layout import module_of
from trajkit.errors import Mismatch
from trajkit.kernels import api as kernels
from trajkit.stats.gram import drift_cosine
from trajkit.store.store import Store
from trajkit.store.tensors import read_bits

_PIECE = 1 << 20
"""elements compared at once"""


@dataclass(frozen=True, slots=True)
class Likeness:
    """The directions in which two runs drift."""

    overall: float | None
    """cosine over all common elements; None where one of them did not move"""
    modules: Mapping[str, float | None]
    common: int
    """elements in both"""


def compare_drifts(
    a: Store, steps_a: tuple[int, int], b: Store, steps_b: tuple[int, int]
) -> Likeness:
    """Cosines of two runs' net displacements, of tensors that both have with one shape.

    Args:
        a: a run.
        steps_a: the first and last training step of its window.
        b: the other run.
        steps_b: of its window.

    Raises:
        Mismatch: no floating-point tensor in common. FormatError: a damaged chunk.

    Notes:
        Memory: some pieces of a million elements. Chunks are decoded from their last key frame on.
    """
    sums: dict[str, Array] = {}
    common = 0
    for name, info in a.tensors.items():
        other = b.tensors.get(name)
        is_float = a.vectors[info.dtype].dtype.is_float
        if other is None or other.shape != info.shape or not is_float:
            continue
        common += info.size
        for start in range(0, info.size, _PIECE):
            stop = min(start + _PIECE, info.size)
            one_N = _displacement(a, info, start, stop, steps_a)
            two_N = _displacement(b, other, start, stop, steps_b)
            known_N = np.isfinite(one_N) & np.isfinite(two_N)
            one_N, two_N = one_N[known_N], two_N[known_N]
            part = np.array([one_N @ two_N, one_N @ one_N, two_N @ two_N])
            module = module_of(name)
            sums[module] = sums.get(module, np.zeros(3)) + part
    if not common:
        raise Mismatch(f"{a.path} and {b.path} have no tensor in common")
    total = np.sum(list(sums.values()), axis=0)
    return Likeness(
        drift_cosine(*total.tolist()),
        {module: drift_cosine(*part.tolist()) for module, part in sums.items()},
        common,
    )


def _displacement(store: Store, info: Any, start: int, stop: int, steps: tuple[int, int]) -> Array:
    """W_last - W_first of some elements of a tensor, float64 [N]."""
    first_N, last_N = (
        kernels.values_of(
            read_bits(
                store, info.dtype, info.offset + start, info.offset + stop, store.index_of(s)
            ),
            info.dtype,
        ).astype(np.float64)
        for s in steps
    )
    with np.errstate(invalid="ignore"):
        return np.asarray(last_N - first_N)
