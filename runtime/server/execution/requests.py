"""The typed request between every dialect and the engine, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Item:
    """One raw item.

    By the kind of its modality, ``value`` is: for text, a string or a list of token ids; for images and audio, the
    file's bytes, or a string that holds them in base64 or as a ``data:`` URL; for features, nested lists of numbers, or
    the bytes (or base64) of a ``.npy`` file. What a program sent as a tensor is an array, for audio with its rate:
    ``(array, rate)``. A path is never opened, and another URL only by `fetch.Fetcher`.
    """

    modality: str
    value: Any


@dataclass(frozen=True)
class EmbedRequest:
    """What is to be embedded, and how. Checked by `Catalog.request`, which makes it."""

    items: Sequence[Item]
    k: int
    """Register tokens, from the first."""
    output: str
    """One of `OUTPUT_KINDS`; or ``attention``, of images, where the bundle has it."""


@dataclass(frozen=True)
class Answer:
    """The vectors of a request."""

    request: EmbedRequest
    vectors: NDArray[np.float32]
    """(items, dim); (items, tokens, dim) for ``tokens`` and ``complementary``; (items, k, length) for ``attention``; in
    the order of the items."""
    num_input_tokens: int
    """Text tokens, feature vectors, and one for each image, of all items."""
