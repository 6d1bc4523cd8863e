"""Requests whose end or recipient is a matter of opinion, and a log that strangers cannot fill."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import pytest

from fluxtalk.runtime.server.http import quiet_log
from fluxtalk.runtime.server.http.quiet_log import OncePerSecond
from tests.conftest import Made
from tests.runtime.server.conftest import Process, running

BODY = b'{"input": "snowman"}'
JSON = b"content-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
HOST = b"host: localhost\r\n"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def answer_of(url: str, headers: bytes, body: bytes = BODY) -> tuple[int, str, bytes]:
    """Status, code and headers of the answer to a request with such headers, after which the connection is closed."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\n" + headers + b"\r\n" + body)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    head, _, content = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)["error"]["code"], head.lower()


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        (HOST + JSON + b"content-length: " + b"9" * 5000 + b"\r\n", b"", 413, "body_too_large"),
        (HOST + JSON + b"content-length: " + b"9" * 30 + b"\r\n", b"", 413, "body_too_large"),
        (HOST + JSON + b"content-length: 99999999999999\r\n", b"", 413, "body_too_large"),
        (HOST + JSON + b"content-length: -1\r\n", b"", 400, "invalid_http"),
        (HOST + JSON + b"content-length: 1e3\r\n", b"", 400, "invalid_http"),
        (HOST + JSON + LENGTH + b"content-length: 5\r\n", BODY, 400, "invalid_http"),
        (HOST + JSON + b"transfer-encoding: gzip, chunked\r\n", CHUNKED, 501, "unsupported_encoding"),
        (
            HOST + JSON + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
            CHUNKED,
            501,
            "unsupported_encoding",
        ),
        (HOST + JSON + b"transfer-encoding: identity\r\n", BODY, 501, "unsupported_encoding"),
        (HOST + JSON + LENGTH + b"transfer-encoding: chunked\r\n", CHUNKED, 400, "invalid_http"),
        (HOST + b"host: other.example\r\n" + JSON + LENGTH, BODY, 400, "invalid_http"),
        (HOST + HOST + JSON + LENGTH, BODY, 400, "invalid_http"),
        (JSON + LENGTH, BODY, 400, "invalid_http"),
    ],
)
def test_what_two_servers_may_read_differently_is_refused(
    server: Process, headers: bytes, body: bytes, status: int, code: str
) -> None:
    found, found_code, head = answer_of(server.url, headers, body)
    # httptools itself refuses some of them, as no HTTP.
    assert (found, found_code) in ((status, code), (400, "invalid_http"))
    assert b"connection: close" in head


@pytest.mark.parametrize("second", [HOST + HOST + LENGTH, b"x: " + b"x" * 66_000 + b"\r\n" + HOST, b"\x00: \x01\r\n"])
def test_a_malformed_request_behind_another_ends_the_connection_after_its_answer(
    server: Process, second: bytes
) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    request = b"POST /v1/embeddings HTTP/1.1\r\n"
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(request + HOST + JSON + LENGTH + b"\r\n" + BODY + request + second + b"\r\n" + BODY)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"}")


def test_chunks_are_read_as_ever(server: Process) -> None:
    with server.client() as client:
        pieces = iter([BODY[:5], BODY[5:]])
        answer = client.post("/v1/embeddings", content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 200


def test_malformed_requests_do_not_fill_the_log(server: Process) -> None:
    before = len(server.log.read_text().splitlines())
    for _ in range(50):
        assert answer_of(server.url, b"content-length: x\r\n" + HOST)[0] == 400
        assert answer_of(server.url, b"\x00: \x01\r\n")[0] == 400
    # One line a second at most, and this takes some.
    assert len(server.log.read_text().splitlines()) - before < 50


def test_the_log_counts_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    once = OncePerSecond()

    def said(name: str, message: str, *arguments: object) -> str | None:
        record = logging.LogRecord(name, logging.WARNING, "", 0, message, arguments, None)
        return record.getMessage() if once.filter(record) else None

    assert said("uvicorn.error", "no HTTP from %s", 1) == "no HTTP from 1"
    assert [said("uvicorn.error", "no HTTP from %s", number) for number in range(5)] == [None] * 5
    assert said("fluxtalk.server", "failed in %s", "a") == "failed in a"
    assert said("fluxtalk.server", "failed in %s", "b") == "failed in b"
    assert said("fluxtalk.server", "failed in %s", "b") is None
    monkeypatch.setattr(quiet_log, "_PERIOD_S", 0.0)
    assert said("uvicorn.error", "no HTTP from %s", 7) == "no HTTP from 7 (5 more like it before)"
    for number in range(2000):
        said("fluxtalk.server", "failed in %s", number)


def test_few_open_files_close_idle_connections_and_not_the_server(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", open_files=80) as up:
        host, _, port = up.url.removeprefix("http://").partition(":")
        idle: list[socket.socket] = []
        try:
            for _ in range(150):
                idle.append(socket.create_connection((host, int(port)), 30))
            for _ in range(3):
                with up.client() as client:
                    assert client.post("/v1/embeddings", json={"input": "snowman"}).status_code == 200
        finally:
            for connection in idle:
                connection.close()
        log = up.log.read_text()
    assert "idle ones are closed" in log
    assert len(log.splitlines()) < 40, log
