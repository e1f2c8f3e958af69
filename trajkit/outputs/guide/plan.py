"""How many forwards a guide takes: passes of one model over one part of the probes."""

from dataclasses import dataclass

from trajkit.errors import InvalidInput
from trajkit.outputs.guide.candidates import COMPARED, HOLD

CURVE = (0.25, 0.5, 0.75, 1.25, 1.5)
"""shares of the target's horizon at which the rules that are compared are looked at, too"""
_JUDGED = len([rule for rule in COMPARED if rule != HOLD]) + 1
"""rules on the part that judges: those compared, and the one chosen; holding takes no forward"""


@dataclass(frozen=True, slots=True)
class GuidePlan:
    """Forwards, and what they are of."""

    reference: int
    """first and last checkpoint over every part, once; over the part that judges a second time"""
    candidates: int
    """rules over the part that chooses, a target"""
    families: int
    """rules with factors, a target, at most"""
    judging: int
    """a target"""
    curve: int
    """rules at other horizons, a target"""
    probes: int
    tokens: int
    """ids of all probes, prompts included: two parts' forwards, or three's"""
    places: int
    """response tokens whose distributions are compared"""
    responses: int
    """response tokens there are"""
    fit_bytes: int
    """of a copy of the fit"""
    fit_in_memory: bool
    """whether it fits; if not, the fit is read from the store for every rule"""

    def forwards(self, targets: int = 1) -> int:
        """In all, for so many targets."""
        each = self.candidates + self.families + self.judging + self.curve
        return self.reference + targets * each


def plan_forwards(
    n_rules: int, n_families: int, budget: int | None, parts: int
) -> tuple[int, int, int, int, int]:
    """(reference, candidates, families, judging, curve) within a budget for one target.

    Args:
        n_rules: rules to try that take a forward.
        n_families: forwards for families, at most.
        budget: forwards for one target; None for as many as it takes.
        parts: of the probes.

    Raises:
        InvalidInput: the budget is not enough for the reference, one rule and its judgement.

    >>> plan_forwards(62, 0, None, 2)
    (6, 62, 0, 3, 15)
    >>> plan_forwards(62, 0, 40, 2)
    (6, 31, 0, 3, 0)
    """
    reference = 2 * parts + 2
    curve = len(CURVE) * _JUDGED
    if budget is None:
        return reference, n_rules, n_families, _JUDGED, curve
    left = budget - reference - _JUDGED
    if left < 1:
        raise InvalidInput(
            f"a guide takes {reference + _JUDGED + 1} forwards or more, and more rules tried make it "
            f"better; the budget is {budget}"
        )
    families = min(n_families, max(left - 1, 0) // 2)
    candidates = min(n_rules, left - families)
    left -= candidates + families
    return reference, candidates, families, _JUDGED, curve if curve <= left else 0
