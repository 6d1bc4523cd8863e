"""Images by URL: refused; or from named hosts, and never from an address that only this server can reach."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpcore
import httpx
import numpy as np
import pytest
from PIL import Image

from fluxtalk.errors import InputError, UsageError
from fluxtalk.runtime import Embedder
from fluxtalk.runtime.server.http import fetch
from fluxtalk.runtime.server.http.fetch import Fetcher, is_public
from fluxtalk.runtime.server.settings import ServerSettings
from tests.conftest import Made
from tests.runtime.server.conftest import in_thread, running

HOST, OTHER = "pictures.example", "elsewhere.example"
PUBLIC, PUBLIC_TOO = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def answer(content: bytes = b"", status: int = 200, **headers: str) -> bytes:
    fields = {"content-length": str(len(content)), **{name.replace("_", "-"): v for name, v in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + content


class Stream(httpcore.AsyncMockStream):
    """Answers that come slowly."""

    def __init__(self, buffer: list[bytes], pause_s: float) -> None:
        super().__init__(buffer)
        self._pause_s = pause_s

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await asyncio.sleep(self._pause_s)
        return await super().read(max_bytes, timeout)


class Network(httpcore.AsyncNetworkBackend):
    """Gives each connection the next answer, and remembers where it went."""

    def __init__(self, *answers: bytes | list[bytes], pause_s: float = 0, closed: Sequence[str] = ()) -> None:
        self._answers = list(answers)
        self._pause_s = pause_s
        self._closed = closed
        self.asked: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.asked.append((host, port))
        if host in self._closed:
            raise httpcore.ConnectError("refused")
        given = self._answers.pop(0)
        return Stream(list(given) if isinstance(given, list) else [given], self._pause_s)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def fetched(
    network: Network,
    url: str = f"https://{HOST}/a.png",
    names: Mapping[str, Sequence[str]] | None = None,
    hosts: Sequence[str] = (HOST,),
    **limits: Any,
) -> bytes:
    known = {HOST: [PUBLIC], OTHER: [PUBLIC_TOO]} if names is None else names

    async def resolve(host: str, _port: int) -> Sequence[str]:
        return known.get(host, [])

    return asyncio.run(Fetcher(hosts, resolve, network, **limits).fetch(url))


def test_a_file_of_a_named_host() -> None:
    network = Network(answer(b"content"))
    assert fetched(network) == b"content"
    assert network.asked == [(PUBLIC, 443)]


@pytest.mark.parametrize("location", ["https://[bad/", "//[/", "https://[::1/a.png"])
def test_a_redirect_to_no_url_is_refused(location: str) -> None:
    with pytest.raises(InputError, match=r"redirects to what is no URL.*\.$"):
        fetched(Network(answer(status=302, location=location)))


def test_the_next_address_where_one_is_closed() -> None:
    network = Network(answer(b"content"), closed=[PUBLIC])
    assert fetched(network, names={HOST: [PUBLIC, PUBLIC_TOO]}) == b"content"
    assert [host for host, _ in network.asked] == [PUBLIC, PUBLIC_TOO]


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/a.png",
        f"ftp://{HOST}/a.png",
        "file:///etc/passwd",
        f"https://{OTHER}/a.png",
        f"https://{HOST}:8443/a.png",
        f"https://{HOST}:99999/a.png",
        f"https://user:password@{HOST}/a.png",
        f"https://{HOST}@{OTHER}/a.png",
        f"https://{OTHER}#@{HOST}/a.png",
        f"https://{OTHER}\\@{HOST}/a.png",
        f"https://{HOST}.{OTHER}/a.png",
        f"https://{HOST}/a b.png",
        f"https://{HOST}/a.png\r\nX-Header: 1",
        f"https://{HOST}/\u00e4.png",
        "https:///a.png",
        "https://[::1/a.png",
        f"https://{PUBLIC}/a.png",
    ],
)
def test_other_urls_are_refused_without_asking_anybody(url: str) -> None:
    network = Network()
    with pytest.raises(InputError):
        fetched(network, url)
    assert network.asked == []


PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "2001:0:0:0:0:0:80ff:fffe",
    "no address",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_with_one_address_that_is_not_public_is_not_asked(address: str) -> None:
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        network = Network()
        with pytest.raises(InputError, match="not public"):
            fetched(network, names={HOST: addresses})
        assert network.asked == []


def test_public_addresses() -> None:
    for address in (PUBLIC, PUBLIC_TOO, f"::ffff:{PUBLIC}", "64:ff9b::5db8:d70e"):
        assert is_public(address)


def test_a_name_without_an_address() -> None:
    with pytest.raises(InputError, match="no address"):
        fetched(Network(), names={})


def test_redirects_are_followed_among_named_hosts() -> None:
    for location in (f"https://{OTHER}/b.png?c=1", f"//{OTHER}/b.png"):
        network = Network(answer(status=302, location=location), answer(b"content"))
        assert fetched(network, hosts=(HOST, OTHER)) == b"content"
        assert network.asked == [(PUBLIC, 443), (PUBLIC_TOO, 443)]
    network = Network(answer(status=307, location="/b.png"), answer(b"content"))
    assert fetched(network) == b"content"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (f"https://{OTHER}/b.png", "not fetched here"),
        (f"http://{HOST}/b.png", "Only https"),
        ("https://169.254.169.254/latest", "not fetched here"),
        ("file:///etc/passwd", "written https"),
    ],
)
def test_a_redirect_is_checked_like_a_url(location: str, words: str) -> None:
    network = Network(answer(status=301, location=location))
    with pytest.raises(InputError, match=words):
        fetched(network)
    assert len(network.asked) == 1


def test_a_name_that_changes_its_address_between_redirects() -> None:
    network = Network(answer(status=302, location="/b.png"), answer(b"secret"))
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return next(answers)

    with pytest.raises(InputError, match="not public"):
        asyncio.run(Fetcher((HOST,), resolve, network).fetch(f"https://{HOST}/a.png"))
    assert network.asked == [(PUBLIC, 443)]


def test_redirects_end() -> None:
    network = Network(*[answer(status=302, location="/again") for _ in range(9)])
    with pytest.raises(InputError, match="more than 3 times"):
        fetched(network)
    assert len(network.asked) == 4


def test_size_is_limited_while_it_streams_and_by_what_is_declared() -> None:
    assert fetched(Network(answer(bytes(100))), max_bytes=100) == bytes(100)
    declared = answer(b"a").replace(b"content-length: 1", b"content-length: 101")
    endless = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *[b"64\r\n" + bytes(100) + b"\r\n"] * 10]
    for given in (declared, endless):
        with pytest.raises(InputError, match="at most 100 bytes"):
            fetched(Network(given), max_bytes=100)


def test_time_is_limited_over_all_of_it() -> None:
    slow = [b"HTTP/1.1 200 OK\r\n", b"content-length: 100\r\n\r\n", *[b"a"] * 100]
    with pytest.raises(InputError, match=r"within 0\.3 s"):
        fetched(Network(slow, pause_s=0.05), seconds=0.3)

    async def never(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(InputError, match=r"within 0\.1 s"):
        asyncio.run(Fetcher((HOST,), never, Network(), seconds=0.1).fetch(f"https://{HOST}/a.png"))


@pytest.mark.parametrize(
    "given",
    [
        answer(b"missing", status=404),
        answer(status=302),
        answer(b"zipped", content_encoding="gzip"),
        b"this is no HTTP\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000,
    ],
)
def test_other_answers_are_a_sentence(given: bytes) -> None:
    with pytest.raises(InputError) as caught:
        fetched(Network(given))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("host", ["https://a.example", "a.example/path", "a.example:443", "", "*"])
def test_a_host_is_a_name(host: str) -> None:
    with pytest.raises(UsageError, match="allow_url"):
        Fetcher((host,))
    with pytest.raises(UsageError, match="allow_url"):
        ServerSettings(Path("bundle"), allow_urls=(host,))


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A port on loopback where a file is served over TLS, and the certificate that says it is `HOST`."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={HOST}"]
    names = ["-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names], check=True, capture_output=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.headers['Host']} {self.path}".encode())

        def log_message(self, *_arguments: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], certificate
    server.shutdown()
    thread.join()
    server.server_close()


class Tunnel(httpcore.AnyIOBackend):
    """Sends every connection to a port on loopback, whatever address it was for."""

    def __init__(self, port: int) -> None:
        self._to = port

    async def connect_tcp(self, host: str, port: int, *arguments: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        return await super().connect_tcp("127.0.0.1", self._to, *arguments, **named)


def test_a_real_connection_knows_the_hosts_certificate(tls_server: tuple[int, Path]) -> None:
    port, certificate = tls_server
    trusted = ssl.create_default_context(cafile=str(certificate))

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return [PUBLIC]

    def read(host: str, tls: ssl.SSLContext | None) -> bytes:
        return asyncio.run(Fetcher((host,), resolve, Tunnel(port), tls).fetch(f"https://{host}/a.png?b=%20"))

    assert read(HOST, trusted) == f"{HOST} /a.png?b=%20".encode()
    for host, tls in ((OTHER, trusted), (HOST, None)):
        with pytest.raises(InputError, match="could not be read"):
            read(host, tls)


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
