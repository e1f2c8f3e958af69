"""The documents are true: doctests, the command reference, the README's commands and file list."""

import doctest
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SEEN
from test_cli import run

from trajkit.errors import Unsupported

MODULES = sorted(
    ".".join(("trajkit", *(("",) if room == "trajkit" else (room,)), *inner.parts)).replace(
        "..", "."
    )
    for room in ("trajkit", "kernels", "cli")
    for path in (ROOT / room).rglob("*.py")
    if path.stem != "__init__" and not path.is_relative_to(ROOT / "kernels" / "gpu")
    for inner in (path.relative_to(ROOT / room).with_suffix(""),)
    if not any(p.is_symlink() for p in path.parents)
)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE
    try:
        module = importlib.import_module(name)
    except Unsupported as error:
        pytest.skip(str(error))  # what an extra brings is not installed
    assert doctest.testmod(module, optionflags=flags).failed == 0


def test_the_command_reference_is_current() -> None:
    path = ROOT / "docs" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.REFERENCE.read_text() == module.reference(), "run make docs"


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^ {4}(trajkit .*?)(?: +#.*)?$", text, flags=re.MULTILINE)
    assert len(lines) >= 4
    return lines


def test_readme_commands_run(tmp_path: Path) -> None:
    shutil.copytree(SEEN, tmp_path / "ckpts")
    shutil.copy(ROOT / "data" / "adder-grpo-prompts.jsonl", tmp_path / "prompts.jsonl")
    for line in dict.fromkeys(readme_commands()):
        done = run(*shlex.split(line)[1:], cwd=tmp_path)
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_packages_name_every_module_of_theirs() -> None:
    packages = {
        path.parent for room in ("trajkit", "kernels") for path in (ROOT / room).rglob("*.py")
    }
    for package in packages:
        if (
            package in (ROOT / "trajkit", ROOT / "kernels")
            or not (package / "__init__.py").exists()
        ):
            continue
        lines = (package / "__init__.py").read_text()
        for path in package.glob("*.py"):
            if path.stem != "__init__":
                named = re.search(rf"(?m)^(?:.*, )?{path.stem}\b", lines)
                assert named, f"{package.name}/__init__.py lacks a line for {path.stem}"


def test_readme_names_every_package_of_the_house() -> None:
    text = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "trajkit").iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            assert re.search(rf"(?m)^ *{path.name}/ ", text), f"README's map lacks {path.name}/"


def test_the_tables_of_guided_extrapolation_are_those_that_were_measured() -> None:
    path = ROOT / "examples" / "guide_table.py"
    done = subprocess.run(
        [sys.executable, str(path), "--table", str(ROOT / "docs" / "guide.json")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    readme = (ROOT / "README.md").read_text()
    for table in done.stdout.strip().split("\n\n"):
        assert table in readme, f"README.md lacks, or has otherwise: {table[:80]}"


def test_readme_links_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / target).exists(), target
