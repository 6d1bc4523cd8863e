"""A server answers after a short check, and finds out beside its requests whether every promise is kept."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fluxtalk.artifacts.bundle import read_bundle, write_manifest
from fluxtalk.artifacts.files import hash_file
from fluxtalk.errors import ParityError
from fluxtalk.runtime import load
from fluxtalk.runtime.server.later_verification import LaterVerification
from fluxtalk.runtime.verify import verify_start
from tests.conftest import Made
from tests.runtime.server.conftest import PATIENCE_S, running, start


def _wait_until_verified(url: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not httpx.get(f"{url}/info", trust_env=False).json()["verified"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_one_modality_is_loaded_and_everything_is_verified_in_the_end(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", "--modality", "text") as up:
        with up.client() as client:
            assert list(client.get("/info").json()["modalities"]) == ["text"]
            assert client.post("/v1/embeddings", json={"input": "omega"}).status_code == 200
            refused = client.post("/v1/embeddings", json={"input": [{"image": "https://example.com/a.png"}]})
            assert refused.status_code in (400, 422), refused.text
            assert client.get("/").status_code == 200
        _wait_until_verified(up.url)
        assert up.end() == 0
    assert "verified: every golden vector was reproduced" in (tmp_path / "log").read_text()


def test_an_unknown_modality_ends_the_start(made: Made, tmp_path: Path) -> None:
    started = start(made.bundle.folder, tmp_path / "log", "--modality", "smell")
    assert started.process.wait(PATIENCE_S) == 2
    started.process.communicate()
    assert "This bundle embeds image, text; got smell." in (tmp_path / "log").read_text()


@pytest.fixture
def promise_kept_by_the_first_batch_alone(made: Made, tmp_path: Path) -> Path:
    """A bundle whose eager vectors differ from its graphs in the longest input alone, which a start does not replay."""
    folder = tmp_path / "bundle"
    shutil.copytree(made.bundle.folder, folder)
    path = folder / "golden.safetensors"
    arrays = load_file(path)
    changed = next(name for name in arrays if "longest" in name and "embeddings" in name)
    arrays[changed] = -arrays[changed]
    save_file(arrays, path)
    manifest = read_bundle(folder, check_hashes=False).manifest
    files = {**manifest.files, manifest.golden: hash_file(path)}
    write_manifest(folder, dataclasses.replace(manifest, files=files))
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_promise_ends_the_server(
    promise_kept_by_the_first_batch_alone: Path, tmp_path: Path, workers: int
) -> None:
    options = ["--modality", "text", "--workers", workers]
    started = start(promise_kept_by_the_first_batch_alone, tmp_path / "log", *options)
    started.process.communicate(timeout=PATIENCE_S)
    assert started.process.returncode == 1
    log = (tmp_path / "log").read_text()
    assert "ready: " in log  # it had begun to serve
    assert "Parity does not hold: text in fp32" in log
    assert "Traceback" not in log


def test_the_start_replays_the_first_token_and_all(made: Made) -> None:
    bundle = read_bundle(made.bundle.folder)
    with load(made.bundle.folder, "ort-cpu", threads=1) as embedder:
        reports = list(verify_start(bundle, embedder.session, embedder.modalities, "fp32"))
        assert [(report.modality, report.k) for report in reports] == [
            (modality, k) for modality in embedder.modalities for k in (1, embedder.num_tokens)
        ]
        assert not any(report.broken for report in reports)
        bundle.golden.batch["text"].expected["embeddings"][:, 0] = np.float32(0.5)
        first = next(verify_start(bundle, embedder.session, ["text"], "fp32"))
        with pytest.raises(ParityError, match="text in fp32 with k = 1"):
            first.require()


def test_it_ends_when_the_server_does(made: Made) -> None:
    failures: list[Exception] = []
    with load(made.bundle.folder, "ort-cpu", threads=1) as embedder:
        later = LaterVerification(embedder, failures.append)
        later.start()
        later.close()
        assert not failures
