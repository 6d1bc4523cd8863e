"""Headers of image files, read without a decoder: the size of the picture, and whether decoding it must be cheap.

Everything here is plain Python over bytes, with a bound on every loop. A file is cheap only if it is built as common
programs build theirs; whatever is unknown, rare or odd is not, and harms nobody in a process of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

CHEAP_PIXELS = 1 << 20
CHEAP_BYTES = 2 << 20
_CHEAP_RATIO = 16
"""Longer side over shorter; a strip is resized to something much larger than itself."""
_MAX_SCANS = 16
"""Scans of a JPEG, each of which may go over all of its pixels; progressive ones have about 10."""
_MAX_SEGMENTS = 64
_MAX_CHUNKS = 512
_MAX_TEXTS = 16
_MAX_PROFILE_BYTES = 1 << 16
"""Bytes of a color profile, or of XMP."""
_MAX_EXIF_ENTRIES = 128
_MAX_EXIF_BYTES = 1 << 16
"""Bytes of all values together, which may lie over each other."""
_ORIENTATION = 0x0112
_POINTERS = (0x8769, 0x8825, 0xA005)
"""EXIF tags that hold the place of more tags."""
_EXIF_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8, 8, 8)
"""Bytes of a value, by its type."""


@dataclass(frozen=True)
class Look:
    """The size that a file claims to have, and whether it is cheap."""

    format: str
    """Name of the format, as Pillow writes it."""
    width: int
    height: int
    cheap: bool
    """True if decoding takes at most some 50 ms and 16 MiB, whatever the rest of the file holds."""

    @property
    def pixels(self) -> int:
        """Number of pixels, by which the cost of decoding grows."""
        return self.width * self.height


class _NotUsualError(Exception):
    """The file is not built as common programs build theirs."""


def look(data: bytes) -> Look | None:
    """Read the header of a PNG, JPEG, WebP, GIF or BMP file.

    Returns:
        None if the file is of another format, or its header is odd.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _checked(data, "PNG", *_png(data))
        if data.startswith(b"\xff\xd8\xff"):
            return _checked(data, "JPEG", *_jpeg(data))
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _checked(data, "WEBP", *_webp(data))
        if data[:6] in (b"GIF87a", b"GIF89a"):
            width, height = struct.unpack_from("<HH", data, 6)
            return Look("GIF", width, height, cheap=False)
        if data.startswith(b"BM") and struct.unpack_from("<I", data, 14)[0] >= 40:
            width, height = struct.unpack_from("<ii", data, 18)
            return Look("BMP", abs(width), abs(height), cheap=False)
    except (_NotUsualError, struct.error, IndexError):
        return None
    return None


def _checked(data: bytes, format_: str, width: int, height: int, usual: bool) -> Look:
    short, long = sorted((width, height))
    small = 0 < short * long <= CHEAP_PIXELS and long <= _CHEAP_RATIO * short and len(data) <= CHEAP_BYTES
    return Look(format_, width, height, usual and small)


def _require(condition: bool) -> None:
    if not condition:
        raise _NotUsualError


_PNG_SMALL = (b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"hIST", b"tRNS", b"PLTE", b"cICP")
_PNG_SMALL_BYTES = 1024


def _png(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether every chunk is a usual one."""
    _require(data[8:16] == b"\0\0\0\x0dIHDR")
    width, height = struct.unpack_from(">II", data, 16)
    try:
        _require(len(data) <= CHEAP_BYTES)
        _require_usual_chunks(data)
    except (_NotUsualError, struct.error, IndexError):
        return width, height, False
    return width, height, True


def _require_usual_chunks(data: bytes) -> None:
    texts = profiles = 0
    at = 33
    for _ in range(_MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        start, at = at + 8, at + 12 + length
        _require(at <= len(data))
        if kind == b"IEND":
            return
        if kind in _PNG_SMALL:
            _require(length <= _PNG_SMALL_BYTES)
        elif kind == b"iCCP":
            profiles += 1
            _require(profiles == 1 and length <= _MAX_PROFILE_BYTES)
        elif kind == b"tEXt":
            # A raw profile is EXIF or XMP in hexadecimal.
            texts += 1
            _require(texts <= _MAX_TEXTS and length <= _PNG_SMALL_BYTES and data[start : start + 3].lower() != b"raw")
        elif kind == b"eXIf":
            _require_usual_exif(data[start : start + length])
        else:
            _require(kind == b"IDAT")
    raise _NotUsualError


_JPEG_TABLES = (0xC4, 0xDB, 0xDD)
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)


def _jpeg(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether everything before the first scan is usual, and the scans are few."""
    size: tuple[int, int] | None = None
    usual = True
    at = 2
    for _ in range(_MAX_SEGMENTS):
        mark, marker, length = struct.unpack_from(">BBH", data, at)
        _require(mark == 0xFF and length >= 2 and at + 2 + length <= len(data))
        content, at = data[at + 4 : at + 2 + length], at + 2 + length
        if marker in _JPEG_FRAMES:
            _require(size is None)
            bits, height, width, bands = struct.unpack_from(">BHHB", content)
            _require(width > 0 and height > 0)
            size = width, height
            usual = usual and bits == 8 and bands in (1, 3, 4) and len(content) == 6 + 3 * bands
        elif marker == 0xDA:
            if size is None:
                raise _NotUsualError
            few = len(data) <= CHEAP_BYTES and data.count(b"\xff\xda", at) < _MAX_SCANS
            return *size, usual and few
        elif marker not in _JPEG_TABLES:
            usual = usual and _is_usual_segment(marker, content)
    raise _NotUsualError


def _is_usual_segment(marker: int, content: bytes) -> bool:
    if marker == 0xE1 and content.startswith(b"Exif\0\0"):
        try:
            _require_usual_exif(content[6:])
        except (_NotUsualError, struct.error, IndexError):
            return False
        return True
    return (
        marker in (0xE0, 0xEE, 0xFE)
        or (marker == 0xE1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"))
        or (marker == 0xE2 and content.startswith(b"ICC_PROFILE\0"))
    )


def _webp(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether it is one picture with few other chunks."""
    chunks = list(_webp_chunks(data))
    kind, content = chunks[0]
    if kind != b"VP8X":
        return *_webp_frame(kind, content), True
    _require(len(content) == 10)
    width, height = (1 + int.from_bytes(content[at : at + 3], "little") for at in (4, 7))
    frames = [chunk for chunk in chunks if chunk[0] in (b"VP8 ", b"VP8L")]
    usual = len(frames) == 1 and _webp_frame(*frames[0]) == (width, height)
    for kind, content in chunks[1:]:
        if kind in (b"ICCP", b"XMP "):
            usual = usual and len(content) <= _MAX_PROFILE_BYTES
        elif kind == b"EXIF":
            usual = usual and _is_usual_segment(0xE1, b"Exif\0\0" + content.removeprefix(b"Exif\0\0"))
        else:
            usual = usual and kind in (b"VP8 ", b"VP8L", b"ALPH")
    return width, height, usual


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, end = 12, 8 + struct.unpack_from("<I", data, 4)[0]
    _require(end <= len(data) <= end + 1)
    for _ in range(8):
        kind, length = struct.unpack_from("<4sI", data, at)
        _require(at + 8 + length <= end)
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if at >= end:
            return
    raise _NotUsualError


def _webp_frame(kind: bytes, content: bytes) -> tuple[int, int]:
    if kind == b"VP8 ":
        _require(content[3:6] == b"\x9d\x01\x2a")
        width, height = struct.unpack_from("<HH", content, 6)
        return width & 0x3FFF, height & 0x3FFF
    _require(kind == b"VP8L" and content[:1] == b"\x2f")
    bits = struct.unpack_from("<I", content, 1)[0]
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


def _require_usual_exif(tiff: bytes) -> None:
    """Require few and short values, and no more tags behind them if the picture is to be turned.

    Pillow reads the first list of tags, and writes all of them anew when it turns a picture.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise _NotUsualError
    start = struct.unpack_from(order + "I", tiff, 4)[0]
    count = struct.unpack_from(order + "H", tiff, start)[0]
    _require(count <= _MAX_EXIF_ENTRIES)
    total, turned, more = 0, False, False
    for number in range(count):
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, start + 2 + 12 * number)
        total += values * (_EXIF_SIZES[kind] if kind < len(_EXIF_SIZES) else 8)
        more = more or tag in _POINTERS
        if tag == _ORIENTATION:
            turned = kind != 3 or struct.unpack_from(order + "H", tiff, start + 2 + 12 * number + 8)[0] != 1
    _require(total <= _MAX_EXIF_BYTES and not (turned and more))
