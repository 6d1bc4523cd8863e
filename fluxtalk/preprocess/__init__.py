"""Preprocessing, torch-free: the one implementation that training, export and serving share.

In: a raw text, image, sound or feature array. Out: one array per item, and batches with a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxtalk.arrays import Array
from fluxtalk.errors import ArtifactError
from fluxtalk.preprocess.audio import AUDIO_SUFFIXES, AudioPreprocessor
from fluxtalk.preprocess.base import Preprocessor, pad_and_mask
from fluxtalk.preprocess.features import FeaturesPreprocessor
from fluxtalk.preprocess.image import ImagePreprocessor
from fluxtalk.preprocess.image_files import IMAGE_SUFFIXES
from fluxtalk.preprocess.prompts import Prompting
from fluxtalk.preprocess.spectrogram import Spectrogram
from fluxtalk.preprocess.text import TextPreprocessor

__all__ = [
    "FILE_SUFFIXES",
    "Array",
    "AudioPreprocessor",
    "FeaturesPreprocessor",
    "ImagePreprocessor",
    "Preprocessor",
    "Prompting",
    "Spectrogram",
    "TextPreprocessor",
    "from_parts",
    "pad_and_mask",
]

FILE_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "image": IMAGE_SUFFIXES,
    "audio": AUDIO_SUFFIXES,
    "features": (".npy",),
}
"""Kind of preprocessing to the suffixes, in lower case, by which its files are found in folders and tables."""


def from_parts(config: Mapping[str, Any], files: Mapping[str, str]) -> Preprocessor:
    """Build a preprocessor from the parts that `Preprocessor.to_parts` gave.

    Raises:
        ArtifactError: the kind is unknown, a setting is unknown or missing, or a file does not match.
    """
    kinds = {
        "image": ImagePreprocessor,
        "text": TextPreprocessor,
        "audio": AudioPreprocessor,
        "features": FeaturesPreprocessor,
    }
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ArtifactError(f"Preprocessing is one of {', '.join(kinds)}; got {kind!r}.")
    try:
        return kinds[kind].from_parts(dict(config), dict(files))  # type: ignore[attr-defined, no-any-return]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(
            f"The {kind} preprocessing is incomplete or malformed ({error}); make the artifact again."
        ) from None
