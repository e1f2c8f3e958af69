"""Ingest: appending, watching, converting, and refusing what does not belong."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from store_series import any_bits, contents, drift, pack, same_bits, small_series, write_checkpoint

import trajkit
from trajkit.arrays import DTYPES
from trajkit.checkpoints.cast import convert_bits
from trajkit.errors import (
    AlreadyExists,
    FormatError,
    InvalidInput,
    Mismatch,
    NotFound,
    OverBudget,
    StorageError,
    TrajkitError,
)
from trajkit.progress import Event, Finished, Note
from trajkit.reports.verify import verify
from trajkit.store.codecs import CODECS
from trajkit.store.ingest import plan_ingest
from trajkit.store.lock import StoreLock
from trajkit.store.place import MARKER
from trajkit.store.rewritten import Rewritten
from trajkit.store.store import Store
from trajkit.store.writer import StoreWriter


class Notes:
    """A progress subscriber that keeps the notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.texts.append(event.text)

    def __str__(self) -> str:
        return "\n".join(self.texts)


def tied(rng: np.random.Generator, head: bool = True, embed: bool = True) -> dict[str, np.ndarray]:
    """A model whose output head is its embedding."""
    table = any_bits(rng, "bfloat16", (20, 8))
    state = {"model.norm.weight": any_bits(rng, "bfloat16", (8,))}
    if embed:
        state["model.embed_tokens.weight"] = table
    if head:
        state["lm_head.weight"] = table
    return state


def test_running_again_adds_what_is_new(tmp_path: Path) -> None:
    folders = small_series(tmp_path / "ckpts", 5)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for folder in folders[3:]:
        folder.rename(hidden / folder.name)
    store = tmp_path / "s.zarr"
    first = trajkit.ingest(tmp_path / "ckpts", store)
    assert (first.steps, first.ingested, first.skipped) == (3, 3, 0)
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*")}
    again = trajkit.ingest(tmp_path / "ckpts", store)
    assert (again.steps, again.ingested, again.skipped, again.bottleneck) == (3, 0, 3, None)
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*")} == before, "nothing to do"
    for folder in folders[3:]:
        (hidden / folder.name).rename(folder)
    more = trajkit.ingest([*folders[4:], *folders[3:4]], store)
    assert (more.steps, more.ingested, more.skipped) == (5, 2, 0)
    assert more.raw_bytes == 5 * (more.raw_bytes // 5)
    assert verify(store, against=tmp_path / "ckpts").exact == 5


def test_an_earlier_step_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folders = small_series(tmp_path / "ckpts", 3)
    store = tmp_path / "s.zarr"
    trajkit.ingest([folders[0], folders[2]], store)
    with pytest.raises(
        InvalidInput, match=r"step 20 is earlier than the last .* 30, .*new --store"
    ):
        trajkit.ingest(tmp_path / "ckpts", store)
    assert trajkit.open(store).steps.tolist() == [10, 30]


def test_the_previous_frame_comes_from_its_files_or_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed ingest decodes nothing while the last step's files are there as they were."""
    folders = small_series(tmp_path / "ckpts", 5)
    decoded: list[int] = []
    read_bits = Store.read_bits

    def spy(self: Store, dtype: str, t: int, *args: object) -> None:
        decoded.append(t)
        read_bits(self, dtype, t, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "read_bits", spy)
    store = tmp_path / "s.zarr"
    trajkit.ingest(folders[0], store)
    trajkit.ingest(folders[:2], store)
    assert decoded == [], "checkpoint-10 was there"
    trajkit.ingest(folders[2], store)
    assert set(decoded) == {1}, "checkpoint-20 was not named"
    decoded.clear()
    write_checkpoint(folders[2], dict(small_state(folders[0])))
    with monkeypatch.context() as patch:
        patch.setattr(Rewritten, "look", lambda *args: None)
        trajkit.ingest(folders[2:4], store)
    assert set(decoded) == {2}, "checkpoint-30 is not what it was"
    decoded.clear()
    shutil.rmtree(folders[3])
    trajkit.ingest(folders[4], store)
    assert set(decoded) == {3}
    shutil.rmtree(tmp_path / "ckpts")
    small_series(tmp_path / "ckpts", 5)
    assert verify(store, against=tmp_path / "ckpts").exact == 5


def small_state(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint of small_series, read by hand."""
    raw = (folder / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    state = {}
    for name, entry in json.loads(raw[8 : 8 + n]).items():
        begin, end = (8 + n + at for at in entry["data_offsets"])
        dtype = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}[entry["dtype"]]
        state[name] = np.frombuffer(raw[begin:end], dtype).reshape(entry["shape"])
    return state


@pytest.mark.parametrize("codec", CODECS)
def test_vectors_of_odd_sizes_are_continued_without_the_previous_files(
    tmp_path: Path, codec: str
) -> None:
    """A worker's buffers serve vectors of all widths in turn, and each must lie aligned."""
    rng = np.random.default_rng(0)
    odd = {"bfloat16": 99_583, "float32": 501, "int8": 7, "float64": 3}
    first = {dtype: any_bits(rng, dtype, (n,)) for dtype, n in odd.items()}
    for step, state in enumerate(drift(rng, first, 3)):
        folder = write_checkpoint(tmp_path / "ckpts" / f"checkpoint-{step}", state)
        trajkit.ingest(folder, tmp_path / "s.zarr", codec=codec)
    assert verify(tmp_path / "s.zarr", against=tmp_path / "ckpts").exact == 3


@pytest.mark.parametrize("first", ["both", "embedding", "head"])
@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"text_config": {}}])
def test_a_tied_head_in_some_steps_only(
    tmp_path: Path, first: str, config: dict[str, object]
) -> None:
    """In whichever form the series begins, the other two forms follow, and all are given back."""
    if "text_config" in config:
        config = {"text_config": {"tie_word_embeddings": True}}
    rng = np.random.default_rng(0)
    forms = {"both": (True, True), "embedding": (False, True), "head": (True, False)}
    order = [first, *(form for form in forms if form != first), first]
    for step, form in enumerate(order):
        head, embed = forms[form]
        folder = tmp_path / "ckpts" / f"checkpoint-{step}"
        write_checkpoint(folder, tied(rng, head, embed), 1 + step % 2, config=config)
    notes = Notes()
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", progress=notes)
    assert "is tied to" in str(notes) or "is absent, taken from the tensor it" in str(notes)
    assert verify(tmp_path / "s.zarr", against=tmp_path / "ckpts").exact == 4
    traj = trajkit.open(tmp_path / "s.zarr")
    if first == "both":
        for step in range(4):
            assert same_bits(
                traj.read("lm_head.weight", step), traj.read("model.embed_tokens.weight", step)
            )
    for step in range(4):
        trajkit.restore(traj, step, tmp_path / str(step))
        for file in (tmp_path / str(step)).iterdir():
            source = tmp_path / "ckpts" / f"checkpoint-{step}" / file.name
            assert file.read_bytes() == source.read_bytes()


def test_a_head_that_is_not_what_it_is_tied_to_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    config = {"tie_word_embeddings": True}
    write_checkpoint(tmp_path / "ckpts" / "step_1", tied(rng, head=False), config=config)
    state = tied(rng)
    state["lm_head.weight"] = any_bits(rng, "bfloat16", (20, 8))
    write_checkpoint(tmp_path / "ckpts" / "step_2", state, config=config)
    with pytest.raises(Mismatch, match=r"'lm_head.weight' is not in the store and differs from 'm"):
        trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert trajkit.open(tmp_path / "s.zarr").steps.tolist() == [1]


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}])
def test_an_untied_head_may_not_come_and_go(tmp_path: Path, config: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    write_checkpoint(tmp_path / "ckpts" / "step_1", tied(rng), config=config)
    write_checkpoint(tmp_path / "ckpts" / "step_2", tied(rng, head=False), config=config)
    with pytest.raises(Mismatch, match=r"tensor 'lm_head.weight' of the store is missing \(step 2"):
        trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists(), "headers are compared before a byte is written"


def test_an_adapter_is_kept_with_its_config(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"]
    for step in (5, 10):
        folder = tmp_path / "ckpts" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        state = {name: any_bits(rng, "float32", (4, 2)) for name in names}
        (folder / "adapter_model.safetensors").write_bytes(pack(state, {"format": "pt"}))
        (folder / "adapter_config.json").write_text('{"r": 2}')
    notes = Notes()
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", progress=notes)
    assert "a line in A and B is not a line in their product BA" in str(notes)
    assert set(trajkit.open(tmp_path / "s.zarr").tensors) == set(names)
    trajkit.restore(trajkit.open(tmp_path / "s.zarr"), 10, tmp_path / "out")
    assert (tmp_path / "out" / "adapter_config.json").read_text() == '{"r": 2}'
    assert verify(tmp_path / "s.zarr", against=tmp_path / "ckpts").exact == 2


def mixed_run(folder: Path, rng: np.random.Generator) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A bf16 base and two fp32 checkpoints; integers too."""
    base = {"w": any_bits(rng, "bfloat16", (9, 5)), "n": rng.integers(0, 5, 3)}
    states = [base]
    write_checkpoint(folder / "base", base)
    for step in (1, 2):
        w = rng.standard_normal((9, 5)).astype(np.float32)
        states.append({"w": w, "n": states[-1]["n"] + 1})
        write_checkpoint(folder / "ckpts" / f"checkpoint-{step}", states[-1])
    return folder / "base", states


def test_a_bf16_base_of_fp32_checkpoints(tmp_path: Path) -> None:
    base, states = mixed_run(tmp_path, np.random.default_rng(0))
    with pytest.raises(
        Mismatch, match=r"is float32, the series is bfloat16 .*--dtype bfloat16 .ro"
    ):
        trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr", base=base)
    assert not (tmp_path / "s.zarr").exists()
    for dtype in ("bfloat16", "float32", "float16"):
        store = tmp_path / f"{dtype}.zarr"
        notes = Notes()
        trajkit.ingest(tmp_path / "ckpts", store, base=base, dtype=dtype, progress=notes)
        assert f"are kept as {dtype}, as --dtype says: restore will write {dtype}" in str(notes)
        traj = trajkit.open(store)
        assert traj.store.commit.cast == dtype
        assert traj.steps.tolist() == [0, 1, 2]
        for step, state in enumerate(states):
            with np.errstate(all="ignore"):
                expected = state["w"].astype(DTYPES[dtype].scalar)
            assert same_bits(traj.read("w", step), expected)
            assert same_bits(traj.read("n", step), state["n"])
        trajkit.ingest(tmp_path / "ckpts", store, base=base)  # remembered
        with pytest.raises(Mismatch, match=f"was made with --dtype {dtype}, not float64"):
            trajkit.ingest(tmp_path / "ckpts", store, base=base, dtype="float64")


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float32", "float8_e5m2"])
def test_conversions_round_once_to_nearest_even(target: str) -> None:
    """Against exact fractions, on values at, beside and far from the ties."""
    kind = DTYPES[target]
    rng = np.random.default_rng(0)
    some = rng.standard_normal(300) * 10.0 ** rng.integers(-3, 3, 300)
    grid = some.astype(kind.scalar).astype(np.float64)
    above = np.nextafter(grid.astype(kind.scalar), kind.scalar.type(np.inf)).astype(np.float64)
    ties = (grid + above) / 2
    values = np.concatenate([some, grid, ties, *(ties * (1 + s * 2.0**-50) for s in (-1, 1))])
    got = convert_bits(values.view(np.uint64), DTYPES["float64"], kind).view(kind.scalar)
    for value, rounded in zip(values.tolist(), got, strict=True):
        error = abs(Fraction(float(rounded)) - Fraction(value))
        for side in (-np.inf, np.inf):
            other = np.nextafter(rounded, kind.scalar.type(side))
            distance = abs(Fraction(float(other)) - Fraction(value))
            even = rounded.view(kind.bits) % 2 == 0
            assert error < distance or (error == distance and even), (value, rounded, other)
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e300, -1e-300])
    got = convert_bits(special.view(np.uint64), DTYPES["float64"], kind).view(kind.scalar)
    np.testing.assert_array_equal(
        got.astype(np.float64), [np.inf, -np.inf, np.nan, 0, 0, np.inf, 0]
    )
    assert np.signbit(got.astype(np.float64)).tolist()[3:5] == [False, True]


def test_what_does_not_belong_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = {"w": any_bits(rng, "bfloat16", (4, 4))}
    write_checkpoint(tmp_path / "a" / "step_1", good)
    for name, other, message in [
        ("shape", {"w": any_bits(rng, "bfloat16", (2, 8))}, "has shape .2, 8., the series has"),
        ("name", {"v": good["w"]}, "tensor 'w' of the store is missing"),
        ("more", {**good, "v": good["w"]}, "'v' is not in the series' first checkpoint"),
        ("dtype", {"w": any_bits(rng, "float16", (4, 4))}, "is float16, the series is bfloat16"),
    ]:
        later = write_checkpoint(tmp_path / name / "step_2", other)
        with pytest.raises(Mismatch, match=message):
            trajkit.ingest([tmp_path / "a", later], tmp_path / "s.zarr")
    damaged = tmp_path / "step_2.safetensors"
    damaged.write_bytes(pack(good) + b"more")
    with pytest.raises(FormatError, match="4 trailing bytes"):
        trajkit.ingest([tmp_path / "a", damaged], tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_options_are_fixed_when_the_store_is_made(tmp_path: Path) -> None:
    small_series(tmp_path / "ckpts", 2)
    store = tmp_path / "s.zarr"
    trajkit.ingest(tmp_path / "ckpts", store, codec="lz4", keyframes=2)
    with pytest.raises(InvalidInput, match="made with --codec lz4, which is fixed at creation"):
        trajkit.ingest(tmp_path / "ckpts", store, codec="zstd")
    with pytest.raises(InvalidInput, match="made with --keyframes 2"):
        trajkit.ingest(tmp_path / "ckpts", store, keyframes=3)
    for options, message in [
        ({"codec": "zip"}, "unknown codec"),
        ({"keyframes": 0}, "keyframes must be 1 or more"),
        ({"dtype": "int8"}, "must be a floating-point type"),
        ({"memory": "much"}, "not a size"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            trajkit.ingest(tmp_path / "ckpts", tmp_path / "t.zarr", **options)  # type: ignore[arg-type]
    with pytest.raises(OverBudget, match=r"ingest needs at least .* raise --memory"):
        trajkit.ingest(tmp_path / "ckpts", tmp_path / "t.zarr", memory=1000)
    assert not (tmp_path / "t.zarr").exists()


def test_a_place_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    folders = small_series(tmp_path / "ckpts", 1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(AlreadyExists, match=r"not a trajkit store \(it holds 'chapter.tex'\)"):
        trajkit.ingest(folders, tmp_path / "thesis")
    with pytest.raises(TrajkitError, match=r"no store|a file, not a store"):
        trajkit.ingest(folders, folders[0] / "model.safetensors")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    with pytest.raises(StorageError, match="Not a directory"):
        trajkit.ingest(folders, folders[0] / "model.safetensors" / "s.zarr")
    (tmp_path / "empty").mkdir()
    assert trajkit.ingest(folders, tmp_path / "empty").steps == 1


@pytest.mark.parametrize("name", ["frames", "assets", "fits", "steps", "tensors", ".lock"])
def test_folders_with_our_names_are_somebodys(tmp_path: Path, name: str) -> None:
    """A folder without a marker and without a root is not ours, whatever its folders are called."""
    folders = small_series(tmp_path / "ckpts", 1)
    place = tmp_path / "animation"
    if name == ".lock":
        place.mkdir()
        (place / ".lock").write_text("mine")
    else:
        (place / name).mkdir(parents=True)
        (place / name / "frame-1.png").write_text("mine")
    before = contents(place)
    for verb in (trajkit.ingest, plan_ingest):
        with pytest.raises(AlreadyExists, match=f"not a trajkit store .it holds '{name}'.*--store"):
            verb(folders, place)
    assert contents(place) == before


def test_a_store_that_lost_its_root_keeps_its_frames(tmp_path: Path) -> None:
    small_series(tmp_path / "ckpts", 3)
    store = tmp_path / "s.zarr"
    trajkit.ingest(tmp_path / "ckpts", store)
    root = (store / "zarr.json").read_bytes()
    (store / "zarr.json").unlink()
    before = contents(store)
    for verb in (trajkit.ingest, plan_ingest):
        with pytest.raises(
            FormatError, match=r"without its zarr.json.* put zarr.json back"
        ) as caught:
            verb(tmp_path / "ckpts", store)
        assert "of them lie there" in str(caught.value)
    assert contents(store) == before
    (store / "zarr.json").write_bytes(root)
    assert trajkit.ingest(tmp_path / "ckpts", store).skipped == 3


def test_what_a_killed_first_ingest_left_is_known_by_its_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = small_series(tmp_path / "ckpts", 2)
    store = tmp_path / "s.zarr"
    with monkeypatch.context() as patch:  # as a kill would leave it: nothing is cleared up
        patch.setattr(StoreWriter, "_commit", raise_interrupt)
        patch.setattr(StoreWriter, "__exit__", lambda self, *exc: self._lock.__exit__())
        with pytest.raises(KeyboardInterrupt):
            trajkit.ingest(folders, store)
    assert (store / MARKER).exists()
    assert (store / "frames" / "bfloat16" / "c" / "0").exists()
    (store / "mine").write_text("kept")
    with pytest.raises(AlreadyExists, match="it holds 'mine'"):
        trajkit.ingest(folders, store)
    assert (store / "mine").exists()
    (store / "mine").unlink()
    assert trajkit.ingest(folders, store).steps == 2
    assert not (store / MARKER).exists()
    assert verify(store, against=tmp_path / "ckpts").exact == 2


def raise_interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_an_ingest_that_fails_leaves_what_somebody_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = small_series(tmp_path / "ckpts", 1)
    store = tmp_path / "s.zarr"

    def fail(*args: object) -> None:
        (store / "notes.txt").write_text("mine")
        raise TrajkitError("stop")

    monkeypatch.setattr(StoreWriter, "_commit", fail)
    with pytest.raises(TrajkitError, match="stop"):
        trajkit.ingest(folders, store)
    assert contents(store) == {"notes.txt": b"mine"}


def test_the_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    folders = small_series(tmp_path / "ckpts", 2)
    store = tmp_path / "s.zarr"
    trajkit.ingest(folders[:1], store)
    (tmp_path / "precious").write_text("mine")
    (store / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(TrajkitError, match=r"\.lock: .*link"):
        trajkit.ingest(folders, store)
    assert (tmp_path / "precious").read_text() == "mine"


def test_the_plan_writes_nothing(tmp_path: Path) -> None:
    folders = small_series(tmp_path / "ckpts", 3)
    plan = plan_ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert plan.steps == (10, 20, 30)
    assert not (tmp_path / "s.zarr").exists()
    trajkit.ingest(folders[:2], tmp_path / "s.zarr")
    plan = plan_ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert (plan.steps, plan.skipped) == ((30,), (10, 20))


def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"layers.{i // 100}.experts.{i % 100}.w" for i in range(100_000)]
    first = dict(zip(names, any_bits(rng, "bfloat16", (100_000, 4)), strict=True))
    for step, state in enumerate(drift(rng, first, 2)):
        write_checkpoint(tmp_path / "ckpts" / f"checkpoint-{step}", state)
    clock = time.process_time()
    trajkit.ingest(tmp_path / "ckpts", tmp_path / "s.zarr")
    assert time.process_time() - clock < 30
    assert same_bits(trajkit.open(tmp_path / "s.zarr").read(names[-1], 1), state[names[-1]])


def test_nothing_outside_is_read_or_written(tmp_path: Path) -> None:
    """Names with separators are only names; side files that link out are refused."""
    rng = np.random.default_rng(0)
    names = ["../../x", "/etc/passwd", "a/../b", "..", "zarr.json", "a" * 4000]
    state = {name: any_bits(rng, "bfloat16", (3,)) for name in names}
    folder = write_checkpoint(tmp_path / "ckpts" / "step_1", state)
    trajkit.ingest(folder, tmp_path / "s.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpts", "s.zarr"]
    traj = trajkit.open(tmp_path / "s.zarr")
    assert all(same_bits(traj.read(name, 1), state[name]) for name in names)
    (tmp_path / "secret.json").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(FormatError, match="is a link that leaves the checkpoint folder"):
        trajkit.ingest(folder, tmp_path / "t.zarr")
    (folder / "config.json").unlink()
    bad = write_checkpoint(tmp_path / "bad" / "step_1", {"a\nb": state[".."]})
    with pytest.raises(FormatError, match="printable"):
        trajkit.ingest(bad, tmp_path / "t.zarr")


def start_watch(tmp_path: Path) -> subprocess.Popen[str]:
    code = "import sys; from trajkit.cli.main import main; sys.argv[0] = 'trajkit'; main()"
    command = [sys.executable, "-c", code, "ingest", "--watch", "--poll-seconds", "0.05", "--json"]
    with (tmp_path / "err").open("w") as err:
        return subprocess.Popen(
            [*command, str(tmp_path / "ckpts"), "--store", str(tmp_path / "s.zarr")],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )


def wait_for(condition: object, what: str, seconds: float = 60) -> None:
    assert callable(condition)
    clock = time.monotonic()
    while not condition():
        assert time.monotonic() - clock < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_watch_from_before_the_first_checkpoint_to_an_interrupt(
    tmp_path: Path, end: signal.Signals
) -> None:
    """No folder yet; a growing file; a missing marker; a lock; then the signal: 130, all kept."""
    made = small_series(tmp_path / "made", 4)
    ckpts, store = tmp_path / "ckpts", tmp_path / "s.zarr"

    def held() -> list[int]:
        try:
            return Store.open(store).steps.tolist()
        except NotFound:
            return []

    def said(*parts: str) -> bool:
        text = (tmp_path / "err").read_text()
        return all(part in text for part in parts)

    with start_watch(tmp_path) as process:
        wait_for(lambda: said("waiting: ", "no such file or folder"), "no folder yet")
        target = ckpts / "weights" / "step_10"
        target.mkdir(parents=True)
        content = (made[0] / "model.safetensors").read_bytes()
        for size in (0, 5, len(content) // 2, len(content)):
            (target / "model.safetensors").write_bytes(content[:size])
            time.sleep(0.1)
        wait_for(lambda: said("no file STABLE"), "prime-rl writes STABLE last")
        assert held() == []
        (target / "STABLE").touch()
        wait_for(lambda: held() == [10], "step 10")
        wait_for(lambda: not (store / ".lock").exists(), "the lock let go")
        with StoreLock(store):
            shutil.copytree(made[1], ckpts / "weights" / "step_20")
            (ckpts / "weights" / "step_20" / "STABLE").touch()
            wait_for(lambda: said("is writing to this store"), "a locked store is waited for")
        wait_for(lambda: held() == [10, 20], "step 20")
        shutil.rmtree(ckpts / "weights" / "step_10")  # the trainer keeps the last few only
        shutil.copytree(made[3], ckpts / "weights" / "step_40")
        (ckpts / "weights" / "step_40" / "STABLE").touch()
        wait_for(lambda: held() == [10, 20, 40], "step 40")
        shutil.copytree(made[2], ckpts / "weights" / "step_30")
        (ckpts / "weights" / "step_30" / "STABLE").touch()
        wait_for(lambda: said("left out", "step 30 came after step 40"), "too late for step 30")
        process.send_signal(end)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    result = json.loads(out)
    assert (result["steps"], result["ingested"], result["interrupted"]) == (3, 3, True)
    assert said("interrupted: every committed step is safe")
    assert not said("Traceback")
    assert verify(store).ok


def test_watch_ended_before_anything_came(tmp_path: Path) -> None:
    with start_watch(tmp_path) as process:
        wait_for(lambda: "waiting" in (tmp_path / "err").read_text(), "the first look")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert json.loads(out)["steps"] == 0
    assert not (tmp_path / "s.zarr").exists()


def test_watch_leaves_a_file_that_grows_behind_a_whole_header(tmp_path: Path) -> None:
    """Preallocated, then filled: complete by its size, but its bytes still change."""
    made = small_series(tmp_path / "made", 1)
    content = (made[0] / "model.safetensors").read_bytes()
    target = tmp_path / "ckpts" / "checkpoint-10" / "model.safetensors"
    target.parent.mkdir(parents=True)
    header_end = 8 + int.from_bytes(content[:8], "little")
    target.write_bytes(content[:header_end] + bytes(len(content) - header_end))

    def fill() -> None:
        with target.open("r+b") as file:
            for at in range(header_end, len(content), 600):
                file.seek(at)
                file.write(content[at : at + 600])
                file.flush()
                time.sleep(0.02)

    writer = threading.Thread(target=fill)
    writer.start()

    def interrupt_when_done(event: Event) -> None:
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    result = trajkit.ingest(
        tmp_path / "ckpts",
        tmp_path / "s.zarr",
        watch=True,
        poll_seconds=0.2,
        progress=interrupt_when_done,
    )
    writer.join()
    assert (result.steps, result.interrupted) == (1, True)
    assert verify(tmp_path / "s.zarr", against=tmp_path / "ckpts").exact == 1
