"""Models from a store: what transformers loads from the folders, bit for bit, and no folder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import SEEN
from safetensors.torch import load_file
from tiny_models import FAMILIES, make_model, write_run

import trajkit
from trajkit.errors import InvalidInput, Mismatch, NotFound, Unsupported
from trajkit.outputs.models import build_model, fill_model, load_tokenizer
from trajkit.outputs.weights import FolderWeights, open_weights, parse_weights

STEPS = (0, 10, 20)
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a short run of one family, its checkpoints beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    write_run(folder / "ckpts", request.param, STEPS, torch.bfloat16)
    trajkit.ingest(folder / "ckpts", folder / "trajkit.zarr")
    return folder


def from_folder(folder: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether parameters and buffers, those outside checkpoints too, agree in every bit."""
    one = {**dict(a.named_parameters()), **dict(a.named_buffers())}
    two = {**dict(b.named_parameters()), **dict(b.named_buffers())}
    return one.keys() == two.keys() and all(
        one[n].dtype == two[n].dtype and torch.equal(one[n], two[n]) for n in one
    )


def test_a_stored_step_is_the_model_of_its_folder(run: Path) -> None:
    traj = trajkit.open(run / "trajkit.zarr")
    model = trajkit.load_model(traj, step=10)
    expected = from_folder(run / "ckpts" / "checkpoint-10", torch.bfloat16)
    assert type(model) is type(expected)
    assert same(model, expected)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected(IDS).logits)


def test_weights_are_swapped_in_place(run: Path) -> None:
    traj = trajkit.open(run / "trajkit.zarr")
    model = trajkit.load_model(traj, step=0, dtype="float32")
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    trajkit.load_weights(model, traj, 20)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before
    assert same(model, from_folder(run / "ckpts" / "checkpoint-20", torch.float32))


def test_a_step_to_come_is_what_extrapolate_writes(run: Path, tmp_path: Path) -> None:
    traj = trajkit.open(run / "trajkit.zarr")
    trajkit.fit(traj, 0.0)
    trajkit.extrapolate(traj, 40, tmp_path / "out", estimator="line")
    model = trajkit.load_model(traj, step=40, estimator="line")
    assert same(model, from_folder(tmp_path / "out", torch.bfloat16))
    trajkit.extrapolate(traj, 35, tmp_path / "pair", estimator="two-point", from_step=10)
    trajkit.load_weights(model, traj, 35, estimator="two-point", from_step=10)
    assert same(model, from_folder(tmp_path / "pair", torch.bfloat16))


def test_a_folder_is_loaded_as_a_step_is(run: Path) -> None:
    folder = run / "ckpts" / "checkpoint-20"
    weights = parse_weights(str(folder), None)
    assert weights.step == 20
    assert same(build_model(weights), from_folder(folder, torch.bfloat16))


def test_a_state_dict_has_the_checkpoint_s_names_and_bits(run: Path) -> None:
    traj = trajkit.open(run / "trajkit.zarr")
    state = traj.state_dict(10)
    expected = load_file(run / "ckpts" / "checkpoint-10" / "model.safetensors")
    assert state.keys() == expected.keys()
    assert all(
        torch.equal(state[n].view(torch.int16), t.view(torch.int16)) for n, t in expected.items()
    )


def test_another_model_s_weights_are_refused_and_nothing_moves(run: Path) -> None:
    traj = trajkit.open(run / "trajkit.zarr")
    model = make_model("qwen3", num_hidden_layers=3)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(Mismatch, match="model"):
        trajkit.load_weights(model, traj, 0)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_tensors_smaller_than_a_chunk_and_larger_are_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    from store_series import any_bits, write_checkpoint

    state = {
        "a": any_bits(rng, "bfloat16", (3,)),
        "big": any_bits(rng, "bfloat16", (700, 1000)),
        "none": any_bits(rng, "bfloat16", (0, 4)),
        "scalar": any_bits(rng, "float32", ()),
        "b": any_bits(rng, "float32", (5, 2)),
    }
    write_checkpoint(tmp_path / "c" / "checkpoint-1", state)
    trajkit.ingest(tmp_path / "c", tmp_path / "s.zarr")
    traj = trajkit.open(tmp_path / "s.zarr")
    for weights in (open_weights(traj, 1), FolderWeights(tmp_path / "c" / "checkpoint-1")):
        found = dict(weights.tensors())
        assert found.keys() == state.keys()
        for name, array in state.items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes()


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, adder_store: Path) -> None:
    traj = trajkit.open(adder_store)
    with pytest.raises(NotFound, match="pass an estimator"):
        trajkit.load_model(traj, step=13)
    with pytest.raises(InvalidInput, match="estimator"):
        trajkit.load_model(traj, step=12, damping=0.5)
    with pytest.raises(InvalidInput, match="int8"):
        trajkit.load_model(traj, step=12, dtype="int8")
    from store_series import small_series

    small_series(tmp_path / "bare")
    trajkit.ingest(tmp_path / "bare", tmp_path / "bare.zarr")
    with pytest.raises(InvalidInput, match=r"config\.json"):
        trajkit.load_model(trajkit.open(tmp_path / "bare.zarr"), step=10)
    small_series(tmp_path / "odd", config={"model_type": "no-such-model"})
    trajkit.ingest(tmp_path / "odd", tmp_path / "odd.zarr")
    with pytest.raises(Unsupported, match="no-such-model"):
        trajkit.load_model(trajkit.open(tmp_path / "odd.zarr"), step=10)


def test_the_tokenizer_of_a_step_comes_with_it(adder_store: Path) -> None:
    tokenizer = load_tokenizer(open_weights(trajkit.open(adder_store), 396))
    expected = transformers.AutoTokenizer.from_pretrained(SEEN / "checkpoint-396")
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer("12+3=")["input_ids"] == expected("12+3=")["input_ids"]


def test_a_model_keeps_its_ties(adder_store: Path) -> None:
    model = trajkit.load_model(trajkit.open(adder_store), step=12)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    fill_model(model, open_weights(trajkit.open(adder_store), 396))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_without_torch_it_is_one_line_that_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import trajkit\n"
        "try:\n    trajkit.load_model\n"
        "except trajkit.TrajkitError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("need torch: pip install 'trajkit[models]'")
