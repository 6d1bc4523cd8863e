"""Bundles to compile, and the library that compiles them without a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.devices.tensorrt_api import TensorRT, load_tensorrt
from tests.export.to_tensorrt.trt_bundles import bundle_of, graph_of, kinds

PRECISIONS = ("fp32", "fp16", "bf16")


@pytest.fixture(scope="session")
def api() -> TensorRT:
    return load_tensorrt("rtx")


@pytest.fixture(scope="session")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of every encoder kind in every precision that is compiled, and in int8 of the dynamic kind."""
    graphs = {modality: graph_of(modality, kind) for modality, kind in kinds().items()}
    return bundle_of(tmp_path_factory.mktemp("kinds") / "bundle", graphs, [*PRECISIONS, "int8"])


@pytest.fixture
def own(every_kind: Bundle, tmp_path: Path) -> Bundle:
    """A copy to build engines in."""
    return read_bundle(Path(shutil.copytree(every_kind.folder, tmp_path / "bundle")))
