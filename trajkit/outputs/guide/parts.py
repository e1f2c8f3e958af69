"""Probes in parts that share no prompt: those that choose, and those that judge."""

from collections.abc import Sequence

import numpy as np

from trajkit.errors import InvalidInput
from trajkit.outputs.probes import Probe


def split_probes(probes: Sequence[Probe], n_parts: int, seed: int) -> list[list[Probe]]:
    """The probes in parts with about as many response tokens each.

    Responses to one prompt stay together. Prompts are dealt out in a random order, each to the part
    that has the fewest tokens so far. Probes without a response are left out.

    Args:
        probes: the set.
        n_parts: how many parts.
        seed: of the order.

    Raises:
        InvalidInput: fewer prompts with a response than parts.

    >>> a, b = (Probe((i,), (7,), "", "") for i in (1, 2))
    >>> sorted(len(part) for part in split_probes([a, a, b], 2, 0))
    [1, 2]
    """
    by_prompt: dict[tuple[int, ...], list[Probe]] = {}
    for probe in probes:
        if probe.response_ids:
            by_prompt.setdefault(probe.prompt_ids, []).append(probe)
    if len(by_prompt) < n_parts:
        raise InvalidInput(
            f"a guide needs probes of {n_parts} different prompts or more, with a response each: "
            f"some choose and others judge; there are {len(by_prompt)}"
        )
    groups = list(by_prompt.values())
    parts: list[list[Probe]] = [[] for _ in range(n_parts)]
    sizes = [0] * n_parts
    for i in np.random.default_rng(seed).permutation(len(groups)):
        least = int(np.argmin(sizes))
        parts[least] += groups[i]
        sizes[least] += sum(len(p.response_ids) for p in groups[i])
    return parts
