"""The page: facts and figures put into page.html; every name that comes from a file is escaped."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

import trajkit
from trajkit.findings import Finding, number, percent
from trajkit.modules import fold_experts, weighted_median
from trajkit.palette import DARK, LIGHT, css_variables
from trajkit.summary import histogram_quantile, share
from trajkit.svg import printable
from trajkit.units import format_bytes

FOLD_ABOVE = 2000
"""with more tensors than this, the table shows the experts of a layer as one row"""
_SPARK_BINS = 25
_HEADS = (
    ("name", "tensor", "its name, dtype and shape"),
    ("aside", "", ""),
    ("count", "elements", "elements in the tensor"),
    ("share", "static", "share of elements that never changed"),
    ("spark", "R², 0 to 1", "histogram of R² of its fitted elements"),
    ("number", "median R²", "median R² of its fitted elements"),
    ("share", "above", "share of its fitted elements above the threshold"),
    ("number", "Durbin-Watson", "median Durbin-Watson statistic"),
    ("share", "|t| ≥ 2", "share of elements with significant drift by first differences"),
    ("size", "ulps / 100 steps", "median movement of the line in 100 training steps"),
)
"""(kind, head, explanation) of the table's columns; an aside has no column of its own"""


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
    table: Sequence[Mapping[str, Any]]
    min_distinct: int
    min_range: float
    footer: str


def escape(text: object) -> str:
    """Text that is safe in HTML, in attributes too; control characters are written out."""
    return html.escape(printable(str(text)))


def build_page(data: PageData) -> str:
    """The whole page as HTML, with nothing outside of it."""
    here = files("trajkit")
    n = data.numbers
    sections = [
        _section("run", "The run at a glance", "", _facts(data.run), data.figures.get("timeline")),
        _section("rsq", "How straight: R² of every element", "", "", data.figures.get("rsq")),
        _section("accounting", "What these numbers leave out", _ACCOUNTING, _accounts(data)),
        _section("modules", "Where in the model", "", "", data.figures.get("modules")),
        _section("drift", "Drift against noise", "", "", data.figures.get("drift")),
        _section("gallery", "Trajectories and their lines", "", "", data.figures.get("gallery")),
        _section("tensors", "All tensors", *_tensor_table(data)),
    ]
    kicker = f"{escape(n['store'])}, fit {escape(n['fit'])}"
    return Template((here / "page.html").read_text("utf-8")).substitute(
        version=escape(trajkit.__version__),
        title=f"trajkit report: {escape(n['store'])}",
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
        css=(here / "page.css").read_text("utf-8"),
        js=(here / "page.js").read_text("utf-8"),
        kicker=kicker,
        sentence=escape(data.finding.sentence),
        tiles=_tiles(n),
        notes="".join(f"<p>{escape(note)}</p>" for note in data.finding.notes),
        sections="\n".join(sections),
        footer=escape(data.footer),
        table_data=_table_json(data.table),
    )


def _section(
    name: str, title: str, lead: str, content: str, figure: FigureBlock | None = None
) -> str:
    parts = [f'<section id="{name}" aria-labelledby="{name}-title">']
    parts.append(f'<h2 id="{name}-title">{title}</h2>')
    if lead:
        parts.append(f'<p class="lead">{lead}</p>')
    parts.append(content)
    if figure is not None:
        parts.append(
            f"<figure>{''.join(figure.svgs)}<figcaption>{figure.caption}</figcaption></figure>"
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
            "",
            "elements fitted",
            percent(share(n["fitted"], n["elements"])),
            f"{n['fitted']:,} of {n['elements']:,}",
        ),
        (
            "",
            "checkpoints",
            f"{n['checkpoints']:,}",
            f"steps {n['from_step']:,} to {n['to_step']:,}",
        ),
    )
    return "".join(
        f'<div class="{kind}"><dt>{name}</dt><dd class="value">{value}</dd>'
        f'<dd class="beside">{beside}</dd></div>'
        for kind, name, value, beside in tiles
    )


def _facts(run: Mapping[str, Any]) -> str:
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in run.items())
    return f'<dl class="facts">{"".join(items)}</dl>'


_ACCOUNTING = (
    "A share above the threshold means little without knowing of what. Every element is counted "
    "here once as static, invalid or fitted; the fitted ones are then looked at more closely."
)


def _accounts(data: PageData) -> str:
    n = data.numbers
    everything, fitted, kept = n["elements"], n["fitted"], n["kept"]
    rest = everything - n["static"] - n["invalid"] - fitted
    parts = [
        ("static", "never changed; no R²", n["static"], ""),
        ("invalid", "NaN or Inf in some checkpoint; no R²", n["invalid"], ""),
        *([("no finite R²", "sums beyond the range of numbers", rest, "")] if rest else []),
        ("fitted", "an R² exists", fitted, "run strong"),
    ]
    filters = [
        (
            "below half an ulp",
            "the line moves less than half the spacing of the format over the whole window",
            n["below_half_ulp"],
            "",
        ),
        (
            f"fewer than {data.min_distinct} distinct values",
            "a staircase of one or two steps: any R² it has is an accident of where they fall",
            n["few_distinct"],
            "",
        ),
        (
            "filtered by range",
            f"max − min at most {data.min_range:g}" if data.min_range else "no such filter was set",
            n["small_range"],
            "",
        ),
        ("kept", "neither of the last two", kept, "run strong"),
    ]
    return _account_table(f"<b>All {everything:,} elements</b>", parts, everything) + (
        _account_table(f"<b>The {fitted:,} fitted elements</b>, with overlap", filters, fitted)
        + _above_table(data)
    )


def _account_table(caption: str, rows: Sequence[tuple[str, str, int, str]], whole: int) -> str:
    lines = []
    for name, why, count, kind in rows:
        part = share(count, whole)
        lines.append(_account_row(name, why, f"{count:,}", part, kind))
    return f'<table class="accounts"><caption>{caption}</caption><tbody>{"".join(lines)}</tbody></table>'


def _account_row(name: str, why: str, count: str, part: float | None, kind: str) -> str:
    width = f"{72 * (part or 0):.2f}%"
    bar = "run" if "run" in kind else ""
    strong = ' class="strong"' if "strong" in kind else ""
    return (
        f'<tr{strong}><th scope="row">{escape(name)}<small>{escape(why)}</small></th>'
        f'<td class="n">{count}</td><td><div class="bar"><i class="{bar}" style="width:{width}"></i>'
        f"<span>{percent(part, 1)}</span></div></td></tr>"
    )


def _above_table(data: PageData) -> str:
    n = data.numbers
    above, kept_above = n["above_threshold"], n["kept_above"]
    rows = (
        ("of the fitted", "the number on top of the page", f"{above:,}", share(above, n["fitted"]), "run strong"),
        ("of the kept", "the paper's way of counting", f"{kept_above:,}", share(kept_above, n["kept"]), "run"),
        ("of all elements", "static and invalid ones count as not above", f"{above:,}", share(above, n["elements"]), "run"),
        ("of driftless random walks", "drawn on the same training steps", "", n["null_above_threshold"], ""),
    )  # fmt: skip
    lines = "".join(_account_row(*row) for row in rows)
    caption = f"<b>R² above {n['rsq_threshold']:g}</b>"
    return f'<table class="accounts"><caption>{caption}</caption><tbody>{lines}</tbody></table>'


def _tensor_table(data: PageData) -> tuple[str, str]:
    rows = len(data.table)
    folded = rows > FOLD_ABOVE and rows > len(_fold_table(data.table))
    lead = (
        "Click a heading to sort, type to search. Walks for comparison: median R² "
        f"{number(data.numbers['null_median_rsq'])}, above the threshold "
        f"{percent(data.numbers['null_above_threshold'])}."
    )
    if folded:
        lead += " The experts of a layer are one row; tensors.parquet has each by itself."
    heads = "".join(
        f'<th scope="col" data-column="{c}" title="{escape(why)}">'
        + (f"<button>{escape(head)}</button></th>" if kind != "spark" else f"<button disabled>{escape(head)}</button></th>")
        for c, (kind, head, why) in enumerate(_HEADS)
        if kind != "aside"
    )  # fmt: skip
    content = (
        '<div class="controls"><input id="search" type="search" aria-label="search the tensors" '
        'placeholder="Search names, dtypes, shapes"><output id="status" for="search"></output>'
        '<button id="earlier">Earlier</button><button id="later">Later</button></div>'
        f'<div class="scroll"><table class="tensors"><thead><tr>{heads}</tr></thead>'
        "<tbody></tbody></table></div>"
        "<noscript><p>The table needs JavaScript; the same rows are in tensors.parquet.</p></noscript>"
    )
    return lead, content


def _table_json(table: Sequence[Mapping[str, Any]]) -> str:
    """The table's rows for page.js; ``<`` is written so that no name can end the script."""
    rows = table
    if len(rows) > FOLD_ABOVE:
        rows = _fold_table(rows)
    document = {
        "columns": [kind for kind, _, _ in _HEADS],
        "rows": [_table_row(row) for row in rows],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _table_row(row: Mapping[str, Any]) -> list[Any]:
    def rounded(value: float | None, digits: int) -> float | None:
        return None if value is None else float(f"{value:.{digits}g}")

    return [
        printable(row["name"]),
        row.get("aside") or f"{row['dtype']} {'×'.join(str(n) for n in row['shape']) or 'scalar'}",
        row["elements"],
        rounded(share(row["static"], row["elements"]), 3),
        _spark(row["hist_rsq"]),
        rounded(row["median_rsq"], 4),
        rounded(row["share_above_threshold"], 3),
        rounded(row["median_durbin_watson"], 3),
        rounded(row["share_drift_t_above_2"], 3),
        rounded(row["median_ulps_per_100_steps"], 3),
    ]


def _spark(hist: Sequence[int]) -> str:
    """A histogram as one base-36 digit a bin, the highest bin 35; empty without elements."""
    pairs = [sum(hist[i : i + 2]) for i in range(0, 2 * _SPARK_BINS, 2)]
    top = max(pairs)
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(digits[-(-35 * v // top)] for v in pairs) if top else ""


def _fold_table(table: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows with the experts of a layer pooled: counts added, medians from histograms or weighted."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        groups.setdefault(fold_experts(row["name"]), []).append(row)
    return [rows[0] if len(rows) == 1 else _pool(name, rows) for name, rows in groups.items()]


def _pool(name: str, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    import numpy as np

    total = {
        c: sum(r[c] for r in rows) for c in ("elements", "static", "fitted", "above_threshold")
    }
    hist = np.sum([r["hist_rsq"] for r in rows], axis=0)
    weighted = {
        c: weighted_median([(r[c], r["fitted"]) for r in rows if r[c] is not None])
        for c in ("median_durbin_watson", "share_drift_t_above_2", "median_ulps_per_100_steps")
    }
    return {
        "name": name,
        "aside": f"{rows[0]['dtype']} {len(rows)} tensors",
        **total,
        **weighted,
        "hist_rsq": hist.tolist(),
        "median_rsq": histogram_quantile(hist, 0.0, 1.0),
        "share_above_threshold": share(total["above_threshold"], total["fitted"]),
    }


def run_facts(
    steps: Sequence[int], window: int, numbers: Mapping[str, Any], tensors: int,
    raw_bytes: int, stored_bytes: int,
) -> dict[str, str]:  # fmt: skip
    """The run at a glance, as pairs of name and text."""
    gaps = sorted(b - a for a, b in zip(steps[:-1], steps[1:], strict=True))
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
