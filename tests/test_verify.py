"""Verify: any flipped bit in any file of the store is found, and no reader returns wrong bits."""

import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from store_series import any_bits, contents, same_bits, small_series, write_checkpoint

import trajkit
from trajkit.cli.main import cli
from trajkit.disk import canonical_json
from trajkit.errors import NotFound, TrajkitError
from trajkit.reports.verify import verify
from trajkit.store.rows import write_row
from trajkit.store.store import Store

FLIPS = 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 10 to 60 with side files, and a fitted store of them, K = 3."""
    root = tmp_path_factory.mktemp("whole")
    small_series(root / "ckpts", 6, config={"model_type": "x"}, tokenizer={"v": [1, 2]})
    trajkit.ingest(root / "ckpts", root / "s.zarr", keyframes=3)
    trajkit.fit(trajkit.open(root / "s.zarr"))
    return root


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "s.zarr", tmp_path / "s.zarr"))


def test_every_flipped_bit_is_found(whole: Path, store: Path, tmp_path: Path) -> None:
    """A random bit of a random file, two hundred times: found, named, and never read as true."""
    rng = random.Random(3)
    traj = trajkit.open(store)
    steps = traj.steps.tolist()
    expected = {(n, s): traj.read(n, s) for n in traj.tensors for s in steps}
    files = sorted(p for p in store.rglob("*") if p.is_file())
    kinds = set()
    for i in range(FLIPS):
        path = files[i % len(files)] if i < len(files) else rng.choice(files)
        good = path.read_bytes()
        bit = rng.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        name = path.relative_to(store).as_posix()
        kinds.add(name.split("/")[0])

        result = verify(store)
        assert not result.ok, f"bit {bit} of {name} was not found"
        if name.startswith("frames/") and "/c/" in name:
            step = steps[int(name.split("/")[3])]
            lines = [d.what for d in result.bad if d.step == step]
            assert any(f"step {step}" in line and str(path) in line for line in lines), result.bad
            assert any("tensor" in line for line in lines) or "index" in lines[0]
        try:
            damaged = trajkit.open(store)
        except TrajkitError:
            pass
        else:
            for (tensor, step), array in expected.items():
                with suppress(TrajkitError):
                    assert same_bits(damaged.read(tensor, step), array), name
            step = rng.choice(steps)
            out = tmp_path / "out"
            try:
                trajkit.restore(damaged, step, out)
            except TrajkitError:
                assert not out.exists()
            else:
                assert contents(out) == contents(whole / "ckpts" / f"checkpoint-{step}"), name
                shutil.rmtree(out)
        path.write_bytes(good)
    assert kinds == {"zarr.json", "steps", "tensors", "frames", "digests", "assets", "fits"}
    assert verify(store, against=whole / "ckpts").exact == 6


def test_every_missing_file_is_found(store: Path) -> None:
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        if path == store / "zarr.json" or path.match("fits/default/zarr.json"):
            continue  # without the first there is no store; without the second, no fit
        content = path.read_bytes()
        path.unlink()
        result = verify(store)
        assert not result.ok, path
        assert any(str(path) in d.what for d in result.bad), result.bad
        path.write_bytes(content)
    assert verify(store).ok


def test_frames_in_each_others_place_are_found(store: Path) -> None:
    """Every checksum is right, but the bits are another step's."""
    a, b = (store / "frames" / "bfloat16" / "c" / t / "0" for t in ("1", "2"))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    result = verify(store)
    assert {d.step for d in result.bad} == {20}  # their sum, step 30, is right again
    assert "decoded bits do not match their digest: step 20, tensors model.embed" in str(result.bad)


def test_intact_arrays_of_a_fit_that_changed_places_are_found(store: Path) -> None:
    """Slope and mean have one dtype and one size: every checksum still matches."""
    fit = trajkit.open(store).fits["default"].folder / "bfloat16"
    (fit / "slope").rename(fit / "spare")
    (fit / "mean").rename(fit / "slope")
    (fit / "spare").rename(fit / "mean")
    found = str(verify(store).bad)
    assert "slope: intact, but not of this fit" in found
    assert "mean: intact, but not of this fit" in found


def test_damage_ends_at_the_next_key_frame(store: Path) -> None:
    path = store / "frames" / "float32" / "c" / "1" / "0"
    path.write_bytes(b"")
    assert {d.step for d in verify(store).bad} == {20}
    traj = trajkit.open(store)
    for step, works in [(10, True), (20, False), (30, False), (40, True), (60, True)]:
        if works:
            traj.read("model.norm.weight", step)
        else:
            with pytest.raises(TrajkitError, match=r"step 20, tensor model.norm.weight"):
                traj.read("model.norm.weight", step)


def test_what_a_killed_writer_leaves_is_not_damage(store: Path) -> None:
    """A frame beyond the commit, its metadata and its step: the states of a half-done append."""
    traj = Store.open(store)
    for dtype in ("bfloat16", "float32"):
        for array in (traj.frames[dtype], traj.digests[dtype]):
            shutil.copytree(array.row_path(0), array.row_path(6))
            ahead = array.metadata()
            ahead["shape"][0] = 7
            (array.path / "zarr.json").write_bytes(canonical_json(ahead))
            assert verify(store).ok
    write_row(replace(traj.steps_array, size=7), np.array([*traj.steps, 70]))
    assert verify(store).ok
    ahead = traj.steps_array.metadata() | {"shape": [7]}
    (store / "steps" / "zarr.json").write_bytes(canonical_json(ahead))
    assert verify(store).ok
    (store / "assets" / "tokenizer.json.part").write_bytes(b"{")
    assert verify(store).ok


def test_against_proves_that_restore_gives_the_files_back(whole: Path, tmp_path: Path) -> None:
    ckpts = Path(shutil.copytree(whole / "ckpts", tmp_path / "ckpts"))
    store = whole / "s.zarr"
    assert verify(store, against=ckpts).exact == 6
    folder = ckpts / "checkpoint-30"
    weights = folder / "model.safetensors"
    good = weights.read_bytes()

    def differences(**expected: int) -> str:
        result = verify(store, against=ckpts)
        assert {k: getattr(result, k) for k in expected} == expected
        assert result.ok == (not result.bad)
        assert {d.step for d in result.bad} <= {30, 70}
        return "\n".join(d.what for d in result.bad)

    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "differs from the store: step 30, tensor" in differences(exact=5, compared=6)
    weights.write_bytes(good.replace(b'{"model', b'{ "model', 1).replace(b"} ", b"}", 1))
    if len(weights.read_bytes()) == len(good):
        assert "model.safetensors: its header differs" in differences(exact=5)
    weights.write_bytes(good)
    (folder / "config.json").write_text("{}")
    assert "config.json: its content differs from the store's; step 30" in differences(exact=5)
    (folder / "config.json").unlink()
    assert "config.json is in the store, not on disk" in differences(exact=5)
    shutil.copy(whole / "ckpts" / "checkpoint-30" / "config.json", folder)
    (folder / "merges.txt").write_text("a b")
    assert "merges.txt is on disk, not in the store" in differences(exact=5)
    (folder / "merges.txt").unlink()
    (folder / "optimizer.pt").write_bytes(b"..")
    assert differences(exact=6, compared=6) == ""
    assert verify(store, against=ckpts).not_held == ("optimizer.pt",)
    shutil.copytree(folder, ckpts / "checkpoint-70")
    assert "checkpoint-70: step 70 is not in the store" in differences(exact=6, compared=6)


LAYOUTS = {
    "verl": ("global_step_{}", "actor/huggingface", ["actor/optim_world_size_1_rank_0.pt"]),
    "SkyRL": ("global_step_{}", "policy", ["policy/optim/0.pt", "trainer_state.pt"]),
    "NeMo-RL": ("step_{}", "policy/weights/model/consolidated", ["policy/optimizer/0.distcp"]),
    "TRL": ("checkpoint-{}", ".", ["optimizer.pt", "rng_state.pth"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given_as", ["run", "steps", "weights"])
def test_what_would_be_lost_is_counted_in_the_whole_step(
    tmp_path: Path, layout: str, given_as: str
) -> None:
    """Optimizer shards and data.pt beside the weights, wherever the trainer puts them."""
    name, below, others = LAYOUTS[layout]
    ckpts = tmp_path / "ckpts"
    for folder in small_series(tmp_path / "plain", 2, config={"model_type": "x"}):
        step = ckpts / name.format(folder.name.split("-")[1])
        shutil.copytree(folder, step / below)
        for other in [*others, "data.pt"]:
            (step / other).parent.mkdir(parents=True, exist_ok=True)
            (step / other).write_bytes(b"x" * 100)
    store = tmp_path / "s.zarr"
    trajkit.ingest(ckpts, store)
    steps = sorted(ckpts.iterdir())
    against = {"run": [ckpts], "steps": steps, "weights": [s / below for s in steps]}[given_as]
    result = verify(store, against=against)
    assert (result.ok, result.exact) == (True, 2)
    held = [
        p for s in steps for p in (s / below).iterdir() if p.suffix in (".safetensors", ".json")
    ]
    assert (result.held_files, result.held_bytes) == (4, sum(p.stat().st_size for p in held))
    assert result.lost_files == 2 * (len(others) + 1)
    assert result.lost_bytes == 100 * result.lost_files
    assert set(result.not_held) == {*others, "data.pt"}
    shown = CliRunner().invoke(
        cli, ["verify", "--store", str(store), *(a for p in against for a in ("--against", str(p)))]
    )
    assert "safe to delete" not in shown.output
    assert f"lost if these folders are deleted: {result.lost_files} files" in shown.output
    assert "gives back byte for byte: 4 files" in shown.output


def test_what_lies_beside_the_steps_would_be_lost_too(tmp_path: Path) -> None:
    """The final model, a step that is not complete, another file; a link is no data."""
    folders = small_series(tmp_path / "ckpts", 2)
    store = tmp_path / "s.zarr"
    trajkit.ingest(tmp_path / "ckpts", store)
    shown = CliRunner().invoke(
        cli, ["verify", "--store", str(store), "--against", str(tmp_path / "ckpts")]
    )
    assert "nothing else lies there: safe to delete" in shown.output
    shutil.copy(folders[1] / "model.safetensors", tmp_path / "ckpts")
    shutil.copytree(folders[1], tmp_path / "ckpts" / "tmp-checkpoint-30")
    (tmp_path / "ckpts" / "latest").symlink_to("checkpoint-20")
    result = verify(store, against=tmp_path / "ckpts")
    assert result.ok
    assert (result.held_files, result.lost_files) == (2, 2)
    assert result.not_held == ("model.safetensors", "tmp-checkpoint-30/model.safetensors")
    one = verify(store, against=folders[0] / "model.safetensors")
    assert (one.exact, one.held_files, one.lost_files) == (1, 1, 0)


def test_against_is_honest_about_conversions(tmp_path: Path) -> None:
    """bf16 base and fp32 checkpoints, held as float32: the base's file is not given back."""
    rng = np.random.default_rng(0)
    write_checkpoint(tmp_path / "base", {"w": any_bits(rng, "bfloat16", (50,))})
    for step in (1, 2):
        folder = tmp_path / "ckpts" / f"checkpoint-{step}"
        write_checkpoint(folder, {"w": rng.standard_normal(50).astype(np.float32)})
    store = tmp_path / "s.zarr"
    trajkit.ingest(tmp_path / "ckpts", store, base=tmp_path / "base", dtype="float32")
    result = verify(store, against=tmp_path / "ckpts", base=tmp_path / "base")
    assert (result.ok, result.compared, result.exact, result.converted) == (True, 3, 2, (0,))
    assert (result.held_files, result.lost_files) == (2, 1)
    assert result.lost_bytes == (tmp_path / "base" / "model.safetensors").stat().st_size


def test_verify_where_there_is_nothing(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(NotFound, match="no store at"):
        verify(tmp_path / "none.zarr")
    with pytest.raises(NotFound, match="no such file or folder"):
        verify(whole / "s.zarr", against=tmp_path / "none")
