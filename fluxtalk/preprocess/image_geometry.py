"""Resize, crop and pad with the whole numbers of pixels that other libraries round to.

Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from PIL import Image

ROUNDINGS = ("down", "nearest")
"""``down`` cuts the fraction off (transformers, torchvision); ``nearest`` rounds halves to the even neighbor (timm)."""
MAX_RESIZED_PIXELS = 2**24
"""Pixels of a resized image beyond which only the part that is kept is computed: at 256, one of 256 : 1 has as many."""


def scaled_size(size: tuple[int, int], target: tuple[int, int], *, cover: bool, rounding: str) -> tuple[int, int]:
    """Scale a size in its own proportions until it just covers the target, or until it just fits inside.

    A side is never less than 1 pixel; the libraries fail there.
    """
    (height, width), (target_height, target_width) = size, target
    if rounding == "nearest":
        ratios = height / target_height, width / target_width
        ratio = min(ratios) if cover else max(ratios)
        scaled = round(height / ratio), round(width / ratio)
    else:
        low = height * target_width <= width * target_height
        if low == cover:
            scaled = target_height, int(target_height * width / height)
        else:
            scaled = int(target_width * height / width), target_width
    return max(scaled[0], 1), max(scaled[1], 1)


def centered_offset(outer: int, inner: int, rounding: str) -> int:
    """Start of `inner` pixels in the middle of `outer`; negative if so many have to be added before them."""
    if inner > outer:
        return -((inner - outer) // 2)
    return (outer - inner) // 2 if rounding == "down" else round((outer - inner) / 2)


def resized_center(
    image: Image.Image,
    resized: tuple[int, int],
    size: tuple[int, int],
    *,
    filter_: Image.Resampling,
    rounding: str,
    fill: tuple[int, ...],
) -> Image.Image:
    """Resize an image of mode L or RGB to `resized`, then crop its center to `size`, or pad it.

    Args:
        rounding: of the crop's offset, one of `ROUNDINGS`.
        fill: color of what is padded, 0 to 255, one value per channel.
    """
    top, left = (centered_offset(resized[i], size[i], rounding) for i in (0, 1))
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS and resized != (image.height, image.width):
        # A strip of 1 x 50,000 pixels would fill the memory. A pixel may be a level or two off here, because
        # Pillow keeps a box in single precision.
        rows, columns = (max(top, 0), min(top + size[0], resized[0])), (max(left, 0), min(left + size[1], resized[1]))
        down, across = image.height / resized[0], image.width / resized[1]
        box = (columns[0] * across, rows[0] * down, columns[1] * across, rows[1] * down)
        image = image.resize((columns[1] - columns[0], rows[1] - rows[0]), filter_, box=box)
        top, left = min(top, 0), min(left, 0)
    elif resized != (image.height, image.width):
        image = image.resize((resized[1], resized[0]), filter_)
    if top >= 0 and left >= 0 and top + size[0] <= image.height and left + size[1] <= image.width:
        return image.crop((left, top, left + size[1], top + size[0]))
    canvas = Image.new(image.mode, (size[1], size[0]), fill[0] if image.mode == "L" else fill)
    canvas.paste(image, (-left, -top))
    return canvas
