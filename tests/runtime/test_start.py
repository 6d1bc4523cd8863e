"""What a start reads and computes once."""

from __future__ import annotations

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
from fluxtalk.artifacts.files import canonical_json, hash_json
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
