"""Metrics of a run beside its movement: the best step by each, and what came after it.

Which metrics are judged is told by their names alone: not learning rates, norms, lengths and the like;
and where a run has a reward, neither its loss nor its KL. The loss of policy gradients is weighted by
advantages that are centred in each batch, so that it says nothing of how good the model is, and KL tells
how far it went. A run without a reward is taken for supervised, and its loss is a goal.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trajkit.checkpoints.metrics import Metrics

_SMALLER_IS_BETTER = ("loss", "error", "perplexity", "ppl", "kl", "wer", "cer")
_NOT_GOALS = (
    *(
        "lr",
        "learning_rate",
        "grad_norm",
        "num_tokens",
        "time",
        "length",
        "std",
        "entropy",
        "ratio",
    ),
    *(
        "runtime",
        "per_second",
        "memory",
        "clip",
        "temperature",
        "batch",
        "flos",
        "frac_reward_zero",
    ),
)
_POLICY = re.compile(r"loss|(^|[^a-z])kl([^a-z]|$)")
FELL = 0.1
"""a metric has fallen when its last third is worse than the best by this part of its whole range"""


@dataclass(frozen=True, slots=True)
class MetricFinding:
    """One metric over the window."""

    name: str
    larger_is_better: bool
    best_step: int
    """where the smoothed curve is best"""
    best: float
    last: float
    """the smoothed curve at its last step"""
    peak_step: int | None
    """the checkpoint after which the metric fell while the weights moved on; None: it did not fall"""
    moved_after: float | None
    """the part of all movement (path length) that came after ``peak_step``"""


def is_goal(name: str) -> bool:
    """Whether a metric says how good the model is, by its name.

    >>> is_goal("reward"), is_goal("eval/accuracy"), is_goal("grad_norm"), is_goal("step_time")
    (True, True, False, False)
    """
    lower = name.lower()
    return not any(word in lower for word in _NOT_GOALS)


def goals_of(names: Iterable[str]) -> tuple[str, ...]:
    """The metrics of a run that say how good its model is; the module has the rule.

    >>> goals_of(["loss", "kl", "lr", "reward"]), goals_of(["loss", "lr", "eval_loss"])
    (('reward',), ('loss', 'eval_loss'))
    """
    goals = [name for name in names if is_goal(name)]
    if any("reward" in name.lower() for name in goals):
        goals = [name for name in goals if not _POLICY.search(name.lower())]
    return tuple(goals)


def prefers_larger(name: str) -> bool:
    """Whether more of a metric is better, by its name.

    >>> prefers_larger("reward"), prefers_larger("eval_loss")
    (True, False)
    """
    return not any(word in name.lower().replace("-", "_") for word in _SMALLER_IS_BETTER)


def smooth(values: Sequence[float]) -> list[float]:
    """The centred running mean over a tenth of the points, three at least; fewer at the ends."""
    half = max(len(values) // 20, 1)
    return [float(np.mean(values[max(i - half, 0) : i + half + 1])) for i in range(len(values))]


def judge_metric(
    name: str,
    curve: Sequence[tuple[int, float]],
    steps: Sequence[int],
    speed: Sequence[float],
) -> MetricFinding | None:
    """What one metric says of the window; None with fewer than three values inside.

    Args:
        name: of the metric, which tells whether more is better.
        curve: (training step, value), ascending.
        steps: training steps of the checkpoints looked at, [A].
        speed: movement a training step between them, [A - 1].

    >>> curve = [(s, 1 - abs(s - 40) / 60) for s in range(0, 101, 5)]
    >>> found = judge_metric("reward", curve, range(0, 101, 10), [1.0] * 10)
    >>> found.best_step, found.peak_step, round(found.moved_after, 2)
    (40, 40, 0.6)
    """
    inside = [(s, v) for s, v in curve if steps[0] <= s <= steps[-1]]
    if len(inside) < 3:
        return None
    larger = prefers_larger(name)
    values = np.array(smooth([v for _, v in inside])) * (1 if larger else -1)
    best = int(values.argmax())
    best_step = inside[best][0]
    after = values[best:]
    spread = float(values.max() - values.min())
    fell = len(after) >= 3 and values[best] - float(after[len(after) // 3 :].mean()) > FELL * spread
    peak = moved = None
    if fell and spread > 0:
        peak = int(min(steps, key=lambda s: (abs(s - best_step), s)))
        path = np.asarray(speed) * np.diff(np.asarray(steps, np.float64))
        moved = (
            float(path[np.asarray(steps[:-1]) >= peak].sum() / path.sum()) if path.sum() else None
        )
        if not moved:
            peak = moved = None
    sign = 1 if larger else -1
    return MetricFinding(
        name, larger, best_step, sign * float(values[best]), sign * float(values[-1]), peak, moved
    )


def judge_metrics(
    metrics: Metrics, steps: Sequence[int], speed: Sequence[float]
) -> tuple[MetricFinding, ...]:
    """The metrics that say how good the model is (:func:`goals_of`); rewards and accuracies first."""
    found = [judge_metric(n, metrics.curves[n], steps, speed) for n in goals_of(metrics.curves)]
    order = ("reward", "accuracy", "acc", "score", "p_correct", "loss")
    known = [f for f in found if f is not None]
    return tuple(sorted(known, key=lambda f: (_rank(f.name, order), len(f.name), f.name)))


def _rank(name: str, order: Sequence[str]) -> int:
    return next((i for i, word in enumerate(order) if word in name.lower()), len(order))
