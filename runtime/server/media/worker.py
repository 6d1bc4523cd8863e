"""The process that decodes one file after the other, and may be killed at any moment.

It is started by `worker_process.Worker`, over a socket: a request is a header in JSON and a file, a reply is a kind, a
header in JSON and bytes. It never sees a key or another request, writes no file, and says nothing on stderr, where
libraries would write what they find in a stranger's file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, features

from fluxtalk.errors import BackendError, InputError, TooLargeError
from fluxtalk.preprocess import Preprocessor, from_parts
from fluxtalk.preprocess.image_files import bytes_name, is_turned, open_image_bytes, readable
from fluxtalk.runtime.server.media.headers import look
from fluxtalk.runtime.server.media.thumbnail import encoded_thumbnail

resource: ModuleType | None
try:
    import resource
except ImportError:  # not on this system
    resource = None

REQUEST = struct.Struct("<IQ")
"""Bytes of the header and of the file."""
REPLY = struct.Struct("<cIQ")
"""Kind of the reply, bytes of its header and of its content."""
READY, ARRAY, FILE = b"R", b"A", b"F"
REFUSED, TOO_LARGE, NEEDS, NO_LIBRARY = b"E", b"L", b"N", b"B"
MAX_DECODED_BYTES = 512 << 20
"""Memory that decoding one file may take, as its header has it."""
_SLACK_BYTES = 64 << 20
_SECONDS = 1.0
_SECONDS_PER_MEGAPIXEL = 0.1
_SECONDS_PER_MEBIBYTE = 0.2
"""Processor seconds of a file, pixel and byte: four times and more what the slowest healthy files take here (AVIF of
the best quality, 0.12 s a megapixel of 1.8 MiB)."""
_SOUND_SECONDS = 10.0
_FORMAT_BYTES = {"WEBP": 12, "AVIF": 14, "TIFF": 8, "GIF": 4}
"""Bytes per pixel of a decoder beside the decoded picture."""
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}


def main(descriptor: int) -> None:
    """Serve requests until the other end closes.

    Args:
        descriptor: of a connected stream socket.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the server, which closes the socket in its own time
    _become_harmless()
    connection = socket.socket(fileno=descriptor)
    idle_bytes = _address_space()
    connection.sendall(REPLY.pack(READY, 0, 0))
    _silence()
    with contextlib.suppress(ConnectionError):
        while head := _received(connection, REQUEST.size):
            header_bytes, file_bytes = REQUEST.unpack(head)
            header = bytes(_received(connection, header_bytes))
            data = bytes(_received(connection, file_bytes))
            kind, described, content = _answer(header, data, idle_bytes)
            packed = json.dumps(described).encode()
            connection.sendall(REPLY.pack(kind, len(packed), len(content)) + packed)
            connection.sendall(content)
            del header, data, content


def peak_bytes(image: Image.Image, channels: int) -> int:
    """Estimate the memory that decoding an opened image takes, and bringing it to ``channels``.

    Args:
        image: an image whose header was read.
        channels: 1 or 3, of the result.
    """
    stored = _STORED_BYTES.get(image.mode, 4)
    decoder = _FORMAT_BYTES.get(image.format or "", 0)
    if image.format == "JPEG" and image.info.get("progressive"):
        decoder = 2 * len(image.getbands())
    converted = 0 if image.mode == {1: "L", 3: "RGB"}.get(channels) else (1 if channels == 1 else 4)
    if image.has_transparency_data:
        converted = 4
    turned = stored if is_turned(image) else 0
    return image.width * image.height * (stored + max(decoder, turned + converted))


def cpu_seconds(pixels: int, file_bytes: int) -> float:
    """Processor seconds after which decoding an image is given up: a healthy one needs a fraction of it."""
    return _SECONDS + _SECONDS_PER_MEGAPIXEL * pixels / 1e6 + _SECONDS_PER_MEBIBYTE * file_bytes / (1 << 20)


class _NeedsMoreError(Exception):
    """The file takes more memory than this request allows, and less than any may."""


def _answer(header: bytes, data: bytes, idle_bytes: int) -> tuple[bytes, dict[str, Any], bytes | memoryview]:
    try:
        asked = json.loads(header)
        allowed = int(asked["allowed_bytes"])
        with _limits(idle_bytes, len(data)) as limits:
            if asked["work"] == "thumbnail":
                image = _opened(data, 3, allowed, limits)
                content, media_type = encoded_thumbnail(image, asked["side"])
                return FILE, {"media_type": media_type}, content
            preprocess = _preprocess(json.dumps(asked["preprocess"]))
            if preprocess.kind == "image":
                item: Any = _opened(data, preprocess.channels, allowed, limits)  # type: ignore[attr-defined]
                with readable(bytes_name(data)):
                    item.load()
            else:
                limits.allow(MAX_DECODED_BYTES, _SOUND_SECONDS)
                item = data
            array = np.ascontiguousarray(preprocess.prepare(item))
        return ARRAY, {"dtype": array.dtype.name, "shape": array.shape}, array.data.cast("B")
    except _NeedsMoreError as error:
        return NEEDS, {"bytes": error.args[0]}, b""
    except TooLargeError as error:
        return TOO_LARGE, {"message": str(error)[:1000]}, b""
    except InputError as error:
        return REFUSED, {"message": str(error)[:1000]}, b""
    except BackendError as error:
        return NO_LIBRARY, {"message": str(error)[:1000]}, b""
    except MemoryError:
        return TOO_LARGE, {"message": "The file takes more memory to decode than its header tells; save it anew."}, b""
    except Exception as error:
        sentence = f"The file cannot be decoded ({type(error).__name__}); save it anew in another format."
        return REFUSED, {"message": sentence}, b""


def _opened(data: bytes, channels: int, allowed: int, limits: _Limits) -> Image.Image:
    """Open an image, and allow what its header says that it takes.

    Raises:
        InputError: it cannot be read, or takes more than `MAX_DECODED_BYTES`.
        _NeedsMoreError: it takes more than `allowed`.
    """
    seen = look(data)
    if seen is not None and seen.format == "WEBP":  # its decoder takes the memory when it is opened
        _require_bytes(seen.width, seen.height, seen.pixels * _FORMAT_BYTES["WEBP"], allowed)
    image = open_image_bytes(data)
    with readable(bytes_name(data)):  # whether it is to be turned may stand behind its pixels
        needed = peak_bytes(image, channels)
    _require_bytes(image.width, image.height, needed, allowed)
    limits.allow(needed, cpu_seconds(image.width * image.height, len(data)))
    return image


def _require_bytes(width: int, height: int, needed: int, allowed: int) -> None:
    if needed > MAX_DECODED_BYTES:
        raise TooLargeError(
            f"The image has {width} x {height} pixels, which take {needed >> 20} MiB to decode; at most "
            f"{MAX_DECODED_BYTES >> 20} are taken: scale it down."
        )
    if needed > allowed:
        raise _NeedsMoreError(needed)


@functools.lru_cache(8)
def _preprocess(settings: str) -> Preprocessor:
    return from_parts(json.loads(settings), {})


class _Limits:
    """Limits of this process for one file."""

    def __init__(self, idle_bytes: int, file_bytes: int) -> None:
        # Some decoders read the file into one or two copies of their own.
        self._base_bytes = idle_bytes + _SLACK_BYTES + 3 * file_bytes
        self._started = time.process_time()
        self.allow(MAX_DECODED_BYTES // 4, cpu_seconds(0, file_bytes))

    def allow(self, decoded_bytes: int, seconds: float) -> None:
        """Set the memory, and the processor seconds since the file was begun."""
        if resource is not None:
            _lower(resource, resource.RLIMIT_AS, self._base_bytes + decoded_bytes)
            _lower(resource, resource.RLIMIT_CPU, int(np.ceil(self._started + seconds)))

    def lift(self) -> None:
        """Allow everything that this process may."""
        if resource is not None:
            for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
                _lower(resource, limit, resource.RLIM_INFINITY)


@contextlib.contextmanager
def _limits(idle_bytes: int, file_bytes: int) -> Iterator[_Limits]:
    limits = _Limits(idle_bytes, file_bytes)
    try:
        yield limits
    finally:
        limits.lift()


def _lower(limits: ModuleType, limit: int, value: int) -> None:
    """Set a soft limit, at most the hard one."""
    hard = limits.getrlimit(limit)[1]
    if hard != limits.RLIM_INFINITY and (value == limits.RLIM_INFINITY or value > hard):
        value = hard
    with contextlib.suppress(ValueError, OSError):  # a system may not know it
        limits.setrlimit(limit, (value, hard))


def _become_harmless() -> None:
    """Write no file and no core, and decode in one thread."""
    if resource is not None:
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(limit, (0, 0))
    if features.check("avif"):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _address_space() -> int:
    """Bytes of this process's address space."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 40  # unknown: no limit that could be reached


def _received(connection: socket.socket, count: int) -> bytearray:
    """Receive so many bytes; none if the other end closed."""
    received = bytearray(count)
    view, at = memoryview(received), 0
    while at < count:
        got = connection.recv_into(view[at:])
        if not got:
            return bytearray()
        at += got
    view.release()
    return received


if __name__ == "__main__":
    main(int(sys.argv[1]))
