"""Small pictures of image files."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from fluxtalk.errors import InputError
from fluxtalk.preprocess.image_files import eight_bits, open_image_file, upright
from fluxtalk.runtime.server.http.errors import ApiError

MAX_FILE_BYTES = 64 << 20


def thumbnail(path: Path, side: int) -> tuple[bytes, str]:
    """Decode an image file, and encode it anew, so that nothing but pixels gets out.

    Args:
        side: length of the longer side at most, in pixels; a smaller image keeps its size.

    Returns:
        the file and its media type: JPEG, or PNG if JPEG would lose something.

    Raises:
        ApiError: 404: there is no such file; 422: it cannot be read (see `open_image_file`), or is too large.
    """
    try:
        if not path.is_file():
            raise ApiError(404, "The file of this item is not there any more.", "item_not_found")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _unusable()
        with open_image_file(path) as image:
            image.draft("RGB", (side, side))
            return _encoded(_shown(upright(image)), side)
    except (InputError, OSError):
        raise _unusable() from None


def _shown(image: Image.Image) -> Image.Image:
    """An image in a mode that browsers show."""
    image = eight_bits(image)
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _encoded(image: Image.Image, side: int) -> tuple[bytes, str]:
    image.thumbnail((side, side))
    file = io.BytesIO()
    if image.mode == "RGB":
        image.save(file, "JPEG", quality=88)
        return file.getvalue(), "image/jpeg"
    image.save(file, "PNG")
    return file.getvalue(), "image/png"


def _unusable() -> ApiError:
    return ApiError(422, "The file of this item cannot be shown.", "invalid_item")
