"""Extrapolation: every estimator against its equation, rules, rounding, layouts, kills."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from store_series import contents, write_checkpoint

import trajkit
from trajkit.arrays import DTYPES
from trajkit.cli.main import cli
from trajkit.errors import (
    AlreadyExists,
    InvalidInput,
    Mismatch,
    NotFound,
    OverBudget,
    TrajkitError,
    Unsupported,
)
from trajkit.fits.estimators.table import ESTIMATORS
from trajkit.forecast.extrapolate import plan_extrapolate
from trajkit.forecast.request import parse_steps
from trajkit.forecast.rules import assign_rules, is_copied, parse_rule
from trajkit.trajectory import Trajectory

STEPS = (0, 10, 30, 40, 70)
SHAPES = {
    "model.embed.weight": (23, 5),
    "model.0.mlp.weight": (31, 7),
    "model.0.input_layernorm.weight": (11,),
    "model.head.weight": (64,),
}


def make_states(dtype: str, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Drifting and walking tensors, with static, zero, integer and invalid elements in them."""
    rng = np.random.default_rng(seed)
    cast = DTYPES[dtype].scalar
    start = {n: rng.normal(0, 0.05, s) for n, s in SHAPES.items()}
    slope = {n: rng.normal(0, 2e-4, s) * (rng.random(s) < 0.8) for n, s in SHAPES.items()}
    states = []
    for i, step in enumerate(STEPS):
        state = {
            n: (w + slope[n] * step + rng.normal(0, 1e-3, w.shape) * (slope[n] != 0)).astype(cast)
            for n, w in start.items()
        }
        state["model.head.weight"][:2] = [np.inf if i == 2 else 1, np.nan]
        state["model.position_ids"] = np.arange(6) + i
        states.append(state)
    return states


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32"])
def traj(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    return make_run(tmp_path_factory.mktemp("run"), request.param)


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    return make_run(tmp_path_factory.mktemp("run"), "bfloat16")


def make_run(folder: Path, dtype: str = "bfloat16", shards: int = 2) -> Trajectory:
    for step, state in zip(STEPS, make_states(dtype), strict=True):
        write_checkpoint(
            folder / "ckpts" / f"checkpoint-{step}",
            state,
            shards=shards,
            metadata={"format": "pt"},
            config={"architectures": ["TinyForCausalLM"], "_name_or_path": "owner/base-model"},
            generation_config={"max_new_tokens": 7},
            tokenizer_config={"step": step},
        )
    trajkit.ingest(folder / "ckpts", folder / "s.zarr")
    traj = trajkit.open(folder / "s.zarr")
    trajkit.fit(traj, 0.5)
    return traj


def read(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a written folder, parsed here from the bytes."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        for name, entry in header.items():
            if name != "__metadata__":
                kind = next(d for d in DTYPES.values() if d.code == entry["dtype"])
                begin, end = (8 + length + at for at in entry["data_offsets"])
                found[name] = np.frombuffer(raw[begin:end], kind.scalar).reshape(entry["shape"])
    return found


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def expected(
    traj: Trajectory,
    name: str,
    estimator: str,
    step: int,
    threshold: float | None,
    points: tuple[int, int] = (0, 70),
    **parameters: float,
) -> np.ndarray:
    """One tensor by the published equation: float32 operations, one rounding, gate by R²."""
    fit = traj.fits["default"]
    one = np.float32
    a, b = (traj.read(name, s) for s in points)
    af, bf = a.astype(one), b.astype(one)
    with np.errstate(all="ignore"):
        match estimator:
            case "anchored":
                value = bf + fit.slope(name) * one(step - 70)
            case "damped":
                value = bf + fit.slope(name) * one(parameters["damping"] * (step - 70))
            case "line":
                value = fit.mean(name) + fit.slope(name) * one(step - fit.x_mean)
            case "two-point":
                value = af + one((step - points[0]) / (points[1] - points[0])) * (bf - af)
            case "expo":
                value = bf + one(parameters["alpha"]) * (bf - af)
        moved = value.astype(b.dtype)
        gate = np.isfinite(moved.astype(one))
        if threshold is not None:
            gate &= fit.rsq(name) > one(threshold)
    return np.where(gate, moved, b)


CASES = [
    ("anchored", {}),
    ("line", {}),
    ("damped", {"damping": 0.25}),
    ("two-point", {}),
    ("two-point", {"from_step": 10, "to_step": 40}),
    ("two-point", {"rsq_threshold": 0.6}),
    ("expo", {"alpha": 0.4}),
    ("expo", {"alpha": 0.4, "from_step": 30, "rsq_threshold": 0.2}),
    ("anchored", {"rsq_threshold": 0.9}),
    ("line", {"rsq_threshold": 0.0}),
]


@pytest.mark.parametrize(("estimator", "options"), CASES)
def test_estimators_are_their_equations(
    traj: Trajectory, tmp_path: Path, estimator: str, options: dict[str, float]
) -> None:
    step = None if "alpha" in options else 95
    result = trajkit.extrapolate(traj, step, tmp_path / "out", estimator=estimator, **options)
    is_pair = estimator in ("two-point", "expo")
    threshold = options.get("rsq_threshold", None if is_pair else 0.5)
    points = (int(options.get("from_step", 0)), int(options.get("to_step", 70)))
    parameters = {k: v for k, v in options.items() if k in ("damping", "alpha")}
    moved = 0
    found = read(tmp_path / "out")
    assert found.keys() == traj.tensors.keys()
    for name, tensor in found.items():
        last = traj.read(name, points[1])
        if "norm" in name or "position" in name:
            assert same(tensor, last)
            continue
        want = expected(traj, name, estimator, 95, threshold, points, **parameters)
        assert same(tensor, want), name
        moved += int((tensor.view(f"u{tensor.itemsize}") != last.view(f"u{tensor.itemsize}")).sum())
    (target,) = result.targets
    total = sum(t.size for t in traj.tensors.values())
    assert target.moved == moved > 50
    assert target.moved + target.held + target.unchanged_after_rounding == total
    assert target.copied == 11 + 6


def test_line_at_a_stored_step_is_the_fit(traj: Trajectory, tmp_path: Path) -> None:
    fit = traj.fits["default"]
    trajkit.extrapolate(traj, 30, tmp_path / "out", estimator="line")
    for name in ("model.embed.weight", "model.0.mlp.weight"):
        last = traj.read(name, 70)
        line = fit.mean(name) + fit.slope(name) * np.float32(30 - fit.x_mean)
        want = np.where(fit.rsq(name) > np.float32(0.5), line.astype(last.dtype), last)
        assert same(read(tmp_path / "out")[name], want)


@pytest.mark.parametrize("estimator", ["anchored", "damped", "expo"])
def test_no_horizon_gives_the_last_checkpoint_back_bit_for_bit(
    traj: Trajectory, tmp_path: Path, estimator: str
) -> None:
    result = trajkit.extrapolate(traj, 70, tmp_path / "out", estimator=estimator, rsq_threshold=0.0)
    trajkit.restore(traj, 70, tmp_path / "restored")
    found = contents(tmp_path / "out")
    assert contents(tmp_path / "restored").items() <= found.items()
    assert found.keys() - contents(tmp_path / "restored").keys() == {"trajkit.json", "README.md"}
    assert result.moved == 0


@pytest.mark.parametrize("estimator", ["anchored", "line", "two-point"])
def test_the_gate_is_the_same_by_flags_and_by_rsq(
    traj: Trajectory, tmp_path: Path, estimator: str
) -> None:
    """The fit's own threshold is gated by its flags; one an ulp beside it reads R²."""
    own = traj.fits["default"].rsq_threshold
    found = {}
    for threshold in (own, float(np.nextafter(own, 0))):
        out = tmp_path / f"{threshold!r}"
        result = trajkit.extrapolate(traj, 90, out, estimator=estimator, rsq_threshold=threshold)
        files = [path.read_bytes() for path in sorted(out.glob("*.safetensors"))]
        found[threshold] = (result.moved, result.held, *files)
    assert len(set(found.values())) == 1
    assert result.moved


def test_a_negative_zero_stays_one(tmp_path: Path) -> None:
    """-0.0 + slope * 0 is +0.0: the last step came back with another bit."""
    for step, value in ((0, -2e-3), (1, -1e-3), (2, -0.0)):
        write_checkpoint(tmp_path / "c" / f"step_{step}", {"w": np.float32([value, 1])})
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    trajkit.fit(traj)
    trajkit.extrapolate(traj, 2, tmp_path / "out")
    assert (
        contents(tmp_path / "out")["model.safetensors"]
        == contents(tmp_path / "c")["step_2/model.safetensors"]
    )


def test_several_targets_are_the_single_ones(bf16: Trajectory, tmp_path: Path) -> None:
    many = trajkit.extrapolate(bf16, [90, 80, 200], tmp_path / "many")
    assert [Path(t.path).name for t in many.targets] == ["step_90", "step_80", "step_200"]
    for target in many.targets:
        single = trajkit.extrapolate(bf16, target.step, tmp_path / f"one_{target.step}")
        assert contents(Path(target.path)) == contents(tmp_path / f"one_{target.step}")
        assert single.moved == target.moved
    assert many.moved == sum(t.moved for t in many.targets)
    trajkit.extrapolate(bf16, [85, 86], tmp_path / "many")  # beside those that are there
    assert len(list((tmp_path / "many").iterdir())) == 5
    before = contents(tmp_path / "many")
    with pytest.raises(AlreadyExists, match="step_86"):
        trajkit.extrapolate(bf16, [86, 87], tmp_path / "many")
    assert contents(tmp_path / "many") == before


def test_rules_by_pattern(bf16: Trajectory, tmp_path: Path) -> None:
    rules = [
        "*norm*=extrapolate",
        "model.*.weight=hold",
        "model.embed.*=extrapolate",
        "*head*=copy",
    ]
    result = trajkit.extrapolate(bf16, 200, tmp_path / "out", tensors=rules, rsq_threshold=0.0)
    found = read(tmp_path / "out")
    for name, rule in assign_rules(
        bf16.tensors, [parse_rule(r) for r in rules], ["bfloat16"]
    ).items():
        assert same(found[name], bf16.read(name, 70)) == (rule != "extrapolate"), name
    (target,) = result.targets
    assert target.copied == 64 + 6
    assert target.held >= 64 + 6 + 31 * 7 + 11
    norms = trajkit.extrapolate(
        bf16, 200, tmp_path / "norms", tensors=["*norm*=extrapolate"], rsq_threshold=0.0
    )
    assert norms.copied == 6
    name = "model.0.input_layernorm.weight"
    assert not same(read(tmp_path / "norms")[name], bf16.read(name, 70))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("*mlp*", "PATTERN=RULE"),
        ("=copy", "PATTERN=RULE"),
        ("*=keep", "PATTERN=RULE"),
        ("*attn*=copy", "no tensor matches"),
        ("MODEL*=copy", "no tensor matches"),
    ],
)
def test_rules_that_mean_nothing(bf16: Trajectory, tmp_path: Path, rule: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        trajkit.extrapolate(bf16, 200, tmp_path / "out", tensors=[rule])
    assert list(tmp_path.iterdir()) == []


def test_names_of_normalisation_layers() -> None:
    norms = (
        "model.layers.0.input_layernorm.weight",
        "transformer.h.0.ln_1.bias",
        "h.3.ln_2.weight",
        "transformer.ln_f.weight",
        "ln_f.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "encoder.LayerNorm.weight",
        "blocks.0.ln1.weight",
        "transformer.h.0.ln_attn.weight",
    )
    assert all(map(is_copied, norms))
    assert not any(map(is_copied, ("lm_head.weight", "h.0.mlp.c_fc.weight", "kiln.weight")))


@pytest.mark.parametrize(
    ("steps", "options", "error"),
    [
        (80, {"estimator": "cubic"}, InvalidInput),
        (80, {"estimator": "line", "damping": 0.5}, InvalidInput),
        (80, {"estimator": "damped", "damping": 2.5}, InvalidInput),
        (80, {"estimator": "anchored", "alpha": 0.5}, InvalidInput),
        (80, {"estimator": "expo", "alpha": float("nan")}, InvalidInput),
        ([80, 90], {"estimator": "expo", "alpha": 0.5}, InvalidInput),
        (80, {"from_step": 10}, InvalidInput),
        (80, {"estimator": "two-point", "from_step": 40, "to_step": 40}, InvalidInput),
        (80, {"estimator": "two-point", "from_step": 11}, NotFound),
        (80, {"rsq_threshold": 1.5}, InvalidInput),
        (80, {"rounding": "up"}, InvalidInput),
        (80, {"seed": -1}, InvalidInput),
        (80, {"fit": "other"}, NotFound),
        (80, {"like": "nowhere"}, NotFound),
        (80, {"memory": "10kB"}, OverBudget),
        ([], {}, InvalidInput),
        (None, {}, InvalidInput),
        ([80, 80], {}, InvalidInput),
    ],
)
def test_misuse_is_refused_before_anything_is_written(
    bf16: Trajectory, tmp_path: Path, steps: object, options: dict[str, object], error: type
) -> None:
    with pytest.raises(error):
        trajkit.extrapolate(bf16, steps, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_pairs_need_no_fit(tmp_path: Path) -> None:
    traj = make_run(tmp_path / "run")
    fitted = trajkit.extrapolate(traj, 90, tmp_path / "fitted", estimator="two-point")
    shutil.rmtree(traj.path / "fits")
    traj = trajkit.open(traj.path)
    bare = trajkit.extrapolate(traj, 90, tmp_path / "bare", estimator="two-point")
    assert contents(tmp_path / "bare") == contents(tmp_path / "fitted")
    assert bare.moved == fitted.moved
    for options in ({}, {"estimator": "two-point", "rsq_threshold": 0.5}):
        with pytest.raises(NotFound, match="trajkit fit"):
            trajkit.extrapolate(traj, 90, tmp_path / "gated", **options)


def test_a_fit_of_other_checkpoints_is_refused(tmp_path: Path) -> None:
    traj = make_run(tmp_path / "run")
    other = tmp_path / "other"
    for step, state in zip(STEPS, make_states("bfloat16", seed=1), strict=True):
        write_checkpoint(other / f"checkpoint-{step}", state, shards=2)
    trajkit.ingest(other, tmp_path / "o.zarr")
    shutil.copytree(traj.path / "fits", tmp_path / "o.zarr" / "fits")
    with pytest.raises(Mismatch, match="fit again"):
        trajkit.extrapolate(trajkit.open(tmp_path / "o.zarr"), 90, tmp_path / "out")


def test_expo_reaches_a_step_or_takes_an_alpha(bf16: Trajectory, tmp_path: Path) -> None:
    by_alpha = trajkit.extrapolate(bf16, None, tmp_path / "a", estimator="expo", alpha=0.5)
    by_step = trajkit.extrapolate(bf16, 105, tmp_path / "s", estimator="expo")
    assert by_alpha.targets[0].step == 105
    assert by_step.targets[0].alpha == by_alpha.targets[0].alpha == 0.5
    assert contents(tmp_path / "a") == contents(tmp_path / "s")
    named = trajkit.extrapolate(bf16, 300, tmp_path / "n", estimator="expo", alpha=0.5)
    assert any("only the name" in w for w in named.warnings)
    assert {k: v.tobytes() for k, v in read(tmp_path / "n").items()} == {
        k: v.tobytes() for k, v in read(tmp_path / "a").items()
    }


def test_warnings_say_why(bf16: Trajectory, tmp_path: Path) -> None:
    near = trajkit.extrapolate(bf16, 140, tmp_path / "near")
    assert near.warnings == ()
    far = trajkit.extrapolate(bf16, 141, tmp_path / "far")
    assert len(far.warnings) == 1
    assert "71 steps beyond a window of 70 steps (0 to 70)" in far.warnings[0]
    assert far.warnings[0] in (tmp_path / "far" / "README.md").read_text().replace("> S", "s")
    back = trajkit.extrapolate(bf16, 60, tmp_path / "back")
    assert "before step 70" in back.warnings[0]
    pair = trajkit.extrapolate(
        bf16, 90, tmp_path / "pair", estimator="two-point", from_step=30, to_step=40
    )
    assert "50 steps beyond a window of 10 steps (30 to 40)" in pair.warnings[0]


def test_stochastic_rounding_is_seeded_and_right_on_average(tmp_path: Path) -> None:
    n, horizon = 300_000, 30  # more than one chunk
    rng = np.random.default_rng(0)
    w0 = rng.normal(0, 0.05, n).astype(np.float32)
    slope = np.float32(3e-6)
    for step in (0, 100, 200):
        values = (w0 + slope * np.float32(step)).astype(ml_dtypes.bfloat16)
        write_checkpoint(tmp_path / "c" / f"step_{step}", {"w": values})
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    trajkit.fit(traj)

    def run(**options: object) -> np.ndarray:
        trajkit.extrapolate(
            traj, 200 + horizon, tmp_path / "out", rsq_threshold=0.0, force=True, **options
        )
        return read(tmp_path / "out")["w"].astype(np.float64)

    fit = traj.fits["default"]
    last = traj.read("w", 200).astype(np.float64)
    exact = last + np.where(fit.rsq("w") > 0, fit.slope("w") * horizon, 0.0)
    nearest, one, again, other = (
        run(),
        run(rounding="stochastic", seed=1),
        run(rounding="stochastic", seed=1, memory="20MB"),
        run(rounding="stochastic", seed=2),
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    ulp = np.abs(nearest) * 2.0**-7 + 1e-9
    assert (np.abs(one - exact) < ulp).all()
    drift = (exact - last).mean()
    spread = (one - exact).std() / np.sqrt(n)
    assert abs((one - exact).mean()) < 4 * spread
    assert abs((nearest - exact).mean()) > 10 * spread  # what stochastic rounding is for
    assert drift > 0


def test_float32_needs_no_rounding(tmp_path: Path) -> None:
    traj = make_run(tmp_path / "run", "float32")
    trajkit.extrapolate(traj, 90, tmp_path / "n")
    trajkit.extrapolate(traj, 90, tmp_path / "s", rounding="stochastic", seed=5)
    assert all(same(a, read(tmp_path / "s")[n]) for n, a in read(tmp_path / "n").items())


def test_like_takes_layout_and_side_files(bf16: Trajectory, tmp_path: Path) -> None:
    state = make_states("bfloat16", seed=9)[0]
    like = write_checkpoint(
        tmp_path / "like",
        dict(reversed(state.items())),
        metadata={"format": "pt", "from": "elsewhere"},
        config={"model_type": "other"},
        special_tokens_map={"eos": "</s>"},
    )
    trajkit.extrapolate(bf16, 90, tmp_path / "own")
    trajkit.extrapolate(bf16, 90, tmp_path / "out", like=like)
    found, theirs = contents(tmp_path / "out"), contents(like)
    assert found.keys() == theirs.keys() | {"trajkit.json", "README.md"}
    for name in ("config.json", "special_tokens_map.json"):
        assert found[name] == theirs[name]
    length = 8 + int.from_bytes(theirs["model.safetensors"][:8], "little")
    assert found["model.safetensors"][:length] == theirs["model.safetensors"][:length]
    own = read(tmp_path / "own")
    assert all(same(a, own[n]) for n, a in read(tmp_path / "out").items())
    assert json.loads(found["trajkit.json"])["layout_from"] == str(like)


def test_like_must_be_the_same_model(bf16: Trajectory, tmp_path: Path) -> None:
    state = make_states("bfloat16")[0]
    cases = {
        "another": ({**state, "extra": np.zeros(2, np.float32)}, "extra"),
        "less": ({n: a for n, a in state.items() if "mlp" not in n}, "mlp"),
        "shape": ({**state, "model.head.weight": state["model.head.weight"][:60]}, "shape"),
        "dtype": ({**state, "model.head.weight": np.zeros(64, np.float32)}, "same dtypes"),
    }
    for name, (tensors, says) in cases.items():
        like = write_checkpoint(tmp_path / name, tensors)
        with pytest.raises(Mismatch, match=says):
            trajkit.extrapolate(bf16, 90, tmp_path / "out", like=like)
    assert not (tmp_path / "out").exists()


def test_like_may_not_leave_out_an_untied_head(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for step in (0, 1, 2):
        write_checkpoint(
            tmp_path / "c" / f"step_{step}",
            {
                "model.embed_tokens.weight": rng.normal(size=(4, 3)).astype(np.float32),
                "lm_head.weight": rng.normal(size=(4, 3)).astype(np.float32),
            },
            config={"tie_word_embeddings": False},
        )
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    trajkit.fit(traj)
    like = write_checkpoint(
        tmp_path / "like",
        {"model.embed_tokens.weight": np.zeros((4, 3), np.float32)},
        config={"tie_word_embeddings": True},
    )
    with pytest.raises(Mismatch, match="lm_head"):
        trajkit.extrapolate(traj, 4, tmp_path / "out", like=like)


def test_provenance_and_card(bf16: Trajectory, tmp_path: Path) -> None:
    result = trajkit.extrapolate(
        bf16, 90, tmp_path / "out", estimator="damped", damping=0.5, tensors=["*head*=hold"]
    )
    found = contents(tmp_path / "out")
    document = json.loads(found["trajkit.json"])
    (target,) = result.targets
    assert document["target"] == {
        "step": 90,
        "horizon": 20,
        "moved": target.moved,
        "held": target.held,
        "copied": target.copied,
        "unchanged_after_rounding": target.unchanged_after_rounding,
    }
    assert document["estimator"] == "damped"
    assert document["parameters"] == {"rounding": "nearest", "damping": 0.5}
    assert document["rsq_threshold"] == 0.5
    assert document["fitted_steps"] == list(STEPS)
    assert document["fit"]["frames_digest"] == bf16.fits["default"].record.frames_digest
    assert document["tensor_rules"][-1] == "*head*=hold"
    assert document["versions"]["trajkit"] == trajkit.__version__
    card = found["README.md"].decode()
    front = card.split("---\n")[1].splitlines()
    assert front == [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "base_model: owner/base-model",
        "tags:",
        "- trajkit",
        "- weight-extrapolation",
    ]
    assert "not been evaluated" in card
    assert f"{target.moved:,} of" in card
    trajkit.extrapolate(
        bf16, 90, tmp_path / "again", estimator="damped", damping=0.5, tensors=["*head*=hold"]
    )
    assert contents(tmp_path / "again") == found  # no clock, no path, no order of threads in it


def test_a_plan_writes_nothing_and_is_kept(bf16: Trajectory, tmp_path: Path) -> None:
    before = contents(bf16.path)
    plan = plan_extrapolate(bf16, [90, 500], tmp_path / "out", tensors=["*head*=hold"])
    assert list(tmp_path.iterdir()) == []
    assert contents(bf16.path) == before
    result = trajkit.extrapolate(bf16, [90, 500], tmp_path / "out", tensors=["*head*=hold"])
    written = list((tmp_path / "out").rglob("*.safetensors"))
    assert plan.n_bytes == sum(p.stat().st_size for p in written)
    assert (plan.files, len(written)) == (2, 4)
    assert (plan.held, plan.copied) == (64, 17)
    assert plan.extrapolated == 23 * 5 + 31 * 7
    assert plan.warnings == result.warnings
    assert plan.memory_bytes < 2**30
    with pytest.raises(AlreadyExists):
        plan_extrapolate(bf16, [90, 500], tmp_path / "out")


def test_the_store_is_never_replaced(bf16: Trajectory, tmp_path: Path) -> None:
    before = contents(bf16.path)
    for out in (bf16.path, bf16.path.parent, bf16.path / "frames" / "out"):
        with pytest.raises(AlreadyExists):
            trajkit.extrapolate(bf16, 90, out, force=True)
    assert contents(bf16.path) == before


def test_steps_as_people_write_them(bf16: Trajectory) -> None:
    assert parse_steps("90, +5,1000", bf16) == [90, 75, 1000]
    for text in ("", "9,", "+", "-5", "ten", "1e3", "²"):
        with pytest.raises(InvalidInput, match="whole numbers"):
            parse_steps(text, bf16)


def test_command_line(bf16: Trajectory, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(
            cli, ["extrapolate", "--store", str(bf16.path), *map(str, arguments)]
        )
        assert done.exit_code == 0, done.output
        return done.output

    out = tmp_path / "out"
    planned = run("--steps", "+10,300", "-o", out, "--dry-run")
    assert "would write" in planned
    assert "warning: step 300" in planned
    assert "of memory" in planned
    assert not out.exists()
    plan = json.loads(run("--steps", "+10", "-o", out, "--dry-run", "--json", "-q"))
    assert (plan["targets"][0]["step"], plan["files"]) == (80, 2)
    said = run("--steps", "90", "-o", out, "--tensors", "*mlp*=hold", "--tensors", "*head*=copy")
    assert "elements moved" in said
    result = json.loads(
        run("--estimator", "expo", "--alpha", "0.5", "-o", out, "--force", "--json", "-q")
    )
    assert result["targets"][0]["step"] == 105
    assert {"moved", "held", "copied", "unchanged_after_rounding"} <= result.keys()
    missing = CliRunner().invoke(cli, ["extrapolate", "-o", str(out)])
    assert missing.exit_code == 2
    assert "--steps" in missing.output


def test_check_refuses_what_transformers_does_not_know(bf16: Trajectory, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(Unsupported, match="does not know this model"):
        trajkit.extrapolate(bf16, 90, tmp_path / "out", check=True)
    like = write_checkpoint(tmp_path / "like", make_states("bfloat16")[0])
    with pytest.raises(InvalidInput, match=r"no config\.json"):
        trajkit.extrapolate(bf16, 90, tmp_path / "out", check=True, like=like)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["like"]


def test_estimators_are_those_of_the_command_line() -> None:
    (option,) = (o for o in cli.commands["extrapolate"].params if o.name == "estimator")
    assert list(option.type.choices) == [*ESTIMATORS, "auto"]  # type: ignore[attr-defined]


KILLS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import trajkit
from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.errors import TrajkitError

store, out, force = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "force"

def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

def write(step, out, force=False):
    trajkit.extrapolate(trajkit.open(store), step, out, force=force)

write(90, out.with_name("new"))
write(80, out.with_name("old"))
new, old = contents(out.with_name("new")), contents(out.with_name("old"))

def start(die_at=None):
    # a child that writes; it kills itself when it touches the disk for the die_at-th time
    shutil.rmtree(out, ignore_errors=True)
    if force:
        shutil.copytree(out.with_name("old"), out)
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    touched = 0
    def touch(event, arguments):
        nonlocal touched
        if event == "open" or event.startswith(("os.", "shutil.")):
            touched += 1
            if touched == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(touch)
    write(90, out, force)
    os.write(writer, str(touched).encode())
    os._exit(0)

started = time.monotonic()
child, reader = start()
touches = int(os.read(reader, 99))
os.waitpid(child, 0)
seconds = time.monotonic() - started
rng = random.Random(7)
instants = [touches - i for i in range(5)]  # the last ones, when folders change places
instants += [rng.randrange(touches) + 1 for _ in range(10)]
instants += [rng.uniform(0, 1.3 * seconds) for _ in range(15)]
seen = {"none": 0, "old": 0, "new": 0}
for instant in instants:
    if isinstance(instant, int):
        child, _ = start(instant)
    else:
        child, _ = start()
        time.sleep(instant)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if out.exists():
        found = contents(out)
        assert found == new or (force and found == old), sorted(found)
        seen["new" if found == new else "old"] += 1
    else:
        assert not force, "neither the old nor the new folder is there"
        seen["none"] += 1
    part = out.with_name(f".{out.name}.trajkit-part")
    if part.exists():  # beside it: unfinished, or whole, or what is left of the old one
        try:
            open_checkpoint(part)
        except TrajkitError:
            pass
        else:
            found = contents(part)
            assert found == new or found.items() <= old.items(), sorted(found)
    write(90, out, force=out.exists())  # the next run clears up
    assert contents(out) == new
    assert sorted(p.name for p in out.parent.iterdir()) == sorted([out.name, "new", "old"])
print(json.dumps(seen))
"""


@pytest.mark.parametrize("mode", ["new", "force"])
def test_a_kill_at_any_instant_leaves_no_folder_that_is_wrong(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    for step in (0, 10, 20):
        state = {
            f"model.{i}.weight": rng.normal(0, 0.05, (640, 400)).astype(ml_dtypes.bfloat16)
            for i in range(6)
        }
        write_checkpoint(tmp_path / "c" / f"step_{step}", state, shards=2, config={"a": step})
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    trajkit.fit(trajkit.open(tmp_path / "s.zarr"), 0.0)
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path / "s.zarr", place / "out", mode],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert sum(seen.values()) == 30
    assert seen["none" if mode == "new" else "old"] >= 5, seen  # it was killed while writing
    assert seen["new"] >= 1, seen


ON_A_DEVICE = """
import sys, trajkit
from trajkit.forecast import chunks
from trajkit.kernels.gpu.worker import GpuArithmetic

from trajkit.forecast import evaluation

evaluation.choose_device = lambda device: device
chunks.open_arithmetic = lambda device, dtype: GpuArithmetic(dtype, "cpu")
for estimator in ("anchored", "line", "two-point"):
    trajkit.extrapolate(
        trajkit.open(sys.argv[1]), 90, f"{sys.argv[2]}/{estimator}", estimator=estimator,
        device="cuda",
    )
"""


def test_the_device_that_is_asked_for_writes_the_same_bytes(
    traj: Trajectory, tmp_path: Path
) -> None:
    """Triton's kernels in its interpreter, through the whole of the command."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", ON_A_DEVICE, str(traj.path), str(tmp_path / "device")]
    subprocess.run(command, check=True, env=environment)
    for estimator in ("anchored", "line", "two-point"):
        trajkit.extrapolate(traj, 90, tmp_path / "cpu" / estimator, estimator=estimator)
        assert contents(tmp_path / "device" / estimator) == contents(tmp_path / "cpu" / estimator)


def test_a_device_that_is_not_there_is_refused(traj: Trajectory, tmp_path: Path) -> None:
    if not Path("/dev/nvidiactl").exists():
        with pytest.raises(TrajkitError, match=r"no CUDA device|trajkit\[gpu\]"):
            trajkit.extrapolate(traj, 90, tmp_path / "out", device="cuda")
    with pytest.raises(InvalidInput, match="unknown device"):
        trajkit.extrapolate(traj, 90, tmp_path / "out", device="tpu")
    assert not (tmp_path / "out").exists()
