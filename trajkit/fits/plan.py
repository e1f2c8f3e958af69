"""How much memory a fit takes, decided before it starts."""

from trajkit.checkpoints.layout import FlatVector
from trajkit.parallel import Plan, count_workers, plan_batch

BATCH_FRAMES = 128
"""frames of a chunk decoded into memory at once, where the budget allows"""
_SMALLEST_BATCH = 8
_SCRATCH_ROWS = 2
"""rows that reading needs: coded bytes, and bit planes"""
_STATE_BYTES = 192
"""sums, solution and coded results of one element while a chunk is in work or waits"""


def plan_fit(vector: FlatVector, n_frames: int, budget: int) -> tuple[Plan, int]:
    """Workers and frames a batch within the budget: fewer frames first, then fewer workers.

    Raises:
        OverBudget: one worker with the smallest batch does not fit.
    """

    def bytes_a_worker(batch: int) -> int:
        rows = batch + _SCRATCH_ROWS
        return vector.chunk * (rows * vector.dtype.itemsize + _STATE_BYTES)

    largest, smallest = (min(n_frames, n) for n in (BATCH_FRAMES, _SMALLEST_BATCH))
    return plan_batch("fit", count_workers(), largest, smallest, bytes_a_worker, budget)
