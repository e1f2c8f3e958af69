"""A trainer run as a process of its own, once a segment."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from trajkit.disk import disk_errors
from trajkit.errors import NotFound, TrajkitError
from trajkit.text import shown

LAST_BYTES = 4096
"""of a trainer's output that are looked at for its last line"""
PATIENCE_SECONDS = 20.0
"""that a trainer has to end, when it is asked to"""


class TrainerFailed(TrajkitError, RuntimeError):
    """The trainer ended with an error, or left something else than the segment asked for."""


def run_trainer(words: Sequence[str], log: Path, held: int) -> None:
    """Run a command to its end, its output in a file; it is ended where we are interrupted.

    Args:
        words: program and arguments; no shell is involved.
        log: file for what the trainer prints, on both streams.
        held: descriptor of a lock that lives as long as the trainer does, even if we are killed.

    Raises:
        TrainerFailed: it exited with an error, or was killed. NotFound: no such program.
    """
    with disk_errors(log), log.open("wb") as output:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(held,)
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise NotFound(f"{shown(words[0])}: cannot be run: {error.strerror}") from None
    try:
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
        last = _last_line(log)
        said = f": {last}" if last else ""
        raise TrainerFailed(
            f"the trainer {how}{said} ({shown(log)} has its output); everything so far is kept, and "
            "the same command continues"
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask it to end, wait, then make it."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: Path) -> str:
    """The last line with anything on it, shortened."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            lines = file.read(LAST_BYTES).decode(errors="replace").split("\n")
    except OSError:
        return ""
    found = [line.strip() for line in lines if line.strip()]
    return shown(found[-1][:200]) if found else ""
