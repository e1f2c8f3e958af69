"""What happens to each tensor of an extrapolated checkpoint: rules by name pattern.

    extrapolate   the estimator moves what its gate lets through (the default)
    hold          the gate is shut: the last checkpoint's bits, counted as held
    copy          left out of the extrapolation: the last checkpoint's bits, counted as copied

``hold`` and ``copy`` write the same bits, those of the last checkpoint of the window; they differ
in what the counts say. Copied tensors were never meant to move (normalisation, as in arXiv
2601.04537, and integers, to which no line is fitted); held ones were, and were kept.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from trajkit.checkpoints.layout import TensorInfo
from trajkit.errors import InvalidInput

RULES = ("extrapolate", "hold", "copy")
COPIED = ("*norm*", "ln_*", "*.ln_*", "*.ln[0-9].*")
"""names of normalisation layers, whatever their case; GPT-2 calls them ln_1 and ln_f"""


def is_copied(name: str) -> bool:
    """Whether a tensor is copied from the last checkpoint by default.

    >>> is_copied("model.layers.0.input_layernorm.weight"), is_copied("model.embed_tokens.weight")
    (True, False)
    """
    return any(fnmatchcase(name.lower(), pattern) for pattern in COPIED)


def parse_rule(text: str) -> tuple[str, str]:
    """The pattern and the rule in ``PATTERN=RULE``.

    Raises:
        InvalidInput: no pattern, or no such rule.

    >>> parse_rule("*.mlp.*=hold")
    ('*.mlp.*', 'hold')
    """
    pattern, equals, rule = text.rpartition("=")
    if not equals or not pattern or rule not in RULES:
        raise InvalidInput(
            f"not a tensor rule: {text!r}; write PATTERN=RULE with a rule of {', '.join(RULES)}, "
            "such as '*.mlp.*=hold'"
        )
    return pattern, rule


def assign_rules(
    tensors: Mapping[str, TensorInfo],
    rules: Sequence[tuple[str, str]],
    fitted: Sequence[str],
    tied: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The rule of every tensor, by name.

    Args:
        tensors: the store's, by name.
        rules: (pattern, rule) pairs; where several match, the last one holds. They come after the
            default, which copies normalisation tensors.
        fitted: dtypes that an estimator can move; tensors of any other are copied, whatever a rule
            says.
        tied: names that the files have for tensors of the store, for the message.

    Raises:
        InvalidInput: a pattern matches no tensor.
    """
    assigned = {name: "copy" if is_copied(name) else "extrapolate" for name in tensors}
    for pattern, rule in rules:
        parse_rule(f"{pattern}={rule}")
        matched = [name for name in tensors if fnmatchcase(name, pattern)]
        if not matched:
            raise InvalidInput(_nothing_matches(pattern, tensors, tied or {}))
        assigned |= dict.fromkeys(matched, rule)
    for name, info in tensors.items():
        if info.dtype not in fitted:
            assigned[name] = "copy"
    return assigned


def assign_factors(rules: Mapping[str, str], factors: Mapping[str, float]) -> dict[str, float]:
    """The factors of tensors that are extrapolated, by name; those of factor 1 are left out.

    Args:
        rules: of every tensor, by name.
        factors: by pattern, whatever the case of names; where several match, the last one holds.

    >>> assign_factors({"a.mlp": "extrapolate", "a.norm": "copy"}, {"*": 0.5, "*.mlp": 2.0})
    {'a.mlp': 2.0}
    """
    found: dict[str, float] = {}
    for pattern, factor in factors.items():
        matched = (n for n, rule in rules.items() if rule == "extrapolate")
        found |= {n: float(factor) for n in matched if fnmatchcase(n.lower(), pattern)}
    return {name: factor for name, factor in found.items() if factor != 1}


def _nothing_matches(
    pattern: str, tensors: Mapping[str, TensorInfo], tied: Mapping[str, str]
) -> str:
    for alias, name in tied.items():
        if fnmatchcase(alias, pattern):
            return f"no tensor matches {pattern!r}: {alias} is tied to {name}; name that one"
    example = next((n for n in tensors if not is_copied(n)), next(iter(tensors), "none"))
    return (
        f"no tensor matches {pattern!r}; names are whole, as in {example!r}, and * stands for any "
        "characters"
    )
