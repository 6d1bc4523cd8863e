"""open_clip's preprocessing configuration, read into ours: the pixels of its evaluation transform, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxtalk.errors import UsageError
from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.preprocess.image import WHITE

_DEFAULTS: Mapping[str, Any] = {
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
_OTHER_NAMES = {"image_mean": "mean", "image_std": "std"}
_RESIZES = ("shortest", "longest", "squash")


def image_preprocessor_of(
    config: Mapping[str, Any], background: tuple[int, int, int] | None = WHITE
) -> ImagePreprocessor:
    """Read the ``preprocess_cfg`` of an ``open_clip_config.json``, or a model's ``visual.preprocess_cfg``.

    What it leaves out is what open_clip takes for it; ``size`` is required.

    Args:
        config: ``size`` (one side or height and width), ``mean`` or ``image_mean``, ``std`` or ``image_std``,
            ``interpolation``, ``resize_mode``, ``fill_color``, ``mode``.
        background: color under transparent pixels, which open_clip drops.

    Raises:
        UsageError: a setting is unknown, or cannot be said exactly.
    """
    given = {_OTHER_NAMES.get(key, key): value for key, value in config.items() if value is not None}
    if len(given) < sum(value is not None for value in config.values()):
        raise UsageError("open_clip's preprocessing has a mean or a std under two names; leave one out.")
    for key in given.keys() - _DEFAULTS.keys() - {"size"}:
        raise _refusal(key, given[key], "this setting is not known here")
    settings = {**_DEFAULTS, **given}
    size = settings.get("size")
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    if type(height) is not int or type(width) is not int:
        raise _refusal("size", size, "it is one side, or height and width, in pixels")
    mode, interpolation = settings["resize_mode"], settings["interpolation"]
    if mode not in _RESIZES:
        raise _refusal("resize_mode", mode, f"it is one of {', '.join(_RESIZES)}")
    if settings["mode"] != "RGB":
        raise _refusal("mode", settings["mode"], "it is RGB")
    if interpolation not in ("bicubic", "bilinear", "random"):
        raise _refusal("interpolation", interpolation, "it is bicubic, bilinear or random (bicubic in use)")
    torchvision = mode == "shortest" and height == width
    # Its own resizing of a shortest side to two different ones is bicubic, whatever is said.
    bilinear = interpolation == "bilinear" and (mode != "shortest" or torchvision)
    return ImagePreprocessor(
        height,
        width,
        resize=mode,
        filter="bilinear" if bilinear else "bicubic",
        mean=_channels(settings["mean"]),
        std=_channels(settings["std"]),
        size_rounding="down" if torchvision or mode == "squash" else "nearest",
        offset_rounding="nearest",
        fill=(settings["fill_color"],) if mode == "longest" else (0,),
        background=background,
    )


def _channels(value: Any) -> tuple[float, ...]:
    return tuple(float(number) for number in (value if isinstance(value, list | tuple) else [value]))


def _refusal(key: str, value: Any, why: str) -> UsageError:
    return UsageError(f"open_clip's preprocessing with {key} {value!r} cannot be followed exactly: {why}.")
