"""The rules that a guide tries: which elements move, and how far; a value each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

RSQ_LEVELS = (0.0, 0.7, 0.9, 0.95, 0.97, 0.985)
T_LEVELS = (2.0, 3.0, 4.0, 5.0)
"""of the drift's |t|; their squares are 4, 9, 16 and 25"""
DAMPINGS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
FACTORS = (0.0, 0.5, 0.75, 1.25, 1.5)
"""what a family's damping is multiplied by, where families are tried one by one"""
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "embeddings": ("*embed*", "*wte*", "*wpe*"),
    "head": ("lm_head*", "*.lm_head*", "*embed_out*"),
    "attention": ("*attn*", "*attention*"),
    "mlp": ("*mlp*", "*ffn*", "*feed_forward*", "*expert*"),
}
"""module families by patterns of lower-case names; of several that match, the last one holds"""


@dataclass(frozen=True, slots=True)
class GuideRule:
    """One rule for a step's weights.

    >>> GuideRule("damped", "t:4", 1.5).name
    'damped 1.5 t:4'
    >>> GuideRule("hold").options
    {'estimator': 'damped', 'damping': 0.0, 'gate': 'none'}
    """

    estimator: str
    """``damped``, ``anchored``, ``two-point``, or ``hold``: every bit of the last checkpoint"""
    gate: str | None = None
    """None: the estimator's own"""
    damping: float = 1.0
    """of ``damped``"""
    factors: tuple[tuple[str, float], ...] = ()
    """(family, what its damping is multiplied by)"""

    @property
    def name(self) -> str:
        """The rule in one line."""
        parts = [self.estimator]
        parts += [f"{self.damping:g}"] if self.estimator == "damped" else []
        parts += [self.gate] if self.gate else []
        return " ".join([*parts, *(f"{family}x{factor:g}" for family, factor in self.factors)])

    @property
    def options(self) -> dict[str, Any]:
        """The same for :func:`trajkit.extrapolate` and :func:`trajkit.load_model`."""
        if self.estimator == "hold":
            return {"estimator": "damped", "damping": 0.0, "gate": "none"}
        found: dict[str, Any] = {"estimator": self.estimator}
        if self.estimator == "damped":
            found["damping"] = self.damping
        if self.gate is not None:
            found["gate"] = self.gate
        if self.factors:
            found["factors"] = {
                pattern: factor for family, factor in self.factors for pattern in FAMILIES[family]
            }
        return found

    def with_factor(self, family: str, factor: float) -> "GuideRule":
        """The rule with another factor for one family.

        >>> GuideRule("damped").with_factor("mlp", 0.5).with_factor("mlp", 2).factors
        (('mlp', 2),)
        """
        others = {name: f for name, f in self.factors if name != family}
        factors = {**others, family: factor}
        ordered = ((name, factors[name]) for name in FAMILIES if name in factors)
        return replace(self, factors=tuple(ordered))


HOLD = GuideRule("hold")
ANCHORED = GuideRule("anchored")
TWO_POINT = GuideRule("two-point")
COMPARED = (HOLD, ANCHORED, TWO_POINT)
"""rules that stand beside the one chosen, on both parts of the probes"""


def make_grid(*, with_t: bool = True) -> tuple[GuideRule, ...]:
    """Every gate at every damping, after the rules that are compared.

    Args:
        with_t: whether the fit keeps the drift's t.

    >>> len(make_grid())
    63
    """
    gates = [f"rsq:{level:g}" for level in RSQ_LEVELS]
    gates += [f"t:{level:g}" for level in T_LEVELS] if with_t else []
    grid = (GuideRule("damped", gate, damping) for damping in _order(DAMPINGS) for gate in gates)
    return (*COMPARED, *grid)


def families_of(names: Iterable[str]) -> tuple[str, ...]:
    """The families that a model's extrapolated tensors are of.

    >>> families_of(["model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
    ('head', 'mlp')
    """
    found = {family for name in names if (family := family_of(name)) is not None}
    return tuple(family for family in FAMILIES if family in found)


def family_of(name: str) -> str | None:
    """The family of one tensor; None where no pattern matches."""
    found = None
    for family, patterns in FAMILIES.items():
        if any(fnmatchcase(name.lower(), pattern) for pattern in patterns):
            found = family
    return found


def _order(dampings: Sequence[float]) -> list[float]:
    """The undamped first, then by distance from it."""
    return sorted(dampings, key=lambda d: (abs(d - 1), d))
