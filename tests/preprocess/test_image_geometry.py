"""Sizes and offsets in whole pixels, padding, and strips that would not fit into memory at full size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.preprocess import image_geometry as geometry
from fluxtalk.preprocess.image_geometry import centered_offset, scaled_size
from tests.preprocess.examples import picture


@pytest.mark.parametrize(
    ("size", "target", "cover", "rounding", "expected"),
    [
        ((500, 375), (256, 256), True, "down", (341, 256)),
        ((375, 500), (256, 256), True, "down", (256, 341)),
        ((300, 201), (100, 100), True, "down", (149, 100)),  # 149.25
        ((200, 301), (100, 100), True, "down", (100, 150)),  # 150.5
        ((200, 301), (100, 100), True, "nearest", (100, 150)),
        ((200, 303), (100, 100), True, "nearest", (100, 152)),  # 151.5, to the even
        ((200, 303), (100, 100), False, "down", (66, 100)),
        ((303, 200), (100, 100), False, "nearest", (100, 66)),
        ((100, 100), (50, 80), True, "down", (80, 80)),
        ((100, 100), (50, 80), False, "down", (50, 50)),
        ((50, 80), (100, 160), True, "down", (100, 160)),
        ((1, 1000), (224, 224), False, "nearest", (1, 224)),  # 0.2: there is no image without rows
        ((1000, 1), (224, 224), False, "down", (224, 1)),
    ],
)
def test_scaled_sizes(
    size: tuple[int, int], target: tuple[int, int], cover: bool, rounding: str, expected: tuple[int, int]
) -> None:
    assert scaled_size(size, target, cover=cover, rounding=rounding) == expected


def test_offsets() -> None:
    assert [centered_offset(outer, 10, "down") for outer in (10, 11, 12, 13)] == [0, 0, 1, 1]
    assert [centered_offset(outer, 10, "nearest") for outer in (10, 11, 12, 13)] == [0, 0, 1, 2]
    assert [centered_offset(outer, 10, "nearest") for outer in (9, 8, 7)] == [0, -1, -1]


def test_squash_may_go_by_way_of_another_size() -> None:
    image = Image.fromarray(picture(40, 30))
    made = ImagePreprocessor(16, 20, resize="squash", resize_to=(24, 25)).prepare(image)
    assert np.array_equal(made, np.asarray(image.resize((25, 24), Image.Resampling.BICUBIC))[4:20, 2:22])


def test_an_image_of_the_final_size_is_still_resized_to_another() -> None:
    array = picture(16, 16)
    assert np.array_equal(ImagePreprocessor(16, 16, resize="shortest").prepare(array), array)
    assert not np.array_equal(ImagePreprocessor(16, 16, resize="shortest", resize_to=(18, 18)).prepare(array), array)


@pytest.mark.parametrize("channels", [1, 3])
def test_longest_pads_both_sides(channels: int) -> None:
    fill = (9, 8, 7)[:channels]
    made = ImagePreprocessor(11, 8, channels, "longest", fill=fill).prepare(np.full((16, 32, 3), 200, dtype=np.uint8))
    assert (made[3:7] == 200).all()
    assert (made[:3] == fill).all()
    assert (made[7:] == fill).all()


def test_none_crops_and_pads_pixels_as_they_are() -> None:
    array = picture(20, 7)
    made = ImagePreprocessor(10, 10, resize="none", fill=(5,)).prepare(array)
    assert np.array_equal(made[:, 1:8], array[5:15])
    assert (made[:, [0, 8, 9]] == 5).all()


@pytest.mark.parametrize("filter_", ["nearest", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(3, 200), (200, 3), (50, 90)])
def test_only_what_is_kept_of_a_huge_intermediate_is_computed(
    monkeypatch: pytest.MonkeyPatch, filter_: str, size: tuple[int, int]
) -> None:
    array = np.asarray(Image.fromarray(picture(9, 9)).resize(size[::-1], Image.Resampling.BICUBIC))
    preprocess = ImagePreprocessor(30, 34, resize="shortest", resize_to=(32, 32), filter=filter_)
    whole = preprocess.prepare(array).astype(int)
    monkeypatch.setattr(geometry, "MAX_RESIZED_PIXELS", 1)
    assert np.abs(preprocess.prepare(array) - whole).max() <= (0 if filter_ == "nearest" else 2)


def test_a_strip_of_one_row_needs_little_memory() -> None:
    """At its full size, 256 x 12,800,000, it would take 10 GB."""
    code = """
import numpy as np, resource
from fluxtalk.preprocess import ImagePreprocessor
preprocess = ImagePreprocessor(224, 224, resize="shortest", resize_to=(256, 256))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
preprocess.prepare(np.arange(50_000, dtype=np.uint16).astype(np.uint8)[None])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100
