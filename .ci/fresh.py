"""Install trajkit without extras into a venv of its own, measure it, and run the main job there.

    python .ci/fresh.py

Fails if torch comes along, if the venv is larger than it was said to be, or if a command fails.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST_MB = 600
"""README and DESIGN.md say how large it is"""

COMMANDS = (
    "ingest {data}",
    "fit --rsq-threshold 0.7",
    "extrapolate --steps 500 -o out",
    "report",
    "verify",
)


def main() -> None:
    """Install, measure, run, and say so in one line each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "venv" / "bin" / "python"
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*install, *constraints, str(ROOT)], check=True)
        size_mb = (
            sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_symlink())
            / 1e6
        )
        print(
            f"fresh: installed in {time.monotonic() - started:.0f} s, {size_mb:.0f} MB", flush=True
        )
        if size_mb > LARGEST_MB:
            sys.exit(f"fresh: failed, {size_mb:.0f} MB where at most {LARGEST_MB} were expected")
        code = (
            "import importlib.util as u; "
            "print(*(n for n in ('torch', 'triton', 'polars') if u.find_spec(n)))"
        )
        found = subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, check=True
        )
        if found.stdout.strip():
            sys.exit(f"fresh: failed, {found.stdout.strip()} came along")
        started = time.monotonic()
        for command in COMMANDS:
            words = command.format(data=ROOT / "data" / "adder-grpo").split()
            line = [str(python.with_name("trajkit")), *words]
            done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{done.stderr.strip()}\nfresh: failed, trajkit {command}")
        print(f"fresh: {len(COMMANDS)} commands ran in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
