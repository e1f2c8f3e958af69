"""One tensor over all checkpoints, each frame decoded once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trajkit.arrays import DTYPES, Array
from trajkit.checkpoints.layout import TensorInfo
from trajkit.kernels import api as kernels
from trajkit.parallel import count_workers, plan_workers
from trajkit.store.store import Store
from trajkit.text import parse_bytes


def read_history(store: Store, info: TensorInfo, memory: str | int) -> Array:
    """A tensor at every committed step, [T, *shape] of its dtype.

    Raises:
        OverBudget: the answer and a chunk do not fit the budget. FormatError: damage.
    """
    vector = store.vectors[info.dtype]
    n_frames = len(store.steps)
    one = 2 * vector.chunk * vector.dtype.itemsize
    fixed = n_frames * info.size * vector.dtype.itemsize
    plan = plan_workers("history", count_workers(), one, parse_bytes(memory), fixed)
    out_TN = np.empty((n_frames, info.size), vector.dtype.bits)
    chunks = range(info.offset // vector.chunk, -(-info.stop // vector.chunk) if info.size else 0)

    def decode(k: int) -> None:
        lo, hi = vector.chunk_span(k)
        a, b = max(lo, info.offset), min(hi, info.stop)
        bits, codes = (np.empty(vector.chunk, vector.dtype.bits) for _ in range(2))
        for t in range(n_frames):
            if store.is_key(t):
                store.read_codes(info.dtype, t, k, bits)
            else:
                store.read_codes(info.dtype, t, k, codes)
                kernels.decode_frame(codes, bits, bits)
            out_TN[t, a - info.offset : b - info.offset] = bits[a - lo : b - lo]

    with ThreadPoolExecutor(plan.workers) as pool:
        for _ in pool.map(decode, chunks):
            pass
    return out_TN.view(DTYPES[info.dtype].scalar).reshape(n_frames, *info.shape)
