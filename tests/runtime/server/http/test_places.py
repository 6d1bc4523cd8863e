"""Bodies that do not come: they take no place of a request that is complete, and lose to those that come."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from fluxtalk.runtime.server.http import places
from tests.conftest import Made
from tests.runtime.server.conftest import Threaded, in_thread, wait_for

BODY = b'{"input": "snowman", "encoding_format": "base64"}'
LENGTH = len(BODY)


@pytest.fixture(scope="module")
def up(made: Made) -> Iterator[Threaded]:
    with in_thread(made.bundle) as started:
        yield started


@pytest.fixture
def slow_bodies(up: Threaded) -> Iterator[list[socket.socket]]:
    """Connections that are closed in the end, and of which the server has then seen the end."""
    opened: list[socket.socket] = []
    yield opened
    for connection in opened:
        connection.close()
    wait_for(lambda: not up.connections)


def begin(up: Threaded, first: bytes = BODY[:1], length: int = LENGTH) -> socket.socket:
    """Send headers and the first bytes of a body."""
    connection = socket.create_connection(("127.0.0.1", int(up.url.rpartition(":")[2])), 30)
    head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {length}\r\n\r\n".encode() + first)
    return connection


def status_of(connection: socket.socket) -> int:
    """Status of the answer, once its whole head and body are here."""
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith(b"}"):
        part = connection.recv(1 << 16)
        if not part:
            break
        received += part
    return int(received.split(b" ", 2)[1])


def test_slow_bodies_take_nobodys_place(
    up: Threaded, slow_bodies: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "RUNNING_AT_A_TIME", 2)
    slow_bodies += [begin(up) for _ in range(20)]
    wait_for(lambda: len(up.connections) == 20)
    with up.client() as client:
        for _ in range(5):
            assert up.embed(client, "snowman").status_code == 200
    # Their own turn comes when their body does.
    slow_bodies[7].sendall(BODY[1:])
    assert status_of(slow_bodies[7]) == 200


def test_a_full_room_gives_up_the_body_that_is_furthest_behind(
    up: Threaded, slow_bodies: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ARRIVING_OF_A_CLIENT", 6)
    large = b'{"input": "' + b"snowman " * 100_000 + b'"}'
    upload = begin(up, large[:500_000], len(large))
    wait_for(lambda: len(up.connections) == 1)
    for count in range(9):
        slow_bodies.append(begin(up))
        if count >= 5:
            assert status_of(slow_bodies[count - 5]) == 429
    upload.sendall(large[500_000:])
    assert status_of(upload) == 200
    upload.close()
    slow_bodies[-1].sendall(BODY[1:])
    assert status_of(slow_bodies[-1]) == 200


def test_a_body_below_the_minimum_rate_is_given_up_and_one_above_is_not(
    up: Threaded, slow_bodies: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "GRACE_S", 0.3)
    monkeypatch.setattr(places, "_SWEEP_S", 0.1)
    large = b'{"input": "' + b"snowman " * 100 + b'"}' + b" " * 100_000
    slow_bodies += [begin(up), begin(up, large[:50_000], len(large))]
    assert status_of(slow_bodies[0]) == 408
    time.sleep(0.3)
    slow_bodies[1].sendall(large[50_000:])
    assert status_of(slow_bodies[1]) == 200


def test_a_body_that_comes_while_every_place_is_taken_is_told_so_and_the_connection_goes_on(
    up: Threaded, slow_bodies: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_bodies.append(begin(up))
    wait_for(lambda: len(up.connections) == 1)
    monkeypatch.setattr(places, "RUNNING_AT_A_TIME", 0)
    slow_bodies[0].sendall(BODY[1:])
    assert status_of(slow_bodies[0]) == 429
    monkeypatch.undo()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {LENGTH}"
    )
    slow_bodies[0].sendall(head.encode() + b"\r\n\r\n" + BODY)
    assert status_of(slow_bodies[0]) == 200
