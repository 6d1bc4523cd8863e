"""The budget in bytes: charged before anything is made, refused beyond it, and given back."""

from __future__ import annotations

import json
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import orjson
import pytest

from fluxtalk.errors import UsageError
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.http.memory import MemoryBudget, default_budget, parsed_bytes
from fluxtalk.runtime.server.settings import ServerSettings
from tests.conftest import Made
from tests.runtime.server.conftest import Threaded, in_thread, wait_for

MIB = 1 << 20


def test_one_request_holds_as_much_as_it_leaves() -> None:
    budget = MemoryBudget(1000)
    with budget.charge() as large:
        large.hold(500)
        with pytest.raises(ApiError, match="in use") as error:
            budget.charge().hold(260)
        assert (error.value.status, error.value.code) == (429, "memory")
        with budget.charge() as small:
            small.hold(250)
            assert budget.held == 750
        large.keep(100)
        budget.charge().hold(400)
    assert budget.held == 400


def test_what_never_fits_is_refused_with_413() -> None:
    budget = MemoryBudget(100 * MIB)
    with budget.charge() as charge:
        charge.hold(40 * MIB)
        with pytest.raises(ApiError, match="about 60 MiB of memory, and one may take 50") as error:
            charge.hold(20 * MIB)
    assert error.value.status == 413
    assert budget.held == 0


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b",".join([b"[1]"] * 200_000) + b"]",
        b"[" + b",".join([b"{}"] * 200_000) + b"]",
        b"[" + b",".join([b'{"a":1}'] * 100_000) + b"]",
        b"[" + b",".join([b"[[[]]]"] * 100_000) + b"]",
        b"[" + b",".join([b"1.5"] * 200_000) + b"]",
        b"[" + b",".join([b"123456789012"] * 200_000) + b"]",
        b"[" + b",".join([b'"a"'] * 200_000) + b"]",
        b"[" + b",".join([b'"\\u4e2d"'] * 200_000) + b"]",
        b'"' + b"a" * 1_000_000 + b'"',
        ('"' + "a" * 1_000_000 + "\N{CAT FACE}" + '"').encode(),
        b'"' + b"a" * 1_000_000 + b'\\ud83d\\ude00"',
        json.dumps([[0.123456789] * 77] * 500).encode(),
    ],
    ids=lambda text: text[:16].decode("ascii", "replace"),
)
def test_the_estimate_of_json_is_not_below_what_it_takes(text: bytes) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        value = msgspec.json.decode(text)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert value is not None
    assert taken <= 1.1 * parsed_bytes(text)


def test_the_default_is_bounded_and_holds_the_largest_body() -> None:
    assert 128 * MIB <= default_budget(32 * MIB, 1) <= 512 * MIB
    assert default_budget(1024 * MIB, 1) == 4096 * MIB
    assert default_budget(MIB, 1_000_000) == 4 * MIB
    with pytest.raises(UsageError, match="memory_bytes must be at least 4 times max_body_bytes"):
        ServerSettings(Path("bundle"), max_body_bytes=32 * MIB, memory_bytes=100 * MIB)


@pytest.fixture(scope="module")
def up(made: Made) -> Iterator[Threaded]:
    with in_thread(made.bundle, max_body_bytes=8 * MIB, memory_bytes=48 * MIB) as started:
        yield started


def test_a_body_that_explodes_is_refused_before_it_is_parsed(up: Threaded) -> None:
    body = b'{"input": [' + b",".join([b"[1]"] * 500_000) + b"]}"
    with up.client() as client:
        answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_much_memory"
        assert up.service.memory.held == 0
        assert up.embed(client, "snowman").status_code == 200
        wait_for(lambda: up.service.memory.held == 0)


def test_unread_answers_are_charged_until_they_are_gone(up: Threaded) -> None:
    body = orjson.dumps({"input": ["snowman"] * 2048, "output": "tokens", "embedding_types": ["float", "float16"]})
    head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    unread: list[socket.socket] = []
    try:
        while up.service.memory.held < 24 * MIB:
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(up.url.rpartition(":")[2])))
            connection.sendall(request)
            unread.append(connection)
            connection.recv(1)
            assert len(unread) < 8
        with up.client() as client:
            # The next of their size finds no memory, small ones do.
            refused = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "memory"
            assert up.embed(client, "snowman").status_code == 200
            assert client.get("/info").json()["limits"]["memory_bytes"] == 48 * MIB
            assert "fluxtalk_memory_bytes " in client.get("/metrics").text
    finally:
        for connection in unread:
            connection.close()
    wait_for(lambda: up.service.memory.held == 0)


def test_a_long_answer_arrives_whole(up: Threaded) -> None:
    with up.client() as client:
        answer = client.post("/v1/embeddings", json={"input": ["snowman"] * 400, "output": "tokens"})
    assert answer.status_code == 200
    assert len(answer.content) > MIB // 2
    assert len(answer.json()["data"]) == 400
