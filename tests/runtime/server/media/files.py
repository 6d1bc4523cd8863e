"""Image files: those that programs write, and those that only an adversary does."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 64, height: int = 48, channels: int = 3) -> Image.Image:
    """Smooth colors, or gray."""
    shape = (5, 7, channels) if channels > 1 else (5, 7)
    small = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def turned(**more: Any) -> bytes:
    """EXIF of a picture that lies on its side, and other tags."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    if more:
        exif.get_ifd(0x8769).update({0x9286: more["comment"]})
    return exif.tobytes()


USUAL: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: saved(picture(), "JPEG"),
    "gray JPEG": lambda: saved(picture(channels=1), "JPEG"),
    "CMYK JPEG": lambda: saved(picture().convert("CMYK"), "JPEG"),
    "progressive JPEG": lambda: saved(picture(), "JPEG", progressive=True, quality=95, subsampling=0),
    "optimized JPEG": lambda: saved(picture(), "JPEG", optimize=True, quality=30),
    "JPEG with restarts": lambda: saved(picture(), "JPEG", restart_marker_rows=1),
    "JPEG with a profile": lambda: saved(picture(), "JPEG", icc_profile=b"p" * 3000, dpi=(300, 300), comment=b"hello"),
    "turned JPEG": lambda: saved(picture(), "JPEG", exif=turned()),
    "JPEG of a megapixel": lambda: saved(picture(1024, 1024), "JPEG"),
    "PNG": lambda: saved(picture(), "PNG"),
    "gray PNG": lambda: saved(picture(channels=1), "PNG", dpi=(72, 72)),
    "PNG of 16 bits": lambda: saved(Image.fromarray(np.asarray(picture(channels=1)).astype(np.uint16) * 257), "PNG"),
    "PNG with a palette": lambda: saved(picture().quantize(16), "PNG", transparency=0),
    "transparent PNG": lambda: saved(picture(channels=4), "PNG", icc_profile=b"p" * 3000),
    "turned PNG": lambda: saved(picture(), "PNG", exif=turned()),
    "WebP": lambda: saved(picture(), "WEBP"),
    "lossless WebP": lambda: saved(picture(channels=4), "WEBP", lossless=True),
    "transparent WebP": lambda: saved(picture(channels=4), "WEBP"),
    "turned WebP": lambda: saved(picture(), "WEBP", exif=turned(), icc_profile=b"p" * 300),
}
"""Files that are decoded where requests are."""

ISOLATED: dict[str, Callable[[], bytes]] = {
    "GIF": lambda: saved(picture(), "GIF"),
    "BMP": lambda: saved(picture(), "BMP"),
    "TIFF": lambda: saved(picture(), "TIFF"),
    "compressed TIFF": lambda: saved(picture(), "TIFF", compression="tiff_lzw"),
    "CIELab TIFF": lambda: saved(lab(), "TIFF"),
    "AVIF": lambda: saved(picture(), "AVIF"),
    "animated PNG": lambda: saved(picture(), "PNG", save_all=True, append_images=[picture(channels=3).rotate(90)]),
    "animated WebP": lambda: saved(picture(), "WEBP", save_all=True, append_images=[picture().rotate(90)]),
    "JPEG of 2 megapixels": lambda: saved(picture(2000, 1000), "JPEG"),
    "strip": lambda: saved(picture(2000, 20), "PNG"),
    "PNG with compressed text": lambda: with_chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text")),
    "turned JPEG with more tags": lambda: saved(picture(), "JPEG", exif=turned(comment=b"x")),
}
"""Healthy files that are decoded elsewhere."""

HOSTILE: dict[str, Callable[[], bytes]] = {
    "many scans": lambda: many_scans(512, 40),
    "padding before a marker": lambda: inside(saved(picture(), "JPEG"), 2, b"\xff" * 1000),
    "zeros between segments": lambda: inside(saved(picture(), "JPEG"), 20, b"\0" * 1000),
    "many comments": lambda: inside(saved(picture(), "JPEG"), 2, b"\xff\xfe\0\2" * 1000),
    "many Photoshop blocks": lambda: inside(
        saved(picture(), "JPEG"), 2, b"\xff\xed" + struct.pack(">H", 60_016) + b"Photoshop 3.0\0" + b"8BIM" * 15_000
    ),
    "many chunks": lambda: inside(saved(picture(), "PNG"), 33, chunk(b"tEXt", b"a\0b") * 1000),
    "many empty IDAT": lambda: inside(saved(picture(), "PNG"), 33, chunk(b"IDAT", b"") * 1000),
    "unknown chunk": lambda: with_chunk(b"abCd", b"?"),
    "EXIF as text": lambda: with_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\n00000000"),
    "EXIF whose values lie over each other": lambda: with_chunk(b"eXIf", overlapping_exif(100, 1000)),
    "EXIF with many tags": lambda: with_chunk(b"eXIf", overlapping_exif(5000, 1)),
    "EXIF that begins outside": lambda: with_chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f"),
    "WebP of 16 megapixels": lambda: saved(Image.new("RGB", (4000, 4000)), "WEBP", lossless=True),
    "WebP with many chunks": lambda: many_webp_chunks(),
    "PNG that is too large": lambda: png_header(60_000, 60_000),
    "JPEG that is too large": lambda: resized_jpeg(65_000, 65_000),
    "two frames in a JPEG": lambda: two_frames(),
}
"""Files that are small and may be anything but cheap."""


def lab() -> Image.Image:
    """Colors in CIELab."""
    return Image.merge("LAB", picture().split())


def inside(data: bytes, at: int, more: bytes) -> bytes:
    return data[:at] + more + data[at:]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(kind: bytes, content: bytes) -> bytes:
    return inside(saved(picture(), "PNG"), 33, chunk(kind, content))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG of one gray, whose last scan comes again and again."""
    whole = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    return whole[:start] + whole[start:-2] * count + whole[-2:]


def resized_jpeg(width: int, height: int) -> bytes:
    """A JPEG that claims another size."""
    whole = saved(picture(), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def two_frames() -> bytes:
    whole = saved(picture(), "JPEG")
    start = whole.index(b"\xff\xc0")
    return inside(whole, start, whole[start : start + 19])


def overlapping_exif(tags: int, values: int) -> bytes:
    """Tags with so many rationals each, all at one place."""
    entry = struct.pack("<HHII", 0xC000, 5, values, 8)
    return struct.pack("<4sIH", b"II*\0", 8, tags) + entry * tags + bytes(4 + 8 * values)


def many_webp_chunks() -> bytes:
    body = saved(picture(), "WEBP", exif=turned())[12:] + b"abcd\0\0\0\0" * 1000
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
