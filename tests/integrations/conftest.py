"""The shared bundle with prompts, as an export of an encoder that searches has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxtalk.runtime import Embedder, load
from tests.conftest import Made

PROMPTS = {"query": "black ", "document": "white ", "other": "chess "}


@pytest.fixture(scope="session")
def prompted(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the shared bundle whose texts have three prompts, one of them the default."""
    folder = tmp_path_factory.mktemp("prompted") / "bundle"
    shutil.copytree(made.bundle.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["modalities"]["text"]["preprocess"] |= {"prompts": PROMPTS, "default_prompt_name": "other"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def embedder(prompted: Path) -> Iterator[Embedder]:
    """The bundle with prompts, loaded."""
    with load(prompted) as opened:
        yield opened
