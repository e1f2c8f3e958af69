"""What outputs cost: decoding with two models beside one, scoring beside plain forwards, memory.

    OMP_NUM_THREADS=1 python benchmarks/bench_outputs.py --json benchmarks/results/bench_outputs.json

Random Qwen3 models on the CPU; processor time, the two sides taking turns in one run:

- decoding with `LogitsExtrapolation` against the second model's own `generate` (bar: 2.2 times);
- `logprobs` of T checkpoints, all of it, against T plain forwards of the same batches, logits of all
  positions, plus reading T checkpoints from the store (bar: 1.15 times);
- the peak memory of a process that scores one response of 32,768 tokens over 151,936 logits, whose
  float32 logits would be 20 GB.

Prints JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from machine import describe_machine

import trajkit
from trajkit.outputs.batching import make_batches
from trajkit.outputs.logprobs import BATCH_TOKENS, logprobs
from trajkit.outputs.models import fill_model
from trajkit.outputs.probes import Probe
from trajkit.outputs.scoring import score
from trajkit.outputs.weights import StoredWeights
from trajkit.progress import Advanced, Event

T = 16
PROBES = 10
PROMPT, RESPONSE = (40, 120), (150, 400)
"""tokens of a probe, from and to"""
SCORED = {
    "vocab_size": 32768,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
"""the model that is scored, beside what make_model has"""


def make_model(seed: int, **changes: object) -> transformers.Qwen3ForCausalLM:
    """A random model in float32, of 12 million parameters unless it is changed."""
    settings = {
        "vocab_size": 8192,
        "hidden_size": 320,
        "intermediate_size": 960,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "max_position_embeddings": 40960,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(**{**settings, **changes})
    return transformers.Qwen3ForCausalLM(config).eval()


def measure_decoding(rounds: int) -> dict[str, object]:
    """Greedy decoding, 8 prompts of 32 tokens, 64 new ones, one model and two taking turns."""
    base, second = make_model(0), make_model(1)
    ids = torch.randint(2, 8192, (8, 32), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    processor = trajkit.LogitsExtrapolation(base, 1.5)

    def run(*processors: object) -> np.ndarray:
        spent = np.zeros(2)
        with stopwatch(spent):
            second.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=transformers.LogitsProcessorList(processors),
                **settings,
            )
        return spent

    run()
    run(processor)
    one_R2, two_R2 = map(
        np.array, zip(*((run(), run(processor)) for _ in range(rounds)), strict=True)
    )
    ratios = two_R2 / one_R2
    return {
        "parameters": sum(p.numel() for p in base.parameters()),
        "rounds": rounds,
        "one_cpu_seconds": float(np.median(one_R2[:, 0])),
        "two_cpu_seconds": float(np.median(two_R2[:, 0])),
        "ratio": float(np.median(ratios[:, 0])),
        "ratio_of_rounds": ratios[:, 0].round(3).tolist(),
        "ratio_of_wall_clock": float(np.median(ratios[:, 1])),
    }


def measure_scoring(folder: Path, checkpoints: int) -> dict[str, object]:
    """Processor seconds of T checkpoints: scored and kept, against plain forwards and reading.

    After each checkpoint that `logprobs` has committed, another model reads the same step from the
    store and runs plainly over the same batches, logits of all positions: so the two sides take turns
    within one run.
    """
    write_run(folder / "ckpts", checkpoints)
    trajkit.ingest(folder / "ckpts", folder / "s.zarr")
    traj = trajkit.open(folder / "s.zarr")
    rng = np.random.default_rng(0)
    lines, probes = [], []
    for _ in range(PROBES):
        prompt, response = rng.integers(*PROMPT), rng.integers(*RESPONSE)
        ids = rng.integers(2, SCORED["vocab_size"], prompt + response).tolist()
        lines.append({"prompt_ids": ids[:prompt], "response_ids": ids[prompt:]})
        probes.append(Probe(tuple(ids[:prompt]), tuple(ids[prompt:]), "", ""))
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batches = make_batches(probes, BATCH_TOKENS)
    model = trajkit.load_model(traj, step=0, dtype="float32")
    steps = iter(traj.steps.tolist())
    spent = {"reading": np.zeros(2), "plain": np.zeros(2)}

    def read_and_run(event: Event) -> None:
        if isinstance(event, Advanced):
            with stopwatch(spent["reading"]):
                fill_model(model, StoredWeights(traj.store, next(steps)))
            with stopwatch(spent["plain"]), torch.no_grad():
                for batch in batches:
                    model(input_ids=torch.from_numpy(batch.ids_BL), use_cache=False)

    whole = np.zeros(2)
    with stopwatch(whole):
        result = logprobs(traj, folder / "p.jsonl", progress=read_and_run)
    ours = whole - spent["plain"] - spent["reading"]
    beside = spent["plain"] + spent["reading"]
    return {
        "model": SCORED,
        "parameters": sum(p.numel() for p in model.parameters()),
        "checkpoints": checkpoints,
        "prompt_tokens": sum(len(p.prompt_ids) for p in probes),
        "response_tokens": result.tokens,
        "padded_tokens": sum(batch.ids_BL.size for batch in batches),
        "divergence_places": result.divergence_places,
        "plain_cpu_seconds": spent["plain"][0],
        "reading_cpu_seconds": spent["reading"][0],
        "logprobs_cpu_seconds": ours[0],
        "ratio": ours[0] / beside[0],
        "ratio_of_wall_clock": ours[1] / beside[1],
    }


@contextmanager
def stopwatch(spent: np.ndarray) -> Iterator[None]:
    """Adds (processor seconds, seconds) of its block."""
    begun = time.process_time(), time.perf_counter()
    yield
    spent += time.process_time() - begun[0], time.perf_counter() - begun[1]


def write_run(folder: Path, checkpoints: int) -> None:
    """Some checkpoints in bfloat16, with a tokenizer of as many tokens as the model has."""
    from tokenizers import Tokenizer, models

    vocabulary = {f"t{i}": i for i in range(SCORED["vocab_size"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="t0", eos_token="t1"
    )
    model = make_model(0, **SCORED).to(torch.bfloat16)
    for t in range(checkpoints):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn_like(parameter)
        model.save_pretrained(folder / f"checkpoint-{10 * t}")
        tokenizer.save_pretrained(folder / f"checkpoint-{10 * t}")


def score_long(tokens: int) -> dict[str, object]:
    """Score one long response, and say what the process's peak was before and after."""
    model = make_model(
        0, vocab_size=151936, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 151936, tokens + 16).tolist()
    batches = make_batches([Probe(tuple(ids[:16]), tuple(ids[16:]), "", "")], BATCH_TOKENS)
    short = make_batches([Probe(tuple(ids[:16]), tuple(ids[16:48]), "", "")], BATCH_TOKENS)
    score(model, short, 32)
    before = peak_bytes()
    spent = np.zeros(2)
    with stopwatch(spent):
        found = score(model, batches, tokens)
    peak = peak_bytes()
    return {
        "tokens": tokens,
        "vocabulary": 151936,
        "logits_float32_bytes": tokens * 151936 * 4,
        "peak_above_a_short_response_bytes": peak - before,
        "peak_bytes": peak,
        "cpu_seconds": spent[0],
        "mean_log_p": float(found.log_p_N.mean()),
    }


def peak_bytes() -> int:
    """The most memory that this process has held: VmHWM."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for scratch files")
    parser.add_argument("--json", type=Path, help="where the results go as well")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--long", action="store_true", help="only score the long response")
    options = parser.parse_args()
    if options.long:
        print(json.dumps(score_long(1024 if options.quick else 32768)))
        return
    command = [sys.executable, __file__, "--long", *(["--quick"] if options.quick else [])]
    long = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        found = {
            "machine": describe_machine(),
            "threads": torch.get_num_threads(),
            "decoding": measure_decoding(1 if options.quick else 5),
            "scoring": measure_scoring(Path(folder), 2 if options.quick else T),
            "long_response": json.loads(long),
        }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
