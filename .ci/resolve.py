"""Resolve the constraints as an ordinary machine would: the public index, and nothing of this one.

    python .ci/resolve.py [--constraints constraints.txt] [--extras all,dev]

A dry run of pip, in an environment without pip's settings: no configuration file, no wheels on disk,
no variable named PIP_*. It fails where the pins contradict one another or what they constrain, where a
pinned version is on no public index, and where a package would be installed that is not pinned. It is
skipped, in one line, only where the index itself cannot be reached.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES_ONLY = ("rouge-score", "sqlitedict", "word2number")
"""what lm-eval needs and no index has a wheel of"""


def main() -> None:
    """Resolve, and say what was found in one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--extras", default="all,dev", help="extras of trajkit to resolve")
    options = parser.parse_args()
    started = time.monotonic()
    if not index_is_there():
        print("resolve: skipped, the package index cannot be reached from here")
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = pip(
            *("install", "--dry-run", "--ignore-installed", "--only-binary", ":all:"),
            *("--no-binary", ",".join(SOURCES_ONLY)),
            *("--report", str(report), "--constraint", str(options.constraints)),
            f"{ROOT}[{options.extras}]",
        )
        if done.returncode != 0 and not index_is_there():
            print("resolve: skipped, the package index went away")
            return
        if done.returncode != 0:
            _, head, why = done.stdout.partition("The conflict is caused by")
            sys.exit(f"{done.stderr.strip()}\n{head}{why.strip()}\nresolve: failed, see above")
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    loose = sorted(unpinned(found, options.constraints.read_text()))
    if loose:
        sys.exit(f"resolve: failed, not pinned in {options.constraints.name}: {', '.join(loose)}")
    seconds = time.monotonic() - started
    print(f"resolve: {len(found)} packages of [{options.extras}] fit together, {seconds:.0f} s")


def index_is_there() -> bool:
    """Whether the public index answers for a package that it is sure to have."""
    return pip("index", "versions", "pip", "--retries", "2", "--timeout", "30").returncode == 0


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pip without any of this machine's settings, except for a certificate it may need."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    environment["PIP_CONFIG_FILE"] = os.devnull
    certificate = ("--cert", os.environ["PIP_CERT"]) if "PIP_CERT" in os.environ else ()
    command = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check")
    return subprocess.run(
        [*command, *arguments, *certificate],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def unpinned(found: list[dict[str, object]], constraints: str) -> set[str]:
    """Names that would be installed in whatever version is newest on the day.

    >>> unpinned([{"name": "Some_Thing"}, {"name": "other"}], "some-thing==1.0")
    {'other'}
    """
    pinned = {normal(name) for name in re.findall(r"(?m)^([\w.-]+)==", constraints)} | {"trajkit"}
    return {str(p["name"]) for p in found if normal(str(p["name"])) not in pinned}


def normal(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
