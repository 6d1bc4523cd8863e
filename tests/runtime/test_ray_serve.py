"""A bundle on a real local Ray: by handle and over HTTP, what the library gives."""

from __future__ import annotations

import base64
import importlib.util
import socket
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fluxtalk.errors import BundleError, InputError, UsageError
from fluxtalk.runtime import load
from fluxtalk.runtime.server.settings import ServerSettings
from tests.conftest import Made

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'fluxtalk[ray]')"
    ),
    # Ray's own code, and the sockets and processes that it leaves to the interpreter.
    pytest.mark.filterwarnings("ignore"),
]
_TEXTS = ["omega", "black chess queen", "small letter a"]


@dataclass
class Cluster:
    """A local Ray with Serve on a free port."""

    url: str

    def deployed(self, settings: ServerSettings, replicas: int) -> Any:
        """The handle of a running deployment."""
        from ray import serve

        from fluxtalk.runtime.ray_serve import BundleReplica

        options: dict[str, Any] = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": 1}}
        return serve.run(BundleReplica.options(**options).bind(settings))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray import serve

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=1 << 27,
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield Cluster(f"http://127.0.0.1:{port}")
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def handle(cluster: Cluster, made: Made) -> Any:
    return cluster.deployed(ServerSettings(made.bundle.folder), replicas=2)


def test_a_handle_gives_what_the_library_gives(handle: Any, made: Made) -> None:
    images = np.arange(2 * 32 * 32, dtype=np.uint8).reshape(2, 32, 32)
    with load(made.bundle.folder, threads=1) as embedder:
        for k, output in ((1, "pooled"), (3, "concat"), (4, "tokens"), (None, "complementary")):
            got = handle.embed.remote("text", _TEXTS, k=k, output=output).result()
            np.testing.assert_allclose(got, embedder.embed("text", _TEXTS, k, output), rtol=0, atol=1e-5)
        got = handle.embed.remote("image", list(images)).result()
        np.testing.assert_allclose(got, embedder.embed("image", list(images)), rtol=0, atol=1e-5)


def test_the_routes_of_the_server_are_there(handle: Any, cluster: Cluster, made: Made) -> None:
    with httpx.Client(base_url=cluster.url, trust_env=False, timeout=60) as client:
        assert client.get("/readyz").json() == {"ready": True}
        info = client.get("/info").json()
        assert info["revision"] == made.bundle.manifest.bundle_hash
        assert "1 threads" in info["modalities"]["text"]["engine"]
        body = {"input": _TEXTS, "tokens": 1, "encoding_format": "base64"}
        data = client.post("/v1/embeddings", json=body).json()["data"]
        expected = handle.embed.remote("text", _TEXTS, k=1).result()
        for entry, row in zip(data, expected, strict=True):
            vector = np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4")
            np.testing.assert_allclose(vector, row, rtol=0, atol=1e-5)
        assert client.post("/v1/embeddings", json={"input": ""}).status_code == 422


def test_errors_are_those_of_the_library(handle: Any) -> None:
    with pytest.raises(UsageError, match="4"):
        handle.embed.remote("text", ["a"], k=9).result()
    with pytest.raises(UsageError, match="modality must be one of image, text"):
        handle.embed.remote("smell", ["a"]).result()
    with pytest.raises(InputError, match="input 1: "):
        handle.embed.remote("text", ["a", ""]).result()


def test_many_at_a_time_are_all_answered(handle: Any, cluster: Cluster) -> None:
    expected = handle.embed.remote("text", ["omega"]).result()
    for response in [handle.embed.remote("text", ["omega"]) for _ in range(200)]:
        np.testing.assert_allclose(response.result(), expected, rtol=0, atol=1e-5)

    def ask(_number: int) -> int:
        body = {"input": "omega"}
        return httpx.post(cluster.url + "/v1/embeddings", json=body, trust_env=False, timeout=60).status_code

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(ask, range(64))) == {200}


def test_a_bundle_that_is_none_fails_the_deployment_with_its_sentence(cluster: Cluster, tmp_path: Path) -> None:
    from ray import serve

    begin = time.monotonic()
    with pytest.raises((RuntimeError, BundleError)) as failed:
        cluster.deployed(ServerSettings(tmp_path), replicas=1)
    shown = str(failed.value) + str(serve.status())
    assert "is not a bundle" in shown
    assert time.monotonic() - begin < 60
