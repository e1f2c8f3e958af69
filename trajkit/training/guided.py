"""The guided jump: the segment's outputs choose among rules for its weights.

The segment's checkpoints go into a store of their own, a line through every element, and guided
extrapolation (:mod:`trajkit.outputs.guide`) writes the weights of ``n`` steps on whose outputs on some
probes are nearest to the extrapolated logits of the segment's two ends. Where no rule is nearer than
staying, there is no jump.
"""

from collections.abc import Sequence
from pathlib import Path

from trajkit.checkpoints.checkpoint import Checkpoint
from trajkit.disk import disk_errors, remove_path
from trajkit.errors import Refused
from trajkit.fits.fit import fit
from trajkit.outputs.guide.guided import extrapolate_guided
from trajkit.store.ingest import ingest
from trajkit.store.store import Store
from trajkit.training.jump import Jump


def jump_guided(
    start: Path, written: Sequence[Checkpoint], first: int, n: float, probes: Path, out: Path
) -> tuple[Jump, str]:
    """Write the weights ``n`` steps after a segment to ``out``, or nothing.

    Args:
        start: folder of the weights before the segment.
        written: its checkpoints.
        first: the trainer's step at ``start``.
        n: training steps to jump.
        probes: JSONL with prompts and responses.
        out: folder to write; what trajkit wrote there before is replaced.

    Returns:
        What was done (its norm is not measured: 0), and the rule chosen or why there is none.

    Raises:
        As :func:`trajkit.ingest`, :func:`trajkit.fit` and
        :func:`trajkit.outputs.guide.guided.extrapolate_guided`; what is half done is taken up again.
    """
    place = out.with_name(f"guided-{out.name}.zarr")
    ingest([f"0={start}", *(f"{c.step - first}={c.root}" for c in written)], place)
    store = Store.open(place)
    elements = sum(vector.size for vector in store.vectors.values())
    fit(store)
    last = written[-1].step - first
    try:
        result = extrapolate_guided(store, [last + round(n)], out, probes, force=True)
        done = Jump(n, result.targets[0].moved, elements, 0.0, 0.0)
        said = str(result.guides[0]["sentence"])
    except Refused as error:
        done, said = Jump(0, 0, elements, 0.0, 0.0), str(error)
    with disk_errors(place):
        remove_path(place)  # made here, of checkpoints that are still there
    return done, said
