"""Fixture of a fake GPU."""

from __future__ import annotations

import pytest

from tests.runtime.backends import fake_gpu
from tests.runtime.backends.fake_gpu import FakeGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return fake_gpu.fake_gpu(monkeypatch)
