"""Draw docs/report.png, the README's picture: the report's R² figure of the run in data/.

python docs/make_picture.py
"""

import shutil
import tempfile
from pathlib import Path

import trajkit

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Ingest, fit and report in a temporary folder, and keep the one figure."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "trajkit.zarr"
        trajkit.ingest(ROOT / "data" / "adder-grpo", store)
        trajkit.fit(trajkit.open(store))
        trajkit.report(trajkit.open(store), Path(folder) / "report", formats=["png"])
        shutil.copyfile(Path(folder) / "report/figures/rsq.png", ROOT / "docs" / "report.png")


if __name__ == "__main__":
    main()
