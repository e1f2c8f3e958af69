"""The house's own rules: who may import what, and what the wheel holds."""

import ast
import subprocess
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("ingest", "fit", "extrapolate", "report", "restore", "verify")

OWNERS = {
    "triton": "kernels/gpu*.py",
    "numba": "kernels/cpu*.py",
    "torch": "kernels/gpu*.py",
    "polars": "trajkit/summary.py",
    "matplotlib": "trajkit/figures.py",
    "transformers": "trajkit/loading.py",
    "click": "cli/*.py",
    "rich": "cli/console.py",
}
"""heavy libraries and the files that may import them"""


def imports_of(path: Path) -> set[str]:
    """Modules a file imports at run time, whether at its top or inside functions."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        and isinstance(block.test, ast.Name)
        and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(*rooms: str) -> list[Path]:
    return [p for room in rooms for p in sorted((ROOT / room).glob("*.py"))]


def test_heavy_libraries_have_one_owner() -> None:
    for path in files("trajkit", "kernels", "cli"):
        place = path.relative_to(ROOT).as_posix()
        for name in imports_of(path):
            top = name.split(".")[0]
            if top in OWNERS:
                assert fnmatchcase(place, OWNERS[top]), f"{place} imports {name}"
            assert top not in {"pickle", "dill", "cloudpickle", "shelve"}, f"{place} imports {name}"


def test_kernels_import_nothing_of_the_house_and_nothing_imports_the_cli() -> None:
    for path in files("kernels"):
        for name in imports_of(path):
            if name.startswith("trajkit"):
                assert name.startswith("trajkit.kernels"), f"{path.name} imports {name}"
    for path in files("trajkit"):
        assert not any(n.startswith("trajkit.cli") for n in imports_of(path)), path.name


def test_kernel_backends_do_not_import_one_another() -> None:
    backends = {"reference", "cpu", "gpu"}
    for backend in backends:
        imported = imports_of(ROOT / "kernels" / f"{backend}.py")
        for other in backends - {backend}:
            assert f"trajkit.kernels.{other}" not in imported, f"{backend} imports {other}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import trajkit, trajkit.kernels.api", "torch numba triton zarr polars matplotlib click"),
        ("import trajkit.cli.main", "torch numba numpy zarr polars matplotlib rich"),
        ("import trajkit.trajectory", "torch matplotlib transformers triton click"),
    ],
)
def test_light_imports_stay_light(statement: str, absent: str) -> None:
    code = f"{statement}\nimport sys\nprint([m for m in {absent.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_verbs_are_functions_whatever_was_imported_first() -> None:
    code = "\n".join(
        f"import trajkit.{verb}; from trajkit.{verb} import {verb} as _{verb}" for verb in VERBS
    )
    code += "\nimport trajkit\n" + "\n".join(f"assert trajkit.{v} is _{v}" for v in VERBS)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wheel_has_one_top_level_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names if ".dist-info" not in n.split("/")[0]}
    assert tops == {"trajkit"}
    for expected in ("trajkit/kernels/api.py", "trajkit/cli/main.py", "trajkit/py.typed"):
        assert expected in names
