"""timm's data configuration, read into our preprocessing: the pixels of its evaluation transform, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fluxtalk.errors import UsageError
from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.preprocess.image import WHITE

_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")


def image_preprocessor_of(
    config: Mapping[str, Any], background: tuple[int, int, int] | None = WHITE
) -> ImagePreprocessor:
    """Read what ``timm.data.resolve_data_config`` gives.

    Args:
        config: ``input_size`` (channels, height, width), ``interpolation``, ``mean``, ``std``, ``crop_pct``,
            ``crop_mode``.
        background: color under transparent pixels, which timm drops.

    Raises:
        UsageError: a setting is missing, unknown, or cannot be said exactly.
    """
    missing = [key for key in _KEYS if config.get(key) is None]
    if missing:
        raise UsageError(
            f"timm's data configuration lacks {', '.join(missing)}; give the result of timm.data.resolve_data_config."
        )
    for key, value in config.items():
        if key not in _KEYS and value is not None and value is not False:
            raise _refusal(key, value, "this setting is not known here")
    crop_pct, crop_mode, interpolation = config["crop_pct"], config["crop_mode"], config["interpolation"]
    if crop_mode not in _CROP_MODES:
        raise _refusal("crop_mode", crop_mode, f"it is one of {', '.join(_CROP_MODES)}")
    if interpolation not in _INTERPOLATIONS:
        raise _refusal("interpolation", interpolation, f"it is one of {', '.join(_INTERPOLATIONS)}")
    if len(config["input_size"]) != 3:
        raise _refusal("input_size", config["input_size"], "it is channels, height and width")
    if isinstance(crop_pct, str) or not crop_pct > 0:
        raise _refusal("crop_pct", crop_pct, "it is a number above 0")
    channels, height, width = config["input_size"]
    resize_to = math.floor(height / crop_pct), math.floor(width / crop_pct)
    mean = tuple(float(value) for value in config["mean"])
    return ImagePreprocessor(
        height,
        width,
        channels,
        resize={"center": "shortest", "squash": "squash", "border": "longest"}[crop_mode],
        filter=interpolation,
        mean=mean,
        std=tuple(float(value) for value in config["std"]),
        resize_to=resize_to,
        # A square is left to torchvision, which cuts; all else timm rounds itself.
        size_rounding="down" if crop_mode != "border" and resize_to[0] == resize_to[1] else "nearest",
        offset_rounding="nearest",
        fill=tuple(round(255 * value) for value in mean) if crop_mode == "border" else (0,),
        background=background,
    )


def _refusal(key: str, value: Any, why: str) -> UsageError:
    return UsageError(f"timm's data configuration with {key} {value!r} cannot be followed exactly: {why}.")
