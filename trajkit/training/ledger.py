"""What every jump did, a line of JSON each."""

import json
from pathlib import Path
from typing import Any

from trajkit.disk import disk_errors


class Ledger:
    """Appends to a JSONL file, or to nothing where no path is given; keeps the lines in memory."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.lines: list[dict[str, Any]] = []

    def write(self, **line: Any) -> dict[str, Any]:
        """Append a line.

        Raises:
            StorageError: the disk refused.
        """
        self.lines.append(line)
        if self.path is not None:
            with disk_errors(self.path), self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return line
