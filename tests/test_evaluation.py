"""lm-evaluation-harness with extrapolated logits, on tiny local tasks.

The one place that is skipped where lm_eval is not installed: pip install 'trajkit[eval]'.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SEEN

from trajkit.errors import InvalidInput, Mismatch

pytest.importorskip("lm_eval", reason="pip install 'trajkit[eval]'")

FOLDERS = tuple(str(SEEN / f"checkpoint-{step}") for step in (0, 396))
PAIRS = 12
TASKS = {
    "tiny_scored": "output_type: loglikelihood\nmetric_list:\n  - metric: perplexity\n"
    "    aggregation: perplexity\n",
    "tiny_generated": "output_type: generate_until\ngeneration_kwargs:\n  until: ['#']\n"
    "  max_gen_toks: 4\n  do_sample: false\nmetric_list:\n  - metric: exact_match\n"
    "    aggregation: mean\n",
}


@pytest.fixture
def additions() -> list[tuple[str, str]]:
    from adder import answer_for, evaluation_pairs, prompt_for

    return [(prompt_for(a, b), answer_for(a, b)) for a, b in evaluation_pairs()[:PAIRS]]


@pytest.fixture
def manager(tmp_path: Path, additions: list[tuple[str, str]]) -> Any:
    from lm_eval.tasks import TaskManager

    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in additions]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(lines) + "\n")
    for name, rest in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
            "test_split: test\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\n"
            f"target_delimiter: ''\n{rest}"
        )
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    from adder import load_model

    (base, tokenizer), (second, _) = (load_model(folder) for folder in FOLDERS)
    return base, second, tokenizer


def extrapolated(models: tuple[Any, Any, Any], ids: list[int], alpha: float) -> torch.Tensor:
    """The logits of one text by two plain forwards, [L, V]."""
    text = torch.tensor([ids])
    with torch.no_grad():
        l0, l1 = (model(input_ids=text, use_cache=False).logits[0] for model in models[:2])
    return l0 + alpha * (l1 - l0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_size", [1, 5])
def test_log_likelihoods_are_of_extrapolated_logits(
    manager: Any,
    additions: list[tuple[str, str]],
    models: tuple[Any, Any, Any],
    batch_size: int,
) -> None:
    from lm_eval import simple_evaluate

    from trajkit.outputs.evaluation import ExtrapolatedLM

    lm = ExtrapolatedLM(*FOLDERS, alpha=2.0, dtype="float32", batch_size=batch_size)
    found = simple_evaluate(lm, tasks=["tiny_scored"], task_manager=manager, bootstrap_iters=0)
    tokenizer, whole = models[2], []
    for prompt, answer in additions:
        ids = tokenizer(prompt + answer)["input_ids"]
        log_p = torch.log_softmax(extrapolated(models, ids, 2.0)[:-1], -1)
        log_p = log_p.gather(1, torch.tensor(ids)[1:, None])[:, 0]
        whole.append(float(log_p[len(prompt) - 1 :].sum()))
    value = found["results"]["tiny_scored"]["perplexity,none"]
    assert value == pytest.approx(np.exp(-np.mean(whole)), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_texts_are_decoded_from_extrapolated_logits_by_the_name_trajkit(
    manager: Any, additions: list[tuple[str, str]], models: tuple[Any, Any, Any]
) -> None:
    from lm_eval import simple_evaluate

    import trajkit.outputs.evaluation  # which registers the name

    settings = {"base": FOLDERS[0], "second": FOLDERS[1], "alpha": -2.0, "dtype": "float32"}
    found = simple_evaluate(
        "trajkit", settings, tasks=["tiny_generated"], task_manager=manager, batch_size=5
    )
    tokenizer = models[2]
    texts = {s["doc"]["prompt"]: s["resps"][0][0] for s in found["samples"]["tiny_generated"]}
    right = 0
    for prompt, answer in additions:
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + 4 and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(extrapolated(models, ids, -2.0)[-1].argmax()))
        expected = tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert texts[prompt] == expected
        right += expected == answer
    value = found["results"]["tiny_generated"]["exact_match,none"]
    assert value == pytest.approx(right / PAIRS)
    assert 0 < right < PAIRS, "these prompts tell nothing"
    assert trajkit.outputs.evaluation.ExtrapolatedLM.__name__ == "ExtrapolatedLM"


@pytest.mark.filterwarnings("ignore")
def test_models_may_be_steps_of_a_store_or_in_memory(
    adder_store: Path, models: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    from tiny_models import make_model, make_tokenizer

    from trajkit.outputs.evaluation import ExtrapolatedLM

    base, second, tokenizer = models
    stored = ExtrapolatedLM(0, "396", 1.5, store=str(adder_store), dtype="float32")
    memory = ExtrapolatedLM(base, second, 1.5, tokenizer=tokenizer)
    ids = torch.tensor([tokenizer("12+34=")["input_ids"]])
    expected = extrapolated(models, ids[0].tolist(), 1.5)
    for lm in (stored, memory):
        assert torch.allclose(lm._model_call(ids)[0], expected, atol=1e-5)
    with pytest.raises(InvalidInput, match="without a tokenizer"):
        ExtrapolatedLM(base, second, 1.5)
    other = tmp_path / "checkpoint-5"
    make_model("qwen3").save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    with pytest.raises(Mismatch, match="different tokenizers"):
        ExtrapolatedLM(FOLDERS[0], str(other), 1.5)
