"""What comes before a measurement, so that it measures the program and not the machine's mood.

On a virtual machine the host may take free memory and cached files back within seconds. A page that
is given again costs up to 10 µs, 2.5 s a GB written, and whoever runs next would pay for it. So
before each run, of trajkit or of a peer: the disk is idle, the sources are in the page cache, and
free memory has just been in use.
"""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

FREE_BYTES = 3 << 30
_PAGE = 4096


def settle(*sources: Path, free_bytes: int = FREE_BYTES) -> None:
    """Wait for the disk, read the sources, and touch so much free memory."""
    os.sync()
    for source in sources:
        for path in (source, *source.rglob("*")):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    while file.read(1 << 24):
                        pass
    with mmap.mmap(-1, free_bytes) as memory:
        for at in range(0, free_bytes, _PAGE):
            memory[at] = 1


def timed(action: Callable[[], object], *sources: Path) -> float:
    """Seconds an action takes on a settled machine."""
    settle(*sources)
    return time_call(action)


def time_call(action: Callable[[], object]) -> float:
    """Seconds an action takes on the machine as it is."""
    clock = time.perf_counter()
    action()
    return time.perf_counter() - clock
