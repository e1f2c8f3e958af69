"""What all tests share: the real trajectory, a store made of it once, hypothesis profiles."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
SEEN = ROOT / "data" / "adder-grpo"
HELD_OUT = ROOT / "data" / "adder-grpo-heldout"

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network
sys.path.insert(0, str(ROOT / "examples"))  # the adder task is shared with the examples

_slow_ok = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("default", max_examples=25, deadline=None, suppress_health_check=_slow_ok)
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=_slow_ok)
settings.register_profile("large", max_examples=500, deadline=None, suppress_health_check=_slow_ok)
settings.load_profile(os.environ.get("TRAJKIT_TEST_PROFILE", "default"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless ``-m`` asks for them."""
    if config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="slow: run with make test-all")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def adder_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the real trajectory with a default fit; tests must not change it."""
    import trajkit

    path = tmp_path_factory.mktemp("adder") / "trajkit.zarr"
    trajkit.ingest(SEEN, path)
    trajkit.fit(trajkit.open(path), 0.7)
    return path
