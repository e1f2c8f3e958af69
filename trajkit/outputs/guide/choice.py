"""The search for one target: rules scored on some probes, the best one judged on others."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trajkit.defaults import DEFAULT_FIT, DEFAULT_MEMORY_BYTES
from trajkit.errors import InvalidInput, Mismatch
from trajkit.fits.kept import Fit
from trajkit.outputs.batching import make_batches
from trajkit.outputs.distances import MOST_PLACES
from trajkit.outputs.guide.candidates import ANCHORED, HOLD, TWO_POINT, GuideRule, make_grid
from trajkit.outputs.guide.parts import split_probes
from trajkit.outputs.guide.plan import CURVE, GuidePlan, plan_forwards
from trajkit.outputs.guide.reference import (
    Part,
    extrapolate_logits,
    kl_from,
    make_part,
    read_logits,
    row_kls,
)
from trajkit.outputs.guide.search import (
    count_family_forwards,
    refine_families,
    search_rules,
)
from trajkit.outputs.guide.trials import Trials
from trajkit.outputs.libraries import torch
from trajkit.outputs.models import load_tokenizer, read_config
from trajkit.outputs.probes import Probe, read_probes, tokenizer_digest
from trajkit.outputs.sampling import context_of
from trajkit.outputs.weights import StoredWeights
from trajkit.progress import Advanced, Finished, Progress, Started, silent
from trajkit.store.tensors import Source
from trajkit.text import parse_bytes

DEPTHS = ("rules", "families")
BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class KLs:
    """Mean KL(reference || rule) on one part of the probes, nats a response token."""

    chosen: float
    hold: float
    anchored: float | None
    """None where it was not among the rules"""
    two_point: float | None


@dataclass(frozen=True, slots=True)
class Guided:
    """What the outputs chose for one target, and how it did on probes that did not choose it."""

    step: int
    horizon: int
    """training steps beyond the last checkpoint used"""
    window: tuple[int, int]
    """training steps of the first and the last checkpoint used"""
    rule: str
    kl: float
    """KL(reference || the rule's outputs), nats a token, as all four: on probes that did not choose"""
    kl_hold: float
    kl_anchored: float
    kl_two_point: float
    choosing: KLs
    """the same on the probes that chose"""
    noise: float
    """mean |KL| between the reference and the same made a second time: what means nothing"""
    candidates: tuple[dict[str, Any], ...]
    """every rule tried, ``rule`` and ``kl``, by its KL on the probes that chose, best first"""
    curve: tuple[dict[str, Any], ...]
    """``horizon`` and ``kl`` of the rules that are compared, at other horizons; it judges, too"""
    forwards: int
    """of the model, this target's and the reference's"""
    probes: int
    probes_digest: str
    """which they were: of their tokens and the tokenizer"""
    tokens: int
    """response tokens whose distributions are compared, all parts together"""
    chosen: GuideRule
    """the rule as a value"""
    refusal: str | None
    """why nothing should be written; None where the rule beats holding"""

    @property
    def share(self) -> float:
        """KL of the choice over that of holding, on the probes that chose."""
        return self.choosing.chosen / self.choosing.hold if self.choosing.hold > 0 else 1.0

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        first, last = self.window
        rank = f"of {len(self.candidates)} rules {self.rule} came closest"
        return (
            f"{rank} to the logits of steps {first:,} and {last:,} extrapolated to step "
            f"{self.step:,}: KL {self.kl:.3g} nats a token on probes that did not choose it, where "
            f"holding step {last:,} has {self.kl_hold:.3g}, anchored {self.kl_anchored:.3g} and "
            f"two-point {self.kl_two_point:.3g}; no reward, no gradient and no later checkpoint was "
            "looked at"
        )

    @property
    def options(self) -> dict[str, Any]:
        """The rule for :func:`trajkit.extrapolate`, :func:`trajkit.load_model` and the like."""
        return self.chosen.options

    def as_json(self) -> dict[str, Any]:
        """All of it, JSON types."""
        found = asdict(self)
        found["chosen"] = self.options
        return {**found, "sentence": self.sentence}

    @property
    def record(self) -> dict[str, Any]:
        """What stands in ``trajkit.json``: all but the lists."""
        left_out = ("candidates", "curve", "chosen", "refusal")
        found = {k: v for k, v in self.as_json().items() if k not in left_out}
        return {**found, "rules_tried": len(self.candidates)}


class Guide:
    """Searches for any number of targets with one model and one set of probes.

    Args:
        traj: the run.
        probes: JSONL with prompts and responses (:mod:`trajkit.outputs.probes`); the responses may be
            the model's own.
        fit: which fit; its window's first and last checkpoint give the reference.
        depth: ``rules``: gates and dampings; ``families``: factors a module family after that.
        budget: forwards for one target, at most (default: as many as it takes).
        rules: what is tried (default: :func:`trajkit.outputs.guide.candidates.make_grid`).
        dtype: of the model's parameters (default: float32 on the CPU, else the checkpoints' own).
        device: of the arithmetic on weights, as :func:`trajkit.extrapolate` has it.
        model_device: of the model, as torch names it.
        batch_tokens: ids a batch, padding included.
        places: most response tokens whose distributions are compared, a part.
        split_seed: of the parting of the probes.
        memory: budget; half of it for distributions, a quarter for the fit's copy, a quarter for what
            is evaluated; model and batch come on top.
        progress: receives :mod:`trajkit.progress` events, in forwards.
        options: of :func:`trajkit.extrapolate`: ``tensors``, ``rounding``, ``seed``.

    Raises:
        NotFound, InvalidInput, Mismatch, Unsupported: as :func:`trajkit.load_model` and
            :func:`trajkit.extrapolate`; too few probes, or a budget of too few forwards.
    """

    def __init__(
        self,
        traj: Source,
        probes: str | Path,
        *,
        fit: str | Fit = DEFAULT_FIT,
        depth: str = "rules",
        budget: int | None = None,
        rules: Sequence[GuideRule] | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        model_device: str = "cpu",
        batch_tokens: int = BATCH_TOKENS,
        places: int = 4 * MOST_PLACES,
        split_seed: int = 0,
        memory: str | int = DEFAULT_MEMORY_BYTES,
        progress: Progress = silent,
        **options: Any,
    ) -> None:
        if depth not in DEPTHS:
            raise InvalidInput(f"unknown guide depth {depth!r}: choose from {', '.join(DEPTHS)}")
        budget_bytes = parse_bytes(memory)
        self.trials = Trials(
            traj, {"fit": fit, "device": device, **options}, budget_bytes // 4, budget_bytes // 4
        )
        self.dtype = dtype or ("float32" if model_device == "cpu" else None)
        self.device = model_device
        self.progress = progress
        self.depth = depth
        self.rules = tuple(rules or make_grid(with_t=self.trials.keeps_t))
        first, last = self.trials.points
        if first >= last:
            raise InvalidInput(
                "a guide extrapolates the logits of two checkpoints; the fit has one"
            )
        source = StoredWeights(self.trials.store, last)
        tokenizer, config = load_tokenizer(source), read_config(source)
        vocabulary = int(config.get_text_config().vocab_size)
        found = read_probes(probes, tokenizer, context=context_of(config), vocabulary=vocabulary)
        self.n_probes = len(found)
        self.probes_digest = _digest(found, tokenizer_digest(tokenizer))
        n_parts = 3 if depth == "families" else 2
        budget_a_part = budget_bytes // 2 // n_parts
        split = split_probes(found, n_parts, split_seed)
        self.parts: tuple[Part, ...] = tuple(
            make_part(part, batch_tokens, vocabulary, budget_a_part, places) for part in split
        )
        self._batch_tokens = batch_tokens
        families = self.trials.families if depth == "families" else ()
        self._forwards = plan_forwards(
            sum(rule != HOLD for rule in self.rules),
            count_family_forwards(families),
            budget,
            n_parts,
        )
        self._ends: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._again: tuple[torch.Tensor, torch.Tensor] | None = None
        self.forwards = 0
        """done so far"""

    @property
    def plan(self) -> GuidePlan:
        """What a search will take."""
        return GuidePlan(
            *self._forwards,
            probes=self.n_probes,
            tokens=sum(part.tokens for part in self.parts),
            places=sum(len(part.places) for part in self.parts),
            responses=sum(len(p.response_ids) for part in self.parts for p in part.probes),
            fit_bytes=self.trials.held_bytes,
            fit_in_memory=self.trials.is_held,
        )

    def choose(self, step: int) -> Guided:
        """Search for one target.

        Raises:
            InvalidInput: the target is not beyond the window. Mismatch: the checkpoints are not the
                model's, or its outputs are no numbers.
        """
        first, last = self.trials.points
        if step <= last:
            raise InvalidInput(
                f"step {step} is not beyond step {last}, the last one used: there is nothing to guide"
            )
        before, target = self.forwards, _Target(self, step)
        shared = 0 if self._ends else self._forwards[0]
        total = shared + sum(self._forwards[1:])
        self.progress(Started(f"guide to step {step}", total, "forwards"))
        self._read_ends()
        reference = self._forwards[0]
        tried = search_rules(target.choosing, self.rules, self._forwards[1])
        best = min(tried, key=lambda t: t.kl)
        if self.depth == "families":
            best, more = refine_families(
                best, self.trials.families, target.choosing, target.agreeing, self._forwards[2]
            )
            tried += more
        judged = {rule: target.judging(rule) for rule in (best.rule, HOLD, ANCHORED, TWO_POINT)}
        noise = self._measure_noise(step)
        curve = self._draw_curve(step, best.rule) if self._forwards[4] else []
        known = {t.rule: t.kl for t in tried}
        hold = target.choosing(HOLD)
        self.progress(Finished(f"{self.forwards - before} forwards, {best.rule.name}"))
        return Guided(
            step=step,
            horizon=step - last,
            window=(first, last),
            rule=best.rule.name,
            kl=judged[best.rule],
            kl_hold=judged[HOLD],
            kl_anchored=judged[ANCHORED],
            kl_two_point=judged[TWO_POINT],
            choosing=KLs(best.kl, hold, known.get(ANCHORED), known.get(TWO_POINT)),
            noise=noise,
            candidates=tuple(
                {"rule": t.rule.name, "kl": t.kl} for t in sorted(tried, key=lambda t: t.kl)
            ),
            curve=tuple(curve),
            forwards=self.forwards - before + (0 if shared else reference),
            probes=self.n_probes,
            probes_digest=self.probes_digest,
            tokens=sum(len(part.places) for part in self.parts),
            chosen=best.rule,
            refusal=_refuse(best.rule, judged[best.rule], judged[HOLD], noise, last),
        )

    def alpha(self, step: int) -> float:
        """What the difference of the two checkpoints' logits is multiplied by."""
        first, last = self.trials.points
        return (step - first) / (last - first)

    def kl(self, rule: GuideRule, step: int, i: int, reference: "torch.Tensor") -> float:
        """KL(reference || the rule's outputs) on part i: a forward, but for holding."""
        if rule == HOLD:
            found = float(row_kls(reference, self._ends[i][1]).mean())
        else:
            self.trials.load(rule, step)
            found = kl_from(self.trials.model, self.parts[i], reference)
            self._count()
        if found != found:
            raise Mismatch(f"step {step} by {rule.name}: the model's outputs are not numbers")
        return found

    def reference(self, step: int, i: int) -> "torch.Tensor":
        """Log-probabilities of the extrapolated logits on part i, float32 [M, V]."""
        return extrapolate_logits(*self._ends[i], self.alpha(step))

    def _count(self) -> None:
        self.forwards += 1
        self.progress(Advanced(1))

    def _read_ends(self) -> None:
        """The logits of the first and the last checkpoint, on every part; again on the last part."""
        if self._ends:
            return
        self.trials.open_model(self.dtype, self.device)
        judge = self.parts[-1]
        halves = make_batches(judge.probes, max(self._batch_tokens // 2, 1))
        found: list[list[torch.Tensor]] = []
        for step in self.trials.points:
            self.trials.load_step(step)
            found.append([])
            for part, batches in (*((part, part.batches) for part in self.parts), (judge, halves)):
                found[-1].append(read_logits(self.trials.model, part, batches))
                self._count()
        *self._ends, self._again = zip(found[0], found[1], strict=True)

    def _measure_noise(self, step: int) -> float:
        """Mean |KL| between the reference and that of a second pass, in other batches."""
        assert self._again is not None
        again = extrapolate_logits(*self._again, self.alpha(step))
        return float(row_kls(self.reference(step, len(self.parts) - 1), again).abs().mean())

    def _draw_curve(self, step: int, rule: GuideRule) -> list[dict[str, Any]]:
        """The rules that are compared, at shares of the horizon; each once."""
        last, judge = self.trials.points[1], len(self.parts) - 1
        found = []
        for share in CURVE:
            near = last + max(round(share * (step - last)), 1)
            reference = self.reference(near, judge)
            compared = dict.fromkeys((HOLD, ANCHORED, TWO_POINT, rule))
            kls = {r.name: self.kl(r, near, judge, reference) for r in compared}
            found.append({"horizon": near - last, "kl": kls})
        return found


class _Target:
    """One step's reference on every part, and rules scored against it, each once."""

    def __init__(self, guide: Guide, step: int) -> None:
        self.guide = guide
        self.step = step
        self._references: dict[int, torch.Tensor] = {}
        self._known: dict[tuple[int, GuideRule], float] = {}

    def choosing(self, rule: GuideRule) -> float:
        """KL on the part that chooses."""
        return self._score(0, rule)

    def agreeing(self, rule: GuideRule) -> float:
        """KL on the part that must agree."""
        return self._score(1, rule)

    def judging(self, rule: GuideRule) -> float:
        """KL on the part that judges: the last one."""
        return self._score(len(self.guide.parts) - 1, rule)

    def _score(self, i: int, rule: GuideRule) -> float:
        if i not in self._references:
            self._references[i] = self.guide.reference(self.step, i)
        if (i, rule) not in self._known:
            self._known[i, rule] = self.guide.kl(rule, self.step, i, self._references[i])
        return self._known[i, rule]


def _digest(probes: Sequence[Probe], tokenizer: str) -> str:
    content = repr((tokenizer, [(p.prompt_ids, p.response_ids) for p in probes]))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _refuse(chosen: GuideRule, kl: float, hold: float, noise: float, last: int) -> str | None:
    """Why nothing should be written, if nothing should."""
    if hold <= noise:
        return (
            f"the run moved too little: KL of the extrapolated logits from those of step {last} is "
            f"{hold:.2g} nats a token, and two passes of the same models differ by {noise:.2g}"
        )
    if chosen == HOLD:
        return f"no rule's outputs are nearer to the extrapolated logits than those of step {last}"
    if not kl < hold:
        return (
            f"on the probes that did not choose it, {chosen.name} is no nearer to the extrapolated "
            f"logits than keeping step {last}: KL {kl:.3g} against {hold:.3g}"
        )
    return None
