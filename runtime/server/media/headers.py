"""Headers of image files, read without a decoder: the size of the picture, and whether decoding it must be cheap.

Everything here is plain Python over bytes, with a bound on every loop. A file is cheap only if it is built as common
programs build theirs; whatever is unknown, rare or odd is not, and harms nobody in a process of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
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


@dataclass(frozen=True)
class Claim:
    """The format and size that the first bytes of a file claim."""

    format: str
    """Name of the format, as Pillow writes it."""
    width: int
    height: int


def claimed_size(head: bytes) -> Claim | None:
    """Read the size that a PNG, JPEG, WebP, GIF or BMP file claims.

    Args:
        head: the file, or its first bytes.

    Returns:
        None if the file is of another format, its header is odd, or the size is not among these bytes.
    """
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            _require(head[8:16] == b"\0\0\0\x0dIHDR")
            return Claim("PNG", *struct.unpack_from(">II", head, 16))
        if head.startswith(b"\xff\xd8\xff"):
            frames = (content for marker, content, _ in _jpeg_segments(head) if marker in _JPEG_FRAMES)
            height, width = struct.unpack_from(">HH", next(frames, b""), 1)
            return Claim("JPEG", width, height)
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return Claim("WEBP", *_webp_size(head[12:16], head[20:30]))
        if head[:6] in (b"GIF87a", b"GIF89a"):
            return Claim("GIF", *struct.unpack_from("<HH", head, 6))
        if head.startswith(b"BM") and struct.unpack_from("<I", head, 14)[0] >= 40:
            width, height = struct.unpack_from("<ii", head, 18)
            return Claim("BMP", abs(width), abs(height))
    except (_NotUsualError, struct.error, IndexError):
        return None
    return None


def look(data: bytes) -> Look | None:
    """Read the header of a PNG, JPEG, WebP, GIF or BMP file, and tell whether decoding it must be cheap.

    Returns:
        None if the file is of another format, or its header is odd.
    """
    claim = claimed_size(data)
    if claim is None:
        return None
    try:
        usual = claim.format in _IS_USUAL and _IS_USUAL[claim.format](data, claim)
    except (_NotUsualError, struct.error, IndexError):
        return None
    short, long = sorted((claim.width, claim.height))
    small = 0 < short * long <= CHEAP_PIXELS and long <= _CHEAP_RATIO * short and len(data) <= CHEAP_BYTES
    return Look(claim.format, claim.width, claim.height, usual and small)


def _require(condition: bool) -> None:
    if not condition:
        raise _NotUsualError


_PNG_SMALL = (b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"hIST", b"tRNS", b"PLTE", b"cICP")
_PNG_SMALL_BYTES = 1024


def _is_usual_png(data: bytes, _claim: Claim) -> bool:
    """True if every chunk is a usual one."""
    try:
        _require(len(data) <= CHEAP_BYTES)
        _require_usual_chunks(data)
    except (_NotUsualError, struct.error, IndexError):
        return False
    return True


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


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content and end of each segment, up to the first scan."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        mark, marker, length = struct.unpack_from(">BBH", data, at)
        _require(mark == 0xFF and length >= 2)
        content, at = data[at + 4 : at + 2 + length], at + 2 + length
        yield marker, content, at
        if marker == 0xDA:
            return
    raise _NotUsualError


def _is_usual_jpeg(data: bytes, claim: Claim) -> bool:
    """True if everything before the first scan is usual, and the scans are few."""
    frames, usual, end = 0, True, 0
    for marker, content, end in _jpeg_segments(data):
        _require(end <= len(data))
        if marker in _JPEG_FRAMES:
            frames += 1
            _require(frames == 1 and claim.width > 0 and claim.height > 0)
            usual = usual and content[0] == 8 and content[5] in (1, 3, 4) and len(content) == 6 + 3 * content[5]
        elif marker not in (*_JPEG_TABLES, 0xDA):
            usual = usual and _is_usual_segment(marker, content)
    return usual and len(data) <= CHEAP_BYTES and data.count(b"\xff\xda", end) < _MAX_SCANS


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


def _is_usual_webp(data: bytes, claim: Claim) -> bool:
    """True if it is one picture with few other chunks."""
    chunks = list(_webp_chunks(data))
    if chunks[0][0] != b"VP8X":
        return True
    _require(len(chunks[0][1]) == 10)
    frames = [chunk for chunk in chunks if chunk[0] in (b"VP8 ", b"VP8L")]
    usual = len(frames) == 1 and _webp_size(*frames[0]) == (claim.width, claim.height)
    for kind, content in chunks[1:]:
        if kind in (b"ICCP", b"XMP "):
            usual = usual and len(content) <= _MAX_PROFILE_BYTES
        elif kind == b"EXIF":
            usual = usual and _is_usual_segment(0xE1, b"Exif\0\0" + content.removeprefix(b"Exif\0\0"))
        else:
            usual = usual and kind in (b"VP8 ", b"VP8L", b"ALPH")
    return usual


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


def _webp_size(kind: bytes, content: bytes) -> tuple[int, int]:
    """Width and height that a chunk claims: of the whole picture, or of a frame."""
    if kind == b"VP8X":
        _require(len(content) >= 10)
        return 1 + int.from_bytes(content[4:7], "little"), 1 + int.from_bytes(content[7:10], "little")
    if kind == b"VP8 ":
        _require(content[3:6] == b"\x9d\x01\x2a")
        width, height = struct.unpack_from("<HH", content, 6)
        return width & 0x3FFF, height & 0x3FFF
    _require(kind == b"VP8L" and content[:1] == b"\x2f")
    bits = struct.unpack_from("<I", content, 1)[0]
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


_IS_USUAL: Mapping[str, Callable[[bytes, Claim], bool]] = {
    "PNG": _is_usual_png,
    "JPEG": _is_usual_jpeg,
    "WEBP": _is_usual_webp,
}


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
