"""What the look at a header promises: a cheap file is one that common programs write, and nothing else is cheap."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fluxtalk.runtime.server.media.headers import CHEAP_PIXELS, look
from tests.runtime.server.media.files import HOSTILE, ISOLATED, USUAL, many_scans, picture, png_header, saved


@pytest.mark.parametrize("name", USUAL)
def test_a_usual_file_is_cheap_and_its_size_is_that_of_its_picture(name: str) -> None:
    data = USUAL[name]()
    seen = look(data)
    assert seen is not None
    assert seen.cheap
    with Image.open(io.BytesIO(data)) as image:
        assert (seen.format, seen.width, seen.height) == (image.format, *image.size)


@pytest.mark.parametrize("name", [*ISOLATED, *HOSTILE])
def test_what_is_rare_or_odd_is_not_cheap(name: str) -> None:
    seen = look((ISOLATED | HOSTILE)[name]())
    assert seen is None or not seen.cheap


def test_scans_are_counted() -> None:
    few, many = (look(many_scans(64, count)) for count in (2, 40))
    assert few is not None
    assert few.cheap
    assert many is not None
    assert not many.cheap


def test_a_size_is_known_before_anything_is_decoded() -> None:
    seen = look(png_header(60_000, 50_000))
    assert seen is not None
    assert (seen.pixels, seen.cheap) == (3_000_000_000, False)


def test_no_bytes_break_the_look_and_what_stays_cheap_stays_small() -> None:
    rng = np.random.default_rng(0)
    files = [make() for make in (USUAL | ISOLATED).values()]
    for turn in range(4000):
        data = bytearray(files[turn % len(files)][:4000])
        for _ in range(1 + turn % 8):
            data[rng.integers(len(data))] = rng.integers(256)
        seen = look(bytes(data[: rng.integers(1, len(data) + 1)]))
        assert seen is None or not seen.cheap or 0 < seen.pixels <= CHEAP_PIXELS


def test_a_long_file_is_not_looked_through() -> None:
    assert look(saved(picture(), "JPEG") + bytes(4 << 20)) is not None
    seen = look(saved(picture(), "PNG") + bytes(4 << 20))
    assert seen is not None
    assert not seen.cheap
