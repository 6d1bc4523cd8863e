"""Transparency: composited onto the background in every form that files give it, and dropped where it was before."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fluxtalk.arrays import Array
from fluxtalk.errors import InputError, UsageError
from fluxtalk.model.checkpoints.stage1 import load_stage1
from fluxtalk.preprocess import ImagePreprocessor, from_parts
from fluxtalk.preprocess import image_files as files
from tests.preprocess.examples import picture

RED = (200, 30, 10)
STAGE1 = Path(__file__).parents[2] / "bench" / "stage1" / "glyphs.pth"


def _file(image: Image.Image, format_: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **settings)
    return buffer.getvalue()


def _png(color_type: int, samples: Array, transparency: tuple[int, ...] = ()) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads and does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    key = chunk(b"tRNS", struct.pack(f">{len(transparency)}H", *transparency)) if transparency else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _rgba() -> Array:
    """Colors with an alpha that is 0, 255 and all between."""
    alpha = np.linspace(0, 255, 12 * 9).round().astype(np.uint8).reshape(9, 12, 1)
    return np.concatenate([picture(9, 12), alpha], axis=2)


def _over(rgba: Array, color: tuple[int, int, int]) -> Array:
    alpha = rgba[..., 3:].astype(float) / 255
    blended: Array = rgba[..., :3] * alpha + np.array(color) * (1 - alpha)
    return blended


def _gray(rgba: Array) -> Array:
    return np.concatenate([np.repeat(rgba[..., :1], 3, axis=2), rgba[..., 3:]], axis=2)


def _palette() -> tuple[Image.Image, Array, Array]:
    indices = np.random.default_rng(1).integers(0, 16, (9, 12), dtype=np.uint8)
    colors = np.random.default_rng(2).integers(0, 256, (16, 3), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colors.tobytes())
    return image, indices, colors


def _palette_with(transparency: int | bytes, format_: str = "PNG") -> tuple[bytes, Array]:
    image, indices, colors = _palette()
    table = np.full((16, 1), 255, dtype=np.uint8)
    if isinstance(transparency, int):
        table[transparency] = 0
    else:
        table[: len(transparency), 0] = list(transparency)
    settings = {} if format_ == "PNG" else {"optimize": False}
    rgba = np.concatenate([colors, table], axis=1)[indices]
    return _file(image, format_, transparency=transparency, **settings), rgba


def _keyed(mode: str, array: Array, key: Any) -> tuple[bytes, Array]:
    """One color of an opaque image is transparent."""
    image = Image.fromarray(array).convert(mode)
    shown = np.asarray(image.convert("RGB"))
    color = np.broadcast_to(np.array(key), 3)
    alpha = np.where((shown == color).all(axis=2, keepdims=True), 0, 255).astype(np.uint8)
    return _file(image, transparency=key), np.concatenate([shown, alpha], axis=2)


def _deep(channels: int, **more: Any) -> tuple[bytes, Array]:
    """16 bits per channel, of which the upper 8 are kept."""
    rgba = _rgba() if channels == 4 else _gray(_rgba())
    samples = rgba.astype(np.uint16) * 256 + 77
    return _png(6 if channels == 4 else 4, samples if channels == 4 else samples[..., [0, 3]]), rgba


def _deep_keyed(gray: bool) -> tuple[bytes, Array]:
    samples = picture(9, 12).astype(np.uint16) * 256 + 77
    samples = samples[..., :1] if gray else samples
    key = tuple(int(value) for value in samples[2, 3])
    alpha = np.where((samples == samples[2, 3]).all(axis=2, keepdims=True), 0, 255).astype(np.uint8)
    shown = np.broadcast_to(samples >> 8, (9, 12, 3)).astype(np.uint8)
    return _png(0 if gray else 2, samples, key), np.concatenate([shown, alpha], axis=2)


def _premultiplied() -> tuple[Image.Image, Array]:
    image = Image.fromarray(_rgba()).convert("RGBa")
    return image, np.asarray(image.convert("RGBA"))


def _palette_alpha() -> tuple[Image.Image, Array]:
    level, alpha = (Image.fromarray(_rgba()[..., i]) for i in (0, 3))
    return Image.merge("PA", (level.convert("P"), alpha)), _gray(_rgba())


FORMS: dict[str, Callable[[], tuple[Any, Array]]] = {
    "array": lambda: (_rgba(), _rgba()),
    "RGBA": lambda: (_file(Image.fromarray(_rgba())), _rgba()),
    "RGBA of a TIFF": lambda: (_file(Image.fromarray(_rgba()), "TIFF"), _rgba()),
    "RGBA of a WebP": lambda: (_file(Image.fromarray(_rgba()), "WEBP", lossless=True, exact=True), _rgba()),
    "RGBa": _premultiplied,
    "LA": lambda: (_file(Image.fromarray(_gray(_rgba())).convert("LA")), _gray(_rgba())),
    "La": lambda: (Image.fromarray(_gray(_rgba())).convert("LA").convert("La"), _gray(_rgba())),
    "PA": _palette_alpha,
    "P, one color": lambda: _palette_with(3),
    "P, one color of a GIF": lambda: _palette_with(3, "GIF"),
    "P, alpha per color": lambda: _palette_with(bytes(range(0, 160, 10))),
    "L, one level": lambda: _keyed(
        "L", picture(9, 12), int(np.asarray(Image.fromarray(picture(9, 12)).convert("L"))[2, 3])
    ),
    "1, white": lambda: _keyed("1", picture(9, 12), 255),
    "RGB, one color": lambda: _keyed("RGB", picture(9, 12), tuple(int(value) for value in picture(9, 12)[2, 3])),
    "16 bits, RGBA": lambda: _deep(4),
    "16 bits, LA": lambda: _deep(2),
    "16 bits, one level": lambda: _deep_keyed(gray=True),
    "16 bits, one color": lambda: _deep_keyed(gray=False),
}


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), RED])
@pytest.mark.parametrize("form", FORMS)
def test_transparency_shows_the_background(form: str, color: tuple[int, int, int]) -> None:
    item, rgba = FORMS[form]()
    assert rgba[..., 3].min() == 0
    prepared = ImagePreprocessor(9, 12, background=color).prepare(item)
    # Premultiplied colors have lost their lower bits where they are nearly transparent.
    tolerance = 2 if form in ("RGBa", "La") else 1
    assert np.abs(prepared - _over(rgba, color)).max() < tolerance
    clear = rgba[..., 3] == 0
    assert (prepared[clear] == color).all()
    assert np.array_equal(prepared[rgba[..., 3] == 255], rgba[..., :3][rgba[..., 3] == 255])


@pytest.mark.parametrize("form", sorted({*FORMS} - {"RGBa", "La"}))
def test_without_a_background_transparency_is_dropped(form: str) -> None:
    item, rgba = FORMS[form]()
    assert np.array_equal(ImagePreprocessor(9, 12, background=None).prepare(item), rgba[..., :3])


def test_two_black_drawings_on_transparency_are_two_images() -> None:
    def drawing(*box: int) -> bytes:
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        ImageDraw.Draw(image).rectangle(box, fill=(0, 0, 0, 255))
        return _file(image)

    one, other = drawing(10, 10, 50, 50), drawing(5, 5, 60, 20)
    new, old = ImagePreprocessor(64, 64), ImagePreprocessor(64, 64, background=None)
    assert not np.array_equal(new.prepare(one), new.prepare(other))
    assert np.array_equal(old.prepare(one), old.prepare(other))


def test_one_channel_takes_the_backgrounds_brightness() -> None:
    for channels_of in (_rgba(), _gray(_rgba())):
        expected = Image.fromarray(_over(channels_of, RED).round().astype(np.uint8)).convert("L")
        prepared = ImagePreprocessor(9, 12, 1, background=RED).prepare(_file(Image.fromarray(channels_of)))
        assert np.abs(prepared[..., 0].astype(int) - np.asarray(expected)).max() <= 1
    gray = _file(Image.fromarray(_gray(_rgba())).convert("LA"))
    white = np.abs(ImagePreprocessor(9, 12, 1).prepare(gray) - _over(_gray(_rgba()), (255, 255, 255))[..., :1])
    assert white.max() < 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_opaque_images_know_no_background(mode: str, channels: int) -> None:
    image = Image.fromarray(np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    image = (
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    assert image.mode == mode
    for resize in ("crop", "squash", "shortest", "longest"):
        expected = ImagePreprocessor(12, 9, channels, resize, background=None).prepare(image)
        for color in ((255, 255, 255), (0, 0, 0), RED):
            made = ImagePreprocessor(12, 9, channels, resize, background=color).prepare(image)
            assert np.array_equal(made, expected)


def test_a_large_image_is_composited_by_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ImagePreprocessor(9, 12, background=RED).prepare(_rgba())
    monkeypatch.setattr(files, "_COMPOSITED_PIXELS", 25)
    assert np.array_equal(ImagePreprocessor(9, 12, background=RED).prepare(_rgba()), expected)


def test_a_cameras_rotation_and_transparency_go_together() -> None:
    exif = Image.Exif()
    exif[274] = 3
    image, indices, colors = _palette()
    prepared = ImagePreprocessor(9, 12, background=RED).prepare(_file(image, exif=exif, transparency=3))
    expected = colors[indices]
    expected[indices == 3] = RED
    assert np.array_equal(prepared, expected[::-1, ::-1])


def test_the_given_image_is_left_as_it_is() -> None:
    image = Image.open(io.BytesIO(_palette_with(3)[0]))
    ImagePreprocessor(9, 12).prepare(image)
    assert image.mode == "P"
    assert image.info["transparency"] == 3
    assert np.array_equal(np.asarray(image.convert("RGBA"))[..., 3] == 0, np.asarray(image) == 3)


def test_transparency_that_makes_no_sense_is_refused() -> None:
    image = Image.fromarray(picture(9, 12))
    image.info["transparency"] = "red"
    with pytest.raises(InputError, match="cannot be read"):
        ImagePreprocessor(9, 12).prepare(image)


OLD = {
    "kind": "image",
    "height": 9,
    "width": 12,
    "channels": 3,
    "resize": "crop",
    "filter": "bicubic",
    "mean": [0.5],
    "std": [0.5],
}
"""The parts of an artifact from before there was a background."""


def test_an_old_artifact_drops_transparency_and_keeps_its_parts() -> None:
    old = from_parts(OLD, {})
    assert np.array_equal(old.prepare(_rgba()), _rgba()[..., :3])
    assert old.to_parts() == (OLD, {})
    assert list(old.to_parts()[0]) == list(OLD)


def test_the_committed_encoders_keep_their_parts() -> None:
    preprocess = load_stage1(STAGE1).modalities["image"].preprocess
    assert isinstance(preprocess, ImagePreprocessor)
    assert preprocess.background is None
    assert set(preprocess.to_parts()[0]) == set(OLD)


def test_new_settings_are_read_back() -> None:
    for made in (
        ImagePreprocessor(9, 12),
        ImagePreprocessor(9, 12, background=None),
        ImagePreprocessor(9, 12, resize="shortest", resize_to=(10, 14), size_rounding="nearest", background=RED),
        ImagePreprocessor(9, 12, resize="longest", offset_rounding="nearest", fill=(1, 2, 3)),
    ):
        assert from_parts(*made.to_parts()) == made
    assert ImagePreprocessor(9, 12).to_parts()[0] == {**OLD, "background": [255, 255, 255]}


def test_settings_are_written_as_people_write_them() -> None:
    short = {**OLD, "mean": 0.4, "std": 0.2, "resize": "shortest", "resize_to": 14, "background": "white", "fill": 7}
    long = {"mean": [0.4], "std": [0.2], "resize_to": [14, 14], "background": [255, 255, 255], "fill": [7]}
    assert from_parts(short, {}) == from_parts({**short, **long}, {})
    assert from_parts({**OLD, "background": "#c81e0a"}, {}) == ImagePreprocessor(9, 12, background=RED)
    for wrong in ("transparent-ish", "#ff0000ff"):
        with pytest.raises(UsageError, match="background"):
            from_parts({**OLD, "background": wrong}, {})
