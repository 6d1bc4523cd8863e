"""Small real inputs of every kind, drawn and played here."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fluxtalk.arrays import Floats

COLORS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES = ("circle", "square", "triangle", "line")
RATE = 16_000


def names(count: int) -> list[str]:
    """Name ``count`` things."""
    sizes = ("", "small ", "large ", "the very first ")
    return [
        f"{sizes[i // (len(COLORS) * len(SHAPES)) % len(sizes)]}{COLORS[i % len(COLORS)]} "
        f"{SHAPES[i // len(COLORS) % len(SHAPES)]} {i}"
        for i in range(count)
    ]


def picture(index: int) -> Image.Image:
    """Draw a picture of an odd size: a shape over a smooth background with noise, as photographs have."""
    random = np.random.default_rng(index)
    width, height = 41 + 13 * (index % 5), 37 + 11 * (index % 7)
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))
    draw = ImageDraw.Draw(image)
    box = (width // 5, height // 5, width // 5 + width // 2, height // 5 + height // 2)
    color = COLORS[index % len(COLORS)]
    shape = SHAPES[index // len(COLORS) % len(SHAPES)]
    if shape == "circle":
        draw.ellipse(box, fill=color)
    elif shape == "square":
        draw.rectangle(box, fill=color)
    elif shape == "triangle":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (box[0], box[1])], fill=color)
    else:
        draw.line(box, fill=color, width=5)
    return image


def sound(index: int, rate: int = RATE) -> Floats:
    """Play two gliding tones with noise: float32 samples, each index of another length around a second."""
    random = np.random.default_rng(index)
    count = int(rate * 0.7 * (1 + 0.2 * (index % 5)))
    time = np.arange(count) / rate
    glide = np.sin(2 * np.pi * (200 + 40 * (index % 9)) * time * (1 + 0.3 * time))
    second = 0.5 * np.sin(2 * np.pi * (700 + 90 * (index % 11)) * time)
    samples: Floats = (0.2 * glide + 0.1 * second + 0.02 * random.standard_normal(count)).astype(np.float32)
    return samples
