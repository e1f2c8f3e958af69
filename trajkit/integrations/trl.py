"""Callbacks for TRL's trainers and the Hugging Face Trainer."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from trajkit.errors import Unsupported
from trajkit.integrations.recording import RecordCallback as RecordCallback
from trajkit.training.horizon import Horizon
from trajkit.training.ledger import Ledger
from trajkit.training.reground import OptimizerPolicy, Regrounding
from trajkit.training.rules import Rule

LAUNCHED = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
"""set where ``accelerate launch`` was told to, and the trainer's own arguments were not"""


class RegroundCallback(TrainerCallback):
    """Jumps along the run's drift after every segment of real steps.

    TRL brings its rollout engine's weights up to date before the next generation, since the global
    step has moved on; a jump is made only when no sampled responses of the old weights wait.

    Args:
        every: m, real steps of a segment.
        steps: n, steps of a jump.
        rule: ``pooled``, ``two-point`` or ``rsq``, with ``options``; see :mod:`trajkit.training`.
        optimizer: ``keep`` or ``reset`` the optimizer's state at a jump.
        max_norm: cap of a jump's norm over that of the parameters.
        adapt: let the reward change ``steps``, and take jumps back; keeps a copy of the parameters
            and the optimizer's state. Needs ``logging_steps=1``.
        log: a JSONL file that gets a line a jump.

    Raises:
        Unsupported: when training begins, under DeepSpeed or FSDP, whose parameters are in parts.
    """

    def __init__(
        self,
        every: int = 15,
        steps: int = 150,
        rule: str | Rule = "pooled",
        *,
        optimizer: OptimizerPolicy = "keep",
        max_norm: float | None = None,
        adapt: bool = False,
        log: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.every, self.rule, self.policy, self.max_norm = every, rule, optimizer, max_norm
        self.horizon = Horizon(steps, adapt)
        self.ledger = Ledger(log)
        self.options = options
        self.loop: Regrounding | None = None
        self._line: dict[str, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Look at the parameters for the first time."""
        self.loop = Regrounding(
            _parameters_of(given["model"], args),
            self.every,
            self.horizon,
            self.rule,
            optimizer=_inner(given.get("optimizer")),
            policy=self.policy,
            max_norm=self.max_norm,
            ledger=self.ledger,
            **self.options,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take in the step; jump where a segment and the buffered rollouts end."""
        assert self.loop is not None
        self._line = self.loop.after_step(_is_generation_boundary(args, state))
        if self._line is not None:
            control.should_log = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **given: Any
    ) -> None:
        """Note the reward; put what a jump did beside it in the trainer's log."""
        if self.loop is None or logs is None:
            return
        if "reward" in logs:
            self.loop.reward(float(logs["reward"]))
        if self._line is not None:
            shown = {k: v for k, v in self._line.items() if isinstance(v, int | float)}
            told = {f"jump/{name}": float(value) for name, value in shown.items()}
            logs |= told
            if state.log_history:
                state.log_history[-1] |= told
            self._line = None


def _parameters_of(model: Any, args: Any) -> dict[str, Tensor]:
    """The trained parameters by name, whole and on this device."""
    asked = [name for name in ("deepspeed", "fsdp") if getattr(args, name, None)]
    asked += [name for name in LAUNCHED if os.environ.get(name, "false").lower() in ("1", "true")]
    if asked:
        raise Unsupported(
            f"{asked[0]}: jumps need whole parameters, and DeepSpeed or FSDP keeps them, or their "
            "float32 masters, in parts: jump between runs instead, with trajkit reground"
        )
    module = getattr(model, "module", model)
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    wrapped = any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules())
    if wrapped or any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in found.values()):
        raise Unsupported("the model's parameters are in parts: use trajkit reground")
    return found


def _inner(optimizer: Any) -> Any:
    """The optimizer itself, where accelerate has wrapped it."""
    return getattr(optimizer, "optimizer", optimizer)


def _is_generation_boundary(args: Any, state: Any) -> bool:
    """Whether no responses sampled from older weights wait to be trained on."""
    rounds = getattr(args, "steps_per_generation", None) or 1
    rounds *= getattr(args, "num_iterations", None) or 1
    batches = state.global_step * (getattr(args, "gradient_accumulation_steps", None) or 1)
    return bool(batches % rounds == 0)
