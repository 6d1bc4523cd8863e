"""Pictures of drawings: square PNG files with transparency, all of one size."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.icons.drawings import Drawing
from fluxtalk.artifacts.files import hash_file, write_json
from fluxtalk.console import progress
from fluxtalk.errors import BackendError

RENDERING = 1
"""Number of this way of rendering; another number renders existing pictures again."""
_FONT_SIZE_SHARE = 0.86
_INK = (0, 0, 0, 255)


def rasterizer_is_there() -> bool:
    """True if resvg_py, which draws SVG files, can be imported."""
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        return False
    return True


def render(drawing: Drawing, size: int) -> Image.Image:
    """Draw ``size`` x ``size`` RGBA pixels.

    Fully transparent pixels are white, so that a reader who ignores transparency sees a white background too.

    Raises:
        BackendError: resvg_py is missing.
        ValueError: the drawing cannot be read.
        OSError: its file cannot be read.
    """
    if drawing.glyph:
        image = _glyph(drawing, size)
    elif drawing.source.suffix == ".svg":
        image = _svg(drawing.source.read_text(encoding="utf-8"), size)
    else:
        with Image.open(drawing.source) as opened:
            image = opened.convert("RGBA")
    image = _square(image, size)
    pixels = np.array(image)
    pixels[pixels[..., 3] == 0] = (255, 255, 255, 0)
    return Image.fromarray(pixels)


def _svg(text: str, size: int) -> Image.Image:
    try:
        import resvg_py
    except ImportError:
        raise BackendError("Drawing SVG files needs resvg-py; pip install 'fluxtalk[icons]'.") from None
    found = re.search(r'viewBox="[-\d.]+[ ,]+[-\d.]+[ ,]+([\d.]+)[ ,]+([\d.]+)"', text)
    width, height = (float(found[1]), float(found[2])) if found else (1.0, 1.0)
    data = resvg_py.svg_to_bytes(
        svg_string=text,
        skip_system_fonts=True,
        width=size if width >= height else None,
        height=None if width >= height else size,
    )
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


@lru_cache(maxsize=8)
def _load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), round(size * _FONT_SIZE_SHARE))


def _glyph(drawing: Drawing, size: int) -> Image.Image:
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    font = _load_font(drawing.source, size)
    left, top, right, bottom = font.getbbox(drawing.glyph)
    place = ((size - right - left) / 2, (size - bottom - top) / 2)
    ImageDraw.Draw(image).text(place, drawing.glyph, font=font, fill=_INK)
    return image


def _square(image: Image.Image, size: int) -> Image.Image:
    """Scale the longer side to ``size``, and center on transparency."""
    longer = max(image.size)
    if longer != size:
        sides = [max(1, round(side * size / longer)) for side in image.size]
        image = image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
    if image.size == (size, size):
        return image
    canvas = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas


def picture_path(drawing: Drawing) -> str:
    """Path of a drawing's picture, relative to the data set."""
    return f"pictures/{drawing.style}/{drawing.stem}.png"


def render_all(drawings: Sequence[Drawing], root: Path, size: int) -> tuple[list[str], dict[str, str]]:
    """Write the pictures that are not there yet.

    Pictures of another size or way of rendering are removed first.

    Returns:
        SHA-256 of each drawing's picture, empty where there is none; and the failures, path to reason.

    Raises:
        BackendError: resvg_py is missing.
    """
    folder, recipe = root / "pictures", {"size": size, "rendering": RENDERING}
    # Beside the pictures, because it has to be gone before they are.
    mark = root / "pictures.json"
    if not mark.is_file() or json.loads(mark.read_text(encoding="utf-8")) != recipe:
        mark.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(mark, recipe)
    hashes: list[str] = []
    failures: dict[str, str] = {}
    for drawing in progress(drawings, "drawing", unit="picture"):
        path = root / picture_path(drawing)
        if not path.is_file():
            problem = _write(drawing, path, size)
            if problem:
                failures[picture_path(drawing)] = problem
        hashes.append("" if picture_path(drawing) in failures else hash_file(path))
    return hashes, failures


def _write(drawing: Drawing, path: Path, size: int) -> str:
    """Write one picture, whole or not at all, and return why it could not be (empty if it could)."""
    try:
        image = render(drawing, size)
    except (ValueError, OSError) as error:
        return f"not readable: {error}"
    if not np.asarray(image)[..., 3].any():
        return "nothing to see"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    image.save(part, format="PNG", compress_level=9)
    part.replace(path)
    return ""
