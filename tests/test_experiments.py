"""The controlled experiments at toy size, end to end, and their arithmetic where the answer is known."""

import doctest
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

FOLDER = ROOT / "examples" / "experiments"
sys.path.insert(0, str(FOLDER))

import experiment  # noqa: E402 - beside the examples
import lean_training  # noqa: E402
import spectra  # noqa: E402

EXPERIMENTS = {
    "rl_vs_sft": ("--steps", "6", "--every", "2", "--seeds", "1"),
    "noise_snr": ("--steps", "6", "--every", "2", "--seeds", "1"),
    "straightness": ("--steps", "4", "--every", "2", "--seeds", "1", "--variants", "SFT as it is",
                     "SFT, 8 times the batch (256 prompts)", "SFT, SGD, rate .01"),
    "low_pass": ("--steps", "6", "--seeds", "1"),
    "extrapolation": ("--window", "4", "--every", "1", "--seeds", "1"),
}  # fmt: skip


@pytest.mark.parametrize("module", [spectra, experiment])
def test_doctests(module: object) -> None:
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [64, 65])
def test_the_spectrum_is_that_of_the_elements_added_up(n: int) -> None:
    changes_KN = np.random.default_rng(1).normal(size=(n, 50)) + 0.3
    power_K = (np.abs(np.fft.fft(changes_KN, axis=0)) ** 2).sum(axis=1)
    share_M = spectra.spectrum(changes_KN @ changes_KN.T)
    assert share_M.sum() == pytest.approx(1)
    assert share_M[0] == pytest.approx(power_K[0] / power_K.sum())
    assert share_M[3] == pytest.approx((power_K[3] + power_K[-3]) / power_K.sum())
    net = changes_KN.sum(axis=0)
    assert share_M[0] == pytest.approx(net @ net / n / (changes_KN**2).sum())


def test_a_walk_is_flat_and_its_first_half_knows_nothing_of_its_second() -> None:
    changes_KN = np.random.default_rng(2).normal(size=(100, 20_000))
    gram_KK = changes_KN @ changes_KN.T
    flat = [power for _, power in spectra.bins(spectra.spectrum(gram_KK), 100)]
    np.testing.assert_allclose(flat[1:], 1, atol=0.05)
    along_LJ, late_LL = spectra.directions(gram_KK, 10)
    assert (along_LJ**2).sum() / np.trace(late_LL) < 0.002


def test_momentum_alone_gives_the_filtered_walk() -> None:
    rng, n = np.random.default_rng(3), 400
    mean, changes = np.zeros(4000), []
    for step in range(n + 100):
        mean = 0.9 * mean + 0.1 * rng.normal(size=4000)
        if step >= 100:
            changes.append(mean)
    gram_KK = np.array(changes) @ np.array(changes).T
    found = spectra.low_share(spectra.spectrum(gram_KK), n, 33)
    assert found == pytest.approx(spectra.low_share(spectra.filtered_walk(n, 0.9), n, 33), abs=0.02)
    assert found > 5 * spectra.low_share(spectra.filtered_walk(n, 0.0), n, 33)


def test_a_direction_that_persists_is_found_in_the_second_half() -> None:
    rng = np.random.default_rng(4)
    drift_N = rng.normal(size=5000)
    changes_KN = rng.normal(size=(80, 5000)) + 0.5 * drift_N
    along_LJ, late_LL = spectra.directions(changes_KN @ changes_KN.T, 3)
    first_LL = np.outer(along_LJ[:, 0], along_LJ[:, 0])
    assert np.trace(first_LL) / np.trace(late_LL) == pytest.approx(0.2, abs=0.03)
    assert spectra.low_share(spectra.spectrum(first_LL), 40, 33) > 0.95


class Gradients(torch.nn.Module):
    """Two tensors whose gradients differ a thousandfold."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (torch.nn.Parameter(torch.zeros(200_000)) for _ in range(2))
        generator = torch.Generator().manual_seed(5)
        self.clean = [torch.randn(200_000, generator=generator) * s for s in (1.0, 1e-3)]
        self.one.grad, self.two.grad = (g.clone() for g in self.clean)


@pytest.mark.parametrize("snr_db", [10, 0, -20])
def test_noise_has_the_stated_ratio_in_every_tensor(snr_db: float) -> None:
    model = Gradients()
    lean_training.add_noise(model, snr_db, torch.Generator().manual_seed(6))
    for parameter, clean in zip(model.parameters(), model.clean, strict=True):
        noise = parameter.grad - clean
        found = 10 * math.log10(float(clean.pow(2).mean() / noise.pow(2).mean()))
        assert found == pytest.approx(snr_db, abs=0.1)
        assert abs(float((noise * clean).mean() / noise.std() / clean.std())) < 0.02


def test_noise_alone_has_nothing_of_the_signal_and_none_changes_nothing() -> None:
    model = Gradients()
    lean_training.add_noise(model, math.inf, torch.Generator().manual_seed(6))
    assert torch.equal(model.one.grad, model.clean[0])
    lean_training.add_noise(model, -math.inf, torch.Generator().manual_seed(6))
    for parameter, clean in zip(model.parameters(), model.clean, strict=True):
        noise = parameter.grad
        assert abs(float((noise * clean).mean() / noise.std() / clean.std())) < 0.02
        assert float(noise.std() / clean.std()) == pytest.approx(1, abs=0.02)


def test_advantages_are_those_of_groups() -> None:
    found = lean_training.advantages(torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1]), 4)
    group = np.array([1.0, 0, 0, 0])
    expected = (group - group.mean()) / (group.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(found[:4].numpy(), expected, rtol=1e-6)
    assert found[4:].abs().max() == 0


def test_the_gradient_is_that_of_the_loss_written_out_without_padding() -> None:
    from adder import load_model

    model, tokenizer = load_model(ROOT / "data" / "adder-grpo" / "checkpoint-0")
    prompts = [tokenizer("3+4=")["input_ids"], tokenizer("60+34=")["input_ids"]]
    replies, weights = torch.tensor([[9, 1], [11, 6]]), torch.tensor([[0.5, 0.5], [-1.5, -1.5]])
    prompt, mask = lean_training.pad_left(prompts, tokenizer.pad_token_id, "cpu")
    lean_training.accumulate_gradient(model, prompt, mask, replies, weights, 4.0, rows=1)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = torch.zeros(())
    for ids, reply, weight in zip(prompts, replies, weights, strict=True):
        logits = model(input_ids=torch.tensor([[*ids, *reply.tolist()]])).logits[0]
        log_p = torch.log_softmax(logits[len(ids) - 1 : -1], -1)[range(2), reply]
        loss = loss - (weight * log_p).sum() / 4.0
    loss.backward()
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-6)


def test_samples_are_drawn_as_the_model_says() -> None:
    from adder import load_model

    model, tokenizer = load_model(ROOT / "data" / "adder-grpo" / "checkpoint-0")
    ids = tokenizer("60+34=")["input_ids"]
    rows = [tokenizer("3+4=")["input_ids"], *[ids] * 3000]  # the first one makes them padded
    prompt, mask = lean_training.pad_left(rows, tokenizer.pad_token_id, "cpu")
    prompt = torch.cat([torch.full((len(prompt), 1), tokenizer.pad_token_id), prompt], 1)
    mask = torch.cat([torch.zeros((len(mask), 1), dtype=torch.int64), mask], 1)
    generator = torch.Generator().manual_seed(7)
    reply, counted = lean_training.sample(model, prompt, mask, 2, 1, generator)
    with torch.no_grad():
        first = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
        token = int(first.argmax())
        second = torch.softmax(model(input_ids=torch.tensor([[*ids, token]])).logits[0, -1], -1)
    drawn = torch.bincount(reply[1:, 0], minlength=14) / 3000
    torch.testing.assert_close(drawn, first, rtol=0, atol=0.05)
    after = reply[1:][reply[1:, 0] == token, 1]
    drawn = torch.bincount(after, minlength=14) / len(after)
    torch.testing.assert_close(drawn, second, rtol=0, atol=0.05)
    assert bool(counted[:, 0].all())
    assert torch.equal(counted[:, 1], reply[:, 0] != 1)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_from_end_to_end(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = __import__(name)
    # in this process: interpreters of their own would each load torch
    monkeypatch.setattr(experiment, "ProcessPoolExecutor", InPlace)
    command = [name, "--out", str(tmp_path), *EXPERIMENTS[name]]
    if name == "noise_snr":
        monkeypatch.setattr(module, "LEVELS", ("inf", "-10"))
    if name == "low_pass":
        monkeypatch.setattr(module, "PERIOD", 3)
    monkeypatch.setattr(sys, "argv", command)
    module.main()
    first = capsys.readouterr().out
    table, sentence = first[first.index("| ") :].strip().split("\n\n")
    assert len(table.splitlines()) >= 4, table
    assert " here" in sentence
    assert sentence.endswith("processor time.")
    assert (tmp_path / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    runs = json.loads((tmp_path / f"{name}.json").read_text())["runs"]
    assert str(ROOT) not in (tmp_path / f"{name}.json").read_text()
    assert len(runs) >= (1 if name == "extrapolation" else 2)
    module.main()  # again: nothing is left to run
    assert capsys.readouterr().out.strip() == first[first.index("| ") :].strip()


class InPlace:
    """An executor that works at once."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "InPlace":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, run: object, job: object) -> object:
        import concurrent.futures

        future: concurrent.futures.Future[object] = concurrent.futures.Future()
        future.set_result(run(job))  # type: ignore[operator]
        return future


@pytest.mark.parametrize("rate", ["2e-5", "2e-4"])
@pytest.mark.parametrize("name", ["rl_vs_sft", "noise_snr"])
def test_the_tables_of_the_paper_are_those_that_were_measured(
    name: str, rate: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [name, "--table", "--out", str(ROOT / "docs" / "paper")]
    monkeypatch.setattr(sys, "argv", [*command, "--learning-rate", rate])
    __import__(name).main()
    text = (ROOT / "docs" / "paper.md").read_text()
    for part in capsys.readouterr().out.strip().split("\n\n"):
        assert part in text, f"docs/paper.md lacks, or has otherwise: {part[:200]}"


def test_the_intervals_are_student_s() -> None:
    values = [0.1, 0.4, 0.2, 0.7]
    mean, half = experiment.mean_and_half(values)
    assert mean == pytest.approx(0.35)
    assert half == pytest.approx(3.182 * np.std(values, ddof=1) / 2, rel=1e-3)
    assert experiment.said(values) == ".350 ± .421"
    assert experiment.said([None, math.nan]) == "-"
