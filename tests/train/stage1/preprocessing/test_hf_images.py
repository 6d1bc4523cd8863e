"""transformers' image processors, from their configuration alone: the same pixels, or a refusal that says why."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluxtalk.arrays import Array
from fluxtalk.errors import UsageError
from fluxtalk.train.stage1.preprocessing.hf_images import DEFAULTS, image_preprocessor_of
from tests.train.stage1.preprocessing.photographs import normalized, photographs

transformers: Any = importlib.import_module("transformers")

RAW = {"do_rescale": False, "do_normalize": False, "include_top": False}
"""Settings of a call that leave the levels as they are."""

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in DEFAULTS if name != "DINOv3ViTImageProcessor"),
    ("BitImageProcessor", {"size": {"shortest_edge": 256}}),  # DINOv2's
    ("BitImageProcessor", {"size": {"shortest_edge": 255}, "crop_size": {"height": 223, "width": 200}}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 200}}),  # padded by 24 of 224
    ("CLIPImageProcessor", {"do_center_crop": False, "size": {"height": 100, "width": 80}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 288}, "crop_pct": 0.95}),
    ("DeiTImageProcessor", {"crop_size": {"height": 225, "width": 199}}),
    ("EfficientNetImageProcessor", {"do_center_crop": True, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNetImageProcessor", {"include_top": False}),
    ("EfficientNetImageProcessor", {"do_normalize": False}),
    ("ViTImageProcessor", {"do_normalize": False}),
    ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 2.0}),
    *(("ViTImageProcessor", {"resample": number}) for number in range(6)),
]


def _call(processor: Any, image: Image.Image, **settings: Any) -> Array:
    known = type(processor).valid_kwargs.__annotations__
    settings = {key: value for key, value in settings.items() if key != "include_top" or key in known}
    return np.asarray(processor(image, return_tensors="np", **settings)["pixel_values"][0])


def _levels(processor: Any, image: Image.Image) -> Array:
    return _call(processor, image, **RAW).transpose(1, 2, 0)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_the_pixels_are_those_of_the_pil_backend(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    processor = getattr(transformers, f"{name}Pil")(**settings)
    processor.save_pretrained(tmp_path)
    preprocess = image_preprocessor_of(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    assert preprocess == image_preprocessor_of({"image_processor_type": name, **settings})
    assert preprocess == image_preprocessor_of(processor.to_dict())
    for image in photographs():
        pixels = preprocess.prepare(image)
        assert np.array_equal(pixels, _levels(processor, image)), image.size
        assert np.abs(normalized(preprocess, pixels) - _call(processor, image)).max() <= 1e-5, image.size


TORCHVISION: list[tuple[str, dict[str, Any], float]] = [
    ("ViTImageProcessor", {}, 0),
    ("CLIPImageProcessor", {"do_resize": False}, 0),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 199}, "resample": 2}, 0),  # padded by 25, an odd number
    ("BitImageProcessor", {"size": {"shortest_edge": 256}}, 1e-4),
    ("CLIPImageProcessor", {}, 1e-4),
    ("SiglipImageProcessor", {}, 0.002),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}, 1e-4),
]
"""Processor, settings, and the largest share of values that are more than a level apart in any photograph. Bilinear:
none. Bicubic: torchvision resizes rows first, Pillow 13 columns first if the height shrinks much more, and what lies
beyond 0 and 255 in between is lost in both."""


@pytest.mark.parametrize(("name", "settings", "share"), TORCHVISION, ids=str)
def test_the_torchvision_backend_is_one_level_beside(name: str, settings: dict[str, Any], share: float) -> None:
    processor = getattr(transformers, name)(**settings)
    preprocess = image_preprocessor_of({"image_processor_type": name, **settings})
    for image in photographs():
        apart = np.abs(preprocess.prepare(image).astype(int) - _levels(processor, image)) > 1
        assert apart.mean() <= share, image.size


def test_dinov3_is_one_level_beside() -> None:
    """Its values are not rounded to levels; ours are."""
    processor = transformers.DINOv3ViTImageProcessor()
    preprocess = image_preprocessor_of(processor.to_dict())
    for image in photographs():
        level = 1 / 255 / np.array(preprocess.std)[:, None, None]
        apart = np.abs(normalized(preprocess, preprocess.prepare(image)) - _call(processor, image)) / level
        assert apart.max() < 1.01


OLD: list[dict[str, Any]] = [
    {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 3},  # Swin's
    {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "do_center_crop": True},
    {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224},
    {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3},
    {"feature_extractor_type": "BeitFeatureExtractor", "size": [160, 120], "do_center_crop": False},
    {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 64, "width": 96}, "do_pad": None},
    {"image_processor_type": "CLIPImageProcessor", "size": {"height": 64, "width": 96}, "do_center_crop": None},
    {"image_processor_type": "CLIPImageProcessor", "size": 64, "default_to_square": True, "do_center_crop": False},
    {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "do_convert_rgb": None},
]


@pytest.mark.parametrize("config", OLD, ids=str)
def test_old_configurations_are_read_as_transformers_reads_them(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    preprocess = image_preprocessor_of(config)
    assert preprocess == image_preprocessor_of(processor.to_dict())
    for image in photographs()[:3]:
        pixels = preprocess.prepare(image)
        assert np.array_equal(pixels, _levels(processor, image))
        assert np.abs(normalized(preprocess, pixels) - _call(processor, image)).max() <= 1e-5


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_what_the_class_says(name: str) -> None:
    for key, value in DEFAULTS[name].items():
        default = getattr(getattr(transformers, name), key, None)
        assert (list(default) if isinstance(default, tuple) else default) == value, key


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_other_modes_are_those_of_transformers(mode: str) -> None:
    photograph = photographs()[1]
    alpha = Image.fromarray(np.linspace(0, 255, photograph.width * photograph.height).reshape(photograph.size[::-1]))
    photograph.putalpha(alpha.convert("L"))
    file = io.BytesIO()
    photograph.convert(mode).save(file, "PNG")
    image = Image.open(file)
    assert image.mode == mode
    processor = transformers.CLIPImageProcessorPil()
    assert np.array_equal(image_preprocessor_of(processor.to_dict()).prepare(image), _levels(processor, image))


def test_the_background_is_an_option() -> None:
    config = {"image_processor_type": "ViTImageProcessor"}
    assert image_preprocessor_of(config).background == (255, 255, 255)
    assert image_preprocessor_of(config, (0, 0, 0)).background == (0, 0, 0)
    assert image_preprocessor_of(config, None).background is None


def _clip(**settings: Any) -> dict[str, Any]:
    return {"image_processor_type": "CLIPImageProcessor", **settings}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"size": 224}, "neither image_processor_type nor feature_extractor_type"),
    ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor .*NaFlex"),
    ({"image_processor_type": "Siglip2ImageProcessorFast"}, "Siglip2ImageProcessor .*NaFlex"),
    ({"image_processor_type": "TimmWrapperImageProcessor"}, "timm:NAME"),
    ({"image_processor_type": "LlavaNextImageProcessor"}, "LlavaNextImageProcessor .*known are .*CLIPImageProcessor"),
    (_clip(do_pad=True), "CLIPImageProcessor with do_pad True .*bottom"),
    (_clip(do_flip_channel_order=True), "do_flip_channel_order True"),
    (_clip(do_reduce_labels=True), "do_reduce_labels True"),
    (_clip(crop_pct=0.9), "crop_pct 0.9"),
    (_clip(auto_map={"AutoImageProcessor": "code.Other"}), "auto_map"),
    (_clip(data_format="channels_last"), "data_format 'channels_last'"),
    (_clip(do_center_crop=False), "size .*shortest_edge.*without a center crop"),
    (_clip(do_resize=False, do_center_crop=False), "do_resize False .*without a center crop"),
    (_clip(size={"shortest_edge": 224, "longest_edge": 400}), "longest_edge"),
    (_clip(size={"max_height": 224, "max_width": 224}), "max_height"),
    (_clip(size={"height": 224.5, "width": 224}), "whole numbers"),
    (_clip(size=None), "size None"),
    (_clip(crop_size={"shortest_edge": 224}), "crop_size"),
    (_clip(resample=9), "resample 9"),
    (_clip(resample=None), "resample None"),
    (_clip(image_mean=[0.5, 0.5]), r"image_mean \[0.5, 0.5\]"),
    (_clip(image_std="0.5"), "image_std '0.5'"),
    (_clip(rescale_factor=0), "rescale_factor 0"),
    ({"image_processor_type": "DINOv3ViTImageProcessor", "resample": 3}, r"resample '3 \(bicubic\)'"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 224, "width": 224}}, "shortest_edge"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": None}, "crop_pct None"),
    (
        {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True, "crop_size": 200},
        "crop_size .*crops to its size already",
    ),
]


@pytest.mark.parametrize(("config", "words"), REFUSED, ids=str)
def test_what_cannot_be_said_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        image_preprocessor_of(config)
