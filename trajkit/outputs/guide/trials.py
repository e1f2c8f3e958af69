"""One model that is given one rule's weights after another, made in memory from the fit.

Bits are those that ``trajkit extrapolate`` writes for the same rule, rounded as it rounds.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trajkit.arrays import Array
from trajkit.errors import Mismatch
from trajkit.fits.estimators.gates import GateRule, parse_gate
from trajkit.fits.estimators.table import make_estimator
from trajkit.forecast.chunks import Kept
from trajkit.forecast.evaluation import Evaluation, resolve
from trajkit.forecast.request import Request
from trajkit.forecast.rules import assign_factors
from trajkit.forecast.values import StepValues
from trajkit.outputs.guide.candidates import TWO_POINT, GuideRule, families_of
from trajkit.outputs.models import build_model
from trajkit.outputs.placing import Placement
from trajkit.outputs.weights import StoredWeights, assemble_tensors
from trajkit.store.store import Store
from trajkit.store.tensors import Source

_FIT_BYTES = 11
"""an element of the fit in memory: slope, R², flags, t; two checkpoints' bits come on top"""


class Trials:
    """The fit, held in memory where it fits the budget, and a model in memory.

    Args:
        traj: the run.
        options: of :func:`trajkit.extrapolate` that do not depend on the rule: ``fit``,
            ``tensors``, ``rounding``, ``seed``, ``device``.
        copy_bytes: of memory, for the fit's copy.
        work_bytes: of memory, for what is evaluated at once.

    Raises:
        As :func:`trajkit.extrapolate`, for options that make no sense.
    """

    def __init__(
        self, traj: Source, options: dict[str, Any], copy_bytes: int, work_bytes: int
    ) -> None:
        base = Request.make(traj, 0, estimator="damped", damping=1.0, gate="none", **options)
        self._line = resolve(base)
        self._pair = resolve(Request.make(traj, 0, estimator="two-point", **options))
        self.store: Store = self._line.store
        assert self._line.fit is not None
        self.fit = self._line.fit
        self.work_bytes = work_bytes
        vectors = self.store.vectors.values()
        self.held_bytes = sum(
            v.n_chunks * v.chunk * (_FIT_BYTES + 2 * v.dtype.itemsize) for v in vectors
        )
        self.is_held = self.held_bytes <= copy_bytes
        """whether what is read of the fit is kept; if not, it is read for every rule"""
        self._kept: Kept | None = {} if self.is_held else None
        self.model: Any = None
        self._placement: Placement | None = None

    @property
    def points(self) -> tuple[int, int]:
        """The training steps of the window's first and last checkpoint."""
        points = self._line.rule.points
        return points.first_step, points.last_step

    @property
    def keeps_t(self) -> bool:
        """Whether the fit can be gated by the drift's t."""
        try:
            self.fit.check_keeps(("drift_t",))
        except Mismatch:
            return False
        return True

    @property
    def families(self) -> tuple[str, ...]:
        """Module families of the tensors that are extrapolated."""
        return families_of(n for n, rule in self._line.rules.items() if rule == "extrapolate")

    def open_model(self, dtype: str | None, device: str) -> None:
        """Make the model, with the last checkpoint's weights; errors as :func:`build_model`."""
        if self.model is None:
            weights = StoredWeights(self.store, self.points[1])
            self.model = build_model(weights, dtype=dtype, device=device)
            self._placement = Placement(self.model, list(self.store.tensors), weights.label)

    def load_step(self, step: int) -> None:
        """Put a stored step into the model."""
        self._fill(StoredWeights(self.store, step).tensors())

    def load(self, rule: GuideRule, step: int) -> None:
        """Put what a rule says of a step into the model."""
        self._fill(self.tensors(rule, step))

    def tensors(self, rule: GuideRule, step: int) -> Iterator[tuple[str, Array]]:
        """What a rule says of a step, tensor by tensor."""
        values = StepValues(self.evaluation(rule), step, self.work_bytes, kept=self._kept)
        for vector in self.store.vectors.values():
            yield from assemble_tensors(vector, values.chunks(vector))

    def evaluation(self, rule: GuideRule) -> Evaluation:
        """The rule as extrapolation has it, with everything looked up."""
        if rule == TWO_POINT:
            return self._pair
        options = rule.options
        estimator = make_estimator(options["estimator"], {"damping": options.get("damping")})
        own = GateRule("rsq", self.fit.rsq_threshold)
        gate = parse_gate(rule.options["gate"]) if "gate" in options else own
        base = self._line
        found = replace(
            base.rule,
            estimator=estimator,
            gate=gate,
            by_flag=gate is not None and gate == own,
            factors=tuple(assign_factors(base.rules, options.get("factors", {})).items()),
        )
        self.fit.check_keeps(found.reads)
        return replace(base, rule=found)

    def _fill(self, tensors: Iterator[tuple[str, Array]]) -> None:
        assert self._placement is not None
        self._placement.fill(tensors)
