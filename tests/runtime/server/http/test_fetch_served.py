"""Images by URL through the server: from named hosts, and refused by default."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpcore
import httpx
import numpy as np
import pytest

from fluxtalk.runtime import Embedder
from fluxtalk.runtime.server.http import fetch
from tests.conftest import Made
from tests.runtime.server.conftest import in_thread, running
from tests.runtime.server.http.network import HOST, OTHER, PUBLIC, Network, answer, picture


@pytest.fixture
def named(made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[httpx.Client, Network]]:
    """A server that may ask `HOST`, whose one file is a picture; and ``localhost``, which is itself."""
    network = Network(*[answer(picture())] * 3)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [PUBLIC] if host == HOST else await system_resolve(host, port)

    system_resolve = fetch.system_resolve
    monkeypatch.setattr(fetch, "system_resolve", resolve)
    monkeypatch.setattr(httpcore, "AnyIOBackend", lambda: network)
    with in_thread(made.bundle, allow_urls=(HOST, "localhost")) as up, up.client() as client:
        yield client, network


def test_through_the_server(named: tuple[httpx.Client, Network], embedder: Embedder) -> None:
    client, network = named
    url = f"https://{HOST}/a.png"
    part = {"type": "image_url", "image_url": {"url": url}}
    expected = embedder.embed("image", [picture()])[0]
    for body in (
        {"messages": [{"role": "user", "content": [part]}]},
        {"input": [{"image": url}]},
        {"modality": "image", "input": url},
    ):
        found = client.post("/v1/embeddings", json=body)
        assert found.status_code == 200, found.text
        assert np.abs(np.array(found.json()["data"][0]["embedding"]) - expected).max() <= 1e-6
    assert network.asked == [(PUBLIC, 443)] * 3
    in_place = {"image": base64.b64encode(picture()).decode()}
    for bad in ("https://localhost/a.png", f"http://{HOST}/a.png", f"https://{OTHER}/a.png"):
        refused = client.post("/v1/embeddings", json={"input": [in_place, {"image": bad}]})
        assert refused.status_code == 422
        assert refused.json()["error"]["param"] == "input[1]"
    assert len(network.asked) == 3
    # A text is a text.
    assert client.post("/v1/embeddings", json={"input": f"https://{HOST}/ omega"}).status_code == 200


def test_a_named_host_that_is_this_machine(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", "--allow-url", "localhost") as up, up.client() as client:
        refused = client.post("/v1/embeddings", json={"input": [{"image": f"{up.url.replace('http', 'https')}/a.png"}]})
        assert "port 443" in refused.json()["error"]["message"]
        refused = client.post("/v1/embeddings", json={"input": [{"image": "https://localhost/a.png"}]})
        assert "not public" in refused.json()["error"]["message"]


def test_urls_are_refused_by_default(client: httpx.Client) -> None:
    for url in (f"https://{HOST}/a.png", "http://127.0.0.1/", "file:///etc/passwd", "HTTPS://x", "ftp://x"):
        for body in (
            {"input": [{"image": url}]},
            {"modality": "image", "input": [url]},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        ):
            refused = client.post("/v1/embeddings", json=body)
            assert refused.status_code == 422
            assert "not fetched" in refused.json()["error"]["message"] or url.startswith("ftp")
    refused = client.post("/v2/embed", json={"images": [f"https://{HOST}/a.png"]})
    assert refused.status_code == 422
