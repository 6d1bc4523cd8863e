"""Bundles to compile, and the library that compiles them without a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.devices.tensorrt_api import TensorRT, load_tensorrt
from tests.export.to_tensorrt.trt_bundles import bundle_of, graph_of, kinds

PRECISIONS = ("fp32", "fp16", "bf16")
RARE = ("image", "words")
"""Kinds in the slow tests alone: `photo` and `masked` have the same inputs and harder encoders."""


@pytest.fixture(scope="session")
def api() -> TensorRT:
    return load_tensorrt("rtx")


def _bundle(folder: Path, modalities: Iterable[str]) -> Bundle:
    graphs = {modality: graph_of(modality, kinds()[modality]) for modality in modalities}
    return bundle_of(folder, graphs, [*PRECISIONS, "int8"])


@pytest.fixture(scope="session")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of an encoder of each mechanism in every precision that is compiled, and in int8 of the dynamic kind."""
    return _bundle(tmp_path_factory.mktemp("kinds") / "bundle", (kind for kind in kinds() if kind not in RARE))


@pytest.fixture(scope="session")
def rare_kinds(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same of the other kinds."""
    return _bundle(tmp_path_factory.mktemp("rare") / "bundle", RARE)


@pytest.fixture
def bundle(request: pytest.FixtureRequest, modality: str) -> Bundle:
    """The one of both that has the modality."""
    found: Bundle = request.getfixturevalue("rare_kinds" if modality in RARE else "every_kind")
    return found


@pytest.fixture
def own(every_kind: Bundle, tmp_path: Path) -> Bundle:
    """A copy to build engines in."""
    return read_bundle(Path(shutil.copytree(every_kind.folder, tmp_path / "bundle")))
