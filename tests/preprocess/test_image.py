"""Images: one picture is one array however it is given, and what cannot be used is refused by name."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluxtalk.errors import InputError, UsageError
from fluxtalk.preprocess import ImagePreprocessor
from tests.preprocess.examples import picture


def _encoded(image: Image.Image, format_: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos"])
def test_a_picture_gives_one_array_however_it_is_given(
    tmp_path: Path, channels: int, resize: str, filter_: str
) -> None:
    preprocess = ImagePreprocessor(8, 6, channels, resize, filter_)
    array = picture()
    image = Image.fromarray(array)
    data = _encoded(image)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    expected = preprocess.prepare(array)
    assert expected.shape == (8, 6, channels)
    assert expected.dtype == np.uint8
    for item in (path, str(path), data, bytearray(data), memoryview(data), image, Image.open(path)):
        assert np.array_equal(preprocess.prepare(item), expected), type(item)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    array = picture(8, 8)
    assert np.array_equal(ImagePreprocessor(8, 8).prepare(array), array)


def test_crop_takes_the_center_of_the_longer_side() -> None:
    array = picture(8, 20)
    assert np.array_equal(ImagePreprocessor(8, 8).prepare(array), array[:, 6:14])
    assert np.array_equal(ImagePreprocessor(20, 20).prepare(np.full((8, 20, 3), 9, dtype=np.uint8))[0, 0], [9, 9, 9])


def test_squash_keeps_both_ends() -> None:
    array = np.zeros((8, 32, 3), dtype=np.uint8)
    array[:, :8], array[:, 24:] = 200, 100
    squashed = ImagePreprocessor(8, 8, resize="squash").prepare(array)
    assert int(squashed[4, 0, 0]) == pytest.approx(200, abs=10)
    assert int(squashed[4, 7, 0]) == pytest.approx(100, abs=10)
    assert ImagePreprocessor(8, 8).prepare(array).max() == 0


def test_grayscale_becomes_three_equal_channels() -> None:
    array = picture(8, 8)[:, :, 0]
    for item in (array, array[:, :, None], _encoded(Image.fromarray(array))):
        assert np.array_equal(ImagePreprocessor(8, 8, 3).prepare(item), np.repeat(array[:, :, None], 3, axis=2))
        assert np.array_equal(ImagePreprocessor(8, 8, 1).prepare(item)[:, :, 0], array)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
def test_a_palette_is_looked_up(transparency: int | bytes | None) -> None:
    indices = np.random.default_rng(1).integers(0, 16, (8, 8), dtype=np.uint8)
    colors = np.random.default_rng(2).integers(0, 256, (16, 3), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colors.tobytes())
    assert image.mode == "P"
    settings: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    # A warning of Pillow would fail here, too: warnings are errors.
    preprocess = ImagePreprocessor(8, 8, background=None)
    assert np.array_equal(preprocess.prepare(_encoded(image, **settings)), colors[indices])


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    deep = (np.arange(64, dtype=np.uint32).reshape(8, 8) * 1040).astype(np.uint16)
    prepared = ImagePreprocessor(8, 8, 1).prepare(_encoded(Image.fromarray(deep)))[:, :, 0]
    assert np.array_equal(prepared, (deep >> 8).astype(np.uint8))


def test_thirty_two_bits_are_refused() -> None:
    with pytest.raises(InputError, match=r"8 or 16 bits.*'F'"):
        ImagePreprocessor(8, 8).prepare(_encoded(Image.fromarray(np.ones((8, 8), dtype=np.float32)), "TIFF"))


# https://www.exif.org/Exif2-2.PDF, tag 274: how the stored rows and columns become the upright picture.
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_a_cameras_rotation_is_applied(tmp_path: Path, orientation: int, stored: Any) -> None:
    upright = picture(8, 12)
    exif = Image.Exif()
    exif[274] = orientation
    data = _encoded(Image.fromarray(np.ascontiguousarray(stored(upright))), exif=exif)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    preprocess = ImagePreprocessor(8, 12)
    for item in (data, path, Image.open(path)):
        assert np.array_equal(preprocess.prepare(item), upright), type(item)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png does not exist"):
        ImagePreprocessor(8, 8).prepare(tmp_path / "gone.png")


def test_a_file_that_is_not_an_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("these are notes")
    with pytest.raises(InputError, match=r"notes\.png cannot be read \(not a known image format\)"):
        ImagePreprocessor(8, 8).prepare(path)


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        ImagePreprocessor(8, 8).prepare(tmp_path)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, format_: str) -> None:
    data = _encoded(Image.fromarray(picture(40, 40)), format_)
    path = tmp_path / f"half.{format_.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"half\.{format_.lower()} cannot be read"):
        ImagePreprocessor(8, 8).prepare(path)
    with pytest.raises(InputError, match=f"these {len(data) // 2} bytes"):
        ImagePreprocessor(8, 8).prepare(data[: len(data) // 2])
    if format_ == "WEBP":
        return  # Pillow decodes it when it is opened, before it could be given to us
    with Image.open(path) as unread, pytest.raises(InputError, match=rf"half\.{format_.lower()}.* cannot be read"):
        ImagePreprocessor(8, 8).prepare(unread)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on what it skips
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_broken_image_raises_nothing_but_input_error(format_: str) -> None:
    data = _encoded(Image.fromarray(picture()), format_)
    draw = random.Random(0)
    refused = 0
    for _ in range(1500):
        broken = bytearray(data[: draw.randrange(len(data))] if draw.random() < 0.3 else data)
        for _ in range(draw.randint(1, 3)):
            if broken:
                broken[draw.randrange(len(broken))] = draw.randrange(256)
        try:
            ImagePreprocessor(8, 8).prepare(bytes(broken))
        except InputError:
            refused += 1
    assert refused > 100


def _png_claiming(width: int, height: int) -> bytes:
    """A valid header, and next to nothing behind it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(13_000, 13_000), (100_001, 1_000), (65_000, 65_000), (1, 50_001)])
def test_a_huge_image_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_claiming(width, height))
    with pytest.raises(
        InputError, match=r"bomb\.png.*(13000 x 13000|100001 x 1000|1 x 50001|far more than the 100,000,000)"
    ):
        ImagePreprocessor(8, 8).prepare(path)


def test_a_huge_image_is_refused_where_warnings_are_errors() -> None:
    with pytest.raises(InputError, match="exceeds limit"):
        ImagePreprocessor(8, 8).prepare(_png_claiming(13_000, 13_000))


@pytest.mark.parametrize(
    "item",
    [
        np.zeros((8, 8), dtype=np.float32),
        np.zeros((8, 8, 2), dtype=np.uint8),
        np.zeros((3, 8, 8), dtype=np.uint8),
        np.zeros((0, 8), dtype=np.uint8),
        np.zeros(8, dtype=np.uint8),
        17,
        None,
        b"",
    ],
    ids=repr,
)
def test_a_value_of_another_type_is_refused(item: Any) -> None:
    with pytest.raises(InputError):
        ImagePreprocessor(8, 8).prepare(item)


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 2},
        {"resize": "stretch"},
        {"filter": "gaussian"},
        {"height": 0},
        {"mean": (0.1, 0.2)},
        {"std": ()},
        {"std": (0.0,)},
        {"resize_to": (9, 9)},
        {"resize": "none", "resize_to": (9, 9)},
        {"resize": "squash", "resize_to": (9, 0)},
        {"resize": "squash", "resize_to": (9.0, 9.0)},
        {"resize": "squash", "resize_to": (9,)},
        {"size_rounding": "up"},
        {"offset_rounding": "floor"},
        {"fill": (0, 0)},
        {"fill": (256,)},
        {"background": (0, 0)},
        {"background": (0.5, 0.5, 0.5)},
    ],
    ids=str,
)
def test_impossible_image_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ImagePreprocessor(**{"height": 8, "width": 8, **settings})


def test_images_collate_to_one_array() -> None:
    preprocess = ImagePreprocessor(8, 8)
    rows = [preprocess.prepare(picture(8, 8)), preprocess.prepare(picture(20, 9))]
    batch = preprocess.collate(rows)
    assert list(batch) == ["pixels"]
    assert np.array_equal(batch["pixels"], np.stack(rows))
    assert batch["pixels"].dtype == np.uint8
