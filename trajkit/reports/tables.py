"""The page's tables: what became of every element, and all tensors with their statistics."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trajkit.reports.findings import number, percent
from trajkit.reports.markup import escape
from trajkit.reports.modules import fold_experts, weighted_median
from trajkit.stats.histograms import histogram_quantile, share
from trajkit.text import printable

FOLD_ABOVE = 2000
"""with more tensors than this, the table shows the experts of a layer as one row"""
_SPARK_BINS = 25
_HEADS = (
    ("name", "tensor", "its name, dtype and shape"),
    ("aside", "", ""),
    ("count", "elements", "elements in the tensor"),
    ("share", "static", "share of elements that never changed"),
    ("spark", "R²\u00a00–1", "histogram of R² of its fitted elements"),
    ("number", "median R²", "median R² of its fitted elements"),
    ("share", "above", "share of its fitted elements above the threshold"),
    ("number", "Durbin-Watson", "median Durbin-Watson statistic"),
    ("share", "|t|\u00a0≥\u00a02", "share of elements with significant drift by first differences"),
    ("size", "ulps in 100\u00a0steps", "median movement of the line in 100 training steps"),
)
"""(kind, head, explanation) of the table's columns; an aside has no column of its own"""

ACCOUNTING = (
    "A share above the threshold means little without knowing of what. Every element is counted "
    "here once as static, invalid or fitted; the fitted ones are then looked at more closely."
)


def module_table(modules: Sequence[Mapping[str, Any]]) -> str:
    """A row a module: how many of its elements drift, its R² beside its walks', its verdict; HTML."""
    if not modules:
        return ""
    head = (
        "<tr><th>module, layers folded</th><th>elements</th><th>drift</th><th>median R²</th>"
        "<th>its walks</th><th>verdict</th></tr>"
    )
    lines = (
        f'<tr><th scope="row">{escape(printable(row["module"]))}</th>'
        f'<td class="n">{row["elements"]:,}</td><td class="n">{percent(row["drift_share"], 1)}</td>'
        f'<td class="n">{number(row["median_rsq"])}</td>'
        f'<td class="n">{number(row["null_median_rsq"])}</td>'
        f"<td>{row['verdict'] or 'none'}</td></tr>"
        for row in modules
    )
    return (
        f'<div class="scroll"><table class="plain flat"><thead>{head}</thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def build_accounts(n: Mapping[str, Any], min_distinct: int, min_range: float) -> str:
    """What became of every element, as HTML; ``n`` is :meth:`trajkit.fits.Fit.describe`."""
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
            f"fewer than {min_distinct} distinct values",
            "a staircase of one or two steps: any R² it has is an accident of where they fall",
            n["few_distinct"],
            "",
        ),
        (
            "filtered by range",
            f"max − min at most {min_range:g}" if min_range else "no such filter was set",
            n["small_range"],
            "",
        ),
        ("kept", "neither of the last two", kept, "run strong"),
    ]
    return _account_table(f"<b>All {everything:,} elements</b>", parts, everything) + (
        _account_table(f"<b>The {fitted:,} fitted elements</b>, with overlap", filters, fitted)
        + _above_table(n)
    )


def _account_table(caption: str, rows: Sequence[tuple[str, str, int, str]], whole: int) -> str:
    lines = []
    for name, why, count, kind in rows:
        part = share(count, whole)
        lines.append(_account_row(name, why, f"{count:,}", part, kind))
    return _account_body(caption, lines)


def _account_row(name: str, why: str, count: str, part: float | None, kind: str) -> str:
    bar = (
        f'<i class="{"run" if "run" in kind else ""}" style="--part:{part:.4f}"></i>'
        if part
        else ""
    )
    strong = ' class="strong"' if "strong" in kind else ""
    return (
        f'<tr{strong}><th scope="row">{escape(name)}<small>{escape(why)}</small></th>'
        f'<td class="n">{count}</td><td><div class="bar">{bar}'
        f"<span>{escape(percent(part, 1))}</span></div></td></tr>"
    )


def _above_table(n: Mapping[str, Any]) -> str:
    above, kept_above = n["above_threshold"], n["kept_above"]
    rows = (
        ("of the fitted", "the number on top of the page", above, n["fitted"], "run strong"),
        ("of the kept", "as in arXiv 2601.04537, which filters too", kept_above, n["kept"], "run"),
        ("of all elements", "static and invalid ones not above", above, n["elements"], "run"),
    )
    lines = [
        _account_row(name, why, f"{count:,}", share(count, whole), kind)
        for name, why, count, whole, kind in rows
    ]
    walks = ("of driftless random walks", "drawn on the same training steps")
    lines.append(_account_row(*walks, "", n["null_above_threshold"], ""))
    return _account_body(f"<b>R² above {n['rsq_threshold']:g}</b>", lines)


def _account_body(caption: str, lines: Sequence[str]) -> str:
    return (
        f'<table class="accounts"><caption>{caption}</caption>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def build_tensor_table(n: Mapping[str, Any], folded: bool) -> tuple[str, str]:
    """(lead, HTML) of the table of tensors, which page.js fills."""
    lead = (
        "Click a heading to sort, type to search. Walks for comparison: median R² "
        f"{number(n['null_median_rsq'])}, above the threshold "
        f"{percent(n['null_above_threshold'])}."
    )
    if folded:
        lead += " The experts of a layer are one row; tensors.jsonl has each by itself."
    heads = "".join(
        f'<th scope="col" data-column="{c}" title="{escape(why)}">'
        f"<button{' disabled' if kind == 'spark' else ''}>{escape(head)}</button></th>"
        for c, (kind, head, why) in enumerate(_HEADS)
        if kind != "aside"
    )
    content = (
        '<div class="controls"><input id="search" type="search" aria-label="search the tensors" '
        'placeholder="Search names, dtypes, shapes"><output id="status" for="search"></output>'
        '<button id="earlier">Earlier</button><button id="later">Later</button></div>'
        f'<div class="scroll"><table class="tensors"><thead><tr>{heads}</tr></thead>'
        "<tbody></tbody></table></div>"
        "<noscript><p>The table needs JavaScript; its rows are in tensors.jsonl too.</p></noscript>"
    )
    return lead, content


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table's rows for page.js; ``<`` is written so that no name can end the script."""
    document = {
        "columns": [kind for kind, _, _ in _HEADS],
        "rows": [_table_row(row) for row in rows],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The table of a fit as JSON lines, one a tensor; infinite and missing numbers are null."""
    finite = (
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    )
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in finite).encode()


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


def fold_table(table: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows with a layer's experts pooled: counts added, medians from histograms or weighted."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        groups.setdefault(fold_experts(row["name"]), []).append(row)
    return [rows[0] if len(rows) == 1 else _pool(name, rows) for name, rows in groups.items()]


def _pool(name: str, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
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
