"""A small picture of an image file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fluxtalk.preprocess.image import MAX_PIXELS
from fluxtalk.runtime.server.execution.decoding import IMAGE_FORMATS
from fluxtalk.runtime.server.http.errors import ApiError

MAX_FILE_BYTES = 64 << 20


def thumbnail(path: Path, side: int) -> tuple[bytes, str]:
    """Decode an image file, and encode it anew: nothing but pixels gets out.

    Args:
        side: pixels of the longer side at most; a smaller image keeps its size.

    Returns:
        The file and its media type: JPEG, or PNG where that would lose something.

    Raises:
        ApiError: 404: there is no such file; 422: it is none of `IMAGE_FORMATS`, damaged or too large.
    """
    try:
        if not path.is_file():
            raise ApiError(404, "The file of this item is not there any more.", "item_not_found")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _unusable()
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _unusable()
            image.draft("RGB", (side, side))
            image.load()
            return _encoded(_shown(image), side)
    except ApiError:
        raise
    except Exception:  # a broken file makes Pillow's decoders raise almost anything
        raise _unusable() from None


def _shown(image: Image.Image) -> Image.Image:
    """Upright, and in a mode that browsers show."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
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
