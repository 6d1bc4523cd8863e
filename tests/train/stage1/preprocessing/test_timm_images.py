"""timm's evaluation transform, from its data configuration: the same pixels, or a refusal that says why."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from fluxtalk.errors import UsageError
from fluxtalk.train.stage1.preprocessing.timm_images import image_preprocessor_of
from tests.train.stage1.preprocessing.photographs import normalized, photographs

timm_data: Any = importlib.import_module("timm.data")

CASES: list[dict[str, Any]] = [
    {},
    {"crop_pct": 1.0, "input_size": (3, 518, 518)},  # DINOv2's
    {"crop_pct": 0.95, "input_size": (3, 223, 223), "mean": (0.5,), "std": (0.5,)},
    {"input_size": (3, 160, 224)},
    {"input_size": (3, 161, 97), "interpolation": "bilinear"},
    {"crop_mode": "squash", "crop_pct": 0.9},
    {"crop_mode": "squash", "crop_pct": 1.0, "input_size": (3, 128, 200)},
    {"crop_mode": "border", "crop_pct": 0.9},
    {"crop_mode": "border", "crop_pct": 1.0, "input_size": (3, 128, 201)},
    *({"interpolation": name} for name in ("nearest", "box", "bilinear", "hamming", "lanczos")),
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_pixels_are_those_of_timm(settings: dict[str, Any]) -> None:
    config = timm_data.resolve_data_config(settings, pretrained_cfg={"input_size": (3, 224, 224)})
    preprocess = image_preprocessor_of(config)
    levels = timm_data.create_transform(**config, is_training=False, normalize=False)
    transform = timm_data.create_transform(**config, is_training=False)
    for image in photographs():
        pixels = preprocess.prepare(image)
        if settings.get("crop_mode") == "border" and min(image.size) == 1 and settings["crop_pct"] == 1:
            continue  # less than half a row is left, and timm fails
        assert np.array_equal(pixels, levels(image).permute(1, 2, 0).numpy()), image.size
        assert np.abs(normalized(preprocess, pixels) - transform(image).numpy()).max() <= 1e-5, image.size


def test_one_channel() -> None:
    config = timm_data.resolve_data_config({"input_size": (1, 96, 64), "mean": (0.4,), "std": (0.2,)})
    preprocess = image_preprocessor_of({**config, "crop_mode": "border"})
    transform = timm_data.create_transform(**{**config, "crop_mode": "border"}, is_training=False)
    for image in photographs()[:5]:
        expected = transform(image.convert("L")).numpy()
        assert np.abs(normalized(preprocess, preprocess.prepare(image)) - expected).max() <= 1e-5


FULL: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.9,
    "crop_mode": "center",
}


def test_the_background_is_an_option() -> None:
    assert image_preprocessor_of(FULL).background == (255, 255, 255)
    assert image_preprocessor_of(FULL, None).background is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": None}, "lacks mean"),
        ({"crop_mode": "corner"}, "crop_mode 'corner'"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"input_size": (224, 224)}, "input_size"),
        ({"input_size": (4, 224, 224)}, "1 or 3 channels"),
        ({"crop_pct": 0}, "crop_pct 0"),
        ({"crop_border_pixels": 4}, "crop_border_pixels 4"),
        ({"naflex": True}, "naflex True"),
    ],
    ids=str,
)
def test_what_cannot_be_said_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        image_preprocessor_of({**FULL, **change})
