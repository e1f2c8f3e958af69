"""One checkpoint: whatever real writers write is found at the right bytes."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_malformed import pack, two_shards

from trajkit.arrays import DTYPES
from trajkit.checkpoints.checkpoint import Checkpoint, TensorEntry, open_checkpoint
from trajkit.checkpoints.header import HalfWritten, read_into
from trajkit.errors import FormatError, NotFound, StorageError, Unsupported
from trajkit.remote.source import LocalFile

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
A = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def read(checkpoint: Checkpoint, entry: TensorEntry) -> np.ndarray:
    """One tensor by its byte range."""
    raw = bytearray(entry.n_bytes)
    fd = os.open(checkpoint.files[entry.file].path, os.O_RDONLY)
    try:
        read_into(LocalFile(fd), memoryview(raw), entry.begin)
    finally:
        os.close(fd)
    return np.frombuffer(raw, DTYPES[entry.dtype].scalar).reshape(entry.shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """An array of any dtype and shape, scalars and zero sizes too, holding any bits."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))].scalar
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7]), max_size=4).map(tuple))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = rng.bytes(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    if dtype == np.bool_:
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(shape)


NAMES = st.text(
    st.characters(categories=["L", "N", "P", "S"], codec="utf-8"), min_size=1, max_size=30
).filter(lambda name: name.isprintable() and name != "__metadata__")


@SETTINGS
@given(tensors=st.dictionaries(NAMES, arrays(), min_size=1, max_size=8), n_shards=st.integers(1, 3))
def test_every_tensor_of_every_dtype_is_read_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray], n_shards: int
):
    root = tmp_path_factory.mktemp("any")
    names = list(tensors)
    for i in range(n_shards):
        shard = {name: tensors[name] for name in names[i::n_shards]}
        file = root / f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        file.write_bytes(safetensors.numpy.save(shard, metadata={"format": "np"}))
    checkpoint = open_checkpoint(root, step=5)
    assert checkpoint.step == 5
    assert {checkpoint.prefix + name for name in checkpoint.tensors} == set(tensors)
    places = [(entry.file, entry.begin) for entry in checkpoint.tensors.values()]
    assert places == sorted(places)
    for name, entry in checkpoint.tensors.items():
        assert entry.name == name
        assert same(read(checkpoint, entry), tensors[entry.stored_name])
    for file in checkpoint.files:
        content = file.path.read_bytes()
        assert len(content) == file.size
        start = len(file.header).to_bytes(8, "little") + file.header
        assert content.startswith(start)
        assert file.data_start == len(start)


def test_torch_files_with_bfloat16_and_float8(tmp_path: Path):
    x = torch.randn(33, 5)
    tensors = {
        "bf16": x.bfloat16(),
        "f16": x.half(),
        "e4m3": x.to(torch.float8_e4m3fn),
        "e5m2": x.to(torch.float8_e5m2),
        "scalar": torch.tensor(3),
    }
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in tensors.items():
        entry = checkpoint.tensors[name]
        assert entry.shape == tuple(tensor.shape)
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        assert read(checkpoint, entry).tobytes() == raw.tobytes()
    assert checkpoint.tensors["bf16"].dtype == "bfloat16"
    assert read(checkpoint, checkpoint.tensors["bf16"]).dtype == ml_dtypes.bfloat16


@pytest.fixture(scope="module")
def llama() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"])
def test_save_pretrained_whole_and_sharded(tmp_path: Path, llama, max_shard_size: str):
    llama.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    checkpoint = open_checkpoint(tmp_path)
    sharded = max_shard_size == "10KB"
    assert (len(checkpoint.files) > 2) == sharded == (checkpoint.index_name is not None)
    if sharded:
        assert checkpoint.index_name == "model.safetensors.index.json"
        assert checkpoint.index == (tmp_path / checkpoint.index_name).read_bytes()
        assert [f.name for f in checkpoint.files] == sorted(f.name for f in checkpoint.files)
    assert set(checkpoint.side_files) == {"config.json", "generation_config.json"}
    state = llama.state_dict()
    assert set(checkpoint.tensors) == set(state)
    for name, entry in checkpoint.tensors.items():
        expected = state[name].view(torch.uint16).numpy()
        assert (read(checkpoint, entry).view(np.uint16) == expected).all()
    if sharded:  # without the index, the numbered shards are the same checkpoint
        (tmp_path / "model.safetensors.index.json").unlink()
        assert dict(open_checkpoint(tmp_path).tensors) == dict(checkpoint.tensors)


def save(path: Path, *names: str) -> None:
    """A good file that holds tensors of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {n: A | {"data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}
    path.write_bytes(pack(entries, bytes(4 * len(names))))


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["a.weight", "b.weight"], ""),
        (["_orig_mod.a", "_orig_mod.b"], "_orig_mod."),
        (["module.a", "module.b"], "module."),
        (["base_model.model.a"], "base_model.model."),
        (["module._orig_mod.a", "module._orig_mod.b"], "module._orig_mod."),
        (["_orig_mod.module.module.a"], "_orig_mod.module.module."),
        (["_orig_mod.a", "b"], ""),
        (["module.a", "module."], ""),
        (["module.module.", "module.module.a"], "module."),
        (["modules.a", "modules.b"], ""),
        (["model.layers.0._orig_mod.w"], ""),
    ],
)
def test_wrapper_prefixes_that_all_names_carry_are_stripped(
    tmp_path: Path, names: list[str], prefix: str
):
    save(tmp_path / "model.safetensors", *names)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.prefix == prefix
    assert list(checkpoint.tensors) == [name.removeprefix(prefix) for name in names]
    assert [e.stored_name for e in checkpoint.tensors.values()] == names


def test_prefixes_are_judged_over_all_shards(tmp_path: Path):
    save(tmp_path / "model-00001-of-00002.safetensors", "module.a")
    save(tmp_path / "model-00002-of-00002.safetensors", "b")
    assert open_checkpoint(tmp_path).prefix == ""


def test_an_adapter_keeps_its_names(tmp_path: Path):
    name = "base_model.model.layers.0.q_proj.lora_A.weight"
    save(tmp_path / "adapter_model.safetensors", name)
    (tmp_path / "adapter_config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.adapter
    assert checkpoint.prefix == ""
    assert list(checkpoint.tensors) == [name]
    assert list(checkpoint.side_files) == ["adapter_config.json"]
    save(tmp_path / "step_10.safetensors", "_orig_mod." + name)
    plain = open_checkpoint(tmp_path / "step_10.safetensors")
    assert plain.adapter
    assert list(plain.tensors) == [name]


def test_names_with_separators_are_only_names(tmp_path: Path):
    names = ["../../etc/passwd", "/abs", "a/b\\c", "..", "con", "x y", "重み", "__metadata__ "]
    save(tmp_path / "model.safetensors", *names)
    assert list(open_checkpoint(tmp_path).tensors) == names
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("stem", ["model", "pytorch_model", "diffusion_pytorch_model"])
def test_an_index_of_any_stem(tmp_path: Path, stem: str):
    two_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / f"{stem}.safetensors.index.json")
    assert list(open_checkpoint(tmp_path).tensors) == ["a", "b"]


def test_an_index_may_name_files_in_a_subfolder(tmp_path: Path):
    save(tmp_path / "parts" / "x.safetensors", "a")
    index = {"weight_map": {"a": "parts/x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert [file.name for file in checkpoint.files] == ["parts/x.safetensors"]


def test_files_that_the_index_does_not_name_are_not_read(tmp_path: Path):
    two_shards(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"junk")
    assert len(open_checkpoint(tmp_path).files) == 2


def test_the_index_can_be_passed_where_the_folder_is_ambiguous(tmp_path: Path):
    two_shards(tmp_path)
    save(tmp_path / "model.safetensors", "stale")
    with pytest.raises(FormatError, match="remove the stale one"):
        open_checkpoint(tmp_path)
    assert list(open_checkpoint(tmp_path / "model.safetensors").tensors) == ["stale"]
    chosen = open_checkpoint(tmp_path / "model.safetensors.index.json")
    assert list(chosen.tensors) == ["a", "b"]
    assert chosen.root == tmp_path


def test_a_set_of_files_with_any_names(tmp_path: Path):
    save(tmp_path / "decoder.safetensors", "d")
    save(tmp_path / "encoder.safetensors", "e")
    save(tmp_path / "optimizer.safetensors", "exp_avg")
    save(tmp_path / ".tmp.safetensors", "half")
    assert list(open_checkpoint(tmp_path).tensors) == ["d", "e"]


def test_numbered_shards_come_in_the_order_of_their_numbers(tmp_path: Path):
    for i in range(1, 12):
        save(tmp_path / f"model-{i}-of-11.safetensors", f"t{i}")
    assert list(open_checkpoint(tmp_path).tensors) == [f"t{i}" for i in range(1, 12)]


def test_links_within_the_folder_and_of_the_folder(tmp_path: Path):
    save(tmp_path / "real" / "data" / "weights.bin", "a")
    (tmp_path / "real" / "model.safetensors").symlink_to("data/weights.bin")
    (tmp_path / "link").symlink_to("real")
    assert list(open_checkpoint(tmp_path / "link").tensors) == ["a"]


def test_a_snapshot_of_the_hugging_face_cache(tmp_path: Path):
    repo = tmp_path / "models--org--name"
    save(repo / "blobs" / "0f3c", "a")
    (repo / "blobs" / "77aa").write_text("{}")
    snapshot = repo / "snapshots" / "abcdef"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/0f3c")
    (snapshot / "config.json").symlink_to("../../blobs/77aa")
    checkpoint = open_checkpoint(snapshot)
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.files[0].name == "model.safetensors"
    assert list(checkpoint.side_files) == ["config.json"]
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../secret.json")
    (tmp_path / "secret.json").write_text("{}")
    with pytest.raises(FormatError, match="leaves the checkpoint folder"):
        open_checkpoint(snapshot)


def test_side_files(tmp_path: Path):
    save(tmp_path / "model.safetensors", "a")
    kept = (
        "config.json tokenizer.json tokenizer_config.json vocab.json merges.txt chat_template.jinja"
    )
    for name in [*kept.split(), "optimizer.pt", "README.md", "trainer_state.json"]:
        (tmp_path / name).write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    side_files = open_checkpoint(tmp_path).side_files
    assert sorted(side_files) == sorted(kept.split())
    assert side_files["config.json"] == tmp_path / "config.json"


def test_nemo_rl_keeps_its_tokenizer_beside_the_weights(tmp_path: Path):
    save(tmp_path / "policy" / "weights" / "model" / "consolidated" / "model.safetensors", "a")
    (tmp_path / "policy" / "tokenizer").mkdir()
    (tmp_path / "policy" / "tokenizer" / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "policy" / "weights" / "model" / "consolidated")
    assert list(checkpoint.side_files) == ["tokenizer.json"]


def test_paths_that_hold_no_checkpoint(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(NotFound, match="no such file or folder"):
        open_checkpoint(tmp_path / "gone")
    with pytest.raises(NotFound, match=r"looked for model\.safetensors"):
        open_checkpoint(tmp_path)
    with pytest.raises(FormatError, match=r"expected a folder or a \.safetensors file"):
        open_checkpoint(tmp_path / "notes.txt")
    for name in ("nul\0", "x" * 5000):
        with pytest.raises(NotFound, match="no such file or folder"):
            open_checkpoint(tmp_path / name)


def test_an_unsupported_dtype_names_the_tensor(tmp_path: Path):
    info = {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}
    (tmp_path / "model.safetensors").write_bytes(pack({"moe.scale": info}, bytes(4)))
    with pytest.raises(Unsupported, match=r'tensor "moe\.scale".*F8_E8M0.*supported: BF16'):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("cut", [0, 3, 8, 60, -1])
def test_a_cut_file_says_expected_and_found(tmp_path: Path, cut: int):
    save(tmp_path / "model.safetensors", "a", "b")
    path = tmp_path / "model.safetensors"
    whole = path.stat().st_size
    os.truncate(path, cut if cut >= 0 else whole + cut)
    with pytest.raises(HalfWritten, match=r"cut|empty") as refusal:
        open_checkpoint(tmp_path)
    if cut < 0:
        assert f"{whole} bytes expected" in str(refusal.value)
        assert f"found {whole - 1}" in str(refusal.value)


def test_an_unreadable_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "model.safetensors", "a")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=r"model\.safetensors: cannot be opened: Permission"):
        open_checkpoint(tmp_path)


def test_a_hundred_thousand_tensors_open_in_under_two_seconds(tmp_path: Path):
    n = 100_000
    entries = {
        f"model.layers.{i}.w": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i in range(n)
    }
    (tmp_path / "model.safetensors").write_bytes(pack(entries, bytes(n)))
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy
        started = time.process_time()
        checkpoint = open_checkpoint(tmp_path)
        seconds.append(time.process_time() - started)
    assert len(checkpoint.tensors) == n
    assert min(seconds) < 2


def test_no_tensor_data_is_read_and_memory_does_not_grow_with_it(tmp_path: Path):
    size = 40 << 30  # 40 GiB, a sparse file
    header = {"a": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(header, b""))
    os.truncate(path, path.stat().st_size + size)
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert checkpoint.tensors["a"].n_bytes == size


@SETTINGS
@given(offset=st.integers(0, 210), n=st.integers(0, 150), step=st.integers(1, 9))
def test_read_into_goes_on_after_short_reads(tmp_path: Path, offset: int, n: int, step: int):
    content = bytes(range(200))
    path = tmp_path / "bytes"
    path.write_bytes(content)
    preadv = os.preadv
    buffer = bytearray(b"\xee" * n)
    fd = os.open(path, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:step]], at))
        try:
            if offset + n <= len(content) or n == 0:
                read_into(LocalFile(fd), memoryview(buffer), offset)
                assert n == 0 or buffer == content[offset : offset + n]
            else:
                with pytest.raises(HalfWritten, match=f"shard: .*{offset + n} expected"):
                    read_into(LocalFile(fd), memoryview(buffer), offset, "shard")
        finally:
            os.close(fd)


def test_read_into_fills_arrays_of_any_shape(tmp_path: Path):
    (tmp_path / "bytes").write_bytes(bytes(range(32)))
    out = np.zeros((2, 3), np.uint32)
    fd = os.open(tmp_path / "bytes", os.O_RDONLY)
    read_into(LocalFile(fd), memoryview(out), 4)
    read_into(LocalFile(fd), memoryview(np.zeros((0, 3), np.uint32)), 4)
    os.close(fd)
    assert out.tobytes() == bytes(range(4, 28))


def test_read_into_reports_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StorageError, match="shard: cannot be read: Input/output error"):
        read_into(LocalFile(0, "shard"), memoryview(bytearray(4)), 0, "shard")
