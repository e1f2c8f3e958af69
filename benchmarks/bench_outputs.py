"""What outputs cost: decoding with two models beside one, scoring beside plain forwards, memory.

    python benchmarks/bench_outputs.py

A random Qwen3 model on the CPU, in one run, alternating, best of some rounds:

- tokens/s of `LogitsExtrapolation` against the second model's own `generate` (bar: 2.2 times);
- `logprobs` of T checkpoints, distributions compared and kept, against T plain forwards of the same
  batches plus reading T checkpoints from the store (bar: 1.15 times);
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
from pathlib import Path

import numpy as np
import torch
import transformers

import trajkit
from trajkit.outputs.batching import make_batches
from trajkit.outputs.logprobs import logprobs
from trajkit.outputs.models import fill_model
from trajkit.outputs.probes import Probe
from trajkit.outputs.scoring import score
from trajkit.outputs.weights import StoredWeights

T = 16
LENGTHS = (32, 224)
"""prompt and response tokens of a probe"""
PROBES = 12


def make_model(
    seed: int, vocabulary: int = 8192, **changes: object
) -> transformers.Qwen3ForCausalLM:
    """A random model of 12 million parameters, in float32."""
    settings = {
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
    config = transformers.Qwen3Config(vocab_size=vocabulary, **{**settings, **changes})
    return transformers.Qwen3ForCausalLM(config).eval()


def measure_decoding(rounds: int) -> dict[str, float]:
    """Seconds of greedy decoding, 8 prompts of 32 tokens, 64 new ones: one model, and two."""
    base, second = make_model(0), make_model(1)
    ids = torch.randint(2, 8192, (8, 32), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}

    def run(*processors: object) -> float:
        clock = time.perf_counter()
        second.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=transformers.LogitsProcessorList(processors),
            **settings,
        )
        return time.perf_counter() - clock

    run(trajkit.LogitsExtrapolation(base, 1.5))
    one, two = [], []
    for _ in range(rounds):
        one.append(run())
        two.append(run(trajkit.LogitsExtrapolation(base, 1.5)))
    return {"one_seconds": min(one), "two_seconds": min(two), "ratio": min(two) / min(one)}


def measure_scoring(rounds: int, folder: Path) -> dict[str, float]:
    """Seconds of T checkpoints: scored and kept, against plain forwards and reading."""
    write_run(folder / "ckpts")
    trajkit.ingest(folder / "ckpts", folder / "s.zarr")
    traj = trajkit.open(folder / "s.zarr")
    rng = np.random.default_rng(0)
    width = sum(LENGTHS)
    ids = rng.integers(2, 8192, (PROBES, width)).tolist()
    lines = [{"prompt_ids": i[: LENGTHS[0]], "response_ids": i[LENGTHS[0] :]} for i in ids]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    probes = [Probe(tuple(i[: LENGTHS[0]]), tuple(i[LENGTHS[0] :]), "", "") for i in ids]
    batches = make_batches(probes, 4096)
    model = trajkit.load_model(traj, step=0, dtype="float32")
    plain, reading, ours = [], [], []
    for i in range(rounds):
        clock = time.perf_counter()
        with torch.no_grad():
            for _ in range(T):
                for batch in batches:
                    model(input_ids=torch.from_numpy(batch.ids_BL), use_cache=False)
        plain.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        for step in traj.steps.tolist():
            fill_model(model, StoredWeights(traj.store, step))
        reading.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        logprobs(traj, folder / "p.jsonl", name=f"round{i}")
        ours.append(time.perf_counter() - clock)
    beside = min(plain) + min(reading)
    return {
        "checkpoints": T,
        "tokens": PROBES * LENGTHS[1],
        "plain_seconds": min(plain),
        "reading_seconds": min(reading),
        "logprobs_seconds": min(ours),
        "ratio": min(ours) / beside,
    }


def write_run(folder: Path) -> None:
    """T checkpoints with a tokenizer of as many tokens as the model has."""
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({f"t{i}": i for i in range(8192)}, unk_token="t0"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="t0", eos_token="t1"
    )
    model = make_model(0)
    for t in range(T):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn_like(parameter)
        model.save_pretrained(folder / f"checkpoint-{10 * t}")
        tokenizer.save_pretrained(folder / f"checkpoint-{10 * t}")


def score_long() -> None:
    """Score one long response, and print the process's peak before and after."""
    model = make_model(
        0, 151936, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 151936, 32768 + 16).tolist()
    batches = make_batches([Probe(tuple(ids[:16]), tuple(ids[16:]), "", "")], 4096)
    short = make_batches([Probe(tuple(ids[:16]), tuple(ids[16:48]), "", "")], 4096)
    score(model, short, 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = time.perf_counter()
    found = score(model, batches, 32768)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "tokens": 32768,
                "vocabulary": 151936,
                "logits_float32_bytes": 32768 * 151936 * 4,
                "peak_above_a_short_response_bytes": 1024 * (peak - before),
                "peak_bytes": 1024 * peak,
                "seconds": time.perf_counter() - clock,
                "mean_log_p": float(found.log_p_N.mean()),
            }
        )
    )


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="only score the long response")
    options = parser.parse_args()
    if options.long:
        score_long()
        return
    command = [sys.executable, __file__, "--long"]
    long = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "threads": torch.get_num_threads(),
            "decoding": measure_decoding(options.rounds),
            "scoring": measure_scoring(options.rounds, Path(folder)),
            "long_response": json.loads(long),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
