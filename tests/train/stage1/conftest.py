"""The trial of an export takes seconds for each encoder: it is left out where a test is about something else."""

from __future__ import annotations

import pytest

from fluxtalk.train.stage1 import probe


@pytest.fixture
def trial_export() -> None:
    """Asks for the trial: a test that uses it packs as a user does."""


@pytest.fixture(autouse=True)
def _no_trial_export(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "trial_export" not in request.fixturenames:
        monkeypatch.setattr(probe, "try_exporting", lambda *_: None)
