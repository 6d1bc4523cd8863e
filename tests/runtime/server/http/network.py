"""A network that is not there, for tests of `fetch`: it answers from a list, and remembers who was asked."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore
import numpy as np
from PIL import Image

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
