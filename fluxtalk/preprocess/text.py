"""Text: a `tokenizers` tokenizer, truncated at the encoder's length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fluxtalk.arrays import Array
from fluxtalk.artifacts.files import hash_bytes
from fluxtalk.errors import ArtifactError, InputError
from fluxtalk.preprocess.base import pad_and_mask, require_keys

TOKENIZER_FILE = "tokenizer.json"


class TextPreprocessor:
    """Strings to token ids, int64 (length,).

    Args:
        tokenizer_json: the content of a ``tokenizer.json``. Its own padding and truncation are ignored.
        max_length: ids kept, special tokens included; what is longer is truncated by the tokenizer.
    """

    kind = "text"
    input_names = ("input_ids", "mask")

    def __init__(self, tokenizer_json: str, max_length: int) -> None:
        if max_length < 1:
            raise ArtifactError(f"Text preprocessing needs a max_length of at least 1; got {max_length}.")
        self._json = tokenizer_json
        self.max_length = max_length
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(
                f"The tokenizer.json cannot be read ({error}); save it again with the tokenizers library."
            ) from None
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)

    def prepare(self, item: Any) -> Array:
        """Tokenize one string.

        Raises:
            InputError: it is not a string, is empty or blank, or has no known token.
        """
        if not isinstance(item, str):
            raise InputError(f"A text is a string; got {type(item).__name__}.")
        if not item.strip():
            raise InputError("A text must not be empty or blank; leave the item out or give it words.")
        try:
            ids = self.tokenizer.encode(item).ids
        except TypeError:
            # Lone surrogates cannot become UTF-8, which is what the tokenizer works on.
            raise InputError("A text must be valid Unicode; this one holds lone surrogates.") from None
        if not ids:
            raise InputError(f"The text {item[:40]!r} has no token that the tokenizer knows; give it words.")
        return np.array(ids, dtype=np.int64)

    def collate(self, prepared: Sequence[Array]) -> dict[str, Array]:
        """Pad to ``input_ids`` int64 (batch, length) and ``mask`` bool (batch, length)."""
        ids, mask = pad_and_mask(prepared, np.int64)
        return {"input_ids": ids, "mask": mask}

    def length(self, prepared: Array) -> int:
        """Number of token ids."""
        return int(prepared.shape[0])

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of ids that the tokenizer can give."""
        return int(self.tokenizer.get_vocab_size())

    def to_parts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Settings, and the tokenizer's file."""
        config = {"kind": self.kind, "max_length": self.max_length, "tokenizer_sha256": hash_bytes(self._json.encode())}
        return config, {TOKENIZER_FILE: self._json}

    @classmethod
    def from_parts(cls, config: dict[str, Any], files: dict[str, str]) -> TextPreprocessor:
        """Read back what `to_parts` gave.

        Raises:
            ArtifactError: the tokenizer is missing or was changed.
        """
        require_keys(config, {"max_length", "tokenizer_sha256"}, "text")
        content = files.get(TOKENIZER_FILE)
        if content is None:
            raise ArtifactError(
                f"The text preprocessing names {TOKENIZER_FILE}, which is missing; make the artifact again."
            )
        if hash_bytes(content.encode()) != config["tokenizer_sha256"]:
            raise ArtifactError(
                f"{TOKENIZER_FILE} was changed since it was written: its hash does not match; make the artifact again."
            )
        return cls(content, config["max_length"])
