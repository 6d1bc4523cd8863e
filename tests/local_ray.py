"""A real Ray on this machine, for the tests of what runs on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ON_RAY = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'fluxtalk[ray]')"
    ),
    # Ray's own code, and the sockets and processes that it leaves to the interpreter.
    pytest.mark.filterwarnings("ignore"),
]
"""Marks of a module that needs it."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two processors of this machine, for a module's tests."""
    with local_ray():
        yield


@contextmanager
def local_ray() -> Iterator[None]:
    """Start it with two processors; its processes get the environment as it is now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 27)
        yield
        ray.shutdown()
