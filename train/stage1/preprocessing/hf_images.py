"""transformers' image processors: their configuration, read into our preprocessing.

Which pixels: those of the PIL backend, exactly; its torchvision backend resamples up to one level beside them. For
``nearest`` alone the two backends take different pixels, and PIL's are followed; if an odd number of pixels has to be
padded, they begin at different offsets, and torchvision's is followed (PIL's has the larger half in front).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fluxtalk.errors import UsageError
from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.preprocess.image import WHITE

Settings = dict[str, Any]

_HALF = [0.5, 0.5, 0.5]
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_SQUARE, _CROP = {"height": 224, "width": 224}, {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
_SHORTEST = {"size": {"shortest_edge": 224}, "default_to_square": False}
_BASE: Settings = {
    "do_resize": True,
    "size": _SQUARE,
    "default_to_square": True,
    "resample": 3,
    "do_center_crop": None,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _HALF,
    "image_std": _HALF,
}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "BeitImageProcessor": {**_BASE, "crop_size": _SQUARE, "do_center_crop": False},
    "BitImageProcessor": {**_BASE, **_CLIP, **_CROP, **_SHORTEST},
    "BlipImageProcessor": {**_BASE, **_CLIP, "size": {"height": 384, "width": 384}},
    "CLIPImageProcessor": {**_BASE, **_CLIP, **_CROP, **_SHORTEST},
    "ConvNextImageProcessor": {
        **_BASE,
        "size": {"shortest_edge": 384},
        "default_to_square": False,
        "crop_pct": 224 / 256,
    },
    "DINOv3ViTImageProcessor": {**_BASE, **_IMAGENET, "resample": 2},
    "DeiTImageProcessor": {**_BASE, **_CROP, "size": {"height": 256, "width": 256}},
    "EfficientNetImageProcessor": {
        **_BASE,
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "do_center_crop": False,
        "rescale_offset": False,
        "include_top": True,
    },
    "PvtImageProcessor": {**_BASE, **_IMAGENET},
    "SiglipImageProcessor": {**_BASE, "default_to_square": False},
    "ViTImageProcessor": {**_BASE, "resample": 2},
}
"""Processors that can be said exactly, and what transformers 5.24 takes for settings that are left out."""

_NOT_HERE = {
    "Siglip2ImageProcessor": "its NaFlex tower takes a number of patches that changes with the image; "
    "take a SigLIP2 of fixed resolution, whose processor is SiglipImageProcessor",
    "TimmWrapperImageProcessor": "name the model as timm:NAME, whose own configuration is read then",
}
_NO_EFFECT = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "model_input_names",
    "image_seq_length",
    "do_convert_rgb",  # every image becomes RGB here; without it, transformers fails on others
    "device",
    "disable_grouping",
    "return_tensors",
    "use_fast",
    "_valid_processor_keys",
}
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Filters by Pillow's number."""


class _Geometry(NamedTuple):
    resize: str
    resize_to: tuple[int, int] | None
    size: tuple[int, int]


def image_preprocessor_of(
    config: Mapping[str, Any], background: tuple[int, int, int] | None = WHITE
) -> ImagePreprocessor:
    """Read a preprocessor_config.json, or the dictionary of a loaded processor (its ``to_dict()``).

    What it leaves out is what transformers takes for it. A file without a processor's name (some old ones) is known
    by its model only: give ``AutoImageProcessor.from_pretrained(...).to_dict()`` then.

    Args:
        background: color under transparent pixels; transformers itself takes white (5.24; it dropped alpha before).

    Raises:
        UsageError: the processor, or one of its settings, cannot be said exactly.
    """
    name = _name(config)
    if name not in DEFAULTS:
        why = _NOT_HERE.get(name, f"known are {', '.join(DEFAULTS)}")
        raise UsageError(f"The image processor {name} cannot be followed exactly: {why}.")
    settings = {**DEFAULTS[name], **config}
    _refuse_unknown(name, settings)
    geometry = _geometry(name, settings)
    mean, std = _normalization(name, settings)
    return ImagePreprocessor(
        *geometry.size,
        resize=geometry.resize,
        filter=_filter(name, settings) if settings["do_resize"] else "bicubic",
        mean=mean,
        std=std,
        resize_to=geometry.resize_to,
        background=background,
    )


def _name(config: Mapping[str, Any]) -> str:
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    if not isinstance(name, str):
        raise UsageError(
            "The image processor's configuration has neither image_processor_type nor feature_extractor_type; load it "
            "with transformers' AutoImageProcessor and save it again (save_pretrained)."
        )
    return name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")


def _refuse_unknown(name: str, settings: Settings) -> None:
    if settings.get("do_pad"):
        raise _refusal(name, "do_pad", True, "it pads at the bottom and on the right; only padding around is known")
    if settings.get("data_format", "channels_first") not in (None, "channels_first"):
        raise _refusal(name, "data_format", settings["data_format"], "images are channels_first")
    known = {*DEFAULTS[name], *_NO_EFFECT, "do_pad", "pad_size", "data_format"}
    for key in sorted(set(settings) - known):
        if settings[key] is not None and settings[key] is not False:
            raise _refusal(name, key, settings[key], "this setting is not known here")


def _geometry(name: str, settings: Settings) -> _Geometry:
    crop = None
    if settings["do_center_crop"]:
        crop = _pair(name, "crop_size", _sizes(name, "crop_size", settings["crop_size"], square=True))
    if not settings["do_resize"]:
        if crop is None:
            raise _refusal(name, "do_resize", settings["do_resize"], "without a center crop images keep their sizes")
        return _Geometry("none", None, crop)
    size = _sizes(name, "size", settings["size"], square=settings["default_to_square"])
    if name == "ConvNextImageProcessor":
        return _convnext(size, crop, settings["crop_pct"])
    if set(size) == {"shortest_edge"}:
        if crop is None:
            raise _refusal(name, "size", size, "without a center crop images keep their proportions")
        return _Geometry("shortest", (size["shortest_edge"], size["shortest_edge"]), crop)
    target = _pair(name, "size", size)
    return _Geometry("squash", None if crop in (None, target) else target, crop or target)


def _convnext(size: Mapping[str, int], crop: tuple[int, int] | None, crop_pct: Any) -> _Geometry:
    """Squash at 384 pixels and above, else cover `size` / `crop_pct` and crop `size` from the center."""
    name = "ConvNextImageProcessor"
    if set(size) != {"shortest_edge"}:
        raise _refusal(name, "size", dict(size), "it is a shortest_edge")
    side = size["shortest_edge"]
    if crop not in (None, (side, side)):
        raise _refusal(name, "crop_size", crop, "it crops to its size already")
    if side >= 384:
        return _Geometry("squash", None, (side, side))
    if not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        raise _refusal(name, "crop_pct", crop_pct, "it is a number above 0 and at most 1")
    scaled = int(side / crop_pct)
    return _Geometry("shortest", (scaled, scaled), (side, side))


def _sizes(name: str, key: str, value: Any, *, square: bool) -> Mapping[str, int]:
    """A size as a dictionary; old files have a number, or height and width."""
    if type(value) is int:
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, Sequence) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, Mapping) or not all(type(side) is int and side > 0 for side in value.values()):
        raise _refusal(name, key, value, "sizes are whole numbers of pixels")
    return value


def _pair(name: str, key: str, size: Mapping[str, int]) -> tuple[int, int]:
    if set(size) != {"height", "width"}:
        raise _refusal(name, key, dict(size), "only height and width, or shortest_edge, can be said exactly")
    return size["height"], size["width"]


def _filter(name: str, settings: Settings) -> str:
    resample = settings["resample"]
    if not isinstance(resample, int) or not 0 <= resample < len(_FILTERS):
        raise _refusal(name, "resample", resample, f"it is one of Pillow's numbers, 0 to {len(_FILTERS) - 1}")
    filter_ = _FILTERS[resample]
    if name == "DINOv3ViTImageProcessor" and filter_ != "bilinear":
        raise _refusal(
            name, "resample", f"{resample} ({filter_})", "it does not round to whole levels; only bilinear is close"
        )
    return filter_


def _normalization(name: str, settings: Settings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation on pixels scaled to 0..1, the rescaling by another factor folded in."""
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise _refusal(name, "rescale_factor", factor, "it is a number above 0")
    unit = 255 * factor  # 1 for all that rescale by 1 / 255
    given = _channels(name, "image_std", settings)
    mean = _channels(name, "image_mean", settings) if settings["do_normalize"] else (0.0,)
    std = given if settings["do_normalize"] else (1.0,)
    if settings["do_rescale"] and settings.get("rescale_offset"):
        mean = tuple(value + 1 for value in mean)
    if settings.get("include_top"):  # divided by once more
        std = tuple(value * again for value, again in zip(std * (len(given) // len(std)), given, strict=True))
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def _channels(name: str, key: str, settings: Settings) -> tuple[float, ...]:
    value = settings[key]
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    numbers = [isinstance(number, int | float) and not isinstance(number, bool) for number in values]
    if len(values) not in (1, 3) or not all(numbers):
        raise _refusal(name, key, value, "it is a number, or one for each of 3 channels")
    return tuple(float(number) for number in values)


def _refusal(name: str, key: str, value: Any, why: str) -> UsageError:
    return UsageError(f"The image processor {name} with {key} {value!r} cannot be followed exactly: {why}.")
