"""What a reader of an extrapolated checkpoint should know, a line each."""

from trajkit.fits.kept import Fit
from trajkit.forecast.evaluation import Evaluation
from trajkit.forecast.result import Target


def find_cautions(evaluation: Evaluation, target: Target) -> list[str]:
    """About one target: the fit's verdict, a horizon beyond the data, a name that is only a name."""
    chosen = evaluation.chosen
    found = [
        *(() if chosen is None else chosen.cautions),
        *_of_verdict(evaluation),
        *_of_horizon(evaluation, target),
    ]
    scaled = describe_scale(target)
    found += [] if scaled is None else [scaled]
    return found + _of_name(evaluation, target)


def describe_scale(target: Target) -> str | None:
    """Where a cap cut the jump short.

    >>> describe_scale(Target(90, 20, "out", relative_norm=0.04, scale=0.5))
    'the jump to step 90 was scaled by 0.5: it was 0.04 of the last checkpoint in norm'
    """
    if target.scale is None or target.scale == 1:
        return None
    return (
        f"the jump to step {target.step} was scaled by {target.scale:.3g}: it was "
        f"{target.relative_norm:.3g} of the last checkpoint in norm"
    )


def _of_verdict(evaluation: Evaluation) -> list[str]:
    """Where the fit found no more than a walk, said whatever the horizon."""
    fit = evaluation.fit
    if fit is None or not evaluation.rule.reads:
        return []
    line = describe_verdict(fit)
    return [] if line is None else [line]


def describe_verdict(fit: Fit) -> str | None:
    """The caution that a fit's verdict is, if it is one."""
    numbers = fit.describe()
    if numbers.get("verdict") != "wandering":
        return None
    return (
        f"the fit {fit.record.name!r} found the weights no straighter than a driftless random walk: "
        "a line through such a path is no evidence of where it goes, and the last checkpoint may "
        "serve as well"
    )


def _of_horizon(evaluation: Evaluation, target: Target) -> list[str]:
    points = evaluation.rule.points
    if target.horizon > points.span:
        windows = target.horizon / max(points.span, 1)
        return [
            f"step {target.step} is {target.horizon} steps beyond a window of {points.span} steps "
            f"({points.first_step} to {points.last_step}), {describe_windows(windows)} beyond the "
            "data: a line over so short a window is not known to hold so far out"
        ]
    if target.horizon < 0:
        return [
            f"step {target.step} lies before step {points.last_step}, the last one used; trajkit "
            "restore gives checkpoints that were ingested"
        ]
    return []


def describe_windows(windows: float) -> str:
    """How often the window fits into the horizon.

    >>> describe_windows(1.25), describe_windows(40.0)
    ('1.2 windows', '40 windows')
    """
    return f"{windows:.1f} windows" if windows < 10 else f"{windows:,.0f} windows"


def _of_name(evaluation: Evaluation, target: Target) -> list[str]:
    own = evaluation.rule.estimator.target_step(evaluation.rule.points)
    if own is None or own == target.step:
        return []
    return [f"step {target.step} is only the name: alpha {target.alpha:g} amounts to step {own}"]
