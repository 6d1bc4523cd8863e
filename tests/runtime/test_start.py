"""What a start reads and computes once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from starlette.testclient import TestClient

from fluxtalk.arrays import Array
from fluxtalk.artifacts import bundle as bundle_module
from fluxtalk.artifacts import golden as golden_module
from fluxtalk.artifacts.bundle import read_bundle
from fluxtalk.artifacts.files import canonical_json, hash_file, hash_json
from fluxtalk.errors import BundleError
from fluxtalk.runtime import load
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.server.app import build_app
from fluxtalk.runtime.server.service import Service
from fluxtalk.runtime.server.settings import ServerSettings
from fluxtalk.tokens import OUTPUT_KINDS
from tests.conftest import Made

PATIENCE_S = 60


@pytest.fixture
def golden_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths of the golden files that were read, in order."""
    reads: list[Path] = []

    def counted(path: Path) -> dict[str, Array]:
        reads.append(path)
        return load_file(path)  # type: ignore[no-any-return]

    monkeypatch.setattr(golden_module, "load_file", counted)
    return reads


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """JSON values that a bundle hashed, and how often."""
    values: Counter[str] = Counter()

    def counted(value: Any) -> str:
        values[canonical_json(value)] += 1
        return hash_json(value)

    monkeypatch.setattr(bundle_module, "hash_json", counted)
    bundle_module._hash_of.cache_clear()  # what other tests of this process hashed
    return values


def test_loading_with_verification_reads_the_golden_file_once(made: Made, golden_reads: list[Path]) -> None:
    with load(made.bundle.folder, "ort-cpu", threads=1, verify=True) as embedder:
        assert len(embedder.modalities) == 2
    assert golden_reads == [made.bundle.folder / made.bundle.manifest.golden]


def test_what_is_not_loaded_is_not_read(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of texts alone need not read the images' graph, nor take a changed one for a reason to refuse."""
    folder = tmp_path / "bundle"
    shutil.copytree(made.bundle.folder, folder)
    with (folder / "image.fp32.onnx").open("ab") as file:
        file.write(b"more")
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(bundle_module, "hash_file", counted)
    with load(folder, "ort-cpu", threads=1, modalities=["text"], verify=True) as embedder:
        assert embedder.embed("text", ["omega"]).shape == (1, 48)
    assert sorted(read) == sorted(set(made.bundle.manifest.files) - {"image.fp32.onnx"})
    for modalities in (["image"], None):
        with pytest.raises(BundleError, match=r"image\.fp32\.onnx was changed since the bundle was written"):
            load(folder, "ort-cpu", modalities=modalities)


def test_a_tokenizer_is_read_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(made.bundle.folder)
    assert bundle.preprocess("text") is bundle.preprocess("text")
    assert bundle.preprocess("text") is not read_bundle(made.bundle.folder).preprocess("text")


def test_a_server_that_fetches_nothing_loads_no_http_client() -> None:
    program = "import sys, fluxtalk.runtime.server.app; print('httpcore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_server_reads_the_golden_file_and_hashes_every_value_once(
    made: Made, golden_reads: list[Path], hashed: Counter[str]
) -> None:
    manifest = made.bundle.manifest
    spaces = {output: [manifest.stage1_hash, manifest.head_hash, output] for output in OUTPUT_KINDS}
    settings = ServerSettings(made.bundle.folder, BackendOptions("ort-cpu", threads=1, spinning=False))
    service = Service(settings)
    with TestClient(build_app(service)) as client:
        end = time.monotonic() + PATIENCE_S
        while client.get("/readyz").status_code != 200:
            assert service.failure is None
            assert time.monotonic() < end
            time.sleep(0.01)
        for output in (*OUTPUT_KINDS, *OUTPUT_KINDS):
            answer = client.post("/v1/embeddings", json={"input": "black chess queen", "output": output})
            assert answer.json()["space_id"] == hash_json(spaces[output])
        assert client.get("/info").status_code == 200
    assert golden_reads == [made.bundle.folder / manifest.golden]
    assert [hashed[canonical_json(space)] for space in spaces.values()] == [1] * len(OUTPUT_KINDS)
    assert set(hashed.values()) == {1}
