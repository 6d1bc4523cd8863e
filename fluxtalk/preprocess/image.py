"""Images: decode, resize, keep as uint8. Normalization is inside the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

from fluxtalk.arrays import Array
from fluxtalk.errors import InputError, UsageError
from fluxtalk.field_types import field_types, fits, shown, type_words
from fluxtalk.preprocess.base import require_keys
from fluxtalk.preprocess.image_files import MAX_SIDE, eight_bits, on_background, read_image, readable
from fluxtalk.preprocess.image_geometry import ROUNDINGS, resized_center, scaled_size

_MODES = {1: "L", 3: "RGB"}
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_RESIZES = ("crop", "squash", "shortest", "longest", "none")
_AS_BEFORE: dict[str, Any] = {
    "resize_to": None,
    "size_rounding": "down",
    "offset_rounding": "down",
    "fill": (0,),
    "background": None,
}
"""Values of the settings that older artifacts lack. They are left out of the parts, so that their hashes hold."""

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ImagePreprocessor:
    """Raw images (path, bytes, PIL image or array) to uint8 (height, width, channels).

    Transparency is composited onto `background`, the image converted to gray or RGB, resized, and its center cropped
    or padded. ``resize`` is one of

    - ``crop``: the center is cut in the proportions of the result, then resized (Pillow's ``ImageOps.fit``);
    - ``squash``: both sides are stretched to `resize_to`;
    - ``shortest``: proportions are kept, and `resize_to` is just covered;
    - ``longest``: proportions are kept, and all fits just inside `resize_to`;
    - ``none``: pixels are taken as they are.
    """

    height: int
    width: int
    channels: int = 3
    resize: str = "crop"
    filter: str = "bicubic"
    """``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` or ``lanczos``: Pillow's, antialiased."""
    mean: tuple[float, ...] = (0.5,)
    """Per channel, or one for all; subtracted from pixels scaled to 0..1 inside the graph."""
    std: tuple[float, ...] = (0.5,)
    """Per channel, or one for all; divides inside the graph."""
    resize_to: tuple[int, int] | None = None
    """(height, width) in pixels that ``squash``, ``shortest`` and ``longest`` aim at; None: height and width."""
    size_rounding: str = "down"
    """``down`` or ``nearest``: how ``shortest`` and ``longest`` come to whole pixels."""
    offset_rounding: str = "down"
    """``down`` or ``nearest`` (halves to even): where a center crop begins, if one pixel is left over."""
    fill: tuple[int, ...] = (0,)
    """Color of padding, 0 to 255, per channel or one for all."""
    background: tuple[int, int, int] | None = WHITE
    """Color (red, green, blue), 0 to 255, under transparent pixels; None: transparency is dropped."""

    kind = "image"
    input_names = ("pixels",)
    fixed_length = True

    def __post_init__(self) -> None:
        if self.channels not in _MODES:
            raise UsageError(f"Image preprocessing takes 1 or 3 channels; got {self.channels}.")
        if self.resize not in _RESIZES:
            raise UsageError(f"Image preprocessing resizes by {_listed(_RESIZES)}; got {self.resize!r}.")
        if self.filter not in _FILTERS:
            raise UsageError(f"Image preprocessing filters by {_listed(_FILTERS)}; got {self.filter!r}.")
        if not (1 <= self.height <= MAX_SIDE and 1 <= self.width <= MAX_SIDE):
            raise UsageError(
                f"Image preprocessing needs a size from 1 to {MAX_SIDE:,} pixels on a side; "
                f"got {self.height} x {self.width}."
            )
        for name in ("mean", "std", "fill"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise UsageError(
                    f"Image preprocessing needs 1 or {self.channels} values of {name}; got {len(getattr(self, name))}."
                )
        if not all(self.std):
            raise UsageError(f"Image preprocessing divides by std, which must not be 0; got {self.std}.")
        for name in ("size_rounding", "offset_rounding"):
            if getattr(self, name) not in ROUNDINGS:
                raise UsageError(f"The {name} of images is {_listed(ROUNDINGS)}; got {getattr(self, name)!r}.")
        self._check_resize_to()
        for name, length in (("fill", len(self.fill)), ("background", 3)):
            color = getattr(self, name)
            if color is not None and not (len(color) == length and all(_is_level(value) for value in color)):
                raise UsageError(f"The {name} of images is {length} whole numbers from 0 to 255; got {color!r}.")

    def _check_resize_to(self) -> None:
        if self.resize_to is None:
            return
        if self.resize in ("crop", "none"):
            raise UsageError(f"Images that are resized by {self.resize} take no resize_to; got {self.resize_to}.")
        if len(self.resize_to) != 2 or not all(type(side) is int and side > 0 for side in self.resize_to):
            raise UsageError(f"The resize_to of images is (height, width) in pixels; got {self.resize_to!r}.")

    def prepare(self, item: Any) -> Array:
        """Decode one image to uint8 (height, width, channels).

        Args:
            item: as for `read_image`, or a uint8 array (height, width[, channels]).

        Raises:
            InputError: as for `read_image`; or the array is malformed, or has 32 bits per channel.
        """
        image = _from_array(item) if isinstance(item, np.ndarray) else read_image(item)
        with readable("given"):
            if self.background is not None:
                image = on_background(image, self.background)
            if image.mode != _MODES[self.channels]:
                image = _convertible(image).convert(_MODES[self.channels])
            return np.asarray(self._resized(image)).reshape(self.height, self.width, self.channels)

    def collate(self, prepared: Sequence[Array]) -> dict[str, Array]:
        """Stack to ``pixels`` uint8 (batch, height, width, channels)."""
        return {"pixels": np.stack(prepared)}

    def length(self, prepared: Array) -> int:
        """1: every prepared image costs the same."""
        return 1

    def to_parts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Settings, and no files; a setting that older artifacts lack is left out if it means what they do."""
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in _AS_BEFORE or value != _AS_BEFORE[name]
        }
        return {"kind": self.kind, **settings}, {}

    @classmethod
    def from_parts(cls, config: dict[str, Any], files: dict[str, str]) -> ImagePreprocessor:
        """Read back what `to_parts` gave; what is left out is as it was before there was a setting for it."""
        require_keys(config, set(cls.__dataclass_fields__), "image")
        settings = {name: _setting(name, value) for name, value in config.items() if name != "kind"}
        for name, value in settings.items():
            if not fits(value, field_types(cls)[name]):
                raise UsageError(f"The {name} of images is {type_words(field_types(cls)[name])}; got {shown(value)}.")
        return cls(**{**_AS_BEFORE, **settings})

    def _resized(self, image: Image.Image) -> Image.Image:
        filter_, size = _FILTERS[self.filter], (self.height, self.width)
        given, target = (image.height, image.width), self.resize_to or size
        if self.resize == "crop":
            return image if given == size else ImageOps.fit(image, (self.width, self.height), filter_)
        if self.resize == "none":
            target = given
        elif self.resize != "squash":
            target = scaled_size(given, target, cover=self.resize == "shortest", rounding=self.size_rounding)
        fill = self.fill if len(self.fill) == self.channels else self.fill * self.channels
        return resized_center(image, target, size, filter_=filter_, rounding=self.offset_rounding, fill=fill)


def _setting(name: str, value: Any) -> Any:
    """A setting as JSON has it, also in the short forms that people write: one number for all, a color's name."""
    if name in ("mean", "std", "fill") and isinstance(value, int | float):
        return (value,)
    if name == "resize_to" and isinstance(value, int):
        return (value, value)
    if name in ("fill", "background") and isinstance(value, str):
        color: Sequence[int] = ()
        with suppress(ValueError):
            color = ImageColor.getrgb(value)
        if len(color) != 3:
            raise UsageError(
                f'The {name} of images is a color, such as "white", "#ffffff" or [255, 255, 255]; got {value!r}.'
            )
        return color
    return tuple(value) if isinstance(value, list) else value


def _is_level(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _from_array(array: Array) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            "An image array must be uint8 (height, width) or (height, width, channels); "
            f"got {array.dtype} {array.shape}."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise InputError(f"An image array has 1, 3 or 4 channels in its last dimension; got shape {array.shape}.")
    return Image.fromarray(array)


def _convertible(image: Image.Image) -> Image.Image:
    """The image in a mode that Pillow converts without clipping or guessing.

    Raises:
        InputError: it has 32 bits per channel, and nothing tells which value is white.
    """
    image = eight_bits(image)
    if image.mode in ("I", "F"):
        raise InputError(
            f"An image has 8 or 16 bits per channel; this one has mode {image.mode!r}: scale it to 8 bits."
        )
    if image.mode == "LAB":  # Pillow converts these two to one other mode each
        return image.convert("RGB")
    if image.mode == "La":
        return image.convert("LA")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image
