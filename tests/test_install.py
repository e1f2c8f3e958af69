"""What an installation without extras does, and that every dependency is used."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from conftest import HELD_OUT, ROOT, SEEN
from test_house import files, imports_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "lm_eval": "lm-eval",
    "google_crc32c": "google-crc32c",
    "ml_dtypes": "ml-dtypes",
    "llvmlite": "numba",
}
"""modules whose package has another name (numba is what brings llvmlite)"""

WITHOUT_EXTRAS = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: not installed", name=name)

sys.meta_path.insert(0, Blocker())
from trajkit.cli.main import main
sys.argv = ["trajkit", *{arguments!r}]
main()
"""


def names(wishes: list[str]) -> set[str]:
    """The packages that a list of requirements names."""
    return {re.match(r"[\w-]+", wish)[0] for wish in wishes}  # type: ignore[index]


def extras_alone() -> set[str]:
    """Packages that an extra brings and a plain installation does not."""
    extras = PROJECT["optional-dependencies"].values()
    return set().union(*map(names, extras)) - names(PROJECT["dependencies"]) - {"trajkit"}


def run_without_extras(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command where nothing can be imported that only an extra brings."""
    code = WITHOUT_EXTRAS.format(blocked=extras_alone(), arguments=list(arguments))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_no_torch_without_extras() -> None:
    assert {"torch", "transformers", "triton", "trl"} <= extras_alone()


def test_the_whole_job_runs_without_extras(tmp_path: Path) -> None:
    shutil.copytree(SEEN, tmp_path / "ckpts")
    for line in (
        "ingest ckpts/",
        "fit --rsq-threshold 0.7",
        "extrapolate --steps 2000 -o out/",
        "report",
        "restore --step 396 -o back/",
        "verify --against ckpts/",
        "info",
    ):
        done = run_without_extras(*line.split(), cwd=tmp_path)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    back, there = (
        (f / "model.safetensors").read_bytes() for f in (tmp_path / "back", SEEN / "checkpoint-396")
    )
    assert back == there


def test_a_missing_extra_is_named_in_one_line(tmp_path: Path) -> None:
    line = f"ingest {SEEN} --codec pcodec"
    done = run_without_extras(*line.split(), cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'trajkit[pcodec]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_what_is_imported_is_what_is_installed() -> None:
    found = set()
    for path in files("trajkit", "kernels", "cli"):
        found |= {name.split(".")[0] for name in imports_of(path)}
    found -= set(sys.stdlib_module_names) | {"trajkit"}
    packages = {MODULES.get(name, name) for name in found}
    assert names(PROJECT["dependencies"]) <= packages, "a dependency that nothing imports"
    assert packages <= names(PROJECT["dependencies"]) | extras_alone(), "an import of no dependency"


def test_the_demo_measures_what_transformers_does() -> None:
    from adder import load_model
    from adder import probability_correct as by_transformers
    from adder_numpy import load_weights
    from adder_numpy import probability_correct as by_numpy

    folder = HELD_OUT / "checkpoint-800"
    expected = by_transformers(*load_model(folder))
    assert by_numpy(folder, load_weights(folder)) == pytest.approx(expected, abs=1e-6)


def test_the_demo_leaves_folders_alone_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not made by this demo" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_the_demo_imports_nothing_that_an_extra_brings() -> None:
    for name in ("demo", "adder_numpy"):
        tree = ast.parse((ROOT / "examples" / f"{name}.py").read_text())
        tops = {n.name for i in ast.walk(tree) if isinstance(i, ast.Import) for n in i.names}
        tops |= {i.module or "" for i in ast.walk(tree) if isinstance(i, ast.ImportFrom)}
        assert not {top.split(".")[0] for top in tops} & extras_alone()


def test_resolve_finds_what_is_not_pinned() -> None:
    spec = spec_from_file_location("resolve", ROOT / ".ci" / "resolve.py")
    assert spec is not None
    assert spec.loader is not None
    resolve = module_from_spec(spec)
    spec.loader.exec_module(resolve)
    found = [{"name": "ml_dtypes"}, {"name": "Jinja2"}, {"name": "trajkit"}, {"name": "other"}]
    assert resolve.unpinned(found, "# made\nml-dtypes==0.6.0\njinja2==3.1.6\n") == {"other"}
