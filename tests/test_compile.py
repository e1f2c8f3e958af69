"""Compiled code that cannot be kept, or was cut short: compiled again, said once, never an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
from trajkit.kernels import compiling
compiling.listen(lambda line: print("said:", line))
{before}
from trajkit.kernels.cpu.compile import compiled
@compiled
def twice(x):
    return 2 * x
@compiled
def outer(x):
    return twice(x) + 1
print("result:", outer(20))
"""
NO_PLACE = "from numba.core import caching; caching.CacheImpl._locator_classes = []"
FULL_DISK = """
import errno
from numba.core import caching
def refuse(self, name, data):
    raise OSError(errno.ENOSPC, "No space left on device")
caching.IndexDataCacheFile._save_data = refuse
"""


def run_program(folder: Path, before: str = "") -> list[str]:
    """What two small kernels say and give; their code is kept in the folder."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(before=before))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines.pop() == "result: 41"
    return lines


def test_compiling_is_said_before_and_not_when_code_is_kept(tmp_path: Path) -> None:
    assert run_program(tmp_path) == ["said: compiling, once: about 12 s"]
    assert run_program(tmp_path) == []


def test_without_a_place_to_keep_code_it_compiles_every_time_and_says_so(tmp_path: Path) -> None:
    """A read-only installation without a writable home once made every fit fail."""
    for _ in range(2):
        (line,) = run_program(tmp_path, NO_PLACE)
        assert line.startswith("said: compiling, about 12 s, and again next time: no place")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_kept_code_that_is_cut_short_is_compiled_again(
    tmp_path: Path, kind: str, share: float
) -> None:
    """A kill while it was written once broke every later fit."""
    run_program(tmp_path)
    files = list((tmp_path / "cache").rglob(f"*.{kind}"))
    assert len(files) == 2
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
    assert run_program(tmp_path) == ["said: compiling, once: about 12 s"]
    assert run_program(tmp_path) == []


def test_a_full_disk_keeps_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    said = run_program(tmp_path, FULL_DISK)
    assert said[0] == "said: compiling, once: about 12 s"
    assert said[1] == (
        "said: compiled code is not kept (No space left on device): the next run compiles again"
    )
    assert len(said) == 2
    assert run_program(tmp_path) == ["said: compiling, once: about 12 s"]
    assert run_program(tmp_path) == []
