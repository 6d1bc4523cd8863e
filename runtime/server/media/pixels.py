"""The size of an image file, read from its first bytes without decoding anything: what an item will cost.

A file may lie, and `headers.look` checks it again, of which it needs the whole; what is read here, of base64 too, only
decides who waits.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from fluxtalk.runtime.server.media.headers import claimed_size

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
    found = claimed_size(head)
    return _within(_PIXELS_PER_BYTE * size if found is None else found.width * found.height)


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
