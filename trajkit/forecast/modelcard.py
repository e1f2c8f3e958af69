"""The model card of an extrapolated checkpoint: README.md with the Hub's front matter."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajkit.checkpoints.config import architectures_of
from trajkit.forecast.guidance import Guidance

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def write_card(
    provenance: Mapping[str, Any],
    config: Mapping[str, Any],
    warnings: Sequence[str],
    adapter: Mapping[str, Any] | None = None,
    guide: Guidance | None = None,
) -> str:
    """The card's text.

    Args:
        provenance: the content of ``trajkit.json``.
        config: the model's config.json; may be empty.
        warnings: about this target.
        adapter: the adapter_config.json of a PEFT adapter; None or empty for a whole model.
        guide: what chose the rule, where outputs did.
    """
    target, steps = provenance["target"], provenance["fitted_steps"]
    elements = target["moved"] + target["held"] + target["unchanged_after_rounding"]
    rows = (
        ("target", f"step {target['step']:,}"),
        ("beyond the last checkpoint used", f"{target['horizon']:+,} steps"),
        ("computed from", f"{len(steps)} checkpoints, steps {steps[0]:,} to {steps[-1]:,}"),
        ("estimator", f"`{provenance['estimator']}`{_describe(provenance['parameters'], target)}"),
        *_rows_of_auto(provenance.get("auto")),
        *(() if guide is None else guide.rows),
        ("gate", provenance.get("gate") or _describe_gate(provenance["rsq_threshold"])),
        *_rows_of_cap(provenance.get("max_norm"), target),
        ("elements moved", _share(target["moved"], elements)),
        ("held at their last value", _share(target["held"], elements)),
        ("unchanged after rounding", _share(target["unchanged_after_rounding"], elements)),
    )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    cautions = "".join(f"> {text[0].upper()}{text[1:]}.\n\n" for text in warnings)
    if guide is not None:
        cautions = f"{guide.sentence[0].upper()}{guide.sentence[1:]}.\n\n{cautions}"
    front = "\n".join(_front_matter(config, adapter or {}))
    return f"""---
{front}
---

# Step {target["step"]:,}, extrapolated from steps {steps[0]:,} to {steps[-1]:,}

These weights were not trained. trajkit {provenance["trajkit"]} computed them from checkpoints of a
training run: each element goes on along its path over the training steps, or keeps its last value
([arXiv 2601.04537](https://arxiv.org/abs/2601.04537)).

**They have not been evaluated.** Whether a run's lines go on like this is a property of the run:
compare with the last trained checkpoint before you rely on them.

| | |
|---|---|
{table}

{cautions}`trajkit.json` holds the same, with digests and versions.
"""


def _rows_of_auto(auto: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Why the backtest took this rule."""
    if auto is None:
        return []
    if "horizon_judged" not in auto:
        return [("chosen by", "default: the run has no backtest")]
    ratio, honest = auto["ratio"], auto["honest_ratio"]
    error = "" if ratio is None else f": {ratio:.3f} of the error of keeping the last checkpoint"
    if honest is not None:
        error += f"; rules chosen beforehand: {honest:.3f}"
    judged, trusted = auto["horizon_judged"], auto["trust_horizon"]
    return [
        ("chosen by", f"the run's backtest, `{auto['rule']}` at {judged:,} steps{error}"),
        ("forecasts of this run beat its last checkpoint up to", f"{trusted:,} steps"),
    ]


def _rows_of_cap(max_norm: float | None, target: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The jump's size, where a cap on it was asked for."""
    if max_norm is None:
        return []
    jump, scale = target["relative_norm"], target["scale"]
    what = "within the cap" if scale == 1 else f"scaled by {scale:.3g}"
    return [("norm of the jump over the last checkpoint's", f"{jump:.3g}, {what} of {max_norm:g}")]


def _front_matter(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> list[str]:
    lines = [f"library_name: {'peft' if adapter else 'transformers'}"]
    if any("ForCausalLM" in a or "LMHead" in a for a in architectures_of(config)):
        lines.append("pipeline_tag: text-generation")
    base = adapter.get("base_model_name_or_path") if adapter else config.get("_name_or_path")
    if isinstance(base, str) and _HUB_ID.fullmatch(base) and not Path(base).exists():
        lines.append(f"base_model: {base}")  # a name on the Hub, not a path on the trainer's disk
    return [*lines, "tags:", "- trajkit", "- weight-extrapolation"]


def _describe(parameters: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in parameters.items() if (k, v) != ("rounding", "nearest")}
    if "alpha" in target:
        shown["alpha"] = f"{target['alpha']:g}"
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in shown.items())


def _describe_gate(threshold: float | None) -> str:
    return "none: every element may move" if threshold is None else f"R² above {threshold:g}"


def _share(n: int, of: int) -> str:
    return f"{n:,} of {of:,} ({n / max(of, 1):.1%})"
