"""Photographs of many sizes, and what the graph makes of our pixels."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fluxtalk.arrays import Array
from fluxtalk.model.encoders.base import FrozenEncoder
from fluxtalk.preprocess import ImagePreprocessor

_SIZES = (
    (321, 217),
    (200, 333),
    (427, 640),
    (480, 250),
    (31, 47),
    (1, 50),
    (63, 1),
    (224, 224),
    (225, 225),
    (256, 255),
)
"""Portrait, landscape, smaller than what is asked for, one row, one column, exactly it, and one pixel beside it."""


def photographs() -> list[Image.Image]:
    """Parts of two photographs in `_SIZES`, and one of them enlarged."""
    found = load_sample_images().images
    images = []
    for index, (height, width) in enumerate(_SIZES):
        image = Image.fromarray(found[index % 2])
        if height > image.height:
            image = image.resize((image.width * height // image.height + 1, height), Image.Resampling.BICUBIC)
        top, left = (image.height - height) // 2, (image.width - width) // 2
        images.append(image.crop((left, top, left + width, top + height)))
    return images


def normalized(preprocess: ImagePreprocessor, pixels: Array) -> Array:
    """Pixels (height, width, channels) as the encoder gets them: float32 (channels, height, width)."""
    graph = FrozenEncoder(torch.nn.Identity(), preprocess, 0)
    result: Array = graph.run(torch.from_numpy(np.array(pixels)[None]))[0].numpy()
    return result
