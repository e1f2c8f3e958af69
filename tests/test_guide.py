"""Guided extrapolation: what is searched is what is written, and what is judged did not choose."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_cli import invoke
from tiny_models import make_model, make_tokenizer, write_run

import trajkit
from trajkit.errors import AlreadyExists, FormatError, InvalidInput, Refused
from trajkit.outputs.guide.candidates import (
    ANCHORED,
    HOLD,
    TWO_POINT,
    GuideRule,
    families_of,
    family_of,
    make_grid,
)
from trajkit.outputs.guide.choice import Guide
from trajkit.outputs.guide.guided import extrapolate_guided, guide
from trajkit.outputs.guide.horizon import find_horizon
from trajkit.outputs.guide.kept import keep_searches, read_searches
from trajkit.outputs.guide.parts import split_probes
from trajkit.outputs.guide.plan import plan_forwards
from trajkit.outputs.guide.reference import kl_from
from trajkit.outputs.guide.search import Tried, refine_families, search_rules
from trajkit.outputs.probes import Probe
from trajkit.reports.guide_page import read_guide_page
from trajkit.trajectory import Trajectory

STEPS = (0, 10, 20, 30, 40)
SOME = (
    HOLD,
    ANCHORED,
    TWO_POINT,
    GuideRule("damped", "rsq:0.7", 0.5),
    GuideRule("damped", "t:2", 1.5),
)


@pytest.fixture(scope="module")
def traj(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    """A fitted run in bfloat16, with a head of its own."""
    folder = tmp_path_factory.mktemp("guide")
    write_drift(folder / "ckpts")
    trajkit.ingest(folder / "ckpts", folder / "s.zarr")
    trajkit.fit(folder / "s.zarr", 0.7)
    return trajkit.open(folder / "s.zarr")


def write_drift(folder: Path) -> None:
    """Checkpoints whose weights, and nearly their logits, move along lines."""
    model, tokenizer = make_model("llama", initializer_range=0.1), make_tokenizer()
    drift = {n: 0.004 * torch.randn_like(p) for n, p in model.named_parameters()}
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for i, step in enumerate(STEPS):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = 0.0003 * torch.randn_like(parameter)
                parameter.copy_(start[name] + i * drift[name] + noise)
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder / f"checkpoint-{step}")
        tokenizer.save_pretrained(folder / f"checkpoint-{step}")


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine prompts of two responses each."""
    path = tmp_path_factory.mktemp("probes") / "p.jsonl"
    lines = [
        {"prompt": "ab"[: 1 + i % 2] * (1 + i), "response": "some words"[: 2 + i + j]}
        for i in range(9)
        for j in range(2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def loaded(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def kl_by_hand(first: Path, last: Path, out: Path, some: tuple[Probe, ...], alpha: float) -> float:
    """Mean KL(l0 + alpha (l1 - l0) || out), probe by probe, float64 from the logits on."""
    models = [loaded(folder) for folder in (first, last, out)]
    total, n = 0.0, 0
    for probe in some:
        ids = torch.tensor([[*probe.prompt_ids, *probe.response_ids]])
        with torch.no_grad():
            l0, l1, l2 = (m(ids).logits[0].double() for m in models)
        at = slice(len(probe.prompt_ids) - 1, ids.shape[1] - 1)
        p = torch.log_softmax((l0 + alpha * (l1 - l0))[at], -1)
        q = torch.log_softmax(l2[at], -1)
        total, n = total + float((p.exp() * (p - q)).sum()), n + len(probe.response_ids)
    return total / n


@pytest.mark.parametrize("depth", ["rules", "families"])
def test_the_folder_written_has_the_kl_that_was_recorded(
    traj: Trajectory, probes: Path, tmp_path: Path, depth: str
) -> None:
    out = tmp_path / "out"
    found = extrapolate_guided(traj, 70, out, probes, rules=SOME, depth=depth, force_guide=True)
    judge = Guide(traj, probes, rules=SOME, depth=depth).parts[-1]
    ckpts = traj.path.parent / "ckpts"
    ends = ckpts / "checkpoint-0", ckpts / "checkpoint-40"
    expected = kl_by_hand(*ends, out, judge.probes, 70 / 40)
    assert found.guide["kl"] == pytest.approx(expected, rel=1e-4)
    held = kl_by_hand(*ends, ends[1], judge.probes, 70 / 40)
    assert found.guide["kl_hold"] == pytest.approx(held, rel=1e-4)
    kept = json.loads((out / "trajkit.json").read_text())["guide"]
    assert kept["kl"] == found.guide["kl"]
    assert kept["choosing"]["hold"] == found.guide["choosing"]["hold"]
    assert str(kept["rule"]) in (out / "README.md").read_text()


@given(
    rule=st.sampled_from(
        [
            *make_grid(),
            GuideRule("damped", "rsq:0.5", 1.5, (("attention", 0.5), ("mlp", 0.0))),
            GuideRule("damped", "t:2", 2.0, (("embeddings", 1.5), ("head", 0.75))),
        ]
    ),
    step=st.integers(41, 200),
    stochastic=st.booleans(),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_candidate_s_bits_are_those_that_are_written(
    traj: Trajectory,
    tmp_path_factory: pytest.TempPathFactory,
    rule: GuideRule,
    step: int,
    stochastic: bool,
) -> None:
    from trajkit.outputs.guide.trials import Trials

    out = tmp_path_factory.mktemp("bits") / "out"
    options = {"rounding": "stochastic", "seed": 5} if stochastic else {}
    trajkit.extrapolate(traj, step, out, **rule.options, **options)
    written = load_file(out / "model.safetensors")
    for memory in (0, 1 << 24):
        trials = Trials(traj, options, memory, 1 << 26)
        assert trials.is_held == (memory > 0)
        for _ in range(2):  # read, and from what is kept
            for name, array in trials.tensors(rule, step):
                assert array.tobytes() == written[name].view(torch.uint8).numpy().tobytes(), name


def test_holding_alone_gives_the_last_checkpoint_bit_for_bit(
    traj: Trajectory, probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="no rule"):
        extrapolate_guided(traj, 60, tmp_path / "out", probes, rules=(HOLD,))
    assert not (tmp_path / "out").exists()
    with pytest.warns(trajkit.TrajkitWarning, match="by force"):
        found = extrapolate_guided(
            traj, 60, tmp_path / "out", probes, rules=(HOLD,), force_guide=True
        )
    assert found.guide["rule"] == "hold"
    assert found.guide["kl"] == found.guide["kl_hold"]
    assert found.moved == 0
    last = load_file(traj.path.parent / "ckpts" / "checkpoint-40" / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == last.keys()
    assert all(torch.equal(written[n].view(torch.int16), last[n].view(torch.int16)) for n in last)
    assert "written by force" in (tmp_path / "out" / "README.md").read_text().lower()


def test_a_run_that_moved_too_little_is_refused(tmp_path: Path, probes: Path) -> None:
    model, tokenizer = make_model("qwen3"), make_tokenizer()
    for step in STEPS:
        model.save_pretrained(tmp_path / "c" / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / "c" / f"checkpoint-{step}")
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr", 0.0)
    found = guide(tmp_path / "s.zarr", probes, 60, rules=SOME)
    assert found.refusal is not None
    assert "moved too little" in found.refusal
    assert found.kl_hold <= found.noise


def test_noise_is_there_and_far_below_a_move(traj: Trajectory, probes: Path) -> None:
    found = guide(traj, probes, 60, rules=SOME, batch_tokens=64)
    assert 0 <= found.noise < 1e-3 * found.kl_hold
    assert found.kl < found.kl_hold
    assert found.refusal is None


def test_a_rule_that_only_looks_good_where_it_was_chosen_is_refused(
    traj: Trajectory, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Guide.kl

    def turned(self: Guide, rule: GuideRule, step: int, i: int, reference: torch.Tensor) -> float:
        kl = real(self, rule, step, i, reference)
        return kl + 1 if i == 1 and rule not in (HOLD, ANCHORED, TWO_POINT) else kl

    monkeypatch.setattr(Guide, "kl", turned)
    rules = (HOLD, GuideRule("damped", "none", 1.0))
    with pytest.raises(Refused, match="did not choose it"):
        extrapolate_guided(traj, 60, tmp_path / "out", probes, rules=rules)
    assert not (tmp_path / "out").exists()


def test_parts_share_no_prompt_and_depend_on_the_seed_alone(traj: Trajectory, probes: Path) -> None:
    parts = Guide(traj, probes, depth="families").parts
    prompts = [{p.prompt_ids for p in part.probes} for part in parts]
    assert len(prompts) == 3
    assert not prompts[0] & prompts[1]
    assert not (prompts[0] | prompts[1]) & prompts[2]
    assert sum(map(len, prompts)) == 9
    many = [Probe((i % 7,), tuple(range(1 + i % 3)), "", "") for i in range(40)]
    assert split_probes(many, 2, 1) == split_probes(many, 2, 1)
    assert split_probes(many, 2, 1) != split_probes(many, 2, 2)
    sizes = [sum(len(p.response_ids) for p in part) for part in split_probes(many, 3, 0)]
    assert max(sizes) - min(sizes) <= 18  # the largest prompt's tokens
    with pytest.raises(InvalidInput, match="3 different prompts"):
        split_probes([Probe((1,), (2,), "", ""), Probe((2,), (), "", "")] * 3, 3, 0)


@pytest.mark.parametrize("depth", ["rules", "families"])
@pytest.mark.parametrize("budget", [None, 14, 25, 200])
def test_forwards_are_those_of_the_plan_and_within_the_budget(
    traj: Trajectory, probes: Path, budget: int | None, depth: str
) -> None:
    searcher = Guide(traj, probes, budget=budget, depth=depth)
    calls = []
    searcher.trials.open_model("float32", "cpu")
    searcher.trials.model.model.embed_tokens.register_forward_pre_hook(lambda *_: calls.append(1))
    found = searcher.choose(60)
    assert len(calls) == searcher.forwards == found.forwards  # each part is one batch
    planned = searcher.plan.forwards()
    assert found.forwards <= planned
    assert budget is None or planned <= budget
    if budget is None:
        assert len(found.candidates) >= 63
    if depth == "rules" and budget in (None, 200):
        assert found.forwards >= planned - 1  # the rule chosen may be one of those compared
    before = searcher.forwards
    searcher.choose(80)
    assert searcher.forwards - before <= planned - searcher.plan.reference


def test_a_budget_of_too_few_forwards_is_refused() -> None:
    assert sum(plan_forwards(62, 25, 80, 3)) <= 80
    with pytest.raises(InvalidInput, match="10 forwards or more"):
        plan_forwards(62, 0, 9, 2)


def test_the_search_finds_the_least_of_a_smooth_grid_in_fewer_forwards() -> None:
    grid = make_grid()
    gates = list(dict.fromkeys(r.gate for r in grid if r.gate))

    def far(rule: GuideRule) -> float:
        at = gates.index(rule.gate) if rule.gate else 99
        return abs(at - 7) + abs(math.log(rule.damping / 1.5))

    asked: list[GuideRule] = []

    def score(rule: GuideRule) -> float:
        asked.append(rule)
        return far(rule)

    tried = search_rules(score, grid, 30)
    assert min(tried, key=lambda t: t.kl).rule == GuideRule("damped", gates[7], 1.5)
    assert len(asked) == len(set(asked))
    assert len(asked) == 31  # holding takes none
    assert len(search_rules(score, grid, 62)) == len(grid)


def test_a_factor_is_taken_only_where_other_probes_agree() -> None:
    start = Tried(GuideRule("damped", "t:2"), 1.0)

    def score(rule: GuideRule) -> float:
        return 1.0 - 0.1 * len([f for _, f in rule.factors if f == 0.5])

    def disagree(rule: GuideRule) -> float:
        return 1.0 + 0.1 * len(rule.factors)

    best, tried = refine_families(start, ("attention", "mlp"), score, score, 99)
    assert best.rule.factors == (("attention", 0.5), ("mlp", 0.5))
    assert len(tried) == 10
    assert refine_families(start, ("attention", "mlp"), score, disagree, 99)[0] == start
    assert refine_families(start, ("attention", "mlp"), score, score, 8)[0].rule.factors == (
        ("attention", 0.5),
    )
    held = Tried(HOLD, 1.0)
    assert refine_families(held, ("mlp",), score, score, 99) == (held, [])


def test_families_by_name() -> None:
    assert family_of("model.layers.3.self_attn.q_proj.weight") == "attention"
    assert family_of("model.layers.3.mlp.experts.7.up_proj.weight") == "mlp"
    assert family_of("transformer.wte.weight") == "embeddings"
    assert family_of("lm_head.weight") == "head"
    assert family_of("model.norm.weight") is None
    assert families_of(["lm_head.weight", "model.embed_tokens.weight"]) == ("embeddings", "head")


def test_factors_do_not_move_what_is_copied(traj: Trajectory, tmp_path: Path) -> None:
    rule = GuideRule("damped", "none", 1.0, (("attention", 0.0),))
    trajkit.extrapolate(traj, 80, tmp_path / "out", tensors=("*k_proj*=copy",), **rule.options)
    written = load_file(tmp_path / "out" / "model.safetensors")
    last = load_file(traj.path.parent / "ckpts" / "checkpoint-40" / "model.safetensors")
    still = {n for n in last if torch.equal(written[n], last[n])}
    assert {n for n in last if "attn" in n or "norm" in n} == still
    kept = json.loads((tmp_path / "out" / "trajkit.json").read_text())
    assert set(kept["parameters"]["factors"]) == {
        n for n in still if "norm" not in n and "k_" not in n
    }
    with pytest.raises(InvalidInput, match="factors"):
        trajkit.extrapolate(traj, 80, tmp_path / "o", estimator="line", factors={"*": 0.5})


def test_a_fit_that_does_not_fit_in_memory_gives_the_same_choice(
    traj: Trajectory, probes: Path
) -> None:
    held, read = (Guide(traj, probes, rules=SOME) for _ in range(2))
    read.trials._kept, read.trials.is_held = None, False
    assert held.choose(60).as_json() == read.choose(60).as_json()


def test_fewer_places_than_tokens_are_a_sample(traj: Trajectory, probes: Path) -> None:
    few = Guide(traj, probes, rules=SOME, places=5)
    found = few.choose(60)
    assert found.tokens == 10
    part = few.parts[0]
    few.trials.load_step(40)
    assert kl_from(few.trials.model, part, few.reference(60, 0)) == pytest.approx(
        found.choosing.hold, rel=1e-5
    )


def test_the_furthest_step_that_outputs_bear_out(traj: Trajectory, probes: Path) -> None:
    searcher = Guide(traj, probes, rules=SOME)
    found = find_horizon(searcher, 1.0)
    assert found.chosen.step == 200  # four windows, as far as is looked
    shares = dict(found.looked_at)
    strict = find_horizon(searcher, sorted(shares.values())[0])
    assert strict.chosen.share <= strict.share
    assert all(
        share > strict.share for step, share in strict.looked_at if step > strict.chosen.step
    )
    with pytest.raises(Refused, match="--guide-share"):
        find_horizon(searcher, 1e-9)


def test_several_targets_each_have_a_search(traj: Trajectory, probes: Path, tmp_path: Path) -> None:
    found = extrapolate_guided(traj, [50, 90], tmp_path / "out", probes, rules=SOME)
    assert [g["step"] for g in found.guides] == [50, 90]
    assert [t.path for t in found.targets] == [
        str(tmp_path / "out" / f"step_{s}") for s in (50, 90)
    ]
    kept = [
        json.loads((tmp_path / "out" / f"step_{s}" / "trajkit.json").read_text())["guide"]["step"]
        for s in (50, 90)
    ]
    assert kept == [50, 90]
    assert [s["step"] for s in read_searches(traj.store)][-2:] == [50, 90]
    with pytest.raises(AlreadyExists):
        extrapolate_guided(traj, [50, 90], tmp_path / "out", probes, rules=SOME)


def test_what_is_kept_is_whole_or_refused(traj: Trajectory, probes: Path) -> None:
    first = guide(traj, probes, 60, rules=SOME).as_json()
    keep_searches(traj.store, [first])
    assert read_searches(traj.store)[-1] == json.loads(json.dumps(first))
    path = traj.path / "guide" / "zarr.json"
    good = path.read_bytes()
    assert trajkit.verify(traj).ok
    for bad in (good.replace(b'"kl"', b'"kj"', 1), b"", b"[]", good[:-9]):
        path.write_bytes(bad)
        with pytest.raises(FormatError, match="guide"):
            read_searches(traj.store)
        assert any("guide" in str(d) for d in trajkit.verify(traj).bad)
    keep_searches(traj.store, [first])
    assert len(read_searches(traj.store)) == 1


def test_the_report_has_the_rules_over_the_horizon(
    traj: Trajectory, probes: Path, tmp_path: Path
) -> None:
    trajkit.report(traj, tmp_path / "before")
    found = [guide(traj, probes, step) for step in (50, 60)]
    hostile = found[1].as_json() | {"rule": "<b>x" + 400 * "y", "refusal": "<i>no"}
    keep_searches(traj.store, [found[0].as_json(), hostile])
    trajkit.report(traj, tmp_path / "after", formats=["svg"])
    page = (tmp_path / "after" / "index.html").read_text()
    assert '<section id="guide"' in page
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page
    assert "is 1 of 63 rules" in page
    assert 400 * "y" not in (tmp_path / "after" / "figures" / "guide.svg").read_text()
    assert "Searched for before" in page
    assert (tmp_path / "after" / "figures" / "guide.svg").exists()
    summary = json.loads((tmp_path / "after" / "summary.json").read_text())
    assert [s["step"] for s in summary["guide"]["searches"]][-2:] == [50, 60]
    last = read_guide_page(traj.store)
    assert last is not None
    curves = last.curves()
    assert [h for h, _ in curves["hold"]] == [5, 10, 15, 20, 25, 30]
    assert dict(curves["hold"])[20] == found[1].kl_hold
    (traj.path / "guide" / "zarr.json").write_bytes(b"{}")
    with pytest.raises(FormatError, match="guide"):
        trajkit.report(traj, tmp_path / "damaged")
    keep_searches(traj.store, [found[0].as_json()])


def test_the_command_says_what_it_did(traj: Trajectory, probes: Path, tmp_path: Path) -> None:
    words = ("extrapolate", "--store", traj.path, "--guide", probes)
    done = invoke(*words, "--steps", "60", "-o", tmp_path / "a", "--json", "--estimator", "auto")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["guide"]
    assert {
        "rule",
        "kl",
        "kl_hold",
        "kl_anchored",
        "kl_two_point",
        "candidates",
        "forwards",
    } <= set(found)
    assert all({"rule", "kl"} <= set(c) for c in found["candidates"])
    assert found["candidates"][0]["kl"] == min(c["kl"] for c in found["candidates"])
    done = invoke(
        *words, "--steps", "60,+50", "-o", tmp_path / "b", "--dry-run", "--guide-budget", 20
    )
    assert done.exit_code == 0, done.output
    assert "forwards" in done.stdout
    assert not (tmp_path / "b").exists()
    auto = "--steps", "auto", "--guide-share", "1", "--guide-budget", "20"
    done = invoke(*words, *auto, "-o", tmp_path / "c")
    assert done.exit_code == 0, done.output
    assert "is the furthest" in done.stdout
    assert "is the furthest" in (tmp_path / "c" / "README.md").read_text()
    kept = json.loads((tmp_path / "c" / "trajkit.json").read_text())["guide"]
    assert kept["horizon_search"]["share"] == 1
    for wrong in (("--gate", "t:3"), ("--estimator", "line"), ("--damping", "0.5"), ("--strict",)):
        done = invoke(*words, "--steps", "60", "-o", tmp_path / "d", *wrong)
        assert done.exit_code == 2
        assert "--guide chooses" in done.stderr
    done = invoke(*words[:3], "--steps", "60", "-o", tmp_path / "d", "--force-guide")
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("lost", "said"),
    [("tokenizer", "no tokenizer"), ("config", "no config.json"), ("kind", "nosuch")],
)
def test_a_model_whose_outputs_cannot_be_computed_gets_one_line(
    tmp_path: Path, probes: Path, lost: str, said: str
) -> None:
    for folder in write_run(tmp_path / "c", "qwen3", STEPS):
        if lost == "kind":
            config = json.loads((folder / "config.json").read_text())
            config |= {"model_type": "nosuch", "architectures": ["NoSuchForCausalLM"]}
            (folder / "config.json").write_text(json.dumps(config))
        for path in list(folder.glob(f"{lost}*")):
            path.unlink()
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr", 0.7)
    words = ("extrapolate", "--store", tmp_path / "s.zarr", "--steps", "60")
    done = invoke_caught(*words, "-o", tmp_path / "out", "--guide", probes)
    assert done.exit_code == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert invoke_caught(*words, "-o", tmp_path / "out").exit_code == 0


def invoke_caught(*arguments: str | Path) -> object:
    """As a process would end, errors said on one line."""
    from test_cli import run

    done = run(*arguments)
    done.exit_code = done.returncode
    return done


def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path, probes: Path) -> None:
    write_run(tmp_path / "c", "qwen3", STEPS)
    from safetensors.torch import save_file

    last = tmp_path / "c" / "checkpoint-40" / "model.safetensors"
    state = load_file(last)
    state["model.norm.weight"] = torch.full_like(state["model.norm.weight"], np.nan)
    save_file(state, last, {"format": "pt"})
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    trajkit.fit(tmp_path / "s.zarr", 0.7)
    with pytest.raises(trajkit.TrajkitError, match="not numbers"):
        guide(tmp_path / "s.zarr", probes, 60, rules=SOME)
