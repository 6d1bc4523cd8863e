"""Images by URL: refused; or from named hosts, and never from an address that only this server can reach."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpcore
import pytest

from fluxtalk.errors import InputError, UsageError
from fluxtalk.runtime.server.http.fetch import Fetcher, is_public
from fluxtalk.runtime.server.settings import ServerSettings
from tests.runtime.server.http.network import HOST, OTHER, PUBLIC, PUBLIC_TOO, Network, answer


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
    with pytest.raises(InputError, match=r"redirects to something that is not a URL.*\.$"):
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
        ("file:///etc/passwd", "must be https"),
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
    with pytest.raises(UsageError, match="allow-url"):
        Fetcher((host,))
    with pytest.raises(UsageError, match="allow-url"):
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
