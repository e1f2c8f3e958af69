"""A fit's record: it grows, earlier ones read, and a crafted one gives one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from series_on_disk import write_values
from test_fit_commit import rewrite

import trajkit
from trajkit.disk import canonical_json
from trajkit.errors import FormatError, TrajkitError, Unsupported
from trajkit.fits.record import FitRecord
from trajkit.store.documents import group_document


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    values_TN = np.outer([0.0, 1.0, 4.0, 9.0], np.ones(6))
    trajkit.ingest(
        write_values(folder / "c", [0, 1, 2, 3], values_TN, "float32"), folder / "s.zarr"
    )
    trajkit.fit(folder / "s.zarr", keep_sums=True, paper=True)
    return folder / "s.zarr"


@pytest.fixture(scope="module")
def content(store: Path) -> bytes:
    return (store / "fits" / "default" / "zarr.json").read_bytes()


def test_a_record_is_read_as_it_was_written(content: bytes) -> None:
    record = FitRecord.parse(Path("zarr.json"), content)
    assert canonical_json(record.document()) == content
    assert record.steps == (0, 1, 2, 3)
    assert record.unknown == {}


def test_fields_to_come_are_kept_and_fields_not_yet_there_have_defaults(
    store: Path, content: bytes
) -> None:
    """One more attribute once made a fit, and with it info and verify, fail as damaged."""
    home = store / "fits" / "default"
    rewrite(home, lambda a: a.update(later={"x": [1, 2.5, None]}))
    try:
        grown = (home / "zarr.json").read_bytes()
        fit = trajkit.open(store).fits["default"]
        assert fit.record.unknown == {"later": {"x": [1, 2.5, None]}}
        assert canonical_json(fit.record.document()) == grown
        assert trajkit.verify(store).ok
        for name in ("sums", "sums_version", "frames_read", "digests", "paper"):
            rewrite(home, lambda a, name=name: a.pop(name))
        record = trajkit.open(store).fits["default"].record
        assert record.found.frames_read == 0
        assert (record.found.sums, record.found.paper, record.found.digests) == (None, None, {})
    finally:
        (home / "zarr.json").write_bytes(content)


def test_a_later_version_is_said_to_be_one(content: bytes) -> None:
    document = json.loads(content)
    document["attributes"]["version"] = 9
    with pytest.raises(Unsupported, match="fit format version 9; this trajkit reads version 1"):
        FitRecord.parse(Path("zarr.json"), canonical_json(document))


CRAFTED = {
    "name": ["../x", "<script>", 5, None, "x" * 300],
    "steps": [
        [],
        [1],
        [2, 1],
        [1, 1],
        [0, 2**60],
        [0.5, 1],
        ["0", "1"],
        "01",
        {"0": 1},
        [[0], [1]],
    ],
    "dtypes": [["int8"], ["nonsense"], "bfloat16", [["float32"]], None],
    "rsq_threshold": [2, -1, "0.7", float("nan"), float("inf"), None, [0.7], True],
    "min_distinct": [5, -1, 4.0, "4"],
    "min_range": [-1, float("inf"), "x"],
    "device": ["x" * 300, "\x1b[2J", 1],
    "frames_digest": ["<b>", "0" * 31, 7],
    "stats": [None, {}, [], "x"],
    "null": [[], {"a": [1]}, {"a": "<" * 300}, {"a": float("inf")}],
    "seconds": [-1, float("nan"), "1"],
    "sums": [[], 3, {"float32": []}],
    "digests": [{"a": "b"}, [], {"x" * 300: "0" * 32}],
    "versions": [[], {"a": 1}, {"a": "\n"}],
    "arrays": ["..", "arrays-", "arrays-0123456789abcdeg", 1, "/etc"],
    "table_sha256": ["", None],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in CRAFTED.items() for v in vs])
def test_a_crafted_field_is_one_line(content: bytes, name: str, value: object) -> None:
    attributes = json.loads(content)["attributes"]
    attributes[name] = value
    check_refused(attributes)


@given(st.data())
def test_crafted_statistics_are_one_line(content: bytes, data: st.DataObject) -> None:
    attributes = json.loads(content)["attributes"]
    stats = attributes["stats"]
    name = data.draw(st.sampled_from(sorted(stats)))
    wrong = [None, "1", [], {}, True] + ([-1, 2**70] if isinstance(stats[name], int) else [])
    if isinstance(stats[name], list):
        wrong += [
            stats[name][1:],
            [*stats[name], 0],
            [-1, *stats[name][1:]],
            [0.5] * len(stats[name]),
        ]
    stats[name] = data.draw(st.sampled_from(wrong))
    check_refused(attributes)


def check_refused(attributes: dict[str, object]) -> None:
    attributes.pop("sha256", None)
    from trajkit.fits.record import _digest

    attributes["sha256"] = _digest(attributes)
    with pytest.raises(
        FormatError, match=r"^zarr.json: not a readable fit: .*; run trajkit fit"
    ) as e:
        FitRecord.parse(Path("zarr.json"), canonical_json(group_document(attributes)))
    line = str(e.value)
    assert len(line) < 400
    assert line.isprintable()


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"attributes": null}',
        b'{"attributes": []}',
        b"\xff\xfe",
        b"1" * 9,
    ],
)
def test_broken_documents_are_one_line(broken: bytes) -> None:
    with pytest.raises(FormatError, match="not a readable fit"):
        FitRecord.parse(Path("zarr.json"), broken)
    with pytest.raises(FormatError, match="not a readable fit"):
        FitRecord.parse(Path("zarr.json"), b'{"attributes":' * 50_000)


def test_any_changed_byte_shows(content: bytes) -> None:
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(content), 200).tolist():
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(TrajkitError):
            FitRecord.parse(Path("zarr.json"), bytes(changed))
