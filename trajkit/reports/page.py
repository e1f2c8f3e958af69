"""The page: facts and figures put into page.html; every name that comes from a file is escaped."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import Any

import trajkit
from trajkit.reports.activations_section import TITLES
from trajkit.reports.findings import Finding, number, percent
from trajkit.reports.markup import escape, tie
from trajkit.reports.palette import DARK, LIGHT, css_variables
from trajkit.reports.tables import (
    ACCOUNTING,
    FOLD_ABOVE,
    build_accounts,
    build_tensor_table,
    fold_table,
    table_json,
)
from trajkit.stats.histograms import share
from trajkit.text import format_bytes


@dataclass(frozen=True)
class FigureBlock:
    """One figure of the page."""

    name: str
    svgs: tuple[str, ...]
    """the wide drawing and the narrow one"""
    caption: str
    """HTML"""


@dataclass(frozen=True)
class PageData:
    """Everything the page says."""

    finding: Finding
    numbers: Mapping[str, Any]
    """the fit's :meth:`~trajkit.fits.Fit.describe`"""
    run: Mapping[str, Any]
    """the run at a glance: name -> text"""
    figures: Mapping[str, FigureBlock]
    response: str
    """HTML: a response of the scored probes; empty where there are none"""
    table: Sequence[Mapping[str, Any]]
    min_distinct: int
    min_range: float
    footer: str
    modules: str = ""
    """HTML: a row a module with its verdict; empty where the fit keeps none"""
    movement: tuple[str, str] = ("", "")
    """lead and content, HTML, of the section on movement"""
    trust: tuple[str, str] | None = None
    """lead and content, HTML, of what the backtest says"""
    guide: tuple[str, str] | None = None
    """lead and content, HTML, of the last guided search"""
    beside: tuple[str, str] | None = None
    """lead and content, HTML, of the comparison with another run"""
    activations: Mapping[str, str] = field(default_factory=dict)
    """HTML of the sections about activations, by name; none where none were measured"""


def build_page(data: PageData) -> str:
    """The whole page as HTML, with nothing outside of it."""
    here = files("trajkit.reports") / "assets"
    n = data.numbers
    rows = data.table if len(data.table) <= FOLD_ABOVE else fold_table(data.table)
    accounts = build_accounts(n, data.min_distinct, data.min_range)
    trust, guide = data.figures.get("trust"), data.figures.get("guide")
    sections = [
        *(
            [_section("trust", "How far it can be trusted", *data.trust, trust)]
            if data.trust
            else []
        ),
        *(
            [_section("guide", "Which weights the outputs choose", *data.guide, guide)]
            if data.guide
            else []
        ),
        _section(
            "movement",
            "How it moved, and when it turned",
            *data.movement,
            data.figures.get("movement"),
        ),
        *([_section("beside", "Beside another run", *data.beside)] if data.beside else []),
        _section("rsq", "How straight: R² of every element", "", "", data.figures.get("rsq")),
        _section("run", "The run at a glance", "", _facts(data.run), data.figures.get("timeline")),
        _section("accounting", "What these numbers leave out", ACCOUNTING, accounts),
        _section("modules", "Where in the model", "", data.modules, data.figures.get("modules")),
        _section("drift", "Drift against noise", "", "", data.figures.get("drift")),
        _section("gallery", "Trajectories and their lines", "", "", data.figures.get("gallery")),
        *_output_sections(data),
        _section(
            "tensors", "All tensors", *build_tensor_table(n, folded=len(rows) < len(data.table))
        ),
    ]
    css = (here / "page.css").read_text("utf-8")
    dark = f"@media screen and (prefers-color-scheme: dark){{:root{{{css_variables(DARK)}}}}}"
    style = f"\n:root{{{css_variables(LIGHT)}}}\n{dark}\n{css}\n"
    script = "\n" + (here / "page.js").read_text("utf-8") + "\n"
    kicker = f"{escape(n['store'])}, fit {escape(n['fit'])}"
    return Template((here / "page.html").read_text("utf-8")).substitute(
        version=escape(trajkit.__version__),
        title=f"trajkit report: {escape(n['store'])}",
        policy=_policy(style, script),
        style=style,
        script=script,
        kicker=kicker,
        sentence=escape(data.finding.sentence),
        tiles=_tiles(n),
        notes="".join(f"<p>{escape(note)}</p>" for note in data.finding.notes),
        sections="\n".join(sections),
        footer=escape(data.footer),
        table_data=table_json(rows),
    )


def _policy(style: str, script: str) -> str:
    """The content security policy: this style and this script, whatever else the page may hold.

    Attributes ``style=`` are let pass: figures and bars have them, and they run nothing.
    """
    a, b = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{a}'; style-src-attr 'unsafe-inline'; "
        f"script-src 'sha256-{b}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _output_sections(data: PageData) -> list[str]:
    """The sections about outputs and activations, where a probe set went through the models."""
    titles = {
        "outputs-drift": "Outputs: drift",
        "outputs-rsq": "Outputs: R² of every token",
        "outputs-tokens": "Outputs: tokens in their context",
        **TITLES,
    }
    content = {"outputs-tokens": data.response, **data.activations}
    return [
        _section(name, title, "", content.get(name, ""), data.figures[name])
        for name, title in titles.items()
        if name in data.figures
    ]


def _section(
    name: str, title: str, lead: str, content: str, figure: FigureBlock | None = None
) -> str:
    parts = [f'<section id="{name}" aria-labelledby="{name}-title">']
    parts.append(f'<h2 id="{name}-title">{title}</h2>')
    if lead:
        parts.append(f'<p class="lead">{lead}</p>')
    if not content and figure is None:
        content = "<p>There is nothing to show: no element was fitted.</p>"
    parts.append(content)
    if figure is not None:
        parts.append(
            f"<figure>{''.join(figure.svgs)}<figcaption>{tie(figure.caption)}</figcaption></figure>"
        )
    return "\n".join((*parts, "</section>"))


def _tiles(n: Mapping[str, Any]) -> str:
    above = f"share with R² &gt; {n['rsq_threshold']:g}"
    tiles = (
        (
            "run",
            "median R²",
            number(n["median_rsq"]),
            f"random walk {number(n['null_median_rsq'])}",
        ),
        (
            "run",
            above,
            percent(n["share_above_threshold"]),
            f"random walk {percent(n['null_above_threshold'])}",
        ),
        (
            "run",
            "elements that drift",
            percent(n.get("drift_share"), 1),
            "false discovery rate 5 %; a walk: none",
        ),
        (
            "",
            "elements fitted",
            percent(share(n["fitted"], n["elements"])),
            f"{n['fitted']:,} of {n['elements']:,}; {n['checkpoints']:,} checkpoints",
        ),
    )
    return "".join(
        f'<div class="{kind}"><dt>{name}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="beside">{escape(beside)}</dd></div>'
        for kind, name, value, beside in tiles
    )


def _facts(run: Mapping[str, Any]) -> str:
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in run.items())
    return f'<dl class="facts">{"".join(items)}</dl>'


def run_facts(
    steps: Sequence[int], window: int, numbers: Mapping[str, Any], tensors: int,
    raw_bytes: int, stored_bytes: int,
) -> dict[str, str]:  # fmt: skip
    """The run at a glance, as pairs of name and text."""
    gaps = sorted(b - a for a, b in pairwise(steps))
    spacing = "one checkpoint only"
    if gaps:
        even = gaps[0] == gaps[-1]
        spacing = f"every {gaps[0]:,}" if even else f"{gaps[0]:,} to {gaps[-1]:,} apart"
    ratio = raw_bytes / stored_bytes if stored_bytes else 0.0
    return {
        "training steps": f"{steps[0]:,} to {steps[-1]:,}",
        "checkpoints": f"{len(steps):,}, {spacing}"
        + (f"; {window:,} of them fitted" if window != len(steps) else ""),
        "model": f"{numbers['elements']:,} elements in {tensors:,} tensors",
        "raw bytes": format_bytes(raw_bytes),
        "stored bytes": f"{format_bytes(stored_bytes)}, {ratio:.1f} times smaller",
        "fitted on": f"{numbers['device']}, in {numbers['seconds']:.2g} s",
    }
