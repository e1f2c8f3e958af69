"""What the command line says to whom: hints, warnings, one line an error, a stdout that is gone."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from store_series import write_checkpoint

import trajkit
from trajkit.cli.console import spell
from trajkit.cli.main import cli
from trajkit.errors import InvalidInput
from trajkit.fits.estimators.table import ESTIMATORS, PARAMETERS
from trajkit.text import parse_bytes

TRAJKIT = Path(sys.executable).with_name("trajkit")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRAJKIT_STORE"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    start, slope = rng.normal(size=(40, 9)), rng.normal(size=(40, 9))
    for step in (0, 10, 20):
        values = (start + slope * step / 100).astype(np.float32)
        write_checkpoint(folder / "c" / f"step_{step}", {"w": values})
    trajkit.ingest(folder / "c", folder / "s.zarr")
    trajkit.fit(folder / "s.zarr")
    trajkit.fit(folder / "s.zarr", name="early", to_step=10)
    return folder / "s.zarr"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def on_a_terminal(*arguments: object) -> tuple[str, str]:
    """stdout, and what a terminal shows of stderr."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [TRAJKIT, *map(str, arguments)], stdout=subprocess.PIPE, stderr=theirs, env=ENVIRONMENT
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert done.returncode == 0, shown
    return done.stdout.decode(), shown.decode()


def test_hints_say_what_one_does_next_on_a_terminal_only(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said, shown = on_a_terminal("extrapolate", "--steps", "25", "-o", out, "--store", store)
    assert "next:" not in said
    hints = shown.split("next:")[1]
    assert f"pretrained={out}" in hints
    assert f"serve {out}" in hints
    _, shown = on_a_terminal("fit", "--name", "early", "--store", store)
    hints = shown.split("next:")[1]
    assert f"--store {store} --fit early" in " ".join(hints.split())
    command = [TRAJKIT, "extrapolate", "--steps", "26", "-o", tmp_path / "two", "--store", store]
    piped = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert "next:" not in piped.stdout + piped.stderr


def test_commands_are_spelt_with_the_options_in_use() -> None:
    assert spell("fit", store=Path("trajkit.zarr"), name="default") == "trajkit fit"
    spelt = spell("extrapolate", "--steps", "5", store=Path("a b.zarr"), fit="early")
    assert spelt == "trajkit extrapolate --steps 5 --store 'a b.zarr' --fit early"


def test_steps_may_be_said_twice(store: Path, tmp_path: Path) -> None:
    done = invoke(
        "extrapolate", "--steps", "25", "--steps", "+8,30", "-o", tmp_path / "o", "--store", store
    )
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["step_25", "step_28", "step_30"]


def test_each_estimator_asks_for_what_it_takes(store: Path, tmp_path: Path) -> None:
    for name, kind in ESTIMATORS.items():
        done = invoke("extrapolate", "--estimator", name, "-o", tmp_path / "o", "--store", store)
        assert done.exit_code == 2
        assert f"Missing option '{kind.asks_for}'" in done.output
    assert ESTIMATORS["expo"].asks_for == "--alpha"
    options = {o.name for o in cli.commands["extrapolate"].params}
    assert PARAMETERS.keys() <= options


def test_the_library_warns_and_the_command_prints_lines(store: Path, tmp_path: Path) -> None:
    done = invoke(
        "extrapolate", "--steps", "25,900,910", "-o", tmp_path / "o", "--store", store, "-q"
    )
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("warning: step 9") for line in lines)
    assert "44 windows beyond the data" in lines[0]


def test_verbose_says_more(store: Path, tmp_path: Path) -> None:
    for name, flags in (("plain", ()), ("more", ("-v",))):
        done = invoke(
            "extrapolate", "--steps", "25", "-o", tmp_path / name, "--store", store, *flags
        )
        assert ("B/s" in done.stderr) == bool(flags), done.stderr
    assert "w  float32 [40, 9]" in invoke("info", "--store", store, "-v").output


def test_the_report_ends_with_a_link(store: Path, tmp_path: Path) -> None:
    done = invoke("report", "-o", tmp_path / "my report", "--store", store)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == (tmp_path / "my report" / "index.html").as_uri()
    assert "my%20report" in done.stdout


MISTAKES = [
    (("extrapolate", "--steps", "9" * 24, "-o", "o"), "digits"),
    (("extrapolate", "--estimator", "expo", "--alpha", "1e308", "-o", "o"), "alpha must lie"),
    (("extrapolate", "--estimator", "expo", "--alpha", "nan", "-o", "o"), "finite"),
    (("extrapolate", "--steps", "30", "--seed", "-1", "-o", "o"), "seed"),
    (("extrapolate", "--steps", "30", "--memory", "9" * 24, "-o", "o"), "more memory"),
    (("extrapolate", "--steps", "30", "--memory", "9" * 400 + "GB", "-o", "o"), "more memory"),
    (("extrapolate", "--steps", "30", "--gate", "loss:3", "-o", "o"), "no gate by 'loss'"),
    (("extrapolate", "--steps", "30", "--fit", "../default", "-o", "o"), "not a fit name"),
    (("extrapolate", "--steps", "", "-o", "o"), "whole numbers"),
    (("extrapolate", "--steps", "30", "--alpha", ".5", "-o", "o"), "estimator expo"),
    (("report", "--format", "gif", "-o", "o"), "gif"),
    (("restore", "--step", "9" * 24, "-o", "o"), "9"),
    (("restore", "--step", "11", "-o", "o"), "step 11"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES)
def test_a_mistake_gives_one_line(
    store: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    command = [TRAJKIT, *arguments, "--store", store]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 1:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_no_machine_has() -> None:
    assert parse_bytes("1TiB") == 2**40
    for text in ("9" * 24, "9" * 400, "20000000TB"):
        with pytest.raises(InvalidInput, match="more memory"):
            parse_bytes(text)


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@needs_full
@pytest.mark.parametrize("command", ["info --json", "info", "--help", "report --help"])
def test_a_full_stdout_is_one_line(store: Path, command: str) -> None:
    words = [TRAJKIT, *command.split()]
    words += ["--store", store] if "help" not in command else []
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize("redirect", ["| true", ">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stdout_is_no_traceback(store: Path, redirect: str) -> None:
    line = f"set -o pipefail; '{TRAJKIT}' info --json --store '{store}' {redirect}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode in (0, 1)
    assert done.stderr == ""


def test_debug_shows_the_traceback(store: Path, tmp_path: Path) -> None:
    command = [TRAJKIT, "--debug", "restore", "--step", "11", "-o", "o", "--store", store]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))
from trajkit.cli.main import main
sys.argv[0] = "trajkit"
main()
"""


@pytest.mark.parametrize(
    ("missing", "arguments", "says"),
    [
        ("transformers", ("extrapolate", "--steps", "25", "--check", "-o", "o"), "trajkit[models]"),
        ("accelerate", ("extrapolate", "--steps", "25", "--check", "-o", "o"), "trajkit[models]"),
        ("matplotlib", ("report", "-o", "o"), "pip install matplotlib"),
        ("numba", ("fit", "--name", "other"), "pip install numba"),
        ("google_crc32c", ("info",), "pip install google-crc32c"),
    ],
)
def test_a_missing_library_is_one_line(
    store: Path, tmp_path: Path, missing: str, arguments: tuple[str, ...], says: str
) -> None:
    import shutil

    shutil.copytree(store, tmp_path / "s.zarr")
    like = write_checkpoint(tmp_path / "like", {"w": np.zeros((40, 9), np.float32)}, config={})
    command = [sys.executable, "-c", WITHOUT, missing, *arguments, "--store", "s.zarr"]
    command += ["--like", like] if "--check" in arguments else []
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["like", "s.zarr"]


def test_no_escape_sequence_of_a_name_reaches_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from trajkit.progress import Finished, Note, PlainLines, Started

    lines = PlainLines()
    for event in (
        Started("ingest\x1b[2J", 1),
        Note("\x1b]0;mine\x07 is tied"),
        Finished("\x1b[31m"),
    ):
        lines(event)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\\x1b[2J" in said
