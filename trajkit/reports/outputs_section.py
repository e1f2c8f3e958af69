"""What the report says of a run's outputs, where a probe set was scored."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trajkit.arrays import Array
from trajkit.errors import InvalidInput, NotFound, StorageError
from trajkit.outputs.drift import Drift, measure_drift
from trajkit.outputs.kept import Outputs, outputs_names, read_outputs
from trajkit.outputs.linearity import PAPER_CHANGE, OutputsFit, fit_outputs
from trajkit.outputs.rows import say_changed
from trajkit.reports.figures import PlannedFigure
from trajkit.reports.findings import number, percent
from trajkit.reports.markup import escape
from trajkit.reports.outputs_plots import TokenPick, draw_drift_curves, draw_tokens, drift_curves
from trajkit.reports.palette import HEAT_LEVELS
from trajkit.reports.plots import RsqData, draw_histogram
from trajkit.stats.nulls import null_rsq
from trajkit.store.store import Store

_BINS = 100


@dataclass(frozen=True)
class OutputsSection:
    """One scored probe set, read once."""

    outputs: Outputs
    drift: tuple[Drift, ...]
    fit: OutputsFit
    """of the tokens that the paper's filter keeps"""
    whole: OutputsFit
    """of all that change"""
    rewards: tuple[tuple[int, float], ...]

    changed: str
    """where rows are of other weights than the store's, a sentence that says so"""

    @property
    def numbers(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "name": self.outputs.record.name,
            "noise": dict(self.outputs.record.noise or {}),
            "linearity": self.whole.describe(),
            "linearity_of_kept": self.fit.describe(),
            "drift": [asdict(row) for row in self.drift],
        }

    def rsq_data(self) -> RsqData:
        """The R² of tokens as the histogram shows it."""
        n, kept = self.whole.describe(), self.fit.tokens.rsq[self.fit.kept]
        edges = np.linspace(0, 1, _BINS + 1)
        walks = null_rsq(self.whole.steps)
        null_shares = np.histogram(walks, edges)[0] / max(len(walks), 1)
        return RsqData(
            np.histogram(self.whole.tokens.rsq[self.whole.kept], edges)[0],
            np.histogram(kept, edges)[0],
            null_shares.tolist(),
            self.whole.threshold,
            n["share_above_threshold"],
            n["null_above_threshold"],
            n["median_rsq"],
            n["null_median_rsq"],
        )

    def picks(self) -> list[TokenPick]:
        """Tokens worth a look: steepest up and down, best, median and worst R², one at random."""
        kept = np.flatnonzero(self.fit.kept)
        if not len(kept):
            kept = np.flatnonzero(self.whole.kept)
        if not len(kept):
            return []
        slope, rsq = self.whole.tokens.slope[kept], self.whole.tokens.rsq[kept]
        by_rsq = np.argsort(rsq, kind="stable")
        rng = np.random.default_rng(0)
        roles = {
            "steepest rise": int(np.argmax(slope)),
            "steepest fall": int(np.argmin(slope)),
            "random": int(rng.integers(len(kept))),
            "best R²": int(by_rsq[-1]),
            "median R²": int(by_rsq[len(by_rsq) // 2]),
            "worst R²": int(by_rsq[0]),
        }
        return [self._pick(role, int(kept[i])) for role, i in roles.items()]

    def _pick(self, role: str, token: int) -> TokenPick:
        offsets, lines = self.outputs.offsets, self.whole.tokens
        response = int(np.searchsorted(offsets, token, side="right")) - 1
        place = token - int(offsets[response])
        prompt, _ = self.outputs.texts[response]
        pieces = self.outputs.pieces[response]
        steps = self.outputs.steps
        line = lines.mean[token] + lines.slope[token] * (steps - steps.mean())
        values = self.outputs.rows("log_p", token, token + 1)[:, 0]
        context = prompt + "".join(pieces[:place])
        return TokenPick(role, context, pieces[place], float(lines.rsq[token]), steps, values, line)

    def coloured_response(self) -> str:
        """HTML: the response that moves most, each token coloured by its slope."""
        offsets, slope = self.outputs.offsets, self.whole.tokens.slope
        totals = [float(np.abs(slope[a:b]).sum()) for a, b in pairwise(offsets)]
        chosen = int(np.argmax(totals))
        a, b = int(offsets[chosen]), min(int(offsets[chosen + 1]), int(offsets[chosen]) + 400)
        span = float(self.outputs.steps[-1] - self.outputs.steps[0])
        change: Array = slope[a:b] * span
        most = max(float(np.abs(change).max(initial=0.0)), 1e-9)
        prompt, _ = self.outputs.texts[chosen]
        marks = []
        for piece, moved in zip(self.outputs.pieces[chosen], change, strict=False):
            level = round((HEAT_LEVELS - 1) / 2 * (1 + float(moved) / most))
            title = escape(f"{moved:+.3f} over the window")
            marks.append(
                f'<mark style="background:var(--h{level});color:inherit" title="{title}">'
                f"{escape(piece)}</mark>"
            )
        return (
            f'<p class="lead">A response, its tokens coloured by how their log p goes over the '
            f"window: orange falls, blue rises, up to {most:.2g} nats.</p>"
            f"<p><code>{escape(prompt[-200:])}</code><code>{''.join(marks)}</code></p>"
        )

    def drift_caption(self) -> str:
        """HTML under the drift figure."""
        noise = (self.outputs.record.noise or {}).get("largest", 0.0)
        beside = "Reward stands beside it. " if self.rewards else ""
        return (
            f"<b>How to read it.</b> Fixed responses ({self.outputs.record.tokens:,} tokens) under "
            f"every checkpoint. {beside}KL is of the whole next-token distribution, the mean over "
            f"{self.outputs.record.divergence_places:,} places. Two passes of one checkpoint differ "
            f"by up to {noise:.2g} in log p: smaller differences mean nothing. {escape(self.changed)}"
        )

    def rsq_caption(self) -> str:
        """HTML under the histogram."""
        n, kept = self.whole.describe(), self.fit.describe()
        return (
            "<b>How to read it.</b> The shaded area is the log-probability of every response token "
            f"that changes: {n['kept']:,} of {n['tokens']:,}, median R² {number(n['median_rsq'])}. "
            f"The darker part are the {kept['kept']:,} ({percent(kept['share_kept'])}) that changed "
            f"by more than {PAPER_CHANGE:g}, as arXiv 2601.04537 counts: median "
            f"{number(kept['median_rsq'])}, {percent(kept['share_above_threshold'])} above the "
            "threshold. That filter chooses tokens by the change that is then fitted; the dashed "
            "line, driftless random walks on these steps, is not filtered."
        )


def output_figures(section: OutputsSection) -> list[PlannedFigure]:
    """Drift, R² of tokens, and tokens in their context."""
    curves = drift_curves(section.drift, section.rewards)
    data, picks = section.rsq_data(), section.picks()
    last = section.drift[-1]
    figures = [
        PlannedFigure(
            "outputs-drift",
            lambda palette, width: draw_drift_curves(curves, palette, width),
            section.drift_caption(),
            f"Outputs at step {last.step}: KL {last.kl_to_base:.3g} nats from the first checkpoint, "
            f"the likeliest token changed for {percent(last.argmax_changed_to_base)}",
        ),
        PlannedFigure(
            "outputs-rsq",
            lambda palette, width: draw_histogram(
                data, palette, width, what="the log-probability of a token"
            ),
            section.rsq_caption(),
            f"Histogram of R² of token log-probabilities: median {number(data.median)}; a random "
            f"walk has {number(data.null_median)}",
        ),
    ]
    if picks:
        figures.append(
            PlannedFigure(
                "outputs-tokens",
                lambda palette, width: draw_tokens(picks, palette, width),
                "<b>How to read it.</b> Log p of a response token, in brackets behind the text it "
                "follows, at each checkpoint, and its line. They are of the tokens that the filter "
                "keeps; the random one is the same every time.",
                "Log-probabilities of tokens: "
                + "; ".join(f"{p.role}, R² {p.rsq:.3f}" for p in picks),
            )
        )
    return figures


def read_section(store: Store, rewards: str | Path | None) -> OutputsSection | None:
    """The outputs to show (``default``, or the first by name); None without two checkpoints of any.

    Raises:
        FormatError: they are damaged. NotFound, InvalidInput: ``rewards`` cannot be read.
    """
    known = read_rewards(rewards) if rewards is not None else ()
    names = sorted(outputs_names(store), key=lambda name: (name != "default", name))
    for name in names:
        outputs = read_outputs(store, name)
        if len(outputs.record.steps) >= 2:
            return OutputsSection(
                outputs,
                tuple(measure_drift(outputs)),
                fit_outputs(outputs, min_change=PAPER_CHANGE),
                fit_outputs(outputs),
                known,
                say_changed(store, outputs.record),
            )
    return None


def read_rewards(path: str | Path) -> tuple[tuple[int, float], ...]:
    """(step, reward) from a CSV file with a column ``step`` and one whose name ends in ``reward``.

    Raises:
        NotFound: there is no file. InvalidInput: it has no such columns, or they are no numbers.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: Sequence[dict[str, str]] = list(csv.DictReader(file))
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{path}: not a CSV file: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    columns = rows[0].keys() if rows else ()
    reward = next((c for c in columns if c and c.lower().endswith("reward")), None)
    if "step" not in columns or reward is None:
        raise InvalidInput(f"{path}: expected the columns 'step' and '... reward'")
    try:
        return tuple((int(row["step"]), float(row[reward])) for row in rows if row[reward])
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}") from error
