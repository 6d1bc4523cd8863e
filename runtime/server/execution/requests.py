"""The typed request between every dialect and the dispatcher, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.preprocess import Prompting
from fluxtalk.preprocess.prompts import DEFAULT
from fluxtalk.tokens import Selection


@dataclass(frozen=True)
class Item:
    """One raw item.

    By the kind of its modality, ``value`` is: for text, a string or a list of token ids; for images and audio, the
    file's bytes, or a string that holds them in base64 or as a ``data:`` URL; for features, nested lists of numbers, or
    the bytes (or base64) of a ``.npy`` file. A program's tensor stays an array, for audio with its rate:
    ``(array, rate)``. A path is never opened, and another URL only by `fetch.Fetcher`.
    """

    modality: str
    value: Any


@dataclass(frozen=True)
class EmbedRequest:
    """Items to embed, as many as `ServedModel.require_count` allows, and as what (`ServedModel.select`)."""

    items: Sequence[Item]
    selection: Selection
    prompting: Prompting = DEFAULT
    """Prompt of its texts (`ServedModel.prompting`); token ids take none."""
    max_tokens: int | None = None
    """Tokens of a text that are read at most, special tokens included; None is as many as the encoder takes."""
    truncate: bool = True
    """False to refuse a text of which not all tokens are read."""
    forms: int = 1
    """Ways in which its numbers are written side by side, for an estimate of its answer."""


@dataclass(frozen=True)
class Answer:
    """The vectors of a request."""

    selection: Selection
    vectors: NDArray[np.float32]
    """(items, *`Selection.shape`); of attention (items, k, length); in the order of the items."""
    num_input_tokens: int
    """Text tokens, feature vectors, and one for each image, of all items."""
