"""Image files to pictures: the one decoder, with its formats and limits, of training, embedding and serving."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from fluxtalk.errors import InputError, TooLargeError

_WITH_AVIF = (
    ("AVIF",) if "avif" in features.modules and features.check("avif") else ()
)  # Pillow has it since 11.3, in most of its builds
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", *_WITH_AVIF, "GIF", "BMP", "TIFF")
"""Formats that are read, told by a file's content. Pillow knows more, some of which start other programs."""
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif" for _ in _WITH_AVIF),
)
"""Suffixes by which such files are found in folders and tables."""
MAX_PIXELS = 100_000_000
MAX_SIDE = 50_000
"""Pixels on a side."""
_COMPOSITED_PIXELS = 2**22
"""Pixels that are composited at a time."""


def read_image(item: Any) -> Image.Image:
    """Decode an image, turned upright as its EXIF orientation says.

    Args:
        item: the path or the bytes of a file; or a PIL image of any format, decoded or not.

    Raises:
        InputError: it is missing, or not a complete file of one of `IMAGE_FORMATS`.
        TooLargeError: it is larger than `MAX_PIXELS` or `MAX_SIDE`, or than what is left of the memory.
    """
    if isinstance(item, Image.Image):
        # It may not be decoded yet, nor turned: it has to become the same picture as its file.
        name = str(getattr(item, "filename", "")) or "given"
        with readable(name):
            _require_size(item, name)
            return upright(item)
    if isinstance(item, str | Path):
        with open_image_file(Path(item)) as image:
            return upright(image)
    if isinstance(item, bytes | bytearray | memoryview):
        with readable(bytes_name(item)):
            return upright(open_image_bytes(item))
    raise InputError(f"An image is a path, bytes, a PIL image or a uint8 array; got {type(item).__name__}.")


def open_image_bytes(data: bytes | bytearray | memoryview) -> Image.Image:
    """Read the header of an image file; nothing is decoded yet.

    Raises:
        InputError: it is not of one of `IMAGE_FORMATS`.
        TooLargeError: it is larger than `MAX_PIXELS` or `MAX_SIDE`.
    """
    return _open(io.BytesIO(data), bytes_name(data))


@contextmanager
def open_image_file(path: Path) -> Iterator[Image.Image]:
    """Read the header of an image file, and keep the file open for `upright`; whatever fails inside is an InputError.

    Raises:
        InputError: it is missing, not a complete file of one of `IMAGE_FORMATS`, or too large.
    """
    with readable(str(path)), path.open("rb") as file:
        yield _open(file, str(path))


def upright(image: Image.Image) -> Image.Image:
    """Decode an opened image, and turn it as its EXIF orientation says; one that is upright is returned as it is."""
    image.load()
    return ImageOps.exif_transpose(image) if is_turned(image) else image


def is_turned(image: Image.Image) -> bool:
    """True if an opened image's EXIF says that it is not upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits per channel as one of 8, which Pillow's own conversion would clip at 255; others as is."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def on_background(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Composite an image that has any transparency onto a color; others as is.

    Returns:
        mode RGB, with the rounding of Pillow's ``alpha_composite``, if there was transparency.

    Raises:
        InputError: what the file says of its transparency makes no sense.
    """
    if not image.has_transparency_data or image.mode in ("I", "F"):  # 32 bits per channel are refused later
        return image
    with readable("given"):  # a broken file may name a transparent color that its mode cannot have
        image = _with_eight_bit_key(image)
        opaque = Image.new("RGB", image.size)
        rows = max(1, _COMPOSITED_PIXELS // image.width)  # by strips: whole, it would take four times the memory
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            strip = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            canvas = Image.new("RGBA", strip.size, (*color, 255))
            opaque.paste(Image.alpha_composite(canvas, strip).convert("RGB"), (0, top))
        return opaque


def _with_eight_bit_key(image: Image.Image) -> Image.Image:
    """An image whose transparent color, if it was given in 16 bits, is one of 8 bits or an alpha channel."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        alpha = Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
        image = eight_bits(image)
        image.putalpha(alpha)
    elif image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)  # Pillow reduced the pixels in this way
    return image


def _open(file: BinaryIO, name: str) -> Image.Image:
    with readable(name):
        image = Image.open(file, formats=IMAGE_FORMATS)
        # The header alone tells the size: a decompression bomb is refused before it is decoded.
        _require_size(image, name)
        return image


def _require_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise TooLargeError(
            f"The image {name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are taken, "
            f"and {MAX_SIDE:,} on a side: scale it down."
        )


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raise whatever Pillow raises inside as an InputError that names the image.

    Raises:
        InputError: something failed.
        TooLargeError: the memory was not enough.
    """
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, before anybody can ask for the size
        raise TooLargeError(
            f"The image {name} has far more than the {MAX_PIXELS:,} pixels that are taken: scale it down."
        ) from None
    except MemoryError:
        raise TooLargeError(f"The image {name} takes more memory than there is to decode; scale it down.") from None
    except FileNotFoundError:
        raise InputError(f"The image {name} does not exist; check the path.") from None
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        known = ", ".join(IMAGE_FORMATS[:-1])
        raise InputError(
            f"The image {name} cannot be read ({_reason(error)}); give a complete {known} or {IMAGE_FORMATS[-1]} file."
        ) from None


def bytes_name(data: bytes | bytearray | memoryview) -> str:
    """Name an image that has no path, for errors."""
    return f"in these {len(data)} bytes"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a known image format"
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__
