"""The kind of a raw item, told from the item itself: text, image or audio."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from fluxtalk.errors import UsageError
from fluxtalk.preprocess import FILE_SUFFIXES


def kind_of(item: Any) -> str | None:
    """Return ``text``, ``image`` or ``audio``; None if the item could be of several kinds.

    A string is a text, whatever it spells; a path is what its suffix says; a PIL image or an array of uint8 is an
    image; a pair of array and rate is a sound.
    """
    if isinstance(item, str):
        return "text"
    if isinstance(item, os.PathLike):
        suffix = PurePath(os.fspath(item)).suffix.lower()
        return next((kind for kind, suffixes in FILE_SUFFIXES.items() if suffix in suffixes), None)
    if isinstance(item, Image.Image) or (isinstance(item, np.ndarray) and item.dtype == np.uint8):
        return "image"
    is_sound = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], np.ndarray)
    return "audio" if is_sound else None


def guess_modality(item: Any, kinds: Mapping[str, str]) -> str:
    """Choose the one modality that takes such items.

    Args:
        kinds: modality to the kind of its items.

    Raises:
        UsageError: none does, or several do.
    """
    kind = kind_of(item)
    fitting = [name for name, of in kinds.items() if of == kind]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{name} ({of})" for name, of in kinds.items())
    what = "may be of several kinds" if kind is None else f"is {'an' if kind[0] in 'ai' else 'a'} {kind}"
    raise UsageError(f"Name the modality, one of {known}: the item, a {type(item).__name__}, {what}.")
