"""Memory of scoring and of taking layers apart: the peak of a process, far below what passes by."""

import subprocess
import sys

from test_memory import needs_peak

TOKENS, VOCABULARY = 4096, 50_000
BUDGET = 192 << 20
OTHER_BYTES = 64 << 20
"""the model's body over the whole text, ids, and what the allocator keeps"""

MEASURE = """
import sys
import numpy as np, torch, transformers
from trajkit.outputs.batching import make_batches
from trajkit.outputs.distances import DivergenceWatcher, choose_places
from trajkit.outputs.probes import Probe
from trajkit.outputs.scoring import score

tokens, vocabulary, budget = map(int, sys.argv[1:4])
torch.set_num_threads(1)
settings = dict(
    vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=1, head_dim=16,
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2 * tokens,
    bos_token_id=2, eos_token_id=1, pad_token_id=0,
)
model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings)).eval()
ids = np.random.default_rng(0).integers(3, vocabulary, tokens + 8).tolist()

def run(tokens):
    probes = [Probe(tuple(ids[:8]), tuple(ids[8 : 8 + tokens]), "", "")]
    watcher = DivergenceWatcher(choose_places(tokens, vocabulary, budget, 1024, seed=0))
    for _ in range(3):
        found = score(
            model, make_batches(probes, 4096), tokens, watcher=watcher, block_bytes=budget // 3
        )
        watcher.finish()
    return found

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

run(32)  # what libraries take at first use
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
found = run(tokens)
assert np.isfinite(found.log_p_N).all() and (found.log_p_N < 0).all()
print(peak() - before)
"""


@needs_peak
def test_a_long_response_takes_the_budget_and_not_its_logits() -> None:
    arguments = [str(TOKENS), str(VOCABULARY), str(BUDGET)]
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert 4 * TOKENS * VOCABULARY > 3 * (BUDGET + OTHER_BYTES), "a test that could not fail"
    assert int(done.stdout) < BUDGET + OTHER_BYTES


APART_TOKENS = 6000
MEASURE_APART = """
import sys
import numpy as np, torch, transformers
from trajkit.outputs.batching import make_batches
from trajkit.outputs.decomposition import Decomposer, choose_places
from trajkit.outputs.layers import choose_layers, offsets_looked_at, watch_layers
from trajkit.outputs.means import MeanActivations
from trajkit.outputs.probes import Probe

tokens, budget = map(int, sys.argv[1:3])
torch.set_num_threads(1)
settings = dict(
    vocab_size=64, hidden_size=64, intermediate_size=4096, num_hidden_layers=4,
    num_attention_heads=4, max_position_embeddings=256,
)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
layers = choose_layers(model, ["*.down_proj"], "the model")
ids = np.random.default_rng(0).integers(3, 64, 128).tolist()

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

def run(tokens, most):
    probes = [Probe(tuple(ids[:8]), tuple(ids[8:]), "", "") for _ in range(tokens // 120)]
    offsets, block = offsets_looked_at(probes, "response"), budget // 3
    n = int(offsets[-1])
    parts = Decomposer(
        model, layers, layers, choose_places(model, layers, n, budget - block, most), block
    )
    for first in (True, False):
        parts.begin(first)
        means = MeanActivations(len(layers), n, "neuron", block)
        watch_layers(
            model, layers, make_batches(probes, 256), "response", offsets, [means, parts], block
        )
    return parts.finish()

run(240, 8)  # what libraries take at first use
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
assert all(shares.places < tokens for shares in run(tokens, tokens))
print(peak() - before)
"""


@needs_peak
def test_layers_taken_apart_take_the_budget_and_not_their_tokens() -> None:
    command = [sys.executable, "-c", MEASURE_APART, str(APART_TOKENS), str(BUDGET)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    held = 4 * 4 * (4096 + 64) * APART_TOKENS
    assert held > 1.4 * (BUDGET + OTHER_BYTES), "a test that could not fail"
    assert int(done.stdout) < BUDGET + OTHER_BYTES
