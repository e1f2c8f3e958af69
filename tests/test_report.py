"""The report: what the page says, on real and on awkward runs; and the page in a browser."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from series_on_disk import TORCH_DTYPES, write_series, write_values

import trajkit
from trajkit.errors import AlreadyExists, InvalidInput, NotFound
from trajkit.reports.findings import find
from trajkit.reports.modules import MAX_ROWS, OTHERS, Place, arrange_modules, place_of
from trajkit.reports.report import ReportResult, report
from trajkit.reports.tables import fold_table, table_json
from trajkit.stats.walks import reference_walks

SECTIONS = (
    "findings",
    "movement",
    "rsq",
    "run",
    "accounting",
    "modules",
    "drift",
    "gallery",
    "tensors",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = (
    "</script><script>window.hostile=1</script>",
    '"><img src=x onerror=window.hostile=1>',
    "$x^{\\frac 1 0}$ <b>&amp;",
    "日本語",
)


class Page(HTMLParser):
    """What is in a page, as far as the tests ask."""

    void = ("meta", "link", "br", "img", "input", "hr", "wbr", "path", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.section = ""
        self.all_text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("section", "header"):
            self.section = dict(attrs)["id"] or ""
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag
        if tag in ("section", "header"):
            self.section = ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts[self.section] = self.texts.get(self.section, "") + data.replace("\xa0", " ")
            self.all_text += data

    def ids(self) -> list[str]:
        return [a["id"] or "" for _, a in self.tags if "id" in a]


def make_report(
    folder: Path,
    steps: list[int],
    states: list[dict[str, np.ndarray]],
    dtype: str = "bfloat16",
    to_step: int | None = None,
) -> tuple[ReportResult, Page, dict[str, Any], "trajkit.Fit"]:
    """Ingest, fit and report a series given as arrays: result, page, summary, fit."""
    import torch

    cast = TORCH_DTYPES[dtype]
    tensors = [{n: torch.tensor(a).to(cast) for n, a in state.items()} for state in states]
    write_series(folder / "ckpts", steps, tensors)
    store = folder / "trajkit.zarr"
    trajkit.ingest(folder / "ckpts", store)
    fit = trajkit.fit(trajkit.open(store), to_step=to_step)
    result = report(trajkit.open(store), folder / "out")
    page, summary = read_page(Path(result.path))
    return result, page, summary, fit


def read_page(path: Path) -> tuple[Page, dict[str, Any]]:
    summary = json.loads((path.parent / "summary.json").read_text())
    page = Page(path.read_text())
    assert not page.open, "every tag is closed"
    return page, summary


def lines(rng: np.random.Generator, steps: list[int], *shape: int) -> list[np.ndarray]:
    """Values that drift with noise, one array a step."""
    start, slope = rng.normal(size=shape), rng.normal(size=shape) * 1e-3
    return [start + slope * x + rng.normal(size=shape) * 1e-2 for x in steps]


def check_page(page: Page, text: str) -> None:
    """What holds for every page."""
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert [i for i in ids if i in SECTIONS] == list(SECTIONS)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", text)
    targets = {a["href"] for _, a in page.tags if "href" in a}
    assert all(t and t.startswith("#") and t[1:] in ids for t in targets)
    assert not any("src" in a for _, a in page.tags)
    assert "NaN" not in re.sub(r"NaN or Inf", "", text)
    pictures = [a for tag, a in page.tags if tag == "svg"]
    assert pictures
    assert all(len(a.get("aria-label") or "") > 20 for a in pictures)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == len(pictures) // 2


@pytest.fixture(scope="module")
def adder_report(
    adder_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ReportResult, Path]:
    out = tmp_path_factory.mktemp("report") / "report"
    return report(trajkit.open(adder_store), out, formats=["svg"]), out


def test_page_has_all_sections_and_nothing_from_outside(
    adder_report: tuple[ReportResult, Path],
) -> None:
    result, out = adder_report
    page, _ = read_page(out / "index.html")
    check_page(page, (out / "index.html").read_text())
    assert result.path == str(out / "index.html")
    assert result.finding in page.texts["findings"]
    assert page.all_text.count("How to read it.") == 6
    assert result.n_bytes < 2e6


def test_page_shows_the_fits_numbers(
    adder_store: Path, adder_report: tuple[ReportResult, Path]
) -> None:
    _, out = adder_report
    page, summary = read_page(out / "index.html")
    fit = trajkit.open(adder_store).fits["default"]
    numbers = fit.describe()
    assert {k: summary[k] for k in numbers} == json.loads(json.dumps(numbers))
    tiles = page.texts["findings"]
    assert f"{numbers['median_rsq']:.2f}" in tiles
    assert f"{numbers['null_median_rsq']:.2f}" in tiles
    assert f"{100 * numbers['share_above_threshold']:.0f} %" in tiles
    assert f"{100 * numbers['null_above_threshold']:.0f} %" in tiles
    accounts = page.texts["accounting"]
    for name in ("elements", "static", "fitted", "below_half_ulp", "few_distinct", "kept"):
        assert f"{numbers[name]:,}" in accounts, name
    assert f"{numbers['kept_above']:,}" in accounts
    assert "6.77 MB" in page.texts["run"]
    modules = {m["module"]: m for m in summary["modules"]}
    assert modules["self_attn.q_proj"]["layers"] == 2
    assert sum(m["fitted"] for m in modules.values()) == numbers["fitted"]


def test_table_on_the_page_and_in_json_lines_is_the_fits(
    adder_store: Path, adder_report: tuple[ReportResult, Path]
) -> None:
    _, out = adder_report
    rows = trajkit.open(adder_store).fits["default"].rows()
    assert [json.loads(line) for line in (out / "tensors.jsonl").read_text().splitlines()] == rows
    text = (out / "index.html").read_text()
    data = json.loads(re.search(r'id="table-data">(.*?)</script>', text)[1])  # type: ignore[index]
    assert [row[0] for row in data["rows"]] == [row["name"] for row in rows]
    assert [row[2] for row in data["rows"]] == [row["elements"] for row in rows]
    shown = [row[5] for row in data["rows"]]
    expected = [row["median_rsq"] for row in rows]
    assert all(a == b or abs(a - b) < 1e-3 for a, b in zip(shown, expected, strict=True))


def test_gallery_holds_the_extremes_and_its_numbers(
    adder_store: Path, adder_report: tuple[ReportResult, Path]
) -> None:
    _, out = adder_report
    _, summary = read_page(out / "index.html")
    traj = trajkit.open(adder_store)
    fit = traj.fits["default"]
    picks = summary["gallery"]
    roles = [p["role"] for p in picks]
    assert roles == ["best", "median", "worst", "biggest mover", *["random"] * 5]
    kept = {n: (fit.flags(n) & 12) == 0 for n in traj.tensors}
    best = max(float(np.nanmax(np.where(kept[n], fit.rsq(n), -1))) for n in traj.tensors)
    assert picks[0]["rsq"] == pytest.approx(best, abs=1e-6)
    assert picks[1]["rsq"] == pytest.approx(summary["median_rsq_kept"], abs=2e-3)
    mover = max(float(np.nanmax(np.where(kept[n], abs(fit.slope(n)), 0))) for n in traj.tensors)
    assert abs(fit.slope(picks[3]["tensor"])[tuple(picks[3]["index"])]) == pytest.approx(mover)
    for pick in picks:
        values = traj.trajectory(pick["tensor"], tuple(pick["index"])).astype(np.float64)
        r = np.corrcoef(fit.steps, values)[0, 1]
        assert pick["rsq"] == pytest.approx(r**2, abs=1e-4)


def test_figures_are_written_alone_in_every_format(adder_store: Path, tmp_path: Path) -> None:
    result = report(trajkit.open(adder_store), tmp_path / "r", formats=["png", "pdf", "svg", "png"])
    for name in ("timeline", "rsq", "modules", "drift", "gallery"):
        png, pdf, svg = (tmp_path / "r/figures" / f"{name}.{s}" for s in ("png", "pdf", "svg"))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")
        assert "<svg" in svg.read_text()
        assert "#01" not in svg.read_text(), "no stand-in colours in a paper"
    assert "figures/rsq.pdf" in result.files
    assert not list(tmp_path.glob(".*")), "nothing left beside"


def test_report_is_the_same_every_time(
    adder_store: Path, adder_report: tuple[ReportResult, Path], tmp_path: Path
) -> None:
    _, out = adder_report
    report(trajkit.open(adder_store), tmp_path / "again")
    for name in ("index.html", "summary.json", "tensors.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_report_refuses_what_it_cannot_do(adder_store: Path, tmp_path: Path) -> None:
    traj = trajkit.open(adder_store)
    with pytest.raises(InvalidInput, match="gif"):
        report(traj, tmp_path / "r", formats=["gif"])
    with pytest.raises(NotFound, match="nope"):
        report(traj, tmp_path / "r", fit="nope")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine.txt").write_text("keep")
    for force in (False, True):
        with pytest.raises(AlreadyExists, match=r"holds mine.txt, which trajkit did not write"):
            report(traj, tmp_path / "r", force=force)
    assert (tmp_path / "r" / "mine.txt").read_text() == "keep"


def test_two_checkpoints_are_said_to_say_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    states = [{"w": a} for a in lines(rng, [0, 50], 40)]
    result, page, summary, _ = make_report(tmp_path, [0, 50], states)
    check_page(page, Path(result.path).read_text())
    assert result.verdict == "two"
    assert "a line through two points always fits" in result.finding
    assert summary["walk"] is None
    assert "takes three checkpoints" in page.texts["drift"]


def test_random_walks_are_not_called_lines(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    steps = list(range(0, 300, 20))
    walk = np.cumsum(rng.normal(size=(len(steps), 3000)) * 0.01, axis=0) + 1
    result, page, summary, _ = make_report(
        tmp_path, steps, [{"model.layers.0.mlp.up.weight": row} for row in walk], "float32"
    )
    check_page(page, Path(result.path).read_text())
    assert result.verdict == "wandering"
    assert "no more than a driftless random walk" in result.finding
    assert "no evidence of a drift" in page.texts["findings"]
    assert abs(summary["share_drift_t_above_2"] - summary["walk"]["share_drift_t_above_2"]) < 0.03
    assert summary["median_durbin_watson"] == pytest.approx(summary["walk"]["dw_median"], abs=0.1)


def test_nothing_that_moves(tmp_path: Path) -> None:
    states = [{"a.weight": np.ones((3, 4)), "b": np.float32(2) * np.ones(())}] * 3
    result, page, _, fit = make_report(tmp_path, [1, 2, 3], states)
    check_page(page, Path(result.path).read_text())
    assert (result.verdict, fit.describe()["fitted"]) == ("nothing", 0)
    assert "all 13 elements are static" in result.finding
    assert "nothing to show" in page.texts["gallery"]


def test_three_checkpoints_with_invalid_elements(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    steps = [0, 7, 100]
    states = [{"model.layers.3.w": a} for a in lines(rng, steps, 50)]
    for state in states:
        state["model.layers.3.w"][:5] = [np.nan, np.inf, -np.inf, 0, 0]
    result, page, summary, _ = make_report(tmp_path, steps, states, "float32")
    check_page(page, Path(result.path).read_text())
    assert summary["invalid"] == 3
    assert "3 elements held NaN or Inf" in page.texts["findings"]
    assert "With 3 checkpoints nearly any path looks straight" in page.texts["findings"]


def test_only_invalid_elements_and_one_tensor(tmp_path: Path) -> None:
    states = [{"w": np.full(4, np.nan)}] * 4
    result, page, _, _ = make_report(tmp_path, [0, 1, 2, 3], states, "float16")
    check_page(page, Path(result.path).read_text())
    assert "all 4 elements held NaN or Inf" in result.finding


def test_hundred_layers_two_stacks_and_checkpoints_beyond_the_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    steps = [0, 10, 20, 40, 80]
    series = {
        name: lines(rng, steps, 4)
        for layer in range(100)
        for name in (f"decoder.layers.{layer}.attn.weight", f"encoder.layers.{layer}.mlp.0.weight")
    }
    states = [{n: a[t] for n, a in series.items()} for t in range(len(steps))]
    result, page, summary, _ = make_report(tmp_path, steps, states, "float32", to_step=40)
    check_page(page, Path(result.path).read_text())
    assert [m["module"] for m in summary["modules"]] == ["decoder: attn", "encoder: mlp.0"]
    assert "4 of them fitted" in page.texts["run"]
    assert "Grey bars are not in the fit" in page.texts["run"]


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    steps = [0, 1, 2, 3, 4]
    series = {name: lines(rng, steps, 6) for name in HOSTILE}
    states = [{n: a[t] for n, a in series.items()} for t in range(len(steps))]
    result, page, _, _ = make_report(tmp_path, steps, states)
    text = Path(result.path).read_text()
    check_page(page, text)
    assert "<script>window" not in text
    assert "<img" not in text
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert "window.hostile=1" in page.texts["modules"], "shown as text all the same"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.self_attn.q_proj.weight", ("model.layers", 12, "self_attn.q_proj")),
        ("model.layers.1.self_attn.q_proj.bias", ("model.layers", 1, "self_attn.q_proj.bias")),
        ("transformer.h.3.attn.c_attn.weight", ("transformer.h", 3, "attn.c_attn")),
        ("model.layers.0.mlp.experts.9.w1.weight", ("model.layers", 0, "mlp.experts.*.w1")),
        ("model.layers.0.mlp.experts.gate_up", ("model.layers", 0, "mlp.experts.gate_up")),
        ("backbone.layers.7.A_log", ("backbone.layers", 7, "A_log")),
        ("encoder.block.2.layer.1.wi.weight", ("encoder.block", 2, "layer.1.wi")),
        ("visual.merger.mlp.0.weight", ("", None, "visual.merger.mlp.0")),
        ("lm_head.weight", ("", None, "lm_head")),
        ("w", ("", None, "w")),
        ("", ("", None, "")),
        ("7.3.weight", ("", None, "7.3")),
    ],
)
def test_place_of(name: str, place: tuple[str, int | None, str]) -> None:
    assert place_of(name) == Place(*place)


def table_row(name: str, elements: int = 64) -> dict[str, Any]:
    hist = [0] * 49 + [elements]
    counts = {"elements": elements, "fitted": elements, "above_threshold": elements, "static": 0}
    medians = dict.fromkeys(
        ("median_durbin_watson", "share_drift_t_above_2", "median_ulps_per_100_steps"), 0.5
    )
    shape = {"dtype": "bfloat16", "shape": [8, 8], "share_above_threshold": 1.0}
    return {"name": name, "hist_rsq": hist, "median_rsq": 0.99} | counts | medians | shape


def test_thirty_six_thousand_tensors_are_folded_in_no_time() -> None:
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
        for layer in range(94)
        for expert in range(128)
        for part in ("gate", "up", "down")
    ]
    table = [table_row(name) for name in [*names, "lm_head.weight"]]
    started = time.perf_counter()
    grid = arrange_modules(table)
    folded = fold_table(table)
    text = table_json(folded)
    assert time.perf_counter() - started < 10
    assert (grid.layers, len(grid.rows), len(grid.outside)) == (94, 3, 1)
    assert grid.folded_experts == 36_096
    assert grid.rows[0].cells[93].fitted == 128 * 64
    assert len(folded) == 94 * 3 + 1
    assert sum(row["elements"] for row in folded) == 36_097 * 64
    assert len(text) < 60_000


def test_a_model_of_odd_names_gets_few_rows() -> None:
    grid = arrange_modules([table_row(f"model.layers.0.m{i}.weight", i + 1) for i in range(90)])
    assert len(grid.rows) == MAX_ROWS
    assert grid.rows[-1].label == OTHERS
    assert sum(row.pooled.total("elements") for row in grid.rows) == 90 * 91 // 2


@pytest.mark.parametrize("steps", [(0, 3, 4, 50), tuple(range(0, 80, 10))])
def test_reference_walks_follow_the_definitions_of_the_kernels(steps: tuple[int, ...]) -> None:
    from trajkit.kernels import api

    rng = np.random.default_rng(5)
    dx = np.diff(steps)
    jumps = rng.normal(size=(len(dx), 20_000)) * np.sqrt(dx)[:, None]
    values = np.concatenate([np.ones((1, 20_000)), 1 + np.cumsum(jumps, axis=0)])
    key = np.ones(len(steps), bool)
    solution = api.fit_frames(values.view(np.uint64), key, np.array(steps), "float64")
    walk = reference_walks(steps)
    assert walk is not None
    assert walk.dw_median == pytest.approx(np.median(solution.dw), rel=0.05)
    assert walk.dw_high == pytest.approx(np.quantile(solution.dw, 0.75), rel=0.05)
    significant = np.mean(np.abs(solution.drift_t) >= 2)
    assert walk.share_drift_t_above_2 == pytest.approx(significant, abs=0.015)


def test_verdicts() -> None:
    numbers: dict[str, Any] = {
        "fitted": 10, "elements": 10, "static": 0, "invalid": 0, "kept": 10, "few_distinct": 0,
        "checkpoints": 20, "rsq_threshold": 0.7, "null_median_rsq": 0.44, "verdict": "wandering",
        "null_above_threshold": 0.26, "share_above_threshold": 0.1, "median_rsq": 0.05,
        "share_drift_t_above_2": 0.02, "median_rsq_kept": 0.05, "median_durbin_watson": 2.1,
    }  # fmt: skip
    assert find(numbers, None).verdict == "wandering"
    assert "no line to extend" in find(numbers, None).notes[1]
    assert "no line to extend" not in " ".join(find(numbers | {"median_rsq": 0.4}, None).notes)
    for verdict, words in (("straight", "straight lines"), ("drifting", "more than a driftless")):
        assert words in find(numbers | {"verdict": verdict}, None).sentence
    assert find(numbers | {"fitted": 0}, None).verdict == "nothing"
    assert find(numbers | {"checkpoints": 2}, None).verdict == "two"
    assert "run trajkit fit again" in find(numbers | {"verdict": None}, None).sentence


PROBE_BEFORE = """<script>
window.probe = { errors: [] };
window.addEventListener("error", (e) => probe.errors.push(String(e.message || e.target.tagName)), true);
window.addEventListener("unhandledrejection", (e) => probe.errors.push(String(e.reason)));
document.addEventListener("securitypolicyviolation", (e) => probe.errors.push(e.blockedURI));
console.error = (...a) => probe.errors.push(a.join(" "));
console.warn = console.error;
</script>"""
PROBE_AFTER = """<script>
(() => {
  const rows = () => [...document.querySelectorAll(".tensors tbody tr")];
  const column = (c) => rows().map((r) => r.cells[c].textContent);
  const type = (text) => {
    const search = document.getElementById("search");
    search.value = text;
    search.dispatchEvent(new Event("input"));
  };
  const head = (n) => document.querySelectorAll(".tensors th button")[n];
  probe.rows = rows().length;
  head(1).click();
  probe.down = column(1);
  probe.sorted = document.querySelector("th[aria-sort]").getAttribute("aria-sort");
  head(1).click();
  probe.up = column(1);
  head(0).click();
  probe.names = column(0);
  type("norm bfloat16");
  probe.found = column(0);
  type("no such tensor");
  probe.none = rows().length;
  probe.status = document.getElementById("status").textContent;
  type("");
  probe.back = rows().length;
  probe.hostile = window.hostile || 0;
  const shown = [...document.querySelectorAll("figure svg")].filter((s) => s.getClientRects().length);
  probe.figures = shown.map((s) => [s.getBBox().width, s.getBoundingClientRect().width]);
  probe.images = [...document.images].map((i) => i.complete && i.naturalWidth > 0);
  probe.requests = performance.getEntriesByType("resource").map((r) => r.name);
  probe.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = "PROBE" + btoa(unescape(encodeURIComponent(JSON.stringify(probe)))) + "END";
  document.body.append(out);
})();
</script>"""


def browse(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """What the probe saw in a copy of the page, opened in headless Chromium."""
    text = page.read_text()
    copy = folder / "copy.html"
    text = text.replace("<head>", "<head>" + PROBE_BEFORE, 1)
    probe = PROBE_AFTER.removeprefix("<script>").removesuffix("</script>")
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    assert text.count("script-src '") == 1
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '")  # all else stays refused
    copy.write_text(text.replace("</body>", PROBE_AFTER + "</body>", 1))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --enable-logging=stderr "
        f"--virtual-time-budget=4000 --window-size={width},900 --dump-dom"
    )
    with_profile = f"--user-data-dir={folder / 'profile'}"
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *flags.split(), with_profile, copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = re.search("PROBE([^<]*)END</pre>", done.stdout)
    assert found, done.stdout[-500:]
    seen: dict[str, Any] = json.loads(base64.b64decode(found[1]))
    return seen


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_page_works_in_a_browser(adder_report: tuple[ReportResult, Path], tmp_path: Path) -> None:
    _, out = adder_report
    seen = browse(out / "index.html", tmp_path, 1280)
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert all(seen["images"])
    assert seen["rows"] == seen["back"] == 24
    sizes = [int(n.replace(",", "")) for n in seen["down"]]
    assert seen["sorted"] == "descending"
    assert sizes == sorted(sizes, reverse=True)
    assert [int(n.replace(",", "")) for n in seen["up"]] == sizes[::-1]
    assert seen["names"] == sorted(seen["names"])
    assert len(seen["found"]) == 9
    assert all("norm" in name for name in seen["found"])
    assert (seen["none"], seen["status"]) == (0, "0 (24 in all)")
    assert len(seen["figures"]) == 6
    assert all(inner > 100 and outer > 800 for inner, outer in seen["figures"])
    assert seen["overflow"] <= 0


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_hostile_page_in_a_narrow_browser(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    steps = [0, 5, 10, 20]
    names = [*HOSTILE, *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(60))]
    series = {name: lines(rng, steps, 5) for name in names}
    states = [{n: a[t] for n, a in series.items()} for t in range(len(steps))]
    result, *_ = make_report(tmp_path, steps, states)
    seen = browse(Path(result.path), tmp_path, 500)
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert seen["hostile"] == 0
    assert seen["rows"] == 50, "a page of rows at a time"
    assert len(seen["figures"]) == 6
    assert seen["overflow"] <= 0


def test_weights_that_span_the_whole_range_of_float64(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    ends = np.array([1.7e308, -1.7e308, 5e-324, -0.0, 1e-300, 1.0, 1e300, -1e200])
    walk = np.array([ends * f for f in (1.0, 0.5, -1.0, 0.25, 1.0, -0.5)])
    walk[:, 5] += rng.normal(size=6)
    write_values(tmp_path / "ckpts", range(0, 60, 10), walk, "float64")
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr")
    trajkit.report(tmp_path / "s.zarr", tmp_path / "page")
    assert "</html>" in (tmp_path / "page" / "index.html").read_text()
