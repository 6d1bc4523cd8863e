"""One finished `fluxtalk align`, which tests look at, and copies of it, which they change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fluxtalk.align.cli import main


@dataclass(frozen=True)
class Aligned:
    """The folder of a finished `fluxtalk align`, and the arguments that made it."""

    folder: Path
    arguments: tuple[str, ...]
    result: Result


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(scope="session")
def aligned(table_path: Path, stage1_path: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    """The table with both small encoders, all stages."""
    folder = tmp_path_factory.mktemp("align") / "mine"
    arguments = (
        str(table_path), "--stage1-checkpoint", str(stage1_path), "--cache-dir", str(cache_dir), "--device", "cpu",
        "--recipe", "specified", "--batch-size", "32", "--steps", "9",
    )  # fmt: skip
    return Aligned(folder, arguments, run(*arguments, "-o", str(folder)))
