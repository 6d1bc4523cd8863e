"""Behind a proxy, under a prefix, and called from web pages of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fluxtalk.errors import UsageError
from fluxtalk.runtime.server.settings import ServerSettings
from tests.conftest import Made
from tests.runtime.server.conftest import Threaded, in_thread

ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def up(made: Made) -> Iterator[Threaded]:
    with in_thread(
        made.bundle,
        root_path="/api",
        cors_origins=(ORIGIN,),
        trusted_proxies=("127.0.0.1",),
        api_keys=("secret",),
    ) as started:
        yield started


@pytest.fixture
def client(up: Threaded) -> Iterator[httpx.Client]:
    with up.client() as client:
        client.headers["authorization"] = "Bearer secret"
        yield client


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_proxy_may_pass_the_prefix_on_or_not(client: httpx.Client, prefix: str) -> None:
    assert client.post(f"{prefix}/v1/embeddings", json={"input": "snowman"}).status_code == 200
    assert client.get(f"{prefix}/v2").json()["name"] == "fluxtalk"
    assert client.get(f"{prefix}/v2/models/none").json()["error"].startswith("The model 'none'")
    assert client.get(f"{prefix}/livez", headers={"authorization": ""}).status_code == 200
    assert client.get(f"{prefix}/info", headers={"authorization": ""}).status_code == 401
    assert client.get(f"{prefix}/v1/nothing").status_code == 404


def test_the_page_loads_what_it_needs_relative_to_itself(client: httpx.Client) -> None:
    for name in ("page.css", "page.js", "icon.svg"):
        assert f'"page/{name}"' in client.get("/api/").text
        assert client.get(f"/api/page/{name}").status_code == 200
    script = client.get("/api/page/server.js").text
    assert '"/v1' not in script
    assert "`/v1" not in script
    assert "document.baseURI" in script


@pytest.mark.parametrize(
    ("path", "ends"),
    [
        ("/api/v1/embeddings/", "/api/v1/embeddings"),
        ("/api", "/api/"),
        ("/v1/embeddings/?k=1", "/v1/embeddings?k=1"),
    ],
)
def test_a_slash_too_many_leads_on_by_a_relative_address(client: httpx.Client, path: str, ends: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == 307
    assert "://" not in answer.headers["location"]
    assert not answer.headers["location"].startswith("/")
    assert str(answer.url.join(answer.headers["location"])).endswith(ends)


def test_pages_of_an_allowed_origin_may_call(client: httpx.Client) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    allowed = client.options("/v1/embeddings", headers={**asked, "authorization": ""})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in allowed.headers["access-control-allow-methods"]
    answer = client.post("/v1/embeddings", json={"input": "snowman"}, headers={"origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    # An error is read by the page, too.
    refused = client.post("/v1/embeddings", json={}, headers={"origin": ORIGIN, "authorization": ""})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    other = client.options("/v1/embeddings", headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_nobody_elses_page_may_call_unless_it_is_said(made: Made) -> None:
    with in_thread(made.bundle) as up, up.client() as client:
        answer = client.post("/v1/embeddings", json={"input": "snowman"}, headers={"origin": ORIGIN})
        assert "access-control-allow-origin" not in answer.headers
        assert client.options("/v1/embeddings", headers={"origin": ORIGIN}).status_code == 405


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("cors_origins", ("app.example",), "An origin is a scheme and a host"),
        ("cors_origins", ("https://app.example/",), "An origin is a scheme and a host"),
        ("root_path", "api", "root_path begins with a slash"),
        ("root_path", "/api/", "root_path begins with a slash"),
        ("trusted_proxies", ("proxy.example",), "A proxy is named by its address"),
    ],
)
def test_settings_are_checked(field: str, value: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ServerSettings(Path("bundle"), **{field: value})  # type: ignore[arg-type]
