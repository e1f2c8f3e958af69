"""Mean activations: against one plain forward a probe, taken apart, kept whole, added to."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from store_series import contents
from tiny_models import VOCABULARY, make_tokenizer, write_run

import trajkit
from trajkit.cli.main import cli
from trajkit.errors import FormatError, InvalidInput, Mismatch, NotFound, OverBudget, Unsupported
from trajkit.outputs.activations import activations
from trajkit.outputs.activations_fit import fit_activations, shares_by_module
from trajkit.outputs.activations_kept import Activations, ActivationsRecord, read_activations
from trajkit.outputs.check import check_outputs
from trajkit.outputs.decomposition import choose_places, parts_of_change, weight_of
from trajkit.outputs.layers import choose_layers
from trajkit.outputs.shares import SUMS
from trajkit.stats.flips import flipped_walks
from trajkit.store.store import Store

STEPS = (0, 10, 25, 30)
LINES = [{"prompt": "p" * n, "response": "words " * m} for n, m in ((1, 2), (7, 1), (3, 3), (2, 0))]
LINEAR = ("*.o_proj", "*.down_proj", "lm_head")


def write_gpt2(folder: Path, steps: tuple[int, ...]) -> None:
    """A run of a GPT-2, whose linear layers keep their weights transposed and have biases."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=2, n_head=2,
        bos_token_id=2, eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder / f"checkpoint-{step}")
        make_tokenizer().save_pretrained(folder / f"checkpoint-{step}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of short runs, and the probes beside them, by name."""
    found = {}
    for name, dtype in (("qwen3", torch.float32), ("llama", torch.bfloat16), ("gpt2", None)):
        folder = tmp_path_factory.mktemp(name)
        if dtype is None:
            write_gpt2(folder / "ckpts", STEPS)
        else:
            write_run(folder / "ckpts", name, STEPS, dtype)
        trajkit.ingest(folder / "ckpts", folder / "s.zarr")
        (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
        found[name] = folder
    return found


@pytest.fixture
def copied(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A store of one's own."""
    for name in ("s.zarr", "p.jsonl"):
        source = runs["llama"] / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recorded(model: Any, layers: tuple[str, ...], where: str) -> dict[str, list[Any]]:
    """(input, output) at the places looked at, float64, of each layer: a plain forward a probe."""
    tokenizer, found = make_tokenizer(), {name: [] for name in layers}
    modules = dict(model.named_modules())
    seen: dict[str, Any] = {}
    for name in layers:
        modules[name].register_forward_hook(
            lambda _, args, y, name=name: seen.__setitem__(
                name, (args[0], y[0] if isinstance(y, tuple) else y)
            )
        )
    for line in LINES:
        if not line["response"]:
            continue
        before = tokenizer(line["prompt"])["input_ids"]
        text = before + tokenizer(line["response"])["input_ids"]
        with torch.no_grad():
            model(input_ids=torch.tensor([text]))
        first = len(before) - 1 if where == "response" else 0
        for name in layers:
            found[name].append(tuple(t[0, first:-1].double() for t in seen[name]))
    return {n: [torch.cat([f[i] for f in parts]) for i in (0, 1)] for n, parts in found.items()}


def all_recorded(folder: Path, layers: tuple[str, ...], where: str) -> list[Any]:
    traj = trajkit.open(folder / "s.zarr")
    return [
        recorded(trajkit.load_model(traj, step, dtype="float32"), layers, where) for step in STEPS
    ]


@pytest.mark.parametrize(
    ("run", "patterns", "where", "per"),
    [
        ("qwen3", (*LINEAR, "model.layers.?.mlp", "model.norm"), "response", "neuron"),
        ("llama", LINEAR, "all", "neuron"),
        ("gpt2", ("*.c_proj", "*.c_fc", "lm_head"), "response", "neuron"),
        ("llama", LINEAR, "response", "position"),
    ],
)
def test_means_lines_and_changes_are_those_of_recorded_activations(
    runs: dict[str, Path], tmp_path: Path, run: str, patterns: tuple[str, ...], where: Any, per: Any
) -> None:
    folder = runs[run]
    found = activations(
        trajkit.open(folder / "s.zarr"), folder / "p.jsonl", layers=patterns, where=where, per=per,
        out=tmp_path / "a", batch_tokens=40,
    )  # fmt: skip
    kept = read_activations(tmp_path / "a")
    assert set(found.steps) == set(STEPS)
    expected = all_recorded(folder, found.layers, where)
    axis = 0 if per == "neuron" else 1
    for layer in found.layers:
        mean_TN = np.array([seen[layer][1].mean(axis).numpy() for seen in expected])
        assert np.abs(kept.of_layer(layer) - mean_TN).max() < 1e-5
    fit = fit_activations(kept)
    y = kept.rows("mean")
    x = np.array(STEPS, np.float64)
    for column in range(0, y.shape[1], 7):
        left = y[:, column] - np.polyval(np.polyfit(x, y[:, column], 1), x)
        rsq = 1 - (left @ left) / ((y[:, column] - y[:, column].mean()) ** 2).sum()
        assert abs(fit.rsq[column] - rsq) < 1e-6
    weights = [
        dict(
            trajkit.load_model(
                trajkit.open(folder / "s.zarr"), step, dtype="float32"
            ).named_modules()
        )
        for step in STEPS
    ]
    sums = kept.parts()
    assert kept.record.linear == tuple(n for n in found.layers if hasattr(weights[0][n], "weight")
                                       and n != "model.norm")  # fmt: skip
    assert not sums[0].any(axis=0)[SUMS.index("change")]
    for t in range(1, len(STEPS)):
        for layer, row in zip(kept.record.linear, sums[t], strict=True):
            (x0, y0), (x1, y1) = expected[0][layer], expected[t][layer]
            w0, w1 = (weight_of(weights[i][layer]).detach().double() for i in (0, t))
            biases = [weights[i][layer].bias for i in (0, t)]
            b0, b1 = ((0.0 if b is None else b.detach().double()) for b in biases)
            parts = [(x1 - x0) @ w0.T, x0 @ (w1 - w0).T + b1 - b0, (x1 - x0) @ (w1 - w0).T]
            change = y1 - y0
            told = dict(zip(SUMS, row, strict=True))
            for name, part in zip(("input", "weight", "product"), parts, strict=True):
                assert told[name] == pytest.approx(float(part.norm(dim=1).sum()), rel=1e-3)
                along = float((part * change).sum())
                assert told[f"along_{name}"] == pytest.approx(
                    along, rel=1e-3, abs=1e-4 * told["square"]
                )
            along = sum(told[f"along_{name}"] for name in ("input", "weight", "product"))
            assert along == pytest.approx(told["square"], rel=1e-5)
            assert told["rounding"] < 1e-5 * told["change"] + 1e-5 * told["output"]


@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 65), st.integers(1, 33)),
    far=st.sampled_from([0.0, 1e-4, 1.0]),
    bias=st.booleans(),
)
def test_the_three_parts_add_up_to_the_change(
    seed: int, dtype: torch.dtype, shape: tuple[int, int, int], far: float, bias: bool
) -> None:
    torch.manual_seed(seed)
    m, inputs, out = shape
    x0, w0, b0 = torch.randn(m, inputs), torch.randn(out, inputs), torch.randn(out)
    moved = [v + far * torch.randn_like(v) for v in (x0, w0, b0)]
    x0, w0, b0, x1, w1, b1 = (v.to(dtype) for v in (x0, w0, b0, *moved))
    parts = parts_of_change(x0, x1, w0, w1, *((b0, b1) if bias else (None, None)))
    wide = [v.double() for v in (x0, w0, b0, x1, w1, b1)]
    change = wide[3] @ wide[4].T - wide[0] @ wide[1].T + bias * (wide[5] - wide[2])
    dx, dw = (wide[3] - wide[0]).abs(), (wide[4] - wide[1]).abs()
    # a product of n float32 numbers is off by at most n + 2 roundings of the sum of absolute terms
    terms = dx @ wide[1].abs().T + wide[0].abs() @ dw.T + dx @ dw.T
    terms += bias * (wide[5].abs() + wide[2].abs())
    off = (sum(part.double() for part in parts) - change).abs()
    assert (off <= (inputs + 6) * 2**-23 * terms + 1e-30).all()


def test_rows_are_added_without_the_old_ones_and_the_same_bits(copied: Path) -> None:
    store = copied / "s.zarr"
    probes = copied / "p.jsonl"
    whole = activations(trajkit.open(store), probes, name="whole")
    assert activations(trajkit.open(store), probes, steps=STEPS[:2], name="parts").measured == 2
    before = contents(store / "activations" / "parts")
    added = activations(trajkit.open(store), probes, name="parts")
    assert (added.measured, added.steps) == (2, STEPS)
    after = contents(store / "activations" / "parts")
    rows = {k: v for k, v in before.items() if "/c/" in k}
    assert rows
    assert rows.items() <= after.items()
    expected = contents(Path(whole.path))
    assert {k: v for k, v in after.items() if k != "zarr.json"} == {
        k: v for k, v in expected.items() if k != "zarr.json"
    }
    assert activations(trajkit.open(store), probes, name="parts").measured == 0
    assert list(check_outputs(Store.open(store))) == []
    activations(trajkit.open(store), probes, steps=STEPS[:2], name="few")
    with pytest.raises(InvalidInput, match="step 0 was measured first"):
        activations(trajkit.open(store), probes, steps=(25,), name="few")
    activations(trajkit.open(store), probes, steps=(10, 30), name="late")
    with pytest.raises(InvalidInput, match="in order"):
        activations(trajkit.open(store), probes, steps=(10, 25), name="late")
    for other in ({"where": "all"}, {"per": "position"}, {"layers": ["*.mlp"]}, {"places": 0}):
        with pytest.raises(Mismatch, match="was measured with another"):
            activations(trajkit.open(store), probes, name="parts", **other)  # type: ignore[arg-type]
    anew = activations(trajkit.open(store), probes, name="parts", places=0, force=True)
    assert (anew.measured, anew.places) == (4, 0)
    assert shares_by_module(read_activations(Path(anew.path))) == {}


def test_neurons_that_follow_one_walk_are_no_witnesses_of_a_drift(tmp_path: Path) -> None:
    steps = tuple(range(0, 300, 10))
    rng = np.random.default_rng(5)
    loads = rng.standard_normal(64)

    def fit_of(y: np.ndarray) -> Any:
        class Made(Activations):
            def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
                return y[:, start:stop]

        record = ActivationsRecord(
            name="made", probes="", tokenizer="", dtype="", where="all", per="neuron", tokens=1,
            responses=1, layers=("a",), widths=(64,), steps=steps,
        )  # fmt: skip
        return fit_activations(Made(tmp_path, record))

    walks = np.cumsum(rng.standard_normal((30, 40)), axis=0)
    x = np.array(steps)
    rsq = [np.corrcoef(x, walk)[0, 1] ** 2 for walk in walks.T]
    straight = walks[:, int(np.argsort(rsq)[-6])]  # one in seven is straighter
    found = fit_of(straight[:, None] * loads + 0.01 * rng.standard_normal((30, 64)))
    assert found.whole["median_rsq"] > 0.7
    assert found.whole["own_walks_p"] > 0.05
    assert found.whole["verdict"] == "wandering"  # by each neuron alone it drifts
    assert found.layers[0]["own_walks_high"] > found.whole["median_rsq"]
    drift = fit_of(x[:, None] / 20 * loads + straight[:, None] * rng.standard_normal(64) / 5)
    assert drift.whole["own_walks_p"] < 0.01
    assert drift.whole["verdict"] in ("drifting", "straight")


def test_own_walks_are_right_one_time_in_twenty() -> None:
    steps = (0, 3, 4, 10, 20, 21, 25, 40, 44, 50)
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        mixed = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 12))
        y = np.concatenate([np.zeros((1, 12)), np.cumsum(mixed, axis=0)])
        found = flipped_walks(y, steps, walks=79, seed=seed)
        assert found is not None
        p.append(found.p)
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(np.array(p) <= 0.5) > 0.5 - 3 * 0.5 / np.sqrt(200)
    assert flipped_walks(y[:2], steps[:2]) is None
    assert flipped_walks(np.ones((10, 3)), steps) is None


def test_damage_is_found(copied: Path) -> None:
    store = copied / "s.zarr"
    path = Path(activations(trajkit.open(store), copied / "p.jsonl", steps=STEPS[:2]).path)
    chunk = next(p for p in sorted((path / "mean" / "c").rglob("*")) if p.is_file())
    chunk.unlink()
    (line,) = check_outputs(Store.open(store))
    assert "mean" in line
    assert "measure again with --force" in line
    assert not trajkit.verify(store).ok
    with pytest.raises(FormatError):
        fit_activations(read_activations(Store.open(store)))
    with pytest.raises(NotFound, match="there are: default"):
        read_activations(Store.open(store), "other")


@pytest.mark.parametrize(
    ("patterns", "error", "said"),
    [
        (["model.layers.*.mlp.down_prj"], InvalidInput, "near it: model.layers.*.mlp.down_proj"),
        (["*.o_proj", "nothing"], InvalidInput, "--layers nothing"),
        (["model.rotary_emb"], Unsupported, "rotary_emb"),
        (["model.layers"], InvalidInput, "no module"),
    ],
)
def test_layers_that_are_none_are_refused_in_a_line(
    copied: Path, patterns: list[str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        activations(trajkit.open(copied / "s.zarr"), copied / "p.jsonl", layers=patterns)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((copied / "s.zarr").glob("activations/default"))


def test_places_are_as_many_as_the_budget_holds(copied: Path, runs: dict[str, Path]) -> None:
    model = trajkit.load_model(trajkit.open(copied / "s.zarr"), 0, dtype="float32")
    layers = choose_layers(model, ["*.o_proj"], "the model")
    a_place = 4 * 2 * (32 + 32)
    weights = 4 * 2 * 32 * 32 + 3 * 4 * 32 * 32
    assert len(choose_places(model, layers, 100, weights + 5 * a_place, 1024)) == 5
    assert choose_places(model, layers, 100, 1 << 30, 1024).tolist() == list(range(100))
    with pytest.raises(OverBudget, match="--places 0"):
        choose_places(model, layers, 100, weights, 1024)
    whole = activations(trajkit.open(copied / "s.zarr"), copied / "p.jsonl", name="whole")
    few = activations(trajkit.open(copied / "s.zarr"), copied / "p.jsonl", name="few", places=3)
    assert (few.places, whole.places) == (3, 36)
    assert Activations.rows(read_activations(Path(few.path)), "mean").tolist() == (
        read_activations(Path(whole.path)).rows("mean").tolist()
    )
    assert read_activations(Path(few.path)).parts()[1, :, 0].tolist() == [3.0] * 4


def test_the_command_and_the_page_say_what_was_measured(copied: Path) -> None:
    store = copied / "s.zarr"
    command = ["activations", "--store", str(store), "--probes", str(copied / "p.jsonl")]
    plain = CliRunner().invoke(cli, command)
    assert plain.exit_code == 0, plain.output
    assert "random" not in plain.stderr
    assert "model.layers.*.mlp.down_proj" in plain.stdout
    told = CliRunner().invoke(cli, [*command, "--json"])
    found = json.loads(told.stdout)
    assert found["activations"]["measured"] == 0
    assert found["fit"]["columns"] == 128
    (row,) = [
        r for r in found["fit"]["modules"] if r["module"] == "model.layers.*.self_attn.o_proj"
    ]
    assert row["null_median_rsq"] == pytest.approx(found["fit"]["null_median_rsq"], abs=0.05)
    parts = found["parts_of_last_change"]["model.layers.*.self_attn.o_proj"]
    along = [parts[f"along_{p}"] for p in ("input", "weight", "product")]
    assert sum(along) == pytest.approx(1, abs=1e-4)
    trajkit.fit(trajkit.open(store), 0.7)
    trajkit.report(trajkit.open(store), copied / "page", formats=["svg"])
    page = (copied / "page" / "index.html").read_text()
    summary = json.loads((copied / "page" / "summary.json").read_text())
    for part in ("activations-layers", "activations-parts"):
        assert f'<section id="{part}"' in page
        assert (copied / "page" / "figures" / f"{part}.svg").exists()
    assert summary["activations"]["median_rsq"] == found["fit"]["median_rsq"]
    assert len(summary["activations"]["layers"]) == 4
