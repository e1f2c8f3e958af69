"""Decoding with extrapolated logits, against loops that know no cache."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from conftest import SEEN
from tiny_models import FAMILIES, make_model, make_tokenizer

import trajkit
from trajkit import LogitsExtrapolation
from trajkit.errors import InvalidInput, Mismatch, TrajkitError, Unsupported
from trajkit.outputs.generate import generate
from trajkit.outputs.sampling import Sampling

PROMPTS = ((5, 6, 7), (9, 10, 11, 12, 13, 14, 15, 16), (20,), (30, 31, 32, 33))


def pair(family: str, **changes: object) -> tuple[object, object]:
    base, second = make_model(family, 0), make_model(family, 0, **changes)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in second.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return base, second


def left_padded(prompts: tuple[tuple[int, ...], ...]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    return ids, (ids != 0).long()


def decode(
    model: object, ids: torch.Tensor, mask: torch.Tensor, *processors: object, **how: object
):
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, **how}
    with torch.no_grad():
        return model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=list(processors), **settings
        )


def independent(base: object, second: object, prompt: tuple[int, ...], alpha: float) -> list[int]:
    """Greedy, both models on the whole prefix at every step, no cache, no padding."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            text = torch.tensor([ids])
            l0 = base(text, use_cache=False).logits[0, -1].float()
            l1 = second(text, use_cache=False).logits[0, -1].float()
            ids.append(int((l0 + alpha * (l1 - l0)).argmax()))
            if ids[-1] == 1:
                break
    return ids[len(prompt) :]


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(1) + 1] if 1 in row else row


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_equals_a_loop_without_cache_alone_and_in_a_padded_batch(family: str) -> None:
    base, second = pair(family)
    processor = LogitsExtrapolation(base, 1.7)
    ids, mask = left_padded(PROMPTS)
    batch = decode(second, ids, mask, processor)[:, ids.shape[1] :].tolist()
    for row, prompt in zip(batch, PROMPTS, strict=True):
        alone, one = left_padded((prompt,))
        single = decode(second, alone, one, processor)[0, len(prompt) :].tolist()
        expected = independent(base, second, prompt, 1.7)
        assert until_end(row)[: len(expected)] == expected
        assert until_end(single)[: len(expected)] == expected


@pytest.mark.parametrize("how", [{}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}])
@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_alpha_1_is_the_second_model_and_alpha_0_the_base(family: str, how: dict) -> None:
    base, second = pair(family)
    ids, mask = left_padded(PROMPTS)

    def seeded(model: object, *processors: object) -> list[list[int]]:
        torch.manual_seed(3)
        return decode(model, ids, mask, *processors, **how).tolist()

    assert seeded(second, LogitsExtrapolation(base, 1.0)) == seeded(second)
    assert seeded(second, LogitsExtrapolation(base, 0.0)) == seeded(base)
    assert seeded(second, LogitsExtrapolation(base, 2.0)) not in (seeded(base), seeded(second))


def test_one_object_serves_many_calls_in_any_order() -> None:
    base, second = pair("qwen3")
    shared = LogitsExtrapolation(base, 1.5)
    batches = [PROMPTS, PROMPTS[:1], PROMPTS[:1], PROMPTS[1:3], PROMPTS]
    for prompts in batches:
        ids, mask = left_padded(prompts)
        fresh = decode(second, ids, mask, LogitsExtrapolation(base, 1.5))
        assert torch.equal(decode(second, ids, mask, shared), fresh)
    ids, mask = left_padded(PROMPTS[:1])
    once = decode(second, ids, mask, shared, max_new_tokens=1)
    again = decode(second, once, torch.ones_like(once), shared, max_new_tokens=1)  # a continuation
    assert torch.equal(again, decode(second, ids, mask, shared, max_new_tokens=2))


class Spy(transformers.LogitsProcessor):
    """Keeps the texts and logits that come by."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append((input_ids.clone(), scores.clone()))
        return scores


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mixtral"])
def test_several_sequences_a_prompt_and_ends_at_different_times(family: str) -> None:
    base, second = pair(family)
    ids, mask = left_padded(PROMPTS)
    ends = [1, *range(40, 60)]
    how = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 30, "top_k": 0}
    how |= {"temperature": 2.0, "eos_token_id": ends}
    spy = Spy()
    torch.manual_seed(0)
    found = decode(second, ids, mask, LogitsExtrapolation(base, 1.3), spy, **how)
    assert found.shape[0] == 12
    width = ids.shape[1]
    lengths = [
        next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
        for row in found[:, width:].tolist()
    ]
    assert len(set(lengths)) > 1
    # whatever was drawn, each token was drawn from the logits of two plain forwards of its text
    checked = 0
    for texts, logits in spy.seen[::3]:
        for row in range(12):
            if texts.shape[1] - width >= lengths[row]:
                continue  # this one is over
            own = texts[row, width - len(PROMPTS[row // 3]) :][None]
            with torch.no_grad():
                l0, l1 = (m(own, use_cache=False).logits[0, -1] for m in (base, second))
            assert torch.allclose(logits[row], l0 + 1.3 * (l1 - l0), atol=1e-3)
            checked += 1
    assert checked > 12


def test_it_sees_raw_logits_before_temperature() -> None:
    base, second = pair("llama")
    ids, mask = left_padded(PROMPTS[:1])
    spy = Spy()
    decode(second, ids, mask, LogitsExtrapolation(base, 1.7), spy, do_sample=True, temperature=9.0)
    with torch.no_grad():
        l0, l1 = (m(ids).logits[:, -1] for m in (base, second))
    assert torch.allclose(spy.seen[0][1], l0 + 1.7 * (l1 - l0), atol=1e-5)


@pytest.mark.parametrize(("v0", "v1"), [(96, 104), (104, 96)])
def test_vocabularies_padded_differently_share_what_they_have(v0: int, v1: int) -> None:
    base, second = make_model("qwen3", 0, vocab_size=v0), make_model("qwen3", 1, vocab_size=v1)
    ids, _ = left_padded(PROMPTS[:1])
    with torch.no_grad():
        l0, l1 = (m(ids).logits[:, -1] for m in (base, second))
    out = LogitsExtrapolation(base, 1.5)(ids, l1.clone())
    assert out.shape == l1.shape
    expected = l0[:, :96] + 1.5 * (l1[:, :96] - l0[:, :96])
    assert torch.allclose(out[:, :96], expected, atol=1e-5)
    assert torch.isneginf(out[:, 96:]).all()


def test_what_another_processor_forbids_stays_forbidden() -> None:
    base, second = pair("qwen3")
    ids, mask = left_padded(PROMPTS)
    for alpha in (0.0, 0.5, -1.0, 2.0):
        processor = LogitsExtrapolation(base, alpha)
        found = decode(second, ids, mask, processor, min_new_tokens=12)
        assert not (found[:, ids.shape[1] :] == 1).any()


def test_what_it_cannot_do_is_refused_in_one_line() -> None:
    base, second = pair("qwen3")
    ids, mask = left_padded(PROMPTS[:1])
    processor = LogitsExtrapolation(base, 1.5)
    for what, how in (
        ("beam search", {"num_beams": 3}),
        ("beam search", {"num_beams": 3, "do_sample": True}),
        ("assisted decoding", {"assistant_model": base}),
    ):
        with pytest.raises(Unsupported, match=what) as caught:
            decode(second, ids, mask, processor, **how)
        assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInput, match="finite"):
        LogitsExtrapolation(base, float("nan"))
    one = make_tokenizer()
    two = transformers.AutoTokenizer.from_pretrained(SEEN / "checkpoint-0")
    with pytest.raises(Mismatch, match="different tokenizers"):
        LogitsExtrapolation(base, 1.5, tokenizers=(one, two))
    decode(second, ids, mask, processor)  # it works again after a refusal


def test_a_model_that_calls_its_cache_cache_is_served() -> None:
    base, second = pair("qwen3")

    class Renamed(torch.nn.Module):
        """The next transformers: ``cache`` in, ``cache`` out."""

        def __init__(self) -> None:
            super().__init__()
            self.config, self.device = base.config, base.device
            self.generation_config = base.generation_config
            self.widths: list[int] = []

        def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None,
                    return_dict=None):  # fmt: skip
            self.widths.append(input_ids.shape[1])
            found = base(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=cache, use_cache=use_cache,
            )  # fmt: skip
            return {"logits": found.logits, "cache": found.past_key_values}

    class Output(dict):
        logits = property(lambda self: self["logits"])

    renamed = Renamed()
    inner = renamed.forward
    renamed.forward = lambda **k: Output(inner(**k))
    renamed.forward.__signature__ = __import__("inspect").signature(inner)
    ids, mask = left_padded(PROMPTS)
    expected = decode(second, ids, mask, LogitsExtrapolation(base, 1.7))
    assert torch.equal(decode(second, ids, mask, LogitsExtrapolation(renamed, 1.7)), expected)
    assert renamed.widths[0] == 8
    assert set(renamed.widths[1:]) == {1}


def prompts_file(path: Path, n: int = 12) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"{i}+{i + 3}="}) + "\n" for i in range(n)))
    return path


def test_generate_takes_steps_of_the_store_and_folders(tmp_path: Path, adder_store: Path) -> None:
    traj = trajkit.open(adder_store)
    prompts = prompts_file(tmp_path / "p.jsonl")
    sampling = Sampling(batch=5, max_new_tokens=6, seed=2)
    a = generate(traj, "0", "396", prompts, tmp_path / "a.jsonl", step=990, sampling=sampling)
    assert a.alpha == 2.5
    assert a.step == 990
    assert a.tokens_per_second > 0
    folders = [str(SEEN / f"checkpoint-{s}") for s in (0, 396)]
    generate(None, *folders, prompts, tmp_path / "b.jsonl", alpha=2.5, sampling=sampling)
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [f"{i}+{i + 3}=" for i in range(12)]


def test_generate_refuses_what_makes_no_sense(tmp_path: Path, adder_store: Path) -> None:
    traj = trajkit.open(adder_store)
    prompts = prompts_file(tmp_path / "p.jsonl")
    for options in ({}, {"step": 500, "alpha": 1.0}):
        with pytest.raises(InvalidInput, match="one of them"):
            generate(traj, "0", "396", prompts, tmp_path / "o.jsonl", **options)
    with pytest.raises(InvalidInput, match="both step 396"):
        generate(traj, "396", "396", prompts, tmp_path / "o.jsonl", step=500)
    with pytest.raises(TrajkitError, match="not in the store"):
        generate(traj, "0", "13", prompts, tmp_path / "o.jsonl", step=500)
    other = tmp_path / "other"
    make_model("qwen3").save_pretrained(other / "checkpoint-5")
    make_tokenizer().save_pretrained(other / "checkpoint-5")
    with pytest.raises(Mismatch, match="different tokenizers"):
        generate(traj, "0", str(other / "checkpoint-5"), prompts, tmp_path / "o.jsonl", step=500)
    assert not list(tmp_path.glob("o.jsonl*"))
