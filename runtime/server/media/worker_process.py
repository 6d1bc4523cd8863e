"""A decoding process, from the side of the server: started, asked, and killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from fluxtalk.runtime.server.media.worker import READY, REPLY, REQUEST

_STARTS_WITHIN_S = 60.0
_MAX_HEADER_BYTES = 1 << 14
_MAX_REPLY_BYTES = 512 << 20
_BUFFER_BYTES = 1 << 20
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
"""Variables of the environment that a worker gets; a key is none of them."""
_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # What one picture took is given back, and not kept for the next.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "PYTHONWARNINGS": "ignore",
}


class WorkerEndedError(Exception):
    """The process ended before it answered.

    Args:
        cause: ``cpu`` if its processor time was over, ``crashed`` otherwise.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(frozen=True)
class Reply:
    """Answer of a worker, which is believed no more than a client."""

    kind: bytes
    """One of those in `worker`."""
    header: dict[str, Any]
    content: bytearray


class Worker:
    """A process that decodes one file at a time. It does not survive this object's `kill`."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            for end in (ours, theirs):
                for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER_BYTES)
            paths = [path or os.getcwd() for path in sys.path]
            code = (
                f"import sys; sys.path[:] = {paths!r}; "
                f"from fluxtalk.runtime.server.media.worker import main; main({theirs.fileno()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | _VARIABLES,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours

    @property
    def pid(self) -> int:
        """Identifier of the process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Block until the process takes requests.

        Raises:
            WorkerEndedError: it ended, or does not answer.
        """
        self._socket.settimeout(_STARTS_WITHIN_S)
        try:
            ready = self._socket.recv(REPLY.size, socket.MSG_WAITALL)
        except OSError:
            ready = b""
        if ready != REPLY.pack(READY, 0, 0):
            self.kill()
            self.bury()
            self.close()
            raise WorkerEndedError("crashed")
        self._socket.setblocking(False)

    async def ask(self, header: dict[str, Any], data: bytes) -> Reply:
        """Send a request, and receive the answer. If this is canceled, it can be asked no more.

        Raises:
            WorkerEndedError: the process ended, or answered nonsense.
        """
        loop = asyncio.get_running_loop()
        packed = json.dumps(header).encode()
        try:
            await loop.sock_sendall(self._socket, REQUEST.pack(len(packed), len(data)) + packed)
            await loop.sock_sendall(self._socket, data)
            kind, header_bytes, content_bytes = REPLY.unpack(await self._received(REPLY.size))
            if header_bytes > _MAX_HEADER_BYTES or content_bytes > _MAX_REPLY_BYTES:
                raise WorkerEndedError("crashed")
            described = json.loads(await self._received(header_bytes))
            content = await self._received(content_bytes)
        except (OSError, struct.error, ValueError):
            raise WorkerEndedError(await asyncio.to_thread(self._cause_of_end)) from None
        if not isinstance(described, dict):
            raise WorkerEndedError("crashed")
        return Reply(kind, described, content)

    def kill(self) -> None:
        """End the process at once, whatever it does. A pending `ask` then ends, too."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """Close the connection, when nobody waits for an answer any more."""
        self._socket.close()

    def bury(self) -> None:
        """Wait for the killed process to be gone."""
        self._process.wait()

    async def _received(self, count: int) -> bytearray:
        loop = asyncio.get_running_loop()
        received = bytearray(count)
        view, at = memoryview(received), 0
        while at < count:
            got = await loop.sock_recv_into(self._socket, view[at:])
            if not got:
                raise ConnectionResetError
            at += got
        return received

    def _cause_of_end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process.wait(1.0) == -signal.SIGXCPU:
                return "cpu"
        return "crashed"


def shape_of(header: dict[str, Any], content: bytearray) -> tuple[str, tuple[int, ...]] | None:
    """Read the type and shape of an array that a worker sent.

    Returns:
        ``uint8`` or ``float32``, and its shape; None if it makes no sense.
    """
    sizes = {"uint8": 1, "float32": 4}
    dtype, shape = header.get("dtype"), header.get("shape")
    if dtype not in sizes or not isinstance(shape, list) or not 1 <= len(shape) <= 3:
        return None
    if not all(type(side) is int and side > 0 for side in shape) or math.prod(shape) * sizes[dtype] != len(content):
        return None
    return dtype, tuple(shape)
