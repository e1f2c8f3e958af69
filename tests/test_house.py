"""The house's own rules: who may import what, how large a room is, and what the wheel holds."""

import ast
import statistics
import subprocess
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("ingest", "fit", "extrapolate", "report", "restore", "verify")

GROUND = {"errors", "progress", "text", "arrays", "parallel", "disk", "defaults"}
RANK = {
    **dict.fromkeys(GROUND, 0),
    **dict.fromkeys(("remote", "stats", "cluster"), 1),
    "checkpoints": 2,
    "store": 3,
    "fits": 4,
    "evidence": 5,
    "forecast": 6,
    "outputs": 7,
    "training": 8,
    "reports": 9,
    "trajectory": 10,
    "integrations": 11,
    "cli": 12,
}
"""the strata: a room may import rooms of a lower rank, and itself; everybody may import kernels"""

INTEGRATIONS = "trajkit/integrations/*.py"
OWNERS = {
    "triton": ("kernels/gpu/*.py",),
    "numba": ("kernels/cpu/*.py",),
    "llvmlite": ("kernels/cpu/*.py",),
    "torch": ("kernels/gpu/*.py", "trajkit/outputs/*.py", "trajkit/training/*.py", INTEGRATIONS),
    "polars": (
        "trajkit/fits/dataframe.py",
        "trajkit/checkpoints/metrics.py",
    ),
    "tbparse": ("trajkit/checkpoints/metrics.py",),
    "matplotlib": ("trajkit/reports/figures.py",),
    "transformers": ("trajkit/forecast/loading.py", "trajkit/outputs/*.py", INTEGRATIONS),
    "click": ("cli/*.py",),
    "rich": ("trajkit/progress.py",),
    "zarr": ("trajkit/outputs/rows.py", INTEGRATIONS),
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
    """Every Python file of these top-level folders; links are not followed."""
    found = [p for room in rooms for p in sorted((ROOT / room).rglob("*.py"))]
    return [p for p in found if not any(q.is_symlink() for q in p.parents)]


def room_of(path: Path) -> str:
    """The package, or the root module, that a file belongs to."""
    top, *inner = path.relative_to(ROOT).parts
    return top if top in ("cli", "kernels") else inner[0].removesuffix(".py")


def test_every_file_is_looked_at() -> None:
    rooms = {room_of(path) for path in files("trajkit", "kernels", "cli")} - {"__init__"}
    assert rooms <= RANK.keys() | {"kernels"}
    assert len(files("kernels")) > 20
    assert len(files("trajkit")) > 50


def test_heavy_libraries_have_one_owner() -> None:
    for path in files("trajkit", "kernels", "cli"):
        place = path.relative_to(ROOT).as_posix()
        for name in imports_of(path):
            top = name.split(".")[0]
            if top in OWNERS:
                owned = any(fnmatchcase(place, pattern) for pattern in OWNERS[top])
                assert owned, f"{place} imports {name}"
            assert top not in {"pickle", "dill", "cloudpickle", "shelve"}, f"{place} imports {name}"


def test_no_arrow_runs_back_up() -> None:
    for path in files("trajkit", "cli"):
        room = room_of(path)
        if room == "__init__":
            continue
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "trajkit" or len(parts) < 2 or parts[1] in ("kernels", "__version__"):
                continue
            other = parts[1]
            assert RANK[other] < RANK[room] or other == room or other in GROUND, (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_kernels_import_nothing_of_the_house() -> None:
    for path in files("kernels"):
        for name in imports_of(path):
            if name.startswith("trajkit"):
                assert name.startswith("trajkit.kernels"), f"{path} imports {name}"


def test_kernel_backends_do_not_import_one_another() -> None:
    backends = {"cpu": files("kernels/cpu"), "gpu": files("kernels/gpu")}
    backends["reference"] = [ROOT / "kernels" / "reference.py"]
    for backend, paths in backends.items():
        for other in backends.keys() - {backend}:
            for path in paths:
                for name in imports_of(path):
                    inside = f"{name}.".startswith(f"trajkit.kernels.{other}.")
                    assert not inside, f"{path.name} of {backend} imports {other}"


def test_rooms_are_small() -> None:
    tops = [p for p in (ROOT / "trajkit").iterdir() if p.name not in ("py.typed", "__pycache__")]
    packages, modules = [p for p in tops if p.is_dir()], [p for p in tops if p.is_file()]
    assert len(packages) <= 14
    assert len(modules) <= 9
    assert not {p.stem for p in tops} & set(VERBS)
    lengths = [len(p.read_text().splitlines()) for p in files("trajkit", "kernels", "cli")]
    assert statistics.median(lengths) <= 150
    assert statistics.quantiles(lengths, n=10)[-1] <= 400
    assert max(lengths) <= 500


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
    code = "import trajkit.store.ingest, trajkit.fits.fit, trajkit.forecast.extrapolate\n"
    code += "import trajkit.reports.report, trajkit.store.restore, trajkit.reports.verify\n"
    code += "\n".join(f"assert callable(trajkit.{verb}), {verb!r}" for verb in VERBS)
    code += "\nassert type(trajkit).__name__ == 'module'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wheel_has_one_top_level_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names if ".dist-info" not in n.split("/")[0]}
    assert tops == {"trajkit"}
    for expected in (
        "trajkit/kernels/api.py",
        "trajkit/kernels/cpu/launch.py",
        "trajkit/cli/main.py",
        "trajkit/reports/assets/page.html",
        "trajkit/py.typed",
    ):
        assert expected in names
