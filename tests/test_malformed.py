"""Hostile files: each is refused with one line, and nothing outside its folder is ever opened."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_malformed import CASES, Case, pack, two_shards, write_case
from safetensors.numpy import save

from trajkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trajkit.checkpoints.series import Series, find_series
from trajkit.errors import TrajkitError

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FILE = "model.safetensors"


def test_the_corpus_is_large_and_its_names_are_unique():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_malformed_checkpoint_is_refused_in_one_line(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = write_case(case, tmp_path)
    opened: list[str] = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda p, *a, **k: opened.append(str(p)) or real_open(p, *a))
    with pytest.raises(TrajkitError) as refusal:
        open_checkpoint(root)
    message = str(refusal.value)
    for phrase in case.phrases:
        assert phrase in message
    assert "checkpoint-7" in message  # which one
    assert_one_line(message)
    assert all(path.startswith(os.path.realpath(root)) for path in opened)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_series_of_one_malformed_checkpoint_never_crashes(case: Case, tmp_path: Path):
    write_case(case, tmp_path)
    series = series_or_line(tmp_path)
    if series is not None:  # wrong, not half-written: the reader will say so
        assert [found.step for found in series.found] == [7]


def test_descriptors_are_closed_after_a_refusal(tmp_path: Path):
    descriptors = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    for case in CASES[:40]:
        with pytest.raises(TrajkitError):
            open_checkpoint(write_case(case, tmp_path / case.name))
    assert len(list(descriptors.iterdir())) == before


def series_or_line(root: Path) -> Series | None:
    """The series in a folder, or None after one clear line."""
    try:
        return find_series([root])
    except TrajkitError as error:
        assert_one_line(str(error))
        return None


def assert_one_line(message: str) -> None:
    assert message.isprintable()
    assert 10 < len(message) < 1500


def opens_or_refuses(root: Path) -> Checkpoint | None:
    """The property of every input: entries in range, or one clear line."""
    try:
        checkpoint = open_checkpoint(root)
    except TrajkitError as error:
        assert_one_line(str(error))
        return None
    for entry in checkpoint.tensors.values():
        file = checkpoint.files[entry.file]
        assert file.data_start <= entry.begin <= entry.begin + entry.n_bytes <= file.size
        assert file.size == file.path.stat().st_size
        assert all(type(n) is int and n >= 0 for n in entry.shape)
        assert math.prod(entry.shape) <= entry.n_bytes or entry.n_bytes == 0
    for file in checkpoint.files:  # whatever trajkit takes, safetensors takes
        content = file.path.read_bytes()
        names = {name for name, _ in safetensors.deserialize(content)}
        here = {
            e.stored_name for e in checkpoint.tensors.values() if checkpoint.files[e.file] is file
        }
        assert names == here
    return checkpoint


GOOD = save(
    {
        "model.embed.weight": np.arange(12, dtype=np.float16).reshape(4, 3),
        "model.norm.weight": np.ones(5, np.float32),
        "model.empty": np.zeros((3, 0), np.int8),
        "model.scale": np.array(3.0),
    },
    metadata={"format": "pt"},
)
HEADER = json.loads(GOOD[8 : 8 + int.from_bytes(GOOD[:8], "little")])
GOOD_DATA = GOOD[8 + int.from_bytes(GOOD[:8], "little") :]

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["F32", "BF16", "U8", "dtype", "shape", "data_offsets", "__metadata__"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@SETTINGS
@given(
    flips=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 7)), max_size=6),
    cut=st.none() | st.integers(0, len(GOOD)),
    more=st.binary(max_size=9),
)
def test_flipped_cut_and_lengthened_files(tmp_path: Path, flips, cut, more: bytes):
    content = bytearray(GOOD)
    for at, bit in flips:
        content[at] ^= 1 << bit
    (tmp_path / FILE).write_bytes(bytes(content[:cut]) + more)
    checkpoint = opens_or_refuses(tmp_path)
    if bytes(content[:cut]) + more == GOOD:
        assert checkpoint is not None


@SETTINGS
@given(start=st.integers(0, 300), junk=st.binary(min_size=1, max_size=60))
def test_overwritten_stretches(tmp_path: Path, start: int, junk: bytes):
    (tmp_path / FILE).write_bytes(GOOD[:start] + junk + GOOD[start + len(junk) :])
    opens_or_refuses(tmp_path)


def mutated(draw: st.DrawFn, value: object) -> object:
    """`value` with some part of it, at any depth, replaced, removed, doubled or renamed."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        nudge = isinstance(value, int) and draw(st.booleans())
        return value + draw(st.sampled_from([-1, 1, 2**32, -(2**63)])) if nudge else draw(any_json)
    if isinstance(value, list):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], mutated(draw, value[at]), *value[at + 1 :]]
    key = draw(st.sampled_from(sorted(value)))
    match draw(st.sampled_from(["change", "change", "change", "remove", "rename", "copy"])):
        case "remove":
            return {k: v for k, v in value.items() if k != key}
        case "rename":
            return {(draw(st.text(max_size=6)) if k == key else k): v for k, v in value.items()}
        case "copy":
            return value | {draw(st.text(max_size=6)): value[key]}
    return value | {key: mutated(draw, value[key])}


@SETTINGS
@given(data=st.data(), times=st.integers(1, 3))
def test_mutated_headers(tmp_path: Path, data: st.DataObject, times: int):
    header: object = HEADER
    for _ in range(times):
        header = mutated(data.draw, header)
    (tmp_path / FILE).write_bytes(pack(json.dumps(header), GOOD_DATA))
    opens_or_refuses(tmp_path)


@SETTINGS
@given(data=st.data(), times=st.integers(1, 3))
def test_mutated_indexes(tmp_path: Path, data: st.DataObject, times: int):
    two_shards(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for _ in range(times):
        index = mutated(data.draw, index)
    path.write_text(json.dumps(index))
    opens_or_refuses(tmp_path)


@SETTINGS
@given(header=st.dictionaries(st.text(max_size=5), any_json, max_size=3), data=st.binary())
def test_headers_of_any_json(tmp_path: Path, header: dict[str, object], data: bytes):
    (tmp_path / FILE).write_bytes(pack(json.dumps(header), data))
    opens_or_refuses(tmp_path)


@SETTINGS
@given(content=st.binary(max_size=80))
def test_any_bytes(tmp_path: Path, content: bytes):
    (tmp_path / FILE).write_bytes(content)
    assert opens_or_refuses(tmp_path) is None or content


@SETTINGS
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20)
        | st.from_regex(
            r"(tmp_|model-)?(step|checkpoint)[-_]?[0-9]{1,3}(\.safetensors)?", fullmatch=True
        ),
        max_size=4,
    )
)
def test_folders_with_any_names(tmp_path_factory: pytest.TempPathFactory, names: list[str]):
    root = tmp_path_factory.mktemp("names")
    for name in names:
        path = root / name
        if len(os.fsencode(name)) < 200 and not os.path.lexists(path) and name not in (".", ".."):
            path.write_bytes(GOOD)
    series = series_or_line(root)
    for found in series.found if series is not None else ():
        assert re.search(rf"0*{found.step}\.safetensors", found.path.name) or found.step == 0
