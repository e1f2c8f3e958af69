"""A series: every trainer's layout, half-written steps, and what to convert."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_malformed import pack, two_shards

from trajkit.checkpoints.checkpoint import open_checkpoint
from trajkit.checkpoints.series import Series, find_series
from trajkit.errors import FormatError, InvalidInput, NotFound, Unsupported

WEIGHTS = pack({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}})


def write(path: Path, content: bytes = WEIGHTS) -> Path:
    """One file, model.safetensors in a folder unless the path names a file."""
    file = path if path.suffix else path / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return path


def steps(series: Series) -> list[int]:
    return [found.step for found in series.found]


LAYOUTS = {
    "TRL": ("checkpoint-{}", "."),
    "verl": ("global_step_{}", "actor/huggingface"),
    "verl hf_model": ("global_step_{}", "hf_model"),
    "verl there": ("global_step_{}", "."),
    "SkyRL": ("global_step_{}", "policy"),
    "OpenRLHF": ("global_step{}_hf", "."),
    "prime-rl": ("weights/step_{}", "."),
    "prime-rl adapter": ("weights/step_{}", "lora_adapters"),
    "NeMo-RL": ("step_{}", "policy/weights/model/consolidated"),
    "open-instruct": ("step_{}", "."),
    "torchtitan": ("step-{}", "."),
    "slime": ("iter_{:07d}", "."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given_as", ["folder", "string of steps", "pattern", "within"])
def test_every_layout_with_uneven_steps(
    tmp_path: Path, layout: str, given_as: str, monkeypatch: pytest.MonkeyPatch
):
    folder, below = LAYOUTS[layout]
    wanted = [9, 10, 25, 100, 1000]
    for step in wanted:
        write(tmp_path / folder.format(step) / below)
        if layout.startswith("prime-rl"):
            (tmp_path / folder.format(step) / "STABLE").touch()
    monkeypatch.chdir(tmp_path)
    paths = {
        "folder": [Path()],
        "string of steps": [Path(folder.format(step)) for step in reversed(wanted)],
        "pattern": [Path(folder.split("{")[0] + "*")],
        "within": [tmp_path / folder.format(step) / below for step in wanted],
    }[given_as]
    series = find_series(paths)
    assert steps(series) == wanted
    assert {found.layout for found in series.found} == {layout.split()[0]}
    assert series.incomplete == ()
    for found in series.found:
        assert list(open_checkpoint(found.path, found.step).tensors) == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "step_{}.safetensors",
        "model-step{}.safetensors",
        "checkpoint-{}.safetensors",
        "run3_ckpt_{}.safetensors",
        "global_step_{}.safetensors",
        "iter_{:07d}.safetensors",
    ],
)
def test_plain_files(tmp_path: Path, name: str):
    for step in (3, 20, 100):
        write(tmp_path / name.format(step))
    (tmp_path / "config.json").write_text("{}")
    series = find_series([tmp_path])
    assert steps(series) == [3, 20, 100]
    assert {found.layout for found in series.found} == {"file"}
    assert steps(find_series([tmp_path / name.format(20)])) == [20]
    assert "config.json" in open_checkpoint(series.found[0].path).side_files


@settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(wanted=st.sets(st.integers(0, 10**9), min_size=1, max_size=6), data=st.data())
def test_any_steps_come_in_order_however_they_are_given(
    tmp_path_factory: pytest.TempPathFactory, wanted: set[int], data: st.DataObject
):
    root = tmp_path_factory.mktemp("run")
    paths = [write(root / f"checkpoint-{step}") for step in wanted]
    shuffled = data.draw(st.permutations(paths)) + data.draw(st.lists(st.sampled_from(paths)))
    for series in (find_series([root]), find_series(shuffled), find_series([root, *shuffled])):
        assert steps(series) == sorted(wanted)


@pytest.mark.parametrize("container", ["weights", "checkpoints", "ckpts"])
def test_the_folder_of_a_run(tmp_path: Path, container: str):
    for step in (1, 2):
        write(tmp_path / container / f"step_{step}")
        (tmp_path / container / f"step_{step}" / "STABLE").touch()
    (tmp_path / "logs").mkdir()
    assert steps(find_series([tmp_path])) == [1, 2]


def test_weights_win_over_checkpoints_that_hold_no_safetensors(tmp_path: Path):
    write(tmp_path / "checkpoints" / "step_1" / "__0_0.distcp")
    write(tmp_path / "weights" / "step_1")
    (tmp_path / "weights" / "step_1" / "STABLE").touch()
    assert steps(find_series([tmp_path])) == [1]


def test_the_final_model_beside_the_steps_is_left_out(tmp_path: Path):
    write(tmp_path)
    assert [f.layout for f in find_series([tmp_path]).found] == ["unnumbered"]
    assert steps(find_series([tmp_path])) == [0]
    write(tmp_path / "checkpoint-5")
    assert steps(find_series([tmp_path])) == [5]


def test_deepspeed_folders_inside_a_step_are_not_steps(tmp_path: Path):
    write(tmp_path / "checkpoint-5")
    write(tmp_path / "checkpoint-5" / "global_step5" / "mp_rank_00_model_states.pt")
    assert steps(find_series([tmp_path])) == [5]
    assert steps(find_series([tmp_path / "checkpoint-5"])) == [5]


def test_a_link_to_the_latest_step(tmp_path: Path):
    write(tmp_path / "checkpoint-5")
    (tmp_path / "latest").symlink_to("checkpoint-5")
    assert steps(find_series([tmp_path])) == [5]
    assert steps(find_series([tmp_path / "latest"])) == [5]


def test_files_named_inside_step_folders(tmp_path: Path):
    for step in (5, 6):
        write(tmp_path / f"checkpoint-{step}")
        two_shards(write(tmp_path / f"global_step_{step}" / "x.txt").parent)
    assert steps(find_series([tmp_path / "checkpoint-*" / "model.safetensors"])) == [5, 6]
    assert steps(find_series([tmp_path / "global_step_*" / "model-*.safetensors"])) == [5, 6]
    assert steps(find_series([tmp_path / "global_step_*" / "*.index.json"])) == [5, 6]


# Completeness


@pytest.mark.parametrize(
    "damage",
    [
        "empty",
        "cut header",
        "cut data",
        "zeros",
        "no file",
        "missing shard",
        "no index",
        "cut index",
    ],
)
def test_a_half_written_last_step_is_incomplete(tmp_path: Path, damage: str):
    write(tmp_path / "checkpoint-5")
    last = write(tmp_path / "checkpoint-10")
    file = last / "model.safetensors"
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "cut header":
            file.write_bytes(WEIGHTS[:30])
        case "cut data":
            file.write_bytes(WEIGHTS[:-1])
        case "zeros":
            file.write_bytes(bytes(len(WEIGHTS)))
        case "no file":
            file.unlink()
            (last / "config.json").write_text("{}")
        case "missing shard":
            file.unlink()
            two_shards(last)
            (last / "model-00002-of-00002.safetensors").unlink()
        case "cut index":
            file.unlink()
            two_shards(last, index=b'{"weight_map": {"a": "model-00001-of-')
        case "no index":
            file.rename(last / "model-00001-of-00002.safetensors")
    series = find_series([tmp_path])
    assert steps(series) == [5]
    (incomplete,) = series.incomplete
    assert incomplete.step == 10
    assert incomplete.path == last
    assert incomplete.reason.isprintable()
    with pytest.raises(NotFound, match="no complete checkpoint"):
        find_series([last])


def test_several_half_written_steps_at_the_end(tmp_path: Path):
    write(tmp_path / "checkpoint-5")
    for step in (10, 15):
        write(tmp_path / f"checkpoint-{step}", WEIGHTS[:-1])
    series = find_series([tmp_path])
    assert steps(series) == [5]
    assert [item.step for item in series.incomplete] == [10, 15]


def test_a_damaged_step_before_a_complete_one_stays_and_fails_when_read(tmp_path: Path):
    for step in (5, 10, 15):
        write(tmp_path / f"checkpoint-{step}", WEIGHTS[:-1] if step == 10 else WEIGHTS)
    series = find_series([tmp_path])
    assert steps(series) == [5, 10, 15]
    with pytest.raises(FormatError, match=r"checkpoint-10.*is cut"):
        open_checkpoint(series.found[1].path)


def test_a_step_without_weights_in_the_middle_is_passed_over(tmp_path: Path):
    for step in (5, 15):
        write(tmp_path / f"checkpoint-{step}")
    write(tmp_path / "checkpoint-10" / "optimizer.pt")
    series = find_series([tmp_path])
    assert steps(series) == [5, 15]
    assert [item.step for item in series.incomplete] == [10]


def test_a_wrong_last_step_is_not_taken_for_a_half_written_one(tmp_path: Path):
    write(tmp_path / "checkpoint-5")
    write(tmp_path / "checkpoint-10", WEIGHTS + b"x")
    series = find_series([tmp_path])
    assert steps(series) == [5, 10]
    with pytest.raises(FormatError, match="1 trailing bytes"):
        open_checkpoint(series.found[1].path)


@pytest.mark.parametrize(
    "name",
    ["tmp_step_20", "tmp-checkpoint-20", ".tmp_step_20", "step_20.tmp", "checkpoint-20-partial"],
)
def test_temporary_folders_are_incomplete(tmp_path: Path, name: str):
    write(tmp_path / "step_10")
    write(tmp_path / name / "model.safetensors")
    series = find_series([tmp_path])
    assert steps(series) == [10]
    assert [item.step for item in series.incomplete] == [20]


@pytest.mark.parametrize("name", ["step_20.safetensors.tmp", ".tmp-step_20.safetensors"])
def test_temporary_files_are_incomplete(tmp_path: Path, name: str):
    write(tmp_path / "step_10.safetensors")
    write(tmp_path / name)
    series = find_series([tmp_path])
    assert steps(series) == [10]
    assert [item.step for item in series.incomplete] == [20]


@pytest.mark.parametrize(
    ("marker", "below"),
    [("latest_checkpointed_iteration.txt", "hf_model"), ("latest_ckpt_global_step.txt", "policy")],
)
def test_a_marker_says_which_steps_are_complete(tmp_path: Path, marker: str, below: str):
    for step in (10, 20, 30):
        write(tmp_path / f"global_step_{step}" / below)
    (tmp_path / marker).write_text("20\n")
    series = find_series([tmp_path])
    assert steps(series) == [10, 20]
    assert marker in series.incomplete[0].reason
    with pytest.raises(NotFound, match="says 20"):
        find_series([tmp_path / "global_step_30"])
    for says_nothing in ("", "release", "9" * 100, "-5"):
        (tmp_path / marker).write_text(says_nothing)
        assert steps(find_series([tmp_path])) == [10, 20, 30]


def test_prime_rl_steps_need_stable(tmp_path: Path):
    for step in (1, 2, 3):
        write(tmp_path / "weights" / f"step_{step}")
        if step != 3:
            (tmp_path / "weights" / f"step_{step}" / "STABLE").touch()
    for path in (tmp_path, tmp_path / "weights"):
        series = find_series([path])
        assert steps(series) == [1, 2]
        assert "STABLE" in series.incomplete[0].reason


# Base, clashes, nothing


def test_the_base_is_step_0(tmp_path: Path):
    write(tmp_path / "run" / "checkpoint-5")
    base = write(tmp_path / "base")
    series = find_series([tmp_path / "run"], base)
    assert steps(series) == [0, 5]
    assert series.found[0].layout == "base"
    assert series.found[0].path == base
    assert steps(find_series([tmp_path / "run"], base / "model.safetensors")) == [0, 5]


def test_a_base_beside_a_step_0_is_refused(tmp_path: Path):
    write(tmp_path / "run" / "checkpoint-0")
    write(tmp_path / "run" / "checkpoint-5")
    base = write(tmp_path / "base")
    with pytest.raises(InvalidInput, match=r"claim step 0: .*base and .*checkpoint-0"):
        find_series([tmp_path / "run"], base)
    assert steps(find_series([tmp_path / "run"], tmp_path / "run" / "checkpoint-0")) == [0, 5]


def test_a_bad_base_is_refused_at_once(tmp_path: Path):
    write(tmp_path / "run" / "checkpoint-5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="hf download"):
        find_series([tmp_path / "run"], Path("org/no-such-model"))
    with pytest.raises(NotFound, match="no weights of a base model"):
        find_series([tmp_path / "run"], tmp_path / "empty")
    with pytest.raises(FormatError, match="is cut"):
        find_series([tmp_path / "run"], write(tmp_path / "base", WEIGHTS[:-1]))


def test_two_folders_for_one_step_are_refused_by_name(tmp_path: Path):
    write(tmp_path / "a" / "checkpoint-5")
    write(tmp_path / "b" / "checkpoint-5")
    with pytest.raises(InvalidInput, match=r"two checkpoints claim step 5: .*a/checkp.*b/checkp"):
        find_series([tmp_path / "a", tmp_path / "b"])
    write(tmp_path / "c" / "iter_5")
    write(tmp_path / "c" / "iter_0000005")
    with pytest.raises(InvalidInput, match=r"iter_0000005 and .*iter_5"):
        find_series([tmp_path / "c"])
    with pytest.raises(InvalidInput, match="rename them to checkpoint-N"):
        find_series([write(tmp_path / "first"), write(tmp_path / "second")])


def test_one_step_given_twice_is_one(tmp_path: Path):
    write(tmp_path / "checkpoint-5")
    assert steps(find_series([tmp_path, tmp_path / "checkpoint-5", tmp_path])) == [5]


def test_nothing_there_says_what_was_looked_for(tmp_path: Path):
    for path, words in [
        (tmp_path, "looked for checkpoint-N"),
        (tmp_path / "gone", "no such file or folder"),
        (tmp_path / "gone" / "*", "no such file or folder; looked for checkpoint-N"),
        (tmp_path / ("x" * 5000), "no such file or folder"),
        (tmp_path / "nul\0", "no such file or folder"),
        (write(tmp_path / "notes.txt"), r"expected a \.safetensors file"),
    ]:
        with pytest.raises(NotFound, match=words) as refusal:
            find_series([path])
        assert str(refusal.value).isprintable()
    with pytest.raises(NotFound, match="no path given"):
        find_series([])


def test_one_empty_path_among_good_ones_is_named(tmp_path: Path):
    write(tmp_path / "checkpoint-5")
    (tmp_path / "logs").mkdir()
    with pytest.raises(NotFound, match="logs: no checkpoint"):
        find_series([tmp_path / "checkpoint-5", tmp_path / "logs"])
    assert steps(find_series([tmp_path / "*"])) == [5]  # a pattern may match other things


@pytest.mark.parametrize(
    ("files", "tool"),
    [
        (
            ["global_step_5/actor/model_world_size_8_rank_0.pt"],
            "verl.model_merger merge --backend fsdp",
        ),
        (
            ["global_step_5/actor/dist_ckpt/__0_0.distcp"],
            "verl.model_merger merge --backend megatron",
        ),
        (["checkpoint-5/zero_to_fp32.py"], r"zero_to_fp32\.py \. OUT --safe_serialization"),
        (["checkpoint-5/global_step5/mp_rank_00_model_states.pt"], "zero_to_fp32"),
        (
            ["checkpoint-5/global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"],
            "zero_to_fp32",
        ),
        (
            ["checkpoint-5/pytorch_model_fsdp_0/__0_0.distcp"],
            "accelerate merge-weights .*fsdp_0 OUT",
        ),
        (["iter_0000005/mp_rank_00_000/model_optim_rng.pt"], "Megatron-Bridge"),
        (["iter_0000005/common.pt", "iter_0000005/__0_0.distcp"], "convert_torch_dist_to_hf"),
        (["step_5/policy/weights/__0_0.distcp"], "convert_dcp_to_hf"),
        (["step-5/__0_0.distcp"], r"checkpoint_conversion/convert_to_hf\.py"),
        (["checkpoint-5/pytorch_model.bin"], "safe_serialization=True"),
        (["checkpoint-5/pytorch_model-00001-of-00002.bin"], "safe_serialization=True"),
        (["checkpoint-5/adapter_model.bin"], "safe_serialization=True"),
        (["model.pth"], r"safetensors\.torch\.save_file"),
        (["step_5/weights.ckpt", "step_5/optimizer.pt"], r"safetensors\.torch\.save_file"),
    ],
)
def test_other_formats_name_their_converter(tmp_path: Path, files: list[str], tool: str):
    for file in files:
        write(tmp_path / file, b"\x80\x04never unpickled")
    for path in (tmp_path, tmp_path / files[0].split("/")[0]):
        with pytest.raises(NotFound, match=rf"which trajkit never loads; convert first: .*{tool}"):
            find_series([path])


def test_optimizer_files_alone_name_no_converter(tmp_path: Path):
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "scheduler.pt"):
        write(tmp_path / "checkpoint-5" / name, b"x")
    with pytest.raises(NotFound, match="looked for"):
        find_series([tmp_path])


def test_slices_of_ranks_are_used_only_once_consolidated(tmp_path: Path):
    model = tmp_path / "step_5" / "policy" / "weights" / "model"
    for rank in (1, 2):
        write(model / f"shard-0000{rank}-model-00001-of-00001.safetensors")
    series = find_series([tmp_path])
    with pytest.raises(Unsupported, match="consolidate them first"):
        open_checkpoint(series.found[0].path)
    write(model / "consolidated")
    series = find_series([tmp_path])
    assert series.found[0].path == model / "consolidated"
    assert series.found[0].layout == "NeMo-RL"


def test_folders_that_only_look_like_steps_are_ignored(tmp_path: Path):
    write(tmp_path / "checkpoint-5")
    for name in ("checkpoint-", "checkpoint-x", "checkpoint-5-old", "step_٣", "global_step7"):
        write(tmp_path / name / "model.safetensors")
    write(tmp_path / ("step_" + "9" * 40))
    assert steps(find_series([tmp_path])) == [5]


def test_only_the_last_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in range(1, 40):
        write(tmp_path / f"checkpoint-{step}")
    opened = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda p, *a: opened.append(p) or real_open(p, *a))
    assert len(find_series([tmp_path]).found) == 39
    assert len(opened) == 1


def test_a_step_that_vanishes_while_looking_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "checkpoint-5")
    write(tmp_path / "checkpoint-6")

    def vanish(path: Path, step: int = 0) -> object:
        if step == 6:
            shutil.rmtree(path, ignore_errors=True)
        return open_checkpoint(path, step)

    monkeypatch.setattr("trajkit.checkpoints.series.open_checkpoint", vanish)
    series = find_series([tmp_path])
    assert steps(series) == [5]
    assert [item.step for item in series.incomplete] == [6]


@pytest.mark.parametrize("name", ["epoch_{}", "epoch_{}.safetensors", "ckpts/epoch_{}"])
def test_names_by_a_pattern(tmp_path: Path, name: str):
    for step in (2, 10):
        write(tmp_path / "run" / name.format(step))
    write(tmp_path / "run" / "checkpoint-7")  # a trainer's name counts no more
    (tmp_path / "run" / "epoch_notes.txt").touch()
    series = find_series([tmp_path / "run"], pattern=r"epoch_(\d+)")
    assert steps(series) == [2, 10]
    assert {found.layout for found in series.found} == {"pattern"}
    one = tmp_path / "run" / name.format(10)
    assert steps(find_series([one], pattern=r"epoch_(\d+)")) == [10]
    (tmp_path / "run" / Path(name).parent / "epoch_11").mkdir()
    series = find_series([tmp_path / "run"], pattern=r"epoch_(\d+)")
    assert [look.step for look in series.incomplete] == [11]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("epoch_(", "not a regular expression"),
        ("epoch_[0-9]+", r"has 0 groups, not one.*'epoch_\(\\d\+\)'"),
        (r"(epoch)_(\d+)", "has 2 groups, not one"),
        (r"(epoch_\d+)", "takes 'epoch_2' .* for the step, which is no whole number"),
    ],
)
def test_patterns_that_name_no_step(tmp_path: Path, pattern: str, message: str):
    write(tmp_path / "epoch_2")
    with pytest.raises(InvalidInput, match=message):
        find_series([tmp_path], pattern=pattern)


def test_a_pattern_that_matches_nothing_says_what_is_there(tmp_path: Path):
    write(tmp_path / "epoch-2")
    with pytest.raises(NotFound, match=r"no name in it matches .* there are epoch-2"):
        find_series([tmp_path], pattern=r"epoch_(\d+)")


def test_steps_named_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "late")
    write(tmp_path / "early" / "actor" / "huggingface")
    write(tmp_path / "other.safetensors")
    write(tmp_path / "7=odd")  # a path that is there is a path
    monkeypatch.chdir(tmp_path)
    series = find_series([Path("300=late"), Path("20=early"), Path("40=other.safetensors")])
    assert steps(series) == [20, 40, 300]
    assert series.found[0].path == Path("early/actor/huggingface")
    assert steps(find_series([Path("7=odd")])) == [0]
    with pytest.raises(NotFound, match="no such file or folder: nowhere"):
        find_series([Path("5=nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no weights for step 5"):
        find_series([Path("5=empty")])


@pytest.mark.parametrize("layout", ["{}/checkpoint-{}", "{}/exp/checkpoints/global_step_{}"])
def test_runs_under_one_parent_are_named(tmp_path: Path, layout: str):
    for run in ("lr1", "lr2"):
        write(tmp_path / "runs" / layout.format(run, 5))
    (tmp_path / "runs" / "logs").mkdir()
    with pytest.raises(NotFound, match=r"2 runs: .*lr1.*, .*lr2.*; pass the one that is meant"):
        find_series([tmp_path / "runs"])
    shutil.rmtree(tmp_path / "runs" / "lr2")
    with pytest.raises(NotFound, match=r"1 run: .*lr1"):
        find_series([tmp_path / "runs"])
