"""More requests at a time than the process takes: refused at once, in order, and the connection goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from fluxtalk.runtime.server.http import places
from tests.conftest import Made
from tests.runtime.server.conftest import Threaded, in_thread

HEAD = (
    "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n"
    "content-type: application/json\r\n{}content-length: {}\r\n\r\n{}"
)
BODY = '{"input": "snowman", "encoding_format": "base64"}'


@pytest.fixture(scope="module")
def up(made: Made) -> Iterator[Threaded]:
    with in_thread(made.bundle) as started:
        yield started


async def connect(up: Threaded) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(up.url.rpartition(":")[2]))


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode().splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def request(extra: str = "") -> bytes:
    return HEAD.format(extra, len(BODY), BODY).encode()


def test_requests_beyond_the_limit_are_refused_and_counted(up: Threaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RUNNING_AT_A_TIME", 0)

    async def talk() -> None:
        reader, writer = await connect(up)
        # A large body is not counted as headers, and what comes behind it on the connection is answered too.
        big = '{"input": "' + "a" * 200_000 + '"}'
        for body in (BODY, big, BODY):
            writer.write(HEAD.format("", len(body), body).encode())
            status, headers, content = await answer(reader)
            assert (status, headers["retry-after"]) == (429, "1")
            assert b'"code":"overloaded"' in content
        monkeypatch.setattr(places, "RUNNING_AT_A_TIME", 256)
        writer.write(request())
        assert (await answer(reader))[0] == 200
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
        status, _, content = await answer(reader)
        assert status == 200
        assert b'fluxtalk_rejections_total{reason="overloaded"} 3.0' in content
        writer.close()

    asyncio.run(talk())


def test_health_is_never_refused_and_a_closing_client_is_closed(up: Threaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RUNNING_AT_A_TIME", 0)

    async def talk() -> None:
        reader, writer = await connect(up)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await answer(reader))[0] == 200
        # A client that asks first is answered without its body.
        writer.write(HEAD.format("expect: 100-continue\r\n", len(BODY), "").encode())
        assert (await answer(reader))[0] == 429
        assert await reader.read() == b""
        writer.close()
        reader, writer = await connect(up)
        writer.write(request("connection: close\r\n"))
        assert (await answer(reader))[0] == 429
        assert await reader.read() == b""
        writer.close()

    asyncio.run(talk())


def test_a_pipelined_request_is_answered_in_its_turn(up: Threaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RUNNING_AT_A_TIME", 1)

    async def talk() -> None:
        reader, writer = await connect(up)
        writer.write(request() + request())
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]
        writer.close()

    asyncio.run(talk())
