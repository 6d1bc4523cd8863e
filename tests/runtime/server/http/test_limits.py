"""What strangers send: too long, too slow, too deep, broken. Every one is told so, and no other request notices."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from PIL import Image

from fluxtalk.preprocess import TextPreprocessor
from fluxtalk.runtime import Embedder
from fluxtalk.runtime.server.execution.decoding import decode_text
from fluxtalk.runtime.server.http import protocol
from tests.conftest import Made
from tests.runtime.server.conftest import Process, in_thread, wait_for

MIB = 1 << 20


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def head(length: object, *more: str) -> bytes:
    lines = ["POST /v1/embeddings HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def text_is_served(client: httpx.Client) -> None:
    assert client.post("/v1/embeddings", json={"input": "omega"}).status_code == 200


def test_routes_and_methods_have_one_shape_of_error(client: httpx.Client) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"
    wrong = client.get("/v1/embeddings")
    assert error_of(wrong, 405)["code"] == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"
    assert error_of(client.post("/v1/embeddings", content=b"a=b"), 415)["code"] == "unsupported_media_type"
    compressed = client.post("/v1/embeddings", json={"input": "a"}, headers={"content-encoding": "gzip"})
    assert error_of(compressed, 415)["code"] == "unsupported_encoding"


def test_a_long_body_is_refused_by_its_header(server: Process) -> None:
    with connect(server.url) as connection:
        connection.sendall(head(MIB + 1))
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer


def test_a_long_body_is_refused_while_it_streams(server: Process, client: httpx.Client) -> None:
    with connect(server.url) as connection:
        connection.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        connection.settimeout(0.01)
        sent, answer = 0, b""
        while sent < 100 * MIB and not answer:
            try:
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
            except (TimeoutError, ConnectionError):
                pass
            try:
                answer = connection.recv(1 << 16)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 413")
    assert sent < 4 * MIB
    text_is_served(client)


def test_a_long_body_is_refused_for_an_ordinary_client(client: httpx.Client) -> None:
    assert error_of(client.post("/v1/embeddings", json={"input": "a " * MIB}), 413)["code"] == "body_too_large"


@pytest.mark.parametrize("path", ["/v1/nothing", "/readyz", "/v1/embeddings"])
def test_a_body_that_nobody_reads_keeps_no_connection(server: Process, path: str) -> None:
    with connect(server.url) as connection:
        connection.sendall(head(1000, "Content-Encoding: gzip").replace(b"/v1/embeddings", path.encode(), 1) + b"a")
        answer = everything(connection)
    assert b"connection: close" in answer


def test_a_slow_body_ends_at_the_deadline(server: Process, client: httpx.Client) -> None:
    begin = time.monotonic()
    with connect(server.url) as connection:
        connection.sendall(head(100, "X-Request-Timeout: 0.5"))
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            answer = everything(connection)
        finally:
            stop.set()
            thread.join()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_too_slow" in answer
    assert time.monotonic() - begin < 15  # and not the server's 20
    text_is_served(client)


@pytest.fixture(scope="module")
def impatient(made: Made) -> Iterator[str]:
    """A server that waits half a second for headers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "HEADER_SECONDS", 0.5)
        with in_thread(made.bundle) as up:
            yield up.url


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"])
def test_slow_headers_end_at_the_deadline(impatient: str, sent: bytes) -> None:
    begin = time.monotonic()
    with connect(impatient) as connection:
        connection.sendall(sent)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_slow"
    assert 0.4 < time.monotonic() - begin < 9  # and not after 10 s, as without the patch


def test_slow_headers_of_a_later_request_end_at_the_deadline(impatient: str) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):  # head and body come in one piece or in two
            received += connection.recv(1 << 16)
        assert received.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /livez HT")
        assert everything(connection).startswith(b"HTTP/1.1 408")


def test_endless_headers_are_refused(server: Process) -> None:
    with connect(server.url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        try:
            for _ in range(40):
                connection.sendall(b"x" * 65536)
        except ConnectionError:
            pass
        try:
            answer = everything(connection)
        except ConnectionError:
            return  # closed before we had read it
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    "headers", [b"X: " + b"x" * 66_000 + b"\r\n", b"a: b\r\n" * 11_000, b""], ids=["one", "many", "url"]
)
def test_large_headers_in_one_piece_are_refused(server: Process, headers: bytes) -> None:
    path = b"/livez" if headers else b"/livez?" + b"x" * 66_000
    with connect(server.url) as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 431")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("keep", ["keep-alive", "close"])
def test_an_answer_that_nobody_reads_is_given_up(made: Made, monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    monkeypatch.setattr(protocol, "_FLUSH_SECONDS", 0.5)
    body = orjson.dumps({"input": ["a"] * 2048, "output": "tokens"})
    with in_thread(made.bundle) as up, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(up.url.rpartition(":")[2])))
        connection.sendall(head(len(body), f"Connection: {keep}") + body)
        wait_for(lambda: len(up.connections) == 1)
        wait_for(lambda: not up.connections)


def test_what_is_no_http_is_answered_like_everything_else(server: Process) -> None:
    with connect(server.url) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"input": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"input": NaN}',
        b'{"input": "\\ud800"}',
        b'{"input": "\xff\xfe"}',
        b'"text"',
        b"[1]",
        b"null",
        b'{"input": "a", "tokens": 1e999}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json_is_refused(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert error_of(answer, 400)["type"] == "invalid_request_error"


def test_deep_lists_are_refused(client: httpx.Client) -> None:
    for depth in (10, 500):
        body = {"input": json.loads("[" * depth + "1" + "]" * depth)}
        assert error_of(client.post("/v1/embeddings", json=body), 422)["param"] == "input[0]"


def test_too_many_items_are_refused_in_a_sentence(client: httpx.Client) -> None:
    error = error_of(client.post("/v1/embeddings", json={"input": ["a"] * 10_000}), 400)
    assert error["code"] == "too_many_items"
    assert "10,000" in error["message"]
    assert "2,048" in error["message"]
    answer = client.post("/v1/embeddings", json={"input": ["a"] * 2048, "encoding_format": "base64"})
    assert len(answer.json()["data"]) == 2048


@pytest.mark.parametrize("word", ["omega ", "x", " ", "\n", "我", "a\u0301"], ids=repr)
def test_a_long_text_is_read_as_far_as_it_matters(client: httpx.Client, embedder: Embedder, word: str) -> None:
    text = "black chess queen " + word * (900_000 // len(json.dumps(word, ensure_ascii=False).encode()))
    answer = client.post("/v1/embeddings", json={"input": text})
    expected = embedder.embed("text", [text])
    assert np.abs(np.array([answer.json()["data"][0]["embedding"]]) - expected).max() <= 1e-6


def test_a_long_text_is_cut_before_it_is_tokenized(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = made.bundle.preprocess("text")
    assert isinstance(preprocess, TextPreprocessor)
    text = "black chess queen " * 50_000
    expected = preprocess.prepare(text)
    seen: list[int] = []
    token_ids = preprocess.token_ids

    def watched(item: str) -> list[int]:
        seen.append(len(item))
        return token_ids(item)

    monkeypatch.setattr(preprocess, "token_ids", watched)
    assert np.array_equal(decode_text(preprocess, text), expected)
    assert max(seen) <= 64 * preprocess.max_length


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e999"])
def test_a_timeout_that_is_none_is_refused(client: httpx.Client, value: str) -> None:
    answer = client.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-timeout": value})
    assert error_of(answer, 400)["param"] == "X-Request-Timeout"


def encoded(image: Image.Image, format_: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **settings)
    return file.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that claims many pixels, and holds them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def send_image(client: httpx.Client, *files: bytes) -> httpx.Response:
    files_ = [base64.b64encode(file).decode() for file in files]
    return client.post("/v1/embeddings", json={"modality": "image", "input": files_})


GOOD = {
    "gray": lambda: encoded(picture("L"), "PNG"),
    "palette": lambda: encoded(picture("P"), "PNG"),
    "transparent": lambda: encoded(picture("RGBA"), "PNG"),
    "16 bit": lambda: encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
    "cmyk": lambda: encoded(picture("CMYK"), "JPEG"),
    "rotated": lambda: encoded(picture(), "JPEG", exif=_rotated()),
    "animated": lambda: encoded(picture("P"), "GIF", save_all=True, append_images=[picture("P")] * 3),
    "webp": lambda: encoded(picture(), "WEBP", lossless=True),
    "bmp": lambda: encoded(picture(), "BMP"),
    "tiff": lambda: encoded(picture(), "TIFF"),
    "one pixel": lambda: encoded(picture(size=(1, 1)), "PNG"),
    "20 megapixels": lambda: bomb(5000, 4000),
}


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_picture_is_what_the_library_makes_of_it(
    client: httpx.Client, embedder: Embedder, name: str
) -> None:
    file = GOOD[name]()
    answer = send_image(client, file)
    assert answer.status_code == 200, answer.text
    found = np.array([answer.json()["data"][0]["embedding"]])
    assert np.abs(found - embedder.embed("image", [file])).max() <= 1e-6


BAD = {
    "nothing": lambda: b"",
    "text": lambda: b"this is no image at all",
    "truncated jpeg": lambda: encoded(picture(), "JPEG")[:-200],
    "truncated png": lambda: encoded(picture(), "PNG")[:-200],
    "only a header": lambda: encoded(picture(), "PNG")[:40],
    "32 bit": lambda: encoded(Image.fromarray(np.ones((8, 8), dtype=np.float32)), "TIFF"),
    "bomb": lambda: bomb(13_000, 13_000),
    "long side": lambda: bomb(60_000, 1),
    "another program's": lambda: encoded(picture(), "EPS"),
    "a pdf": lambda: encoded(picture(), "PDF"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_refused_and_nobody_notices(client: httpx.Client, name: str) -> None:
    begin = time.monotonic()
    file = BAD[name]()
    made_s = time.monotonic() - begin
    status = 413 if name in ("bomb", "long side") else 422
    error = error_of(send_image(client, encoded(picture(), "PNG"), file), status)
    assert error["param"] == "input[1]"
    assert time.monotonic() - begin - made_s < 10
    assert send_image(client, encoded(picture(), "PNG")).status_code == 200
    text_is_served(client)


@pytest.mark.parametrize(
    "value",
    ["http://127.0.0.1/a.png", "https://example.com/a.png", "file:///etc/passwd", "/etc/passwd", "data:,abc", "é", "a"],
)
def test_urls_and_paths_are_never_opened(client: httpx.Client, value: str) -> None:
    answer = client.post("/v1/embeddings", json={"modality": "image", "input": value})
    assert error_of(answer, 422)["param"] == "input[0]"


def test_nothing_of_a_body_reaches_the_log(server: Process, client: httpx.Client) -> None:
    secret = "unmistakable-secret"
    for body in (
        {"input": secret, "tokens": 99},
        {"input": secret, secret: 1},
        {"input": [secret, ""]},
        {"input": secret, "model": secret},
        {"modality": "image", "input": secret},
        {"input": secret},
    ):
        client.post("/v1/embeddings", json=body)
    client.post("/v1/embeddings", content=b"{" + secret.encode(), headers={"content-type": "application/json"})
    log = server.log.read_text()
    assert secret not in log
    assert "Traceback" not in log
