"""open_clip's evaluation transform, from its configuration: the same pixels, or a refusal that says why."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from fluxtalk.errors import UsageError
from fluxtalk.train.stage1.preprocessing.open_clip_images import image_preprocessor_of
from tests.train.stage1.preprocessing.photographs import normalized, photographs

transforms: Any = importlib.import_module("open_clip.transform")

CASES: list[dict[str, Any]] = [
    {},
    {"size": 223, "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    {"size": (160, 224)},
    {"size": (160, 224), "interpolation": "bilinear"},
    {"resize_mode": "longest", "fill_color": 7},
    {"resize_mode": "longest", "size": (100, 161), "interpolation": "bilinear"},
    {"resize_mode": "squash"},
    {"resize_mode": "squash", "size": (99, 77), "interpolation": "random"},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_pixels_are_those_of_open_clip(settings: dict[str, Any]) -> None:
    config = transforms.PreprocessCfg(**settings)
    preprocess = image_preprocessor_of(asdict(config))
    assert preprocess == image_preprocessor_of({"size": 224, **settings})
    transform = transforms.image_transform_v2(config, is_train=False)
    for image in photographs():
        pixels = preprocess.prepare(image)
        if settings.get("resize_mode") == "longest" and image.size == (1, 63) and config.size != 224:
            continue
        expected = transform(image).numpy()
        # Nearer than half a level: the levels are equal.
        assert np.abs(normalized(preprocess, pixels) - expected).max() <= 1e-5, image.size


def test_both_names_of_mean_and_std() -> None:
    numbers = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    preprocess = image_preprocessor_of({"size": 224, **numbers})
    assert preprocess.mean == (0.1, 0.2, 0.3)
    assert preprocess.std == (0.4, 0.5, 0.6)
    assert image_preprocessor_of({"size": 224}, None).background is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "size None"),
        ({"size": [224, 224, 3]}, "size"),
        ({"size": 224, "resize_mode": "crop"}, "resize_mode 'crop'"),
        ({"size": 224, "mode": "L"}, "mode 'L'"),
        ({"size": 224, "interpolation": "nearest"}, "interpolation 'nearest'"),
        ({"size": 224, "flip": True}, "flip True"),
        ({"size": 224, "mean": [0.5], "image_mean": [0.5]}, "two names"),
    ],
    ids=str,
)
def test_what_cannot_be_said_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        image_preprocessor_of(config)
