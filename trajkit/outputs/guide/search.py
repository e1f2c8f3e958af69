"""Which rules are tried, in what order: the whole grid, or an axis at a time where it is too long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trajkit.outputs.guide.candidates import COMPARED, FACTORS, HOLD, GuideRule

Score = Callable[[GuideRule], float]
"""the KL of a rule's outputs from the reference, on the probes that choose"""


@dataclass(frozen=True, slots=True)
class Tried:
    """One rule and its KL on the probes that choose."""

    rule: GuideRule
    kl: float


def search_rules(score: Score, rules: Sequence[GuideRule], most: int) -> list[Tried]:
    """Score rules, all of them where that takes no more than ``most`` forwards.

    Where it takes more: those of damping 1, then all dampings of the best one's gate, then all gates of
    the best one's damping, and so on until nothing is left to try beside the best; the forwards that are
    left then go to the rest in its order. ``hold`` takes no forward, and comes first.

    >>> grid = [GuideRule("damped", g, d) for d in (1, 2, 3) for g in ("rsq:0.1", "rsq:0.5")]
    >>> far = lambda rule: abs(rule.damping - 3) + (rule.gate == "rsq:0.1")
    >>> [t.rule.name for t in search_rules(far, grid, 4)][-1]
    'damped 3 rsq:0.5'
    """
    tried: dict[GuideRule, Tried] = {}

    def spent() -> int:
        return sum(rule != HOLD for rule in tried)

    def visit(some: Sequence[GuideRule]) -> bool:
        before = len(tried)
        for rule in some:
            if rule not in tried and (spent() < most or rule == HOLD):
                tried[rule] = Tried(rule, score(rule))
        return len(tried) > before

    visit([rule for rule in rules if rule in COMPARED])
    if sum(rule not in tried for rule in rules) + spent() <= most:
        visit(rules)
        return list(tried.values())
    free = [rule for rule in rules if rule not in COMPARED]
    visit([rule for rule in free if rule.damping == 1])
    while True:
        best = min((t for t in tried.values() if t.rule in free), key=_kl, default=None)
        if best is None:
            break
        gate, damping = best.rule.gate, best.rule.damping
        if not visit([r for r in free if r.gate == gate]) and not visit(
            [r for r in free if r.damping == damping]
        ):
            break
    visit(free)
    return list(tried.values())


def refine_families(
    best: Tried, families: Sequence[str], score: Score, agree: Score, most: int
) -> tuple[Tried, list[Tried]]:
    """Give module families factors of their own, one family after another.

    Of a family's factors the best on the probes that choose is taken, if it is better than the rule so
    far there and on the probes of ``agree`` as well.

    Args:
        best: the rule to start from.
        families: in the order in which they are tried.
        score: KL on the probes that choose.
        agree: KL on other probes, which neither choose nor judge.
        most: forwards that may be spent.

    Returns:
        The rule, and all that were tried.
    """
    tried: list[Tried] = []
    if best.rule.estimator != "damped" or most < 1:
        return best, tried
    agreed, spent = agree(best.rule), 1
    for family in families:
        if spent + len(FACTORS) + 1 > most:
            break
        trials = [best.rule.with_factor(family, factor) for factor in FACTORS]
        found = [Tried(rule, score(rule)) for rule in trials]
        tried += found
        spent += len(found)
        nearest = min(found, key=_kl)
        if nearest.kl < best.kl:
            beside, spent = agree(nearest.rule), spent + 1
            if beside < agreed:
                best, agreed = nearest, beside
    return best, tried


def count_family_forwards(families: Sequence[str]) -> int:
    """The most that :func:`refine_families` takes.

    >>> count_family_forwards(("mlp",))
    7
    """
    return 1 + len(families) * (len(FACTORS) + 1) if families else 0


def _kl(tried: Tried) -> float:
    return tried.kl
