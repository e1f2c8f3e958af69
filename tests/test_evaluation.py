"""lm-evaluation-harness with extrapolated logits, on a tiny local task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SEEN

pytest.importorskip("lm_eval", reason="pip install 'trajkit[eval]'")


@pytest.mark.filterwarnings("ignore")
def test_a_local_task_is_answered_by_extrapolated_logits(tmp_path: Path) -> None:
    from adder import (
        ExtrapolatedLogits,
        answer_for,
        evaluation_pairs,
        load_model,
        prompt_for,
    )
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from trajkit.outputs.evaluation import ExtrapolatedLM

    pairs = evaluation_pairs()[:12]
    lines = [{"prompt": prompt_for(a, b), "answer": answer_for(a, b)} for a, b in pairs]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tiny.yaml").write_text(
        f"task: tiny_adder\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: loglikelihood\ndoc_to_text: '{{prompt}}'\n"
        "doc_to_target: '{{answer}}'\ntarget_delimiter: ''\n"
        "metric_list:\n  - metric: perplexity\n    aggregation: perplexity\n"
    )
    folders = [str(SEEN / f"checkpoint-{s}") for s in (0, 396)]
    lm = ExtrapolatedLM(*folders, alpha=2.0, dtype="float32", batch_size=4)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(lm, tasks=["tiny_adder"], task_manager=manager, bootstrap_iters=0)
    (base, tokenizer), (second, _) = (load_model(f) for f in folders)

    model = ExtrapolatedLogits(base, second, 2.0)
    whole = []
    for a, b in pairs:
        ids = torch.tensor([tokenizer(prompt_for(a, b) + answer_for(a, b))["input_ids"]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        log_p = log_p.gather(1, ids[0, 1:, None])[:, 0]
        whole.append(float(log_p[len(prompt_for(a, b)) - 1 :].sum()))
    value = found["results"]["tiny_adder"]["perplexity,none"]
    assert value == pytest.approx(np.exp(-np.mean(whole)), rel=1e-4)
