"""Small pictures of images, encoded anew, so that nothing but pixels gets out."""

from __future__ import annotations

import io

from PIL import Image

from fluxtalk.preprocess.image_files import eight_bits, open_image_bytes, readable, upright


def thumbnail_of(data: bytes, side: int) -> tuple[bytes, str]:
    """Make a small picture of an image file; see `encoded_thumbnail`.

    Raises:
        InputError: it cannot be read.
    """
    return encoded_thumbnail(open_image_bytes(data), side)


def encoded_thumbnail(image: Image.Image, side: int) -> tuple[bytes, str]:
    """Decode an opened image, and make it small.

    Args:
        image: an image of which only the header was read.
        side: length of the longer side at most, in pixels; a smaller image keeps its size.

    Returns:
        the file and its media type: JPEG, or PNG if JPEG would lose something.

    Raises:
        InputError: it cannot be decoded.
    """
    with readable("given"):
        image.draft("RGB", (side, side))
        shown = _shown(upright(image))
        shown.thumbnail((side, side))
        file = io.BytesIO()
        if shown.mode == "RGB":
            shown.save(file, "JPEG", quality=88)
            return file.getvalue(), "image/jpeg"
        shown.save(file, "PNG")
        return file.getvalue(), "image/png"


def _shown(image: Image.Image) -> Image.Image:
    """An image in a mode that browsers show."""
    image = eight_bits(image)
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
