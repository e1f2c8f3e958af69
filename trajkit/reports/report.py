"""Report: one self-contained page about a fit, its numbers as JSON and its table as JSON lines."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import trajkit
from trajkit.arrays import Array
from trajkit.checkpoints.folder import FolderWriter
from trajkit.checkpoints.metrics import Metrics, read_metrics
from trajkit.defaults import DEFAULT_FIT, DEFAULT_OUT
from trajkit.evidence.movement import find_evidence
from trajkit.fits.kept import Fit, read_fit
from trajkit.fits.window import check_fit_is_current
from trajkit.progress import (
    Advanced,
    Finished,
    Note,
    Progress,
    Started,
    as_subscriber,
    shows_progress,
)
from trajkit.reports.activations_section import ActivationsSection, read_activations_section
from trajkit.reports.beside import describe_beside, read_other_run
from trajkit.reports.evidence import MovementPage, describe_movement
from trajkit.reports.figures import NARROW, WIDE, PlannedFigure, check_formats, drawing_style
from trajkit.reports.findings import Finding, find, number, percent
from trajkit.reports.gallery import Gallery, choose_elements
from trajkit.reports.guide_page import ALT, CAPTION, GuidePage, draw_guide, read_guide_page
from trajkit.reports.markup import escape, inline_svg
from trajkit.reports.module_plots import draw_drift, draw_modules
from trajkit.reports.modules import ModuleGrid, arrange_modules, module_summary
from trajkit.reports.movement_plots import draw_movement
from trajkit.reports.outputs_section import OutputsSection, output_figures, read_section
from trajkit.reports.page import FigureBlock, PageData, build_page, run_facts
from trajkit.reports.palette import LIGHT, PAGE, css_colours
from trajkit.reports.plots import RsqData, draw_gallery, draw_histogram, draw_timeline
from trajkit.reports.tables import module_table, table_lines
from trajkit.reports.trust import TrustPage, read_trust, trust_figure
from trajkit.stats.walks import WalkReference, reference_walks
from trajkit.store.metrics import read_kept_metrics
from trajkit.store.output import check_output
from trajkit.store.store import Store
from trajkit.store.tensors import Source, as_store
from trajkit.text import format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What was written, and what it says."""

    path: str
    """the page, index.html"""
    finding: str
    """its first sentence"""
    verdict: str
    """``above`` the random walk, ``alike``, ``below``, ``two`` checkpoints only, or ``nothing``"""
    files: tuple[str, ...]
    """everything in the folder, relative to it"""
    n_bytes: int
    """size of the page"""
    seconds: float


@shows_progress
def report(
    traj: Source,
    out: str | Path = DEFAULT_OUT,
    *,
    fit: str | Fit = DEFAULT_FIT,
    force: bool = False,
    formats: Sequence[str] = (),
    rewards: str | Path | None = None,
    metrics: str | Path | None = None,
    beside: Source | None = None,
    progress: Progress | bool = False,
) -> ReportResult:
    """Write a page about a fit: ``index.html``, ``summary.json`` and ``tensors.jsonl``.

    The page needs no network and no other file. Its figures set every R² beside what a driftless
    random walk scores on the same steps.

    Args:
        traj: the trajectory.
        out: folder to write; it is there whole or not at all.
        fit: a fit's name, or the fit.
        force: replace ``out`` if trajkit wrote it; a report is replaced without.
        formats: of ``png``, ``pdf``, ``svg``: write the figures alone too, into ``out/figures``.
        rewards: a CSV file with the columns ``step`` and ``reward``, drawn beside the drift of the
            outputs, where there are some.
        metrics: a file of metrics to show in place of those that ingest found
            (:func:`trajkit.checkpoints.metrics.read_metrics`).
        beside: another run, with a fit of the same name, to be set beside this one.
        progress: True shows it; or a function that takes :mod:`trajkit.progress` events.

    Raises:
        NotFound: no such fit. AlreadyExists: something else than a report lies at ``out``.
        InvalidInput: an unknown format. FormatError: the store or the fit is damaged.

    Notes:
        Memory: a few chunks of the fit's arrays and the table of tensors. Where the store does not
        hold the evidence on the fit's window yet, it is measured, in one pass over the store
        (:func:`trajkit.evidence.movement.measure_evidence`).

    """
    started, progress = time.perf_counter(), as_subscriber(progress)
    formats = check_formats(formats)
    store = as_store(traj)
    source = read_fit(store, fit) if isinstance(fit, str) else fit
    given = read_metrics(Path(metrics)) if metrics is not None else None
    check_fit_is_current(store, source)
    other = None if beside is None else read_other_run(beside, source.record.name)
    place = check_output(store, Path(out), force, over="report")
    with FolderWriter(place, store.vectors) as folder:
        job = _Job(store, source, rewards, progress, given, other)
        page = build_page(job.page()).encode()
        folder.write_side_file("index.html", page)
        summary = json.dumps(job.summary(), indent=2, allow_nan=False) + "\n"
        folder.write_side_file("summary.json", summary.encode())
        folder.write_side_file("tensors.jsonl", table_lines(job.rows))
        if formats:
            (folder.part / "figures").mkdir()
            job.save_figures(folder.part / "figures", formats)
        written = sorted(p.relative_to(folder.part) for p in folder.part.rglob("*") if p.is_file())
        folder.commit()
    seconds = time.perf_counter() - started
    progress(Finished(f"{format_bytes(len(page))} in {format_seconds(seconds)}"))
    return ReportResult(
        path=str(Path(out) / "index.html"),
        finding=job.finding.sentence,
        verdict=job.finding.verdict,
        files=tuple(p.as_posix() for p in written),
        n_bytes=len(page),
        seconds=seconds,
    )


class _Job:
    """One call of :func:`report`: what is read once, and what is made of it."""

    def __init__(
        self,
        store: Store,
        fit: Fit,
        rewards: str | Path | None,
        progress: Progress,
        metrics: Metrics | None = None,
        other: Fit | None = None,
    ) -> None:
        self.store = store
        self.fit = fit
        self.progress = progress
        self.numbers = fit.describe()
        self.rows = fit.rows()
        self.walk: WalkReference | None = reference_walks(fit.record.steps)
        self.finding: Finding = find(self.numbers, self.walk)
        self.grid: ModuleGrid = arrange_modules(self.rows)
        self.outputs: OutputsSection | None = read_section(store, rewards)
        self.activations: ActivationsSection | None = read_activations_section(store)
        for section in (self.outputs, self.activations):
            if section is not None and section.changed:
                progress(Note(section.changed))
        self.movement: MovementPage | None = None
        evidence = None
        if len(fit.record.steps) > 2 and fit.record.asked.dtypes:
            evidence = find_evidence(store, fit.record.steps, progress=progress)
            metrics = metrics or read_kept_metrics(store)
            self.movement = describe_movement(evidence, metrics)
        self.trust: TrustPage | None = read_trust(store)
        self.guide: GuidePage | None = read_guide_page(store)
        self.beside = None if other is None else describe_beside(fit, evidence, other, progress)
        progress(Started("report", 8, "figures"))
        pool = "median_rsq_kept" if fit.stats.kept else "median_rsq"
        self.gallery: Gallery = choose_elements(store, fit, self.numbers[pool])
        progress(Advanced(1))
        self.figures = tuple(self._figures())

    def page(self) -> PageData:
        """Everything the page says, figures drawn."""
        record, store = self.fit.record, self.store
        facts = run_facts(
            self.store.steps.tolist(),
            len(record.steps),
            self.numbers,
            len(self.store.tensors),
            store.raw_bytes,
            store.stored_bytes,
        )
        versions = ", ".join(f"{k} {v}" for k, v in record.versions.items())
        return PageData(
            finding=self.finding,
            numbers=self.numbers,
            run=facts,
            figures={f.name: self._block(f) for f in self.figures},
            table=self.rows,
            response="" if self.outputs is None else self.outputs.coloured_response(),
            activations={} if self.activations is None else self.activations.content,
            min_distinct=record.asked.min_distinct,
            min_range=record.asked.min_range,
            movement=self._movement_words(),
            modules=module_table(self.fit.modules),
            trust=None if self.trust is None else self.trust.html,
            guide=None if self.guide is None else self.guide.html,
            beside=None if self.beside is None else self.beside.html,
            footer=(
                f"Made by trajkit {trajkit.__version__} from a fit made by {versions}. Frames "
                f"{record.frames_digest}. The numbers are in summary.json, the table in "
                "tensors.jsonl."
            ),
        )

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        store = self.store
        return {
            "made_by": f"trajkit {trajkit.__version__}",
            "finding": self.finding.sentence,
            "verdict": self.finding.verdict,
            "notes": list(self.finding.notes),
            **self.numbers,
            "steps": list(self.fit.record.steps),
            "raw_bytes": store.raw_bytes,
            "stored_bytes": store.stored_bytes,
            "frames_digest": self.fit.record.frames_digest,
            "walk": None if self.walk is None else asdict(self.walk),
            "movement": None if self.movement is None else self.movement.summary,
            "backtest": None if self.trust is None else self.trust.summary,
            "guide": None if self.guide is None else self.guide.summary,
            "beside": None if self.beside is None else self.beside.summary,
            "modules": [module_summary(row) for row in self.grid.all_rows],
            "module_verdicts": [dict(row) for row in self.fit.modules],
            "outputs": None if self.outputs is None else self.outputs.numbers,
            "activations": None if self.activations is None else self.activations.numbers,
            "gallery": [
                {"role": p.role, "tensor": p.tensor, "index": list(p.index), "rsq": p.rsq}
                for p in self.gallery.picks
            ],
        }

    def save_figures(self, folder: Path, formats: Sequence[str]) -> None:
        """Write the figures alone, in plain light colours."""
        for figure in self.figures:
            with drawing_style(LIGHT):
                drawing = figure.draw(LIGHT, WIDE)
                for suffix in formats:
                    drawing.save(folder / f"{figure.name}.{suffix}")

    def _block(self, figure: PlannedFigure) -> FigureBlock:
        svgs = []
        for css_class, width in (("wide", WIDE), ("narrow", NARROW)):
            prefix = f"{figure.name}-{css_class}-"
            with drawing_style(PAGE, prefix):
                drawing = figure.draw(PAGE, width)
                svgs.append(
                    inline_svg(
                        drawing.svg(),
                        prefix=prefix,
                        css_class=css_class,
                        alt=figure.alt,
                        colours=css_colours(),
                        tips=drawing.tips,
                    )
                )
        self.progress(Advanced(1))
        return FigureBlock(figure.name, tuple(svgs), figure.caption)

    def _figures(self) -> list[PlannedFigure]:
        figures = [self._timeline(), self._rsq()]
        if self.movement is not None:
            figures.insert(0, self._movement(self.movement))
        if (guide := self.guide) is not None:
            draw = partial(draw_guide, guide)
            figures.insert(0, PlannedFigure("guide", draw, CAPTION, ALT))
        if self.trust is not None:
            figures.insert(0, trust_figure(self.trust))
        if self.grid.all_rows:
            figures.append(self._modules())
        if self.fit.stats.fitted:
            figures.append(self._drift())
        if self.gallery.picks:
            figures.append(self._gallery())
        if self.outputs is not None:
            figures += output_figures(self.outputs)
        if self.activations is not None:
            figures += self.activations.figures()
        return figures

    def _movement_words(self) -> tuple[str, str]:
        if self.movement is None:
            return "", "<p>Movement takes three checkpoints.</p>"
        words = "".join(f"<p>{escape(s)}</p>" for s in self.movement.sentences)
        return "", words + self.movement.table

    def _movement(self, page: MovementPage) -> PlannedFigure:
        metrics = (
            "The thin grey line is what was logged, the blue one its running mean, the dot its "
        )
        metrics += "best. " if page.data.metrics else ""
        return PlannedFigure(
            "movement",
            lambda palette, width: draw_movement(page.data, palette, width),
            f"<b>How to read it.</b> {metrics if page.data.metrics else ''}<b>Speed</b> is the length "
            "of the change from checkpoint to checkpoint, over the training steps between. "
            "<b>Direction</b> is its cosine with the sum of all other changes: 0 (dashed) for a "
            "driftless walk, higher the more they pull together. Dotted lines mark turns; a dashed "
            "one across all panels the checkpoint after which a metric fell.",
            "Speed, direction and share of elements changed over the training steps"
            + "".join(f"; {f.name}, best at step {f.best_step}" for f, _ in page.data.metrics),
        )

    def _timeline(self) -> PlannedFigure:
        store = self.store
        raw = max(sum(v.n_bytes for v in store.vectors.values()), 1)
        shares: Array = np.array([f.stored_bytes / raw for f in store.commit.frames])
        window = np.isin(self.store.steps, self.fit.steps)
        return PlannedFigure(
            "timeline",
            lambda palette, width: draw_timeline(self.store.steps, shares, window, palette, width),
            "<b>How to read it.</b> A bar for each checkpoint, where it lies in training; its "
            "height is what it takes in the store, in per cent of the checkpoint's own size. A tall "
            "bar is a key frame, kept whole; the others are kept as differences."
            + (" Grey bars are not in the fit." if not window.all() else ""),
            f"{len(shares)} checkpoints from step {self.store.steps[0]} to {self.store.steps[-1]}, "
            f"each stored in {percent(float(np.median(shares)))} of its size in the median",
        )

    def _rsq(self) -> PlannedFigure:
        n, stats = self.numbers, self.fit.stats
        data = RsqData(
            stats.hist_rsq,
            stats.hist_rsq_kept,
            self.fit.record.found.null_rsq,
            self.fit.rsq_threshold,
            n["share_above_threshold"],
            n["null_above_threshold"],
            n["median_rsq"],
            n["null_median_rsq"],
        )
        return PlannedFigure(
            "rsq",
            lambda palette, width: draw_histogram(data, palette, width),
            f"<b>How to read it.</b> The shaded area is this run: the share of its {n['fitted']:,} "
            "fitted elements in each bin of R². The darker part are the "
            f"{n['kept']:,} kept ones, of {escape(self.fit.record.asked.min_distinct)} or more "
            "distinct values. "
            "The dashed line is what driftless random walks with increments of the same size score on "
            "the same training steps, seen through the number format; only what rises above it speaks "
            "for a drift. Triangles mark the medians, the dotted line "
            "the threshold.",
            f"Histogram of R²: this run has median {number(n['median_rsq'])} and "
            f"{percent(n['share_above_threshold'])} above {n['rsq_threshold']:g}; a random walk "
            f"has median {number(n['null_median_rsq'])} and {percent(n['null_above_threshold'])}",
        )

    def _modules(self) -> PlannedFigure:
        n, grid = self.numbers, self.grid
        folded = (
            f" The {grid.folded_experts:,} experts' tensors are pooled by layer."
            if grid.folded_experts
            else ""
        )
        return PlannedFigure(
            "modules",
            lambda palette, width: draw_modules(
                grid,
                n["null_median_rsq"],
                n["null_above_threshold"],
                self.fit.rsq_threshold,
                palette,
                width,
            ),
            "<b>How to read it.</b> A column for each layer, a row for each module; tensors "
            "outside the layers stand below. Grey is what walks with a cell's own increments score, "
            "blue is straighter, orange less straight. An empty frame has no fitted element. Point at a "
            "cell for its numbers." + folded,
            f"Two heat maps of {len(grid.rows)} modules by {grid.layers} layers and "
            f"{len(grid.outside)} tensors outside of them: median R², and share above "
            f"{n['rsq_threshold']:g}; the table below has the numbers",
        )

    def _drift(self) -> PlannedFigure:
        n = self.numbers
        span = max(self.fit.axis.span, 1)
        walk = self.walk
        null_dw, null_t = n["null_median_durbin_watson"], n["null_share_drift_t_above_2"]
        reference = ""
        if null_t is not None:
            reference = (
                f" Dashed is what walks with a module's own increments score, seen through its format: "
                f"of the whole model {number(null_dw)} and {percent(null_t)}."
            )
        elif walk is not None:
            reference = (
                f" Walks on these steps have a Durbin-Watson of {number(walk.dw_median)} (middle half "
                f"in grey) and |t| ≥ 2 in {percent(walk.share_drift_t_above_2)}."
            )
        return PlannedFigure(
            "drift",
            lambda palette, width: draw_drift(self.grid, walk, span, palette, width),
            "<b>How to read it.</b> A dot for each layer, a bar at the module's median. "
            "<b>Durbin-Watson</b> near 2 means that what is left about the line is noise; near the "
            "dashed line, that it wanders like a walk. <b>t of drift</b> asks whether the mean "
            "change between checkpoints differs from zero. <b>Ulps</b> are steps of the number "
            "format at the element's size: left of the dashed line, a weight's line moves less "
            f"than half of one in the whole window, too little for a checkpoint to show.{reference}",
            f"Per module: median Durbin-Watson {number(n['median_durbin_watson'])} over the model, "
            f"{percent(n['share_drift_t_above_2'])} of elements with significant drift, "
            f"{number(n['median_ulps_per_100_steps'])} ulps moved in 100 steps in the median",
        )

    def _gallery(self) -> PlannedFigure:
        gallery = self.gallery
        among = "all" if gallery.whole else "a sample of"
        pool = "kept" if self.fit.stats.kept else "fitted"
        return PlannedFigure(
            "gallery",
            lambda palette, width: draw_gallery(gallery.picks, self.fit.x_mean, palette, width),
            "<b>How to read it.</b> Points are an element's value at each checkpoint, as change "
            "since the first, in the power of ten above the panel; the line is its fit. Faint rules "
            "are the values its format can take, "
            "where there are few: a bf16 weight can only move from rule to rule. Best, median, "
            f"worst and biggest mover (steepest slope) are of the {pool} elements, the random ones "
            f"of all fitted, among {among} {gallery.scanned:,}; the draw is the same every time.",
            "Trajectories with their fitted lines: "
            + "; ".join(f"{p.role}, {p.tensor}, R² {p.rsq:.3f}" for p in gallery.picks),
        )
