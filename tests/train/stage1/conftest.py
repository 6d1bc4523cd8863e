"""The trial of an export is left out, unless a test asks for it."""

from __future__ import annotations

import pytest


@pytest.fixture
def trial_export() -> None:
    """Asks for the trial: a test that uses it packs as a user does."""


@pytest.fixture(autouse=True)
def _trial_export_where_asked(request: pytest.FixtureRequest) -> None:
    if "trial_export" not in request.fixturenames:
        request.getfixturevalue("no_trial_export")
