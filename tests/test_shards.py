"""Folders are written whole or not at all, byte for byte where the layout has them."""

import fcntl
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_series import any_bits, contents, pack

from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.folder import FolderWriter
from trajkit.checkpoints.header import HalfWritten
from trajkit.checkpoints.layout import lay_out
from trajkit.checkpoints.record import SourceRecord
from trajkit.checkpoints.shards import plan_files
from trajkit.checkpoints.target import Place
from trajkit.disk import exchange
from trajkit.errors import FormatError, Locked, Mismatch

BF16 = np.dtype(ml_dtypes.bfloat16)
TABLE = [
    ("embed", "bfloat16", (7, 3)),
    ("empty", "bfloat16", (0, 4)),
    ("scale", "float32", ()),
    ("mlp", "bfloat16", (5, 11)),
    ("mask", "bool", (9,)),
    ("norm", "float32", (6,)),
    ("head", "bfloat16", (40,)),
]


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: any_bits(rng, dtype, shape) for name, dtype, shape in TABLE}


def flat(values: dict[str, np.ndarray], dtype: str) -> np.ndarray:
    vector = lay_out(TABLE)[dtype]
    return np.concatenate(
        [values[t.name].reshape(-1).view(vector.dtype.bits) for t in vector.tensors]
    )


def record_of(files: dict[str, bytes], tied: dict[str, str] | None = None) -> SourceRecord:
    """The record of safetensors files given whole."""
    headers = {n: c[8 : 8 + int.from_bytes(c[:8], "little")].decode() for n, c in files.items()}
    return SourceRecord(files=tuple(headers.items()), index=None, tied=tied or {})


def write(
    out: Path, files: dict[str, bytes], values: dict[str, np.ndarray], **options: object
) -> None:
    """Write the files by way of a writer, in pieces of awkward sizes."""
    tied = options.pop("tied", None)
    vectors = lay_out(TABLE)
    with FolderWriter(Place(out), vectors) as writer:
        writer.add_files(plan_files(record_of(files, tied), vectors))  # type: ignore[arg-type]
        for dtype, vector in vectors.items():
            bits = flat(values, dtype)
            for start in range(0, vector.size, 13):
                writer.write(dtype, start, bits[start : start + 13])
        writer.finish()
        writer.check()
        writer.commit()


@given(order=st.permutations([n for n, _, _ in TABLE]), cut=st.integers(1, len(TABLE) - 1))
def test_any_layout_is_written_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], cut: int
) -> None:
    values = tensors()
    files = {
        "a.safetensors": pack({n: values[n] for n in order[:cut]}, {"format": "pt"}),
        "b.safetensors": pack({n: values[n] for n in order[cut:]}),
    }
    out = tmp_path_factory.mktemp("w") / "out"
    write(out, files, values)
    assert contents(out) == files
    assert not list(out.parent.glob(".*"))


def test_a_tensor_under_two_names_is_written_twice(tmp_path: Path) -> None:
    values = tensors()
    stored = {**values, "lm_head": values["embed"]}
    files = {"model.safetensors": pack(stored)}
    write(tmp_path / "out", files, values, tied={"lm_head": "embed"})
    assert contents(tmp_path / "out") == files


def test_a_layout_with_a_tensor_that_the_store_lacks_is_refused() -> None:
    files = {"model.safetensors": pack({"other": np.zeros(3, BF16)})}
    with pytest.raises(Mismatch, match='"other"'):
        plan_files(record_of(files), lay_out(TABLE))


def test_unfinished_folder_does_not_look_complete(tmp_path: Path) -> None:
    values, vectors = tensors(), lay_out(TABLE)
    record = record_of({"model.safetensors": pack(values)})
    with FolderWriter(Place(tmp_path / "out"), vectors) as writer:
        writer.add_files(plan_files(record, vectors))
        for dtype in vectors:
            writer.write(dtype, 0, flat(values, dtype))
        assert writer.part.name == ".out.trajkit-part"
        with pytest.raises(HalfWritten):
            open_checkpoint(writer.part)
        writer.finish()
        assert set(open_checkpoint(writer.part).tensors) == set(values)
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_back_is_compared(tmp_path: Path) -> None:
    values, vectors = tensors(), lay_out(TABLE)
    content = pack(values)
    with FolderWriter(Place(tmp_path / "out"), vectors) as writer:
        writer.add_files(plan_files(record_of({"model.safetensors": content}), vectors))
        writer.finish()
        other = pack({**values, "embed": values["embed"].reshape(3, 7)})
        (writer.part / "model.safetensors").write_bytes(other)
        with pytest.raises(FormatError, match="header on disk"):
            writer.check()
        (writer.part / "model.safetensors").write_bytes(content[:-1])
        with pytest.raises(HalfWritten):
            writer.check()


def test_errors_leave_nothing_and_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "out"
    with pytest.raises(RuntimeError), FolderWriter(Place(out), {}) as writer:  # noqa: PT012
        writer.write_side_file("sub/config.json", b"{}")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    left = tmp_path / ".out.trajkit-part"
    (left / "sub").mkdir(parents=True)
    (left / "stale.safetensors").write_bytes(b"stale")
    with FolderWriter(Place(tmp_path / "out"), {}) as writer:
        writer.write_side_file("a", b"1")
        writer.commit()
    assert contents(tmp_path) == {"out/a": b"1"}


def test_exchange_is_atomic_here(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system or its disk cannot exchange two names")
    assert (tmp_path / "b").is_dir()
    assert (tmp_path / "a").read_text() == "b"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "none")


def test_two_writers_of_one_place(tmp_path: Path) -> None:
    with FolderWriter(Place(tmp_path / "out"), {}) as writer:
        with pytest.raises(Locked), FolderWriter(Place(tmp_path / "out"), {}):
            pass
        assert writer.part.is_dir()
        writer.write_side_file("a", b"1")
        writer.commit()
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock goes with the writer
    os.close(fd)
    assert contents(tmp_path / "out") == {"a": b"1"}


def test_header_of_another_dtype_is_made_anew() -> None:
    wide = {"embed": np.ones((7, 3), np.float32), "ids": np.ones(5, np.int64)}
    record = record_of({"model.safetensors": pack(wide, {"format": "pt"})})
    vectors = lay_out([("embed", "bfloat16", (7, 3)), ("ids", "int64", (5,))])
    (file,) = plan_files(record, vectors, "bfloat16")
    header = json.loads(file.header)
    assert len(file.header) % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    assert [(n, e["dtype"]) for n, e in header.items()] == [("embed", "BF16"), ("ids", "I64")]
    assert file.n_bytes == 8 + len(file.header) + 7 * 3 * 2 + 5 * 8
    with pytest.raises(Mismatch, match=r"\"embed\" is float32 \[7, 3\], in the store bfloat16"):
        plan_files(record, vectors)
