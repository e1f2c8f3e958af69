"""Some elements of a chunk, decoded, to see how often they move.

Axis letters: T checkpoints, N elements, M elements looked at.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.kernels.events import Events
from trajkit.stats.movement import Movement, measure_movement

SAMPLED_IN_CHUNK = 2048
SAMPLED_IN_TENSOR = 16384
"""elements looked at, evenly spaced, at most about so many; of a tensor that ends within a chunk at
least half of the first. Each is a memory access far from the last, a frame: a chunk's worth of them
takes as long as the arithmetic of a tenth of the chunk"""

LONG = 64
"""checkpoints from which on a fit from changes looks at fewer elements, so that longer windows cost no
more: at 256 the samples took as long as all else that a chunk needs"""


class Codes(NamedTuple):
    """The coded frames of a chunk."""

    codes_TN: Array
    """unsigned [T, >= N], the first row a key"""
    is_key_T: Array
    """which rows are bits, not deltas"""


def sample_movement(chunk: Codes | Events, where: slice, dtype: str, tensor_size: int) -> Movement:
    """How often the elements of one tensor in a chunk change, from evenly spaced ones.

    Args:
        chunk: its frames, or the bits of its first and the changes since.
        where: the tensor's columns.
        dtype: their format.
        tensor_size: elements of the whole tensor, of which this chunk holds a part.
    """
    size = where.stop - where.start
    sampled = SAMPLED_IN_CHUNK
    if isinstance(chunk, Events):  # of a long window, no more values than of one of 64
        sampled = max(sampled * LONG // max(chunk.n_frames, LONG), 1)
    stride = max(size // sampled, min(tensor_size // SAMPLED_IN_TENSOR, size // 64), 1)
    columns = slice(where.start, where.stop, stride)
    if isinstance(chunk, Events):
        codes_TM, is_key_T = chunk.sampled(columns), np.arange(chunk.n_frames) == 0
    else:
        codes_TM, is_key_T = chunk.codes_TN[:, columns], chunk.is_key_T
    one = codes_TM.dtype.type(1)
    deltas_TM = (codes_TM >> one) ^ (np.zeros_like(codes_TM) - (codes_TM & one))
    bits_TM = np.empty_like(deltas_TM)
    keys = [*np.flatnonzero(is_key_T).tolist(), len(codes_TM)]
    for start, stop in pairwise(keys):
        deltas_TM[start] = codes_TM[start]
        np.cumsum(deltas_TM[start:stop], axis=0, dtype=bits_TM.dtype, out=bits_TM[start:stop])
    wide = np.float64 if dtype == "float64" else np.float32
    with np.errstate(invalid="ignore"):
        values_TM = bits_TM.view(DTYPES[dtype].scalar).astype(wide)
    weight = size / max(bits_TM.shape[1], 1)
    return measure_movement(values_TM, weight)
