"""Stores that an attacker changed, every digest right: each command gives right data or one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MUTANTS = {"large": 1000}.get(os.environ.get("TRAJKIT_TEST_PROFILE", "default"), 60)
"""a batch"""


@pytest.mark.parametrize("batch", range(4))
def test_every_command_gives_right_data_or_one_line(batch: int) -> None:
    script = Path(__file__).parent / "mutate_store.py"
    command = [sys.executable, str(script), str(100_000 * batch), str(MUTANTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = f"{done.stdout[-600:]}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, told  # a negative one is a signal
