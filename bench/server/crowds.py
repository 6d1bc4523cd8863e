"""Crowds: hostile or careless clients in numbers, and what an ordinary neighbor notices of them.

Each crowd does one thing as fast as it can, until it is stopped; it never hears of the others.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from bench.server.client import Client, post, post_json
from bench.server.load import Load, closed_loop
from bench.server.process import ServerProcess, watching
from bench.server.requests import PATH, LoadRequest, bomb, texts

_NEIGHBORS = 4
"""Clients whose answers are counted."""
_IDLE, _SLOW, _UNREAD, _LARGE = 500, 300, 24, 4
"""Connections that say nothing, bodies that do not come, answers that nobody reads, clients with large requests."""
_PAUSE_S = 0.05
_CALM_S = 10.0
"""Seconds at most for the memory to come back."""

Crowd = Callable[["_Target", asyncio.Event], Coroutine[Any, Any, None]]


class _Target:
    """Destination of requests, and their answers."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = str(parts.hostname), parts.port or 80
        self.statuses: Counter[int] = Counter()

    async def begin(self, sent: bytes, stop: asyncio.Event) -> None:
        """Send some bytes, and neither go on nor read the answer; then leave."""
        with contextlib.suppress(OSError):
            _reader, writer = await asyncio.open_connection(self.host, self.port, limit=1)
            writer.write(sent)
            await stop.wait()
            writer.transport.abort()

    async def send(self, requests: Sequence[bytes], clients: int, stop: asyncio.Event) -> None:
        """Send requests in turn, so many at a time, each after the answer to the one before it."""

        async def one(client: Client) -> None:
            while not stop.is_set():
                for request in requests:
                    self.statuses[(await client.send(request)).status] += 1
                    await asyncio.sleep(_PAUSE_S)
                    if stop.is_set():
                        return

        async with Client(f"http://{self.host}:{self.port}") as client:
            await asyncio.gather(*(one(client) for _ in range(clients)))


def crowds(kinds: Mapping[str, str], max_items: int) -> dict[str, Crowd]:
    """Make the crowds for a bundle, by what they do.

    Args:
        kinds: modality to its kind, as ``/info`` says it.
        max_items: of a request.
    """
    by_kind = {kind: modality for modality, kind in kinds.items()}
    rng = np.random.default_rng(4)
    text = by_kind.get("text")
    long_texts = [" ".join(texts(rng, 4, 80)) for _ in range(max_items)]
    found: dict[str, Crowd] = {}
    if "image" in by_kind:
        file = base64.b64encode(scans(2000, 2000)).decode()
        found["JPEGs of 2,000 scans"] = _sending([_images(by_kind["image"], [file])], _LARGE)
    found["bodies that do not come"] = _beginning(_head(10_000) + b"{", _SLOW)
    short_texts = texts(rng, max_items, 2)
    answers = post_json(PATH, {"input": short_texts, "modality": text, "output": "tokens"})
    found["answers that nobody reads"] = _beginning(answers, _UNREAD)
    exploding = b'{"input": [' + b",".join([b"[1]"] * 5_000_000) + b"]}"
    found["JSON that explodes"] = _sending([post(PATH, exploding)], 6)
    large = [post_json(PATH, {"input": long_texts, "modality": text})]
    if "image" in by_kind:
        large.append(_images(by_kind["image"], [base64.b64encode(bomb(4000)).decode()] * 40))
    found["the largest requests"] = _sending(large, _LARGE)
    found["idle connections"] = _beginning(b"", _IDLE)
    found["malformed requests"] = _sending(
        [
            b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nhost: b\r\ncontent-length: 0\r\n\r\n",
            b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
        ],
        _LARGE,
    )
    return found


async def crowds_phase(
    server: ServerProcess, workload: Sequence[LoadRequest], found: Mapping[str, Crowd], seconds: float
) -> list[dict[str, Any]]:
    """Measure a neighbor alone, beside each crowd, and beside all of them."""
    requests = [request.encoded() for request in workload]
    rows = []
    together: dict[str, Sequence[Crowd]] = {
        "nobody": (),
        **{name: (crowd,) for name, crowd in found.items()},
        "all of them": tuple(found.values()),
    }
    for name, crowd in together.items():
        target, stop = _Target(server.url), asyncio.Event()
        before = server.resident_mib
        with watching(server, 0.2) as watch:
            doing = [asyncio.create_task(member(target, stop)) for member in crowd]
            async with Client(server.url) as client:
                load = await closed_loop(client, requests, _NEIGHBORS, seconds)
            stop.set()
            await asyncio.wait_for(asyncio.gather(*doing, return_exceptions=True), 120)
        rows.append(_row(name, load, target, before, max(watch.resident_mib), await _calm(server, before)))
    return rows


async def _calm(server: ServerProcess, before: float) -> float:
    """Wait until the memory is back, or does not come back; MiB."""
    for _ in range(int(_CALM_S)):
        if server.resident_mib <= before + 32:
            break
        await asyncio.sleep(1)
    return server.resident_mib


def _row(name: str, load: Load, target: _Target, before: float, largest: float, after: float) -> dict[str, Any]:
    names = {0: "lost", -1: "no connection"}

    def shown(statuses: Counter[int]) -> dict[str, int]:
        return {names.get(status, str(status)): count for status, count in sorted(statuses.items())}

    p50, p99 = load.percentile_ms(50), load.percentile_ms(99)
    return {
        "beside": name,
        "p50_ms": None if np.isnan(p50) else round(p50, 2),
        "p99_ms": None if np.isnan(p99) else round(p99, 2),
        "statuses": shown(load.statuses),
        "crowd": shown(target.statuses),
        "before_mib": round(before, 1),
        "largest_mib": round(largest, 1),
        "after_mib": round(after, 1),
    }


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG of one color whose last scan is there so many times."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


def _images(modality: str, files: Sequence[str]) -> bytes:
    return post_json(PATH, {"input": list(files), "modality": modality})


def _head(length: int) -> bytes:
    return post(PATH, b"").replace(b"content-length: 0", f"content-length: {length}".encode())


def _sending(requests: Sequence[bytes], clients: int) -> Crowd:
    async def crowd(target: _Target, stop: asyncio.Event) -> None:
        await target.send(requests, clients, stop)

    return crowd


def _beginning(sent: bytes, connections: int) -> Crowd:
    async def crowd(target: _Target, stop: asyncio.Event) -> None:
        await asyncio.gather(*(target.begin(sent, stop) for _ in range(connections)))

    return crowd
