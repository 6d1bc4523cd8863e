"""The size of an image file, read from its first bytes without decoding anything: what an item will cost.

A file may lie, and `headers.look` checks it again, of which it needs the whole; what is read here, of base64 too, only
decides who waits.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any

_HEAD_BYTES = 1 << 16
"""Bytes of a file that are looked at."""
_PIXELS_PER_BYTE = 8
"""Pixels of a byte in a file of unknown kind: as many as an ordinary photo has."""
_MOST_PIXELS = 100_000_000


def estimate_pixels(value: Any) -> int:
    """Estimate the pixels of an image as a request brings it: bytes, base64, a ``data:`` URL, or an array.

    Returns:
        at least 1, and at most 100 million, which is more than any image that is taken has.
    """
    shape = getattr(value, "shape", None)
    if shape is not None:
        return _within(shape[0] * shape[1] if len(shape) > 1 else 1)
    head, size = _head(value)
    found = _size(head)
    return _within(_PIXELS_PER_BYTE * size if found is None else found[0] * found[1])


def _within(pixels: int) -> int:
    return max(1, min(_MOST_PIXELS, int(pixels)))


def _head(value: Any) -> tuple[bytes, int]:
    """The first bytes of a file, and its length."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[:_HEAD_BYTES]), len(value)
    if not isinstance(value, str):
        return b"", 0
    begin = value.find(",", 0, 256) + 1 if value[:5].lower() == "data:" else 0
    text = value[begin : begin + _HEAD_BYTES // 3 * 4]
    try:
        return base64.b64decode(text[: len(text) // 4 * 4]), len(value) // 4 * 3
    except (binascii.Error, ValueError):
        return b"", len(value) // 4 * 3


def _size(head: bytes) -> tuple[int, int] | None:
    """Width and height; None if the file is of another kind, or its size is not among its first bytes."""
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack(">II", head[16:24])
        if head.startswith(b"\xff\xd8"):
            return _jpeg_size(head)
        if head.startswith((b"GIF87a", b"GIF89a")):
            return struct.unpack("<HH", head[6:10])
        if head.startswith(b"BM"):
            width, height = struct.unpack("<ii", head[18:26])
            return width, abs(height)
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return _webp_size(head)
    except (struct.error, IndexError):
        return None
    return None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(head):
        marker, length = head[at + 1], struct.unpack(">H", head[at + 2 : at + 4])[0]
        if head[at] != 0xFF:
            return None
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + length
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None
