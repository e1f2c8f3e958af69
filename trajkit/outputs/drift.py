"""How far the outputs of a run have moved, checkpoint by checkpoint."""

from dataclasses import dataclass

import numpy as np

from trajkit.arrays import Array
from trajkit.outputs.kept import Outputs


@dataclass(frozen=True, slots=True)
class Drift:
    """One checkpoint against the first one and the one before; means over response tokens."""

    step: int
    kl_to_base: float
    """KL(this || base), nats a token, over the whole next-token distribution"""
    kl_from_base: float
    """KL(base || this)"""
    kl_to_before: float
    """KL(this || the step before)"""
    k3_to_base: float
    """estimate of KL(base || this) from the tokens alone, where the base model sampled them"""
    k3_to_before: float
    change_to_base: float
    """mean |Δ log p|"""
    change_to_before: float
    entropy: float
    """mean, nats"""
    argmax_changed_to_base: float
    """share of tokens whose likeliest token is another"""
    argmax_changed_to_before: float
    mean_log_p: float


def measure_drift(outputs: Outputs) -> list[Drift]:
    """The drift of every checkpoint scored, in the order of the steps.

    Raises:
        FormatError: the outputs are damaged.

    Memory: three rows of each array.
    """
    found: list[Drift] = []
    base = before = None
    for t, (step, kl) in enumerate(
        zip(outputs.record.steps, outputs.record.divergences, strict=True)
    ):
        now = outputs.row("log_p", t), outputs.row("argmax", t)
        base = base or now
        before = before or now
        found.append(
            Drift(
                step=step,
                kl_to_base=kl["to_base"],
                kl_from_base=kl["from_base"],
                kl_to_before=kl["to_before"],
                k3_to_base=estimate_k3(now[0], base[0]),
                k3_to_before=estimate_k3(now[0], before[0]),
                change_to_base=_mean_change(now[0], base[0]),
                change_to_before=_mean_change(now[0], before[0]),
                entropy=float(outputs.row("entropy", t).mean(dtype=np.float64)),
                argmax_changed_to_base=float(np.mean(now[1] != base[1])),
                argmax_changed_to_before=float(np.mean(now[1] != before[1])),
                mean_log_p=float(now[0].mean(dtype=np.float64)),
            )
        )
        before = now
    return found


def estimate_k3(log_p_N: Array, reference_N: Array) -> float:
    """Mean of r - 1 - log r with r = p / p_reference of the tokens that are there.

    An unbiased estimate of KL(reference || p) where the reference model sampled the tokens
    (Schulman, "Approximating KL divergence", 2020); never below 0.

    >>> estimate_k3(np.log([0.5, 0.5]), np.log([0.5, 0.5]))
    0.0
    """
    log_r = log_p_N.astype(np.float64) - reference_N
    return float(np.mean(np.expm1(log_r) - log_r))


def _mean_change(a_N: Array, b_N: Array) -> float:
    return float(np.abs(a_N.astype(np.float64) - b_N).mean())
