"""Other libraries' encoders, small and random, saved once each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.encoders.families import Family, families
from bench.encoders.torchvision_operators import declare_torchvision_operators


@pytest.fixture(scope="session", autouse=True)
def _importable_torchvision() -> None:
    declare_torchvision_operators()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Family, str]]:
    """Save a family's encoder, once, and return it with the source that names it."""
    known = {family.name: family for family in families()}
    sources: dict[str, str] = {}

    def save(name: str) -> tuple[Family, str]:
        if name not in sources:
            folder: Path = tmp_path_factory.mktemp("encoder") / name.replace(" ", "-").replace(",", "")
            sources[name] = known[name].save(folder)
        return known[name], sources[name]

    return save
