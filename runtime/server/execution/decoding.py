"""Raw items of requests to the arrays that graphs take. Runs in threads; opens no path and no URL."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import Any

import numpy as np

from fluxtalk.arrays import Array
from fluxtalk.errors import InputError
from fluxtalk.preprocess import FeaturesPreprocessor, Preprocessor, TextPreprocessor
from fluxtalk.preprocess.features import read_npy
from fluxtalk.preprocess.visible_text import is_visible
from fluxtalk.runtime.server.http.json_arrays import array_of_lists
from fluxtalk.runtime.server.media.headers import look

FILE_KINDS = ("image", "audio")
"""Kinds whose items are files."""
_SPACES = "\n\r\t "
"""Characters that MIME and many programs write into base64, to break its lines."""
_CHARACTERS_PER_TOKEN = 64
_MOST_CHARACTERS_PER_TOKEN = 1024
"""Characters of a text that are read at most for each token that the encoder takes."""


def decode(preprocess: Preprocessor, value: Any) -> Array | bytes:
    """Turn a raw item into its array; a file that may be expensive stays a file, which is for `WorkerPool.prepare`.

    Args:
        value: raw item, as in `Item`.

    Raises:
        InputError: it cannot be used.
    """
    if isinstance(preprocess, TextPreprocessor):
        return decode_text(preprocess, value)
    if isinstance(value, np.ndarray | tuple):
        return preprocess.prepare(value)
    if isinstance(preprocess, FeaturesPreprocessor):
        return preprocess.prepare(_features(preprocess, value))
    data = media_bytes(value, preprocess.kind)
    if preprocess.kind == "image" and (seen := look(data)) is not None and seen.cheap:
        return preprocess.prepare(data)
    return data


def ignore_pillow_warnings() -> None:
    """Keep Pillow from warning in this process, of large images and of all else.

    A header is checked against our own limit, and a warning's text may hold a part of a body, which is for no log.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def media_bytes(value: Any, kind: str) -> bytes:
    """Decode the bytes of a file that came as they are, in base64 or as a ``data:`` URL.

    Raises:
        InputError: the value is something else.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise InputError(f"An item of kind {kind} must be a file in base64; got {type(value).__name__}.")
    if value[:8].lower().startswith(("http://", "https://", "file://")):
        raise InputError("URLs are not fetched by this server (--allow-url); send the file itself in base64.")
    if value[:5].lower() == "data:":
        header, comma, value = value[5:].partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise InputError("A data URL must be of the form data:TYPE;base64,CONTENT; this one is not.")
    for space in _SPACES:
        value = value.replace(space, "")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"An item of kind {kind} must be a file in base64; this is not valid base64 ({error})."
        ) from None


def decode_text(preprocess: TextPreprocessor, value: Any) -> Array:
    """Tokenize a string, or take a list of ids as they are.

    Raises:
        InputError: the value is neither, empty, or has no known token.
    """
    if isinstance(value, str):
        return _tokenized(preprocess, value)
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"A text must be a string or a list of token ids; got {type(value).__name__}.")
    size = preprocess.vocabulary_size
    if len(value) > preprocess.max_length:
        raise InputError(f"A list of token ids has at most {preprocess.max_length}; got {len(value):,}.")
    wrong = [token for token in value if type(token) is not int or not 0 <= token < size]
    if wrong:
        raise InputError(f"Token ids must be integers from 0 to {size - 1}; got {str(wrong[0])[:40]}.")
    return preprocess.from_ids(value)


def _tokenized(preprocess: TextPreprocessor, text: str) -> Array:
    """Tokenize a text, of which no more is read than can matter."""
    if not preprocess.truncates:
        if len(text) > _MOST_CHARACTERS_PER_TOKEN * preprocess.max_length:
            raise preprocess.too_long()
        return preprocess.prepare(text)
    from_end = preprocess.truncation_side == "left"
    for characters in (_CHARACTERS_PER_TOKEN, _MOST_CHARACTERS_PER_TOKEN):
        limit = characters * preprocess.max_length
        if len(text) <= limit:
            break
        part = _tail(text, limit) if from_end else _head(text, limit)
        if is_visible(part):
            ids = preprocess.token_ids(part)
            if len(ids) == preprocess.max_length or characters == _MOST_CHARACTERS_PER_TOKEN:
                return preprocess.from_ids(ids)
    most = _MOST_CHARACTERS_PER_TOKEN * preprocess.max_length
    return preprocess.prepare(text[-most:] if from_end else text[:most])


def _head(text: str, limit: int) -> str:
    """Cut at a space: a part of a word is other tokens."""
    end = max(text.rfind(space, limit // 2, limit) for space in (" ", "\n"))
    return text[: end if end > 0 else limit]


def _tail(text: str, limit: int) -> str:
    """Cut at a space, as `_head` does. The space stays: some tokenizers give a word at the beginning other ids."""
    start = len(text) - limit
    found = [at for space in (" ", "\n") if (at := text.find(space, start, start + limit // 2)) >= 0]
    return text[min(found, default=start) :]


def _features(preprocess: FeaturesPreprocessor, value: Any) -> Array:
    if isinstance(value, list):
        rows = value and isinstance(value[0], list)
        shape = (len(value), preprocess.dim) if rows else (preprocess.dim,)
        try:
            return array_of_lists(value, shape, np.dtype(np.float32))
        except ValueError:
            raise InputError(f"Features must be a list of vectors, each a list of {preprocess.dim} numbers.") from None
    data = media_bytes(value, "features")
    try:
        return read_npy(io.BytesIO(data), len(data))
    except ValueError as error:
        raise InputError(
            f"Features must be lists of numbers or a .npy file in base64; this cannot be read ({error})."
        ) from None
