"""The shared bundle with prompts, as an export of an encoder that searches has them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxtalk.artifacts.bundle import read_bundle, write_manifest
from fluxtalk.runtime import Embedder, load
from tests.conftest import Made

PROMPTS = {"query": "black ", "document": "white ", "other": "chess "}


@pytest.fixture(scope="session")
def prompted(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the shared bundle whose texts have three prompts, one of them the default."""
    folder = tmp_path_factory.mktemp("prompted") / "bundle"
    shutil.copytree(made.bundle.folder, folder)
    manifest = read_bundle(folder).manifest
    manifest.modalities["text"].preprocess.update(prompts=PROMPTS, default_prompt_name="other")
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def embedder(prompted: Path) -> Iterator[Embedder]:
    """The bundle with prompts, loaded."""
    with load(prompted) as opened:
        yield opened
