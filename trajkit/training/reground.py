"""m real steps, then a jump, and again: the state of the loop between a trainer's steps.

The trainer calls :meth:`Regrounding.after_step` after each optimizer step; at the end of a segment
the last jump is judged by the rewards since, perhaps taken back, and the next one made.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from torch import Tensor

from trajkit.errors import InvalidInput
from trajkit.training.horizon import Horizon
from trajkit.training.jump import Snapshot, jump, movable
from trajkit.training.ledger import Ledger
from trajkit.training.rules import Rule, make_rule

OptimizerPolicy = Literal["keep", "reset"]


class Regrounding:
    """Periodic re-grounding of the parameters of a run.

    Args:
        parameters: the trained parameters, by name; moved in place.
        every: m, real steps of a segment.
        horizon: n, steps of a jump; see :class:`Horizon`.
        rule: name of the rule (``pooled``, ``two-point``, ``rsq``), or one made already.
        optimizer: the run's optimizer, whose state is kept with a snapshot, or reset.
        policy: what happens to the optimizer's state at a jump.
        max_norm: cap of a jump's norm over that of the parameters.
        ledger: takes a line for each jump.
        options: of the rule.

    Raises:
        InvalidInput: no parameter that may move, a segment without steps, an unknown rule.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        every: int,
        horizon: Horizon,
        rule: str | Rule = "pooled",
        *,
        optimizer: Any | None = None,
        policy: OptimizerPolicy = "keep",
        max_norm: float | None = None,
        ledger: Ledger | None = None,
        **options: Any,
    ) -> None:
        if every < 1:
            raise InvalidInput(f"a segment has one real step or more, not {every}")
        if policy not in ("keep", "reset"):
            raise InvalidInput(f"the optimizer's state is kept or reset, not {policy!r}")
        self.parameters = movable(parameters)
        if not self.parameters:
            raise InvalidInput("no floating-point parameter that a jump may move")
        self.every, self.horizon, self.max_norm = every, horizon, max_norm
        self.optimizer, self.policy = optimizer, policy
        self.rule = make_rule(rule, self.parameters, **options) if isinstance(rule, str) else rule
        self.ledger = ledger or Ledger()
        self.real_steps = 0
        self.virtual_steps = 0.0
        """real steps and steps jumped, what was taken back left out"""
        self._rewards: list[float] = []
        self._before: list[float] = []
        self._snapshot: Snapshot | None = None
        self._jumped = 0.0
        self._left = every
        self.rule.begin()

    def reward(self, value: float) -> None:
        """Note the mean reward of a real step."""
        self._rewards.append(value)

    def after_step(self, may_jump: bool = True) -> dict[str, Any] | None:
        """Take in a real step; at the end of a segment, jump.

        Args:
            may_jump: whether the trainer can bear new weights now: no sampled responses of the old
                ones are waiting. If not, the segment goes on.

        Returns:
            The ledger's line where the segment ended.
        """
        self.rule.observe()
        self.real_steps += 1
        self.virtual_steps += 1
        self._left -= 1
        if self._left > 0 or not may_jump:
            return None
        if self._snapshot is not None and not self.horizon.judge(self._before, self._rewards):
            line = self._take_back()
        else:
            line = self._jump()
        self._rewards = []
        self._left = self.every
        self.rule.begin()
        return line

    def _jump(self) -> dict[str, Any]:
        """The jump at the end of a segment, if the rule is ready for one."""
        self._before = self._rewards
        self._snapshot = None
        n = self.horizon.n if self.rule.is_ready else 0
        if n and self.horizon.adapt:
            self._snapshot = Snapshot(self.parameters, self.optimizer)
        done = jump(self.parameters, self.rule, n, self.max_norm)
        self._jumped = done.n
        self.virtual_steps += done.n
        if n and self.policy == "reset" and self.optimizer is not None:
            self.optimizer.state.clear()
        return self._note(**asdict(done), share_moved=done.share_moved, rolled_back=False)

    def _take_back(self) -> dict[str, Any]:
        """Everything since the last jump, and the jump, undone."""
        assert self._snapshot is not None
        self._snapshot.restore()
        self._snapshot = None
        self.virtual_steps -= self._jumped + self.every
        line = self._note(n=0, rolled_back=True)
        self._jumped = 0.0
        return line

    def _note(self, **numbers: Any) -> dict[str, Any]:
        rewards = self._rewards
        return self.ledger.write(
            real_steps=self.real_steps,
            virtual_steps=self.virtual_steps,
            reward=sum(rewards) / len(rewards) if rewards else None,
            next_n=self.horizon.n,
            **numbers,
        )
