"""The size of an image, as it is estimated before anything is decoded."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fluxtalk.runtime.server.media.pixels import estimate_pixels

SIZE = (320, 190)


def file_of(format_: str, **settings: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format_, **settings)
    return file.getvalue()


@pytest.mark.parametrize(
    ("format_", "settings"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(20_000)}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + bytes(100)}),
    ],
)
def test_the_size_is_read_from_the_first_bytes(format_: str, settings: dict[str, object]) -> None:
    file = file_of(format_, **settings)
    encoded = base64.b64encode(file).decode()
    for value in (file, encoded, f"data:image/x;base64,{encoded}"):
        assert estimate_pixels(value) == SIZE[0] * SIZE[1]


def test_an_array_says_its_size() -> None:
    assert estimate_pixels(np.zeros((30, 20, 3), dtype=np.uint8)) == 600


@pytest.mark.parametrize("size", [0, 1, 10, 25, 1000, 100_000])
def test_anything_has_an_estimate(size: int) -> None:
    random = np.random.default_rng(size).bytes(size)
    for head in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8",
        b"\xff\xd8\xff\xe0\0\0",
        b"GIF89a",
        b"BM",
        b"RIFF1234WEBPVP8X",
    ):
        for value in (head + random, (head + random).hex(), "é" * size, None, [1]):
            assert 1 <= estimate_pixels(value) <= 100_000_000
