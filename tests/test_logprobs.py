"""Token log-probabilities: against one sequence at a time, kept whole, gone on with when killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, make_model, make_tokenizer, write_run

import trajkit
from trajkit.errors import AlreadyExists, FormatError, InvalidInput, Mismatch, NotFound
from trajkit.outputs import distances, scoring
from trajkit.outputs.batching import Batch, make_batches
from trajkit.outputs.check import check_outputs
from trajkit.outputs.distances import DivergenceWatcher
from trajkit.outputs.drift import measure_drift
from trajkit.outputs.kept import read_outputs
from trajkit.outputs.linearity import by_position, by_token, fit_lines, fit_outputs
from trajkit.outputs.logprobs import logprobs
from trajkit.outputs.probes import Probe, read_probes
from trajkit.outputs.scoring import score

STEPS = (0, 10, 25, 30)
MODELS = {family: make_model(family) for family in FAMILIES}


def plain(model: torch.nn.Module, probe: Probe) -> tuple[np.ndarray, ...]:
    """log p, entropy, rank and argmax of one response, by one forward in float32."""
    ids = torch.tensor([[*probe.prompt_ids, *probe.response_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(probe.prompt_ids) - 1 : -1].double()
    log_p = torch.log_softmax(logits, -1)
    targets = torch.tensor(probe.response_ids, dtype=torch.int64)[:, None]
    rank = (logits > logits.gather(1, targets)).sum(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    found = (log_p.gather(1, targets)[:, 0], entropy, rank, logits.argmax(1))
    return tuple(t.numpy() for t in found)


def probe(rng: np.random.Generator, prompt: int, response: int) -> Probe:
    ids = rng.integers(0, 96, prompt + response).tolist()
    return Probe(tuple(ids[:prompt]), tuple(ids[prompt:]), "", "")


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), min_size=1, max_size=5),
    batch=st.sampled_from([1, 40, 100, 10**6]),
    block=st.sampled_from([1, 5000, 1 << 26]),
    seed=st.integers(0, 99),
)
def test_scores_equal_one_plain_forward_a_sequence(
    family: str, lengths: list[tuple[int, int]], batch: int, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    probes = [probe(rng, p, r) for p, r in lengths]
    n = sum(len(p.response_ids) for p in probes)
    model = MODELS[family]
    found = score(model, make_batches(probes, batch), n, block_bytes=block)
    expected = [plain(model, p) for p in probes]
    log_p, entropy, _, _ = (np.concatenate(c) for c in zip(*expected, strict=True))
    assert np.abs(found.log_p_N - log_p).max(initial=0) < 1e-4
    assert np.abs(found.entropy_N - entropy).max(initial=0) < 1e-4


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_texts_are_scored_as_one_plain_forward_of_the_whole_text(
    tmp_path: Path, family: str, chat: bool
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    lines, texts = [], []
    for words in ("hi", "what is 2+2?", "x"):
        response = f"{words} it is" * 2
        if chat:
            lines.append({"messages": [{"role": "user", "content": words}], "response": response})
            texts.append((f"<user>{words}<bot>", response))
        else:
            lines.append({"prompt": words, "response": response})
            texts.append((words, response))
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    probes = read_probes(path, tokenizer)
    n = sum(len(p.response_ids) for p in probes)
    found = score(MODELS[family], make_batches(probes, 60), n).log_p_N
    expected = []
    for before, response in texts:
        ids = tokenizer(before + response, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = MODELS[family](input_ids=torch.tensor([ids])).logits[0, :-1]
        log_p = torch.log_softmax(logits.double(), -1)
        log_p = log_p.gather(1, torch.tensor(ids)[1:, None])[:, 0]
        expected += log_p[-len(response) :].tolist()  # one token a character
    assert np.abs(found - np.array(expected)).max() < 1e-4


@pytest.mark.parametrize(("width", "cached"), [(7, 1 << 18), (7, 20), (1 << 15, 1), (96, 300)])
def test_softmax_in_slices_is_softmax(
    monkeypatch: pytest.MonkeyPatch, width: int, cached: int
) -> None:
    monkeypatch.setattr(scoring, "SLICE", width)
    monkeypatch.setattr(scoring, "CACHED", cached)
    torch.manual_seed(0)
    logits = 30 * torch.randn(50, 96)
    logits[0] -= 500  # all far below
    logits[1, 5:] = -torch.inf  # forbidden, whole slices of it
    logits[2, :90] = -torch.inf  # and the first slices
    targets = torch.randint(0, 5, (50,))
    targets[2] = 93
    log_p, entropy, rank, likeliest = scoring.score_logits(logits, targets)
    exact = torch.log_softmax(logits.double(), -1)
    assert torch.allclose(log_p.double(), exact.gather(1, targets[:, None])[:, 0], atol=1e-4)
    expected = -(exact.exp() * exact.clamp(min=-1e30)).sum(1)
    assert torch.allclose(entropy.double(), expected, atol=1e-4)
    assert torch.equal(likeliest, logits.argmax(1))
    assert torch.equal(rank, (logits > logits.gather(1, targets[:, None])).sum(1))


@pytest.mark.parametrize("cached", [1, 1 << 17])
def test_divergences_of_three_models_seen_in_any_blocks(
    monkeypatch: pytest.MonkeyPatch, cached: int
) -> None:
    monkeypatch.setattr(distances, "_CACHED", cached)
    torch.manual_seed(0)
    base = 3 * torch.randn(30, 50)
    models = [base, base + 0.01 * torch.randn(30, 50), base + 0.5 * torch.randn(30, 50)]
    for logits in models:
        logits[3:6, :20] = -torch.inf  # forbidden under all
    places = np.array([0, 2, 3, 4, 17, 29])
    watcher = DivergenceWatcher(places)
    exact = [torch.log_softmax(m.double(), -1)[torch.from_numpy(places)] for m in models]

    def mean_kl(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.where(a.isneginf(), 0, a.exp() * (a - b)).sum(1).mean())

    for t, logits in enumerate(models):
        order = np.random.default_rng(t).permutation(30)
        for block in np.array_split(order, 4):
            watcher.see(block, logits[torch.from_numpy(block)].to(torch.float32))
        found = watcher.finish()
        assert found.places == 6
        now, before = exact[t], exact[max(t - 1, 0)]
        assert found.to_base == pytest.approx(mean_kl(now, exact[0]), rel=1e-3, abs=1e-7)
        assert found.from_base == pytest.approx(mean_kl(exact[0], now), rel=1e-3, abs=1e-7)
        assert found.to_before == pytest.approx(mean_kl(now, before), rel=1e-3, abs=1e-7)


def test_a_token_forbidden_by_one_model_alone_leaves_numbers() -> None:
    base, later = torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 0.0, -torch.inf]])
    watcher = DivergenceWatcher(np.arange(1))
    for logits in (base, later, later):
        watcher.see(np.arange(1), logits)
        found = watcher.finish()
    assert found.to_base == pytest.approx(np.log(4 / 3), rel=1e-5)
    assert 2000 < found.from_base < 3000  # a quarter of 1e4: infinite, as the arithmetic has it
    assert found.to_before == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "ckpts", "gemma2", STEPS)
    trajkit.ingest(folder / "ckpts", folder / "trajkit.zarr")
    lines = [
        {"prompt": "hello", "response": " you", "eos": True},
        {"prompt": "a", "response": ""},
        {"prompt": "what is this that", "response": "x"},
        *({"prompt": "p" * n, "response": "some words " * n} for n in range(1, 8)),
    ]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def fresh(run: Path, tmp_path: Path) -> object:
    trajkit.ingest(run / "ckpts", tmp_path / "trajkit.zarr")
    return trajkit.open(tmp_path / "trajkit.zarr")


def test_every_checkpoint_is_scored_and_kept_as_plain_zarr(run: Path, tmp_path: Path) -> None:
    traj = fresh(run, tmp_path)
    result = logprobs(traj, run / "p.jsonl", name="probes", batch_tokens=64)
    assert result.steps == STEPS
    assert result.scored == len(STEPS)
    assert 0 <= result.noise_floor < 1e-4
    assert len(result.mean_kl_to_base) == len(STEPS)
    assert result.mean_kl_to_base[0] == 0
    outputs = read_outputs(traj.store, "probes")
    group = zarr.open_group(traj.path / "outputs" / "probes", mode="r")
    assert group["log_p"].shape == (len(STEPS), result.tokens)
    offsets = group["offsets"][...]
    assert result.responses == len(offsets) - 1 == 10
    assert offsets[1] == 5  # ' you' and the end token
    assert offsets[2] == 5  # an empty response
    assert group["ids"][4] == 1
    assert outputs.texts[0] == ("hello", " you")
    assert outputs.positions()[:6].tolist() == [0, 1, 2, 3, 4, 0]
    for t, step in enumerate(STEPS):
        model = trajkit.load_model(traj, step=step)
        prompt = tuple(make_tokenizer()("hello", add_special_tokens=False)["input_ids"])
        text = Probe(prompt, tuple(outputs.ids[:5].tolist()), "", "")
        log_p, entropy, rank, likeliest = plain(model, text)
        assert np.abs(outputs.log_p[t, :5] - log_p).max() < 1e-4
        assert np.abs(outputs.rows("entropy")[t, :5] - entropy).max() < 1e-4
        assert (outputs.rows("rank")[t, :5] == rank).all()
        assert (outputs.rows("argmax")[t, :5] == likeliest).all()
    assert list(check_outputs(traj.store)) == []
    assert logprobs(traj, run / "p.jsonl", name="probes", batch_tokens=64).scored == 0


def test_the_noise_floor_is_of_two_passes_batched_differently(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes that all go into one batch were scored in that batch twice: a floor of 0."""
    passes = []

    def spy(model: object, batches: list[Batch], *args: object, **options: object) -> object:
        passes.append([batch.ids_BL.shape for batch in batches])
        return score(model, batches, *args, **options)

    monkeypatch.setattr("trajkit.outputs.logprobs.score", spy)
    logprobs(fresh(run, tmp_path), run / "p.jsonl", steps=[0])
    first, again = passes
    assert len(first) == 1
    assert len(again) > 1


def test_drift_is_what_the_distributions_say(run: Path, tmp_path: Path) -> None:
    traj = fresh(run, tmp_path)
    logprobs(traj, run / "p.jsonl")
    outputs = read_outputs(traj.store)
    rows = measure_drift(outputs)
    whole = []
    prompt_ids = np.split(outputs.fixed("prompt_ids"), outputs.fixed("prompt_offsets")[1:-1])
    responses = np.split(outputs.ids, outputs.offsets[1:-1])
    for step in STEPS:
        model = trajkit.load_model(traj, step=step)
        parts = []
        for p, r in zip(prompt_ids, responses, strict=True):
            if not len(r):
                continue
            ids = torch.tensor([[*p.tolist(), *r.tolist()]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(p) - 1 : -1]
            parts.append(torch.log_softmax(logits.double(), -1))
        whole.append(torch.cat(parts).numpy())
    for t, row in enumerate(rows):
        now, base, before = whole[t], whole[0], whole[max(t - 1, 0)]
        assert row.kl_to_base == pytest.approx((np.exp(now) * (now - base)).sum(1).mean(), abs=1e-6)
        kl = (np.exp(base) * (base - now)).sum(1).mean()
        assert row.kl_from_base == pytest.approx(kl, abs=1e-6)
        kl = (np.exp(now) * (now - before)).sum(1).mean()
        assert row.kl_to_before == pytest.approx(kl, abs=1e-6)
        picked = [w[np.arange(len(w)), outputs.ids] for w in (now, base)]
        ratio = np.exp(picked[0] - picked[1])
        k3 = (ratio - 1 - np.log(ratio)).mean()
        assert row.k3_to_base == pytest.approx(k3, abs=1e-5)
        assert row.change_to_base == pytest.approx(np.abs(picked[0] - picked[1]).mean(), abs=1e-5)
        changed = np.mean(now.argmax(1) != base.argmax(1))
        assert row.argmax_changed_to_base == pytest.approx(changed, abs=1e-9)
        assert row.entropy == pytest.approx(-(np.exp(now) * now).sum(1).mean(), abs=1e-5)
    assert rows[-1].kl_to_base > rows[1].kl_to_base > 0


def test_few_places_are_a_sample_of_all(run: Path, tmp_path: Path) -> None:
    traj = fresh(run, tmp_path)
    all_of_it = logprobs(traj, run / "p.jsonl", name="all")
    few = logprobs(traj, run / "p.jsonl", name="few", divergence_places=60)
    assert few.divergence_places == 60 < all_of_it.divergence_places == all_of_it.tokens
    assert few.mean_kl_to_base[-1] == pytest.approx(all_of_it.mean_kl_to_base[-1], rel=0.5)


def test_folders_are_scored_like_steps_without_a_store(run: Path, tmp_path: Path) -> None:
    folders = [run / "ckpts" / f"checkpoint-{s}" for s in STEPS]
    result = logprobs(None, run / "p.jsonl", checkpoints=folders, out=tmp_path / "kept")
    assert result.steps == STEPS
    traj = fresh(run, tmp_path)
    logprobs(traj, run / "p.jsonl")
    here, there = read_outputs(traj.store), read_outputs(tmp_path / "kept")
    assert np.array_equal(here.log_p, there.log_p)
    with pytest.raises(InvalidInput, match="without a store"):
        logprobs(None, run / "p.jsonl", checkpoints=folders)


def test_a_store_that_grew_is_scored_on(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    trajkit.ingest([run / "ckpts" / f"checkpoint-{s}" for s in STEPS[:2]], path)
    logprobs(trajkit.open(path), run / "p.jsonl")
    trajkit.ingest(run / "ckpts", path)
    traj = trajkit.open(path)
    assert logprobs(traj, run / "p.jsonl").scored == 2
    whole = fresh(run, tmp_path)
    logprobs(whole, run / "p.jsonl")
    a, b = read_outputs(traj.store), read_outputs(whole.store)
    assert np.array_equal(a.log_p, b.log_p)
    assert a.record.divergences == b.record.divergences


def test_a_killed_command_goes_on_and_gives_the_same(run: Path, tmp_path: Path) -> None:
    traj = fresh(run, tmp_path)
    logprobs(traj, run / "p.jsonl", name="whole")
    command = [sys.executable, "-c", "from trajkit.cli.main import main; main()", "logprobs"]
    command += ["--store", str(traj.path), "--probes", str(run / "p.jsonl"), "--name", "killed"]
    root = traj.path / "outputs" / "killed" / "zarr.json"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if root.exists() and json.loads(root.read_bytes())["attributes"]["steps"]:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()
    done = subprocess.run([*command, "--json"], check=True, capture_output=True)
    found = json.loads(done.stdout)
    assert found["steps"] == list(STEPS)
    assert len(found["mean_kl_to_base"]) == len(STEPS)
    a, b = read_outputs(traj.store, "killed"), read_outputs(traj.store, "whole")
    assert np.array_equal(a.log_p, b.log_p)
    assert a.record.divergences == b.record.divergences
    assert list(check_outputs(traj.store)) == []


def test_what_was_scored_otherwise_is_refused_and_kept(run: Path, tmp_path: Path) -> None:
    traj = fresh(run, tmp_path)
    logprobs(traj, run / "p.jsonl", steps=[0, 25])
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "1", "response": "2"}\n')
    with pytest.raises(Mismatch, match="another probes"):
        logprobs(traj, other)
    with pytest.raises(InvalidInput, match="scored in order"):
        logprobs(traj, run / "p.jsonl", steps=[10])
    with pytest.raises(NotFound):
        logprobs(traj, run / "p.jsonl", steps=[11])
    assert read_outputs(traj.store).record.steps == (0, 25)
    assert logprobs(traj, other, force=True).tokens == 1
    other.write_text('{"prompt": "1", "response": ""}\n')
    with pytest.raises(InvalidInput, match="nothing to score"):
        logprobs(traj, other, name="none")
    mine = traj.path / "outputs" / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(AlreadyExists):
        logprobs(traj, run / "p.jsonl", name="mine", force=True)
    assert (mine / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("name", ["notes.txt", "log_p/notes.txt", "log_p/c/0/notes", "c/0"])
def test_somebody_elses_file_among_scores_is_not_replaced(
    run: Path, tmp_path: Path, name: str
) -> None:
    traj = fresh(run, tmp_path)
    out = tmp_path / "scores"
    logprobs(traj, run / "p.jsonl", steps=[0], out=out)
    logprobs(traj, run / "p.jsonl", steps=[0], out=out, force=True)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("x")
    with pytest.raises(AlreadyExists, match="not written by trajkit"):
        logprobs(traj, run / "p.jsonl", steps=[0], out=out, force=True)
    assert (out / name).read_text() == "x"
    assert read_outputs(out).record.steps == (0,)


def test_damage_is_found_and_said(run: Path, tmp_path: Path) -> None:
    traj = fresh(run, tmp_path)
    logprobs(traj, run / "p.jsonl")
    folder = traj.path / "outputs" / "default"
    assert trajkit.verify(traj.path).ok
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        bad = trajkit.verify(traj.path).bad
        assert bad, f"{path.name}: damaged, and verify saw nothing"
        assert all("\n" not in damage.what for damage in bad)
        path.write_bytes(content)
    (folder / "log_p" / "c" / "1" / "0").unlink()
    with pytest.raises(FormatError, match="log_p"):
        read_outputs(traj.store).rows("log_p")
    assert not trajkit.verify(traj.path).ok


def test_lines_through_outputs_are_least_squares(run: Path, tmp_path: Path) -> None:
    traj = fresh(run, tmp_path)
    logprobs(traj, run / "p.jsonl")
    outputs = read_outputs(traj.store)
    fit = fit_outputs(outputs, threshold=0.5)
    y = outputs.log_p.astype(np.float64)
    x = np.array(STEPS, float)
    for column in range(0, y.shape[1], 17):
        slope, at_zero = np.polyfit(x, y[:, column], 1)
        assert fit.tokens.slope[column] == pytest.approx(slope, rel=1e-6)
        assert fit.tokens.mean[column] == pytest.approx(at_zero + slope * x.mean(), rel=1e-6)
        r = np.corrcoef(x, y[:, column])[0, 1]
        assert fit.tokens.rsq[column] == pytest.approx(r * r, abs=1e-7)
    sums = np.add.reduceat(y, outputs.offsets[2:-1], axis=1)
    slope = np.polyfit(x, sums[:, 0], 1)[0]
    assert fit.responses.slope[2] == pytest.approx(slope, rel=1e-6)
    numbers = fit.describe()
    assert numbers["tokens"] == outputs.record.tokens
    assert numbers["median_rsq"] == pytest.approx(np.median(fit.tokens.rsq[fit.kept]))
    assert 0.3 < numbers["null_median_rsq"] < 0.7
    paper = fit_outputs(outputs, min_change=0.2)
    expected = np.abs(y[-1] - y[0]) > 0.2
    assert (paper.kept == expected).all()
    assert paper.describe()["kept"] == expected.sum()
    assert sum(row["tokens"] for row in by_position(fit, outputs)) == fit.kept.sum()
    assert sum(row["tokens"] for row in by_token(fit, outputs, most=999)) == fit.kept.sum()


def test_exact_lines_flat_tokens_and_two_checkpoints() -> None:
    y = np.array([[0.0, -5.0, 1.0], [2.0, -5.0, 0.0], [8.0, -5.0, 1.0]])
    lines = fit_lines(y, (0, 10, 40))
    assert lines.rsq[0] == pytest.approx(1)
    assert lines.slope[0] == pytest.approx(0.2)
    assert np.isnan(lines.rsq[1])
    assert np.isnan(lines.drift_t[1])
    two = fit_lines(y[:2], (0, 10))
    assert two.rsq[0] == 1
    assert np.isnan(two.drift_t).all()


def test_the_command_says_what_it_found(run: Path, tmp_path: Path) -> None:
    traj = fresh(run, tmp_path)

    def command(*arguments: str) -> str:
        code = "from trajkit.cli.main import main; main()"
        call = [sys.executable, "-c", code, *arguments, "--store", str(traj.path)]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout

    found = json.loads(command("logprobs", "--probes", str(run / "p.jsonl"), "--json"))
    assert {"name", "steps", "tokens", "noise_floor", "mean_kl_to_base"} <= found.keys()
    numbers = json.loads(command("fit", "--outputs", "default", "--json"))
    assert numbers["tokens"] == found["tokens"]
    for key in ("median_rsq", "null_median_rsq", "share_above_threshold", "kept"):
        assert numbers[key] is not None
    paper = json.loads(command("fit", "--outputs", "default", "--paper", "--json"))
    assert paper["kept"] < numbers["kept"]
    info = json.loads(command("info", "--json"))
    assert info["outputs"]["default"]["tokens"] == found["tokens"]
    assert "10 responses" in command("info")
