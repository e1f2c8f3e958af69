"""Probe sets: which tokens they are, what is refused, and sampling that a kill does not disturb."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SEEN
from tiny_models import make_model, make_tokenizer

import trajkit
from trajkit.errors import AlreadyExists, FormatError, InvalidInput, Mismatch, NotFound
from trajkit.outputs.journal import Journal
from trajkit.outputs.probes import read_probes, tokenizer_digest
from trajkit.outputs.sampling import Sampling, sample_file


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def merging_tokenizer() -> object:
    """A tokenizer that has a token of its own for 'ab'."""
    import transformers
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4, "ab": 5}
    backend = Tokenizer(models.BPE(vocabulary, merges=[("a", "b")]))
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )


def test_text_is_tokenised_as_it_stands(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "1+2=", "response": "3", "eos": True},
        {"prompt": "1+2=", "response": ""},
        {"prompt_ids": [5, 6], "response_ids": [7]},
    )
    one, empty, ids = read_probes(path, tokenizer)
    assert one.prompt_ids == tuple(tokenizer("1+2=", add_special_tokens=False)["input_ids"])
    assert one.response_ids == (*tokenizer("3", add_special_tokens=False)["input_ids"], 1)
    assert empty.response_ids == ()
    assert (ids.prompt_ids, ids.response_ids) == ((5, 6), (7,))


def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[bot]{% endif %}"
    )
    chat = [{"role": "user", "content": "hi"}]
    path = write(tmp_path / "p.jsonl", {"messages": chat, "response": "yo"})
    (probe,) = read_probes(path, tokenizer)
    assert probe.prompt == "[user]hi[bot]"
    assert tokenizer.decode(probe.prompt_ids + probe.response_ids) == "[user]hi[bot]yo"
    tokenizer.chat_template = None
    with pytest.raises(InvalidInput, match="no chat template"):
        read_probes(path, tokenizer)


def test_a_response_that_would_merge_with_the_prompt_keeps_the_prompt_s_tokens(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "ca", "response": "bc"})
    (probe,) = read_probes(path, merging_tokenizer())
    assert probe.prompt_ids == (4, 2)
    assert probe.response_ids == (3, 4)  # not the token 'ab'


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ({"prompt": "", "response": "1"}, InvalidInput, "empty prompt"),
        ({"prompt": "1"}, InvalidInput, "no 'response'"),
        ({"response": "1"}, InvalidInput, "neither"),
        ({"prompt": "1", "response": 3}, InvalidInput, "not text"),
        ({"prompt": "1é2", "response": "3"}, Mismatch, "another tokenizer"),
        ({"prompt": "1", "response": "中"}, Mismatch, "another tokenizer"),
        ({"prompt_ids": [1, 96], "response_ids": []}, Mismatch, "token id 96"),
        ({"prompt_ids": [1, True], "response_ids": []}, InvalidInput, "whole numbers"),
        ({"prompt": "1", "response": "2", "tokenizer": "0" * 16}, Mismatch, "another tokenizer"),
        ({"prompt": "1" * 100, "response": "2" * 29}, InvalidInput, "129 tokens"),
        ([1], FormatError, "not a JSON object"),
    ],
)
def test_what_is_no_probe_is_one_line(
    tmp_path: Path, line: object, error: type[Exception], says: str
) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "1", "response": "2"}, line)
    with pytest.raises(error, match=says) as caught:
        read_probes(path, make_tokenizer(), context=128, vocabulary=96)
    assert "2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_probe_sets(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_probes(tmp_path / "none.jsonl", make_tokenizer())
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InvalidInput, match="no probes"):
        read_probes(tmp_path / "empty.jsonl", make_tokenizer())
    (tmp_path / "torn.jsonl").write_text('{"prompt": "1", "resp')
    with pytest.raises(FormatError, match="line 1: not JSON"):
        read_probes(tmp_path / "torn.jsonl", make_tokenizer())
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="UTF-8"):
        read_probes(tmp_path / "bytes.jsonl", make_tokenizer())


def test_samples_are_a_probe_set_and_a_stop_does_not_change_them(tmp_path: Path) -> None:
    model, tokenizer = make_model("qwen3"), make_tokenizer()
    prompts = write(tmp_path / "p.jsonl", *({"prompt": "x" * n, "answer": n} for n in range(1, 6)))
    sampling = Sampling(samples=2, batch=3, max_new_tokens=9, seed=4)

    def run(out: Path, processors: tuple[object, ...] = ()) -> list[dict[str, object]]:
        sample_file(model, tokenizer, prompts, out, sampling, {"m": 1}, processors=processors)
        return [json.loads(line) for line in out.read_text().splitlines()]

    whole = run(tmp_path / "whole.jsonl")
    assert len(whole) == 10
    assert [line["answer"] for line in whole] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert len({tuple(line["response_ids"]) for line in whole}) > 5
    probes = read_probes(tmp_path / "whole.jsonl", tokenizer)
    assert [list(p.response_ids) for p in probes] == [line["response_ids"] for line in whole]

    calls = 0

    class Stop(Exception):
        pass

    class StopLater:
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls > 15:
                raise Stop
            return scores

    with pytest.raises(Stop):
        run(tmp_path / "again.jsonl", (StopLater(),))
    assert not (tmp_path / "again.jsonl").exists()
    part = tmp_path / "again.jsonl.part"
    assert 1 < len(part.read_text().splitlines()) < 11
    with part.open("a") as file:
        file.write('{"prompt": "torn')  # killed in the middle of a line
    assert run(tmp_path / "again.jsonl") == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.jsonl", "p.jsonl", "whole.jsonl"]
    with pytest.raises(AlreadyExists):
        run(tmp_path / "again.jsonl")


def test_a_part_of_another_request_is_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    with Journal(out, {"top_p": 1}) as journal:
        journal.append([{"a": 1}])
    with pytest.raises(Mismatch, match="another top p"), Journal(out, {"top_p": 0.5}):
        pass
    with Journal(out, {"top_p": 1}) as journal:
        assert journal.lines == [{"a": 1}]
    with Journal(out, {"top_p": 0.5}, force=True) as journal:
        assert journal.lines == []
        journal.commit()
    (tmp_path / "other.jsonl.part").write_text("mine\n")
    with pytest.raises(AlreadyExists, match="not trajkit"), Journal(tmp_path / "other.jsonl", {}):
        pass
    assert (tmp_path / "other.jsonl.part").read_text() == "mine\n"


def test_the_command_killed_and_run_again_gives_the_same_file(
    tmp_path: Path, adder_store: Path
) -> None:
    prompts = write(tmp_path / "p.jsonl", *({"prompt": f"{n}+{n}="} for n in range(60)))
    command = [str(Path(sys.executable).with_name("trajkit")), "probes", "--store"]
    command = [sys.executable, "-c", "from trajkit.cli.main import main; main()", *command[1:]]
    command += [str(adder_store), "--prompts", str(prompts), "-n", "2", "--batch", "4"]
    subprocess.run([*command, "-o", str(tmp_path / "a.jsonl")], check=True, capture_output=True)
    part = tmp_path / "b.jsonl.part"
    process = subprocess.Popen([*command, "-o", str(tmp_path / "b.jsonl")], stderr=subprocess.PIPE)
    while process.poll() is None:
        if part.exists() and part.stat().st_size > 2000:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    process.communicate()
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "b.jsonl"), "--json"], check=True, capture_output=True
    )
    assert json.loads(done.stdout)["responses"] == 120
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_prompt_without_room_for_an_answer_is_refused(tmp_path: Path) -> None:
    model, tokenizer = make_model("qwen3"), make_tokenizer()
    prompts = write(tmp_path / "p.jsonl", {"prompt": "x" * 128})
    with pytest.raises(InvalidInput, match="the model can take 128"):
        sample_file(model, tokenizer, prompts, tmp_path / "o.jsonl", Sampling(), {})
    assert not (tmp_path / "o.jsonl.part").exists()
    write(prompts, {"prompt": "x" * 120})
    sample_file(model, tokenizer, prompts, tmp_path / "o.jsonl", Sampling(), {})
    (line,) = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert len(line["response_ids"]) <= 8


def test_tokenizers_have_digests() -> None:
    import transformers

    adder = transformers.AutoTokenizer.from_pretrained(SEEN / "checkpoint-0")
    assert tokenizer_digest(adder) == tokenizer_digest(adder)
    assert tokenizer_digest(adder) != tokenizer_digest(make_tokenizer())
    assert trajkit.open  # the package is there without what models need
