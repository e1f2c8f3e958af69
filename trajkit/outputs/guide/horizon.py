"""``--steps auto``: the furthest target that the outputs still bear out."""

from collections.abc import Sequence
from dataclasses import dataclass

from trajkit.errors import InvalidInput, Refused
from trajkit.outputs.guide.choice import Guide, Guided

WINDOWS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""targets that are looked at, in windows beyond the last checkpoint"""
DEFAULT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Horizon:
    """The target taken, and those that were looked at on the way."""

    share: float
    """the most that KL of the choice may be of that of holding, on the probes that choose"""
    looked_at: tuple[tuple[int, float], ...]
    """(training step, share) of each target, ascending"""
    chosen: Guided

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        step = self.chosen.step
        end = " (as far as is looked)" if step == self.looked_at[-1][0] else ""
        return (
            f"step {step:,} is the furthest of the targets looked at{end} where the KL of the rule "
            f"chosen is at most {self.share:g} of that of holding: {self.chosen.share:.2f}"
        )


def find_horizon(guide: Guide, share: float = DEFAULT_SHARE) -> Horizon:
    """The furthest target whose KL is at most ``share`` of that of holding.

    Targets are :data:`WINDOWS` beyond the last checkpoint. The share is taken to grow with the
    horizon, so that they are halved, not gone through. It is measured on the probes that choose;
    those that judge have no part in it.

    Raises:
        InvalidInput: ``share`` is not between 0 and 1. Refused: even the nearest target is above it.
    """
    if not 0 < share <= 1:
        raise InvalidInput(f"the share of holding's KL must lie in (0, 1], not {share}")
    first, last = guide.trials.points
    steps = sorted({last + max(round(w * (last - first)), 1) for w in WINDOWS})
    found: dict[int, Guided] = {}
    low, high = -1, len(steps)  # steps[low] is within the share, steps[high] is not
    while high - low > 1:
        middle = low + max((high - low) // 2, 1)
        guided = found[steps[middle]] = guide.choose(steps[middle])
        within = guided.share <= share and guided.refusal is None
        low, high = (middle, high) if within else (low, middle)
    looked_at = tuple((step, found[step].share) for step in sorted(found))
    if low < 0:
        step, least = looked_at[0]
        if found[step].refusal is not None:
            raise Refused(f"even at step {step}: {found[step].refusal}; nothing was written")
        raise Refused(
            f"even at step {step} the outputs of the best rule are {least:.2f} of holding's KL from "
            f"the extrapolated logits, and {share:g} is the most allowed (--guide-share); nothing was "
            "written"
        )
    return Horizon(share, looked_at, found[steps[low]])


def as_json(horizon: Horizon) -> dict[str, object]:
    """What stands beside the target's search in ``trajkit.json``."""
    looked: Sequence[dict[str, object]] = [
        {"step": step, "share": share} for step, share in horizon.looked_at
    ]
    return {"share": horizon.share, "looked_at": looked, "sentence": horizon.sentence}
