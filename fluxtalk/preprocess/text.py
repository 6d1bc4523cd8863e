"""Text: a `tokenizers` tokenizer, truncated at the encoder's length."""

from __future__ import annotations

import copy
import html
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from fluxtalk.arrays import Array
from fluxtalk.artifacts.files import hash_bytes
from fluxtalk.errors import ArtifactError, InputError, reason
from fluxtalk.preprocess.base import pad_and_mask, require_keys
from fluxtalk.preprocess.visible_text import is_visible

TOKENIZER_FILE = "tokenizer.json"
SIDES = ("right", "left")
_MAX_LENGTH = 1 << 24
"""Longest ``max_length``: beyond what any encoder reads, and below what a tokenizer's integers hold."""


class TextPreprocessor:
    """Strings to token ids, int64 (length,).

    Args:
        tokenizer_json: the content of a ``tokenizer.json``. Its own padding and length are ignored.
        max_length: ids kept, special tokens included; what is longer is truncated by the tokenizer.
        truncation_side: ``right`` drops the end of a long text, ``left`` its beginning; None is what the
            ``tokenizer.json`` says, and ``right`` if it says nothing.
        pad_id: id with which every text is filled up to ``max_length``, for encoders that were trained so and read no
            mask (SigLIP): the padding then counts as a part of the text. None pads a batch to its longest text.
        pad_side: side of that padding.
        lowercase: lower-case texts as Python does, before the tokenizer's own steps.
        unescape_html: replace ``&amp;`` and its like, twice, before all else, as open_clip does.
        prompts: name to the words that are put before a text.
        default_prompt_name: prompt of texts of which nothing is said, in training too; None is none.

    Raises:
        ArtifactError: the tokenizer cannot be read, or a setting is not one of these.
    """

    kind = "text"
    input_names = ("input_ids", "mask")

    def __init__(
        self,
        tokenizer_json: str,
        max_length: int,
        *,
        truncation_side: str | None = None,
        pad_id: int | None = None,
        pad_side: str = "right",
        lowercase: bool = False,
        unescape_html: bool = False,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
    ) -> None:
        if type(max_length) is not int or not 1 <= max_length <= _MAX_LENGTH:
            raise ArtifactError(
                f"Text preprocessing needs a max_length, an integer of at least 1 and at most {_MAX_LENGTH:,}; "
                f"got {json.dumps(max_length, default=repr)}."
            )
        self._json = tokenizer_json
        self.max_length = self._max_tokens = max_length
        self.truncates = True
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer_json)
            self.truncation_side = _truncation_side(self.tokenizer) if truncation_side is None else truncation_side
            # Before the first text: a file may ask for padding that no memory holds.
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()
            self._try()
        except BaseException as error:  # the library raises bare Exception, and panics, which are not even that
            raise ArtifactError(
                f"The tokenizer.json cannot be read ({_told(error)}); save it again with the tokenizers library."
            ) from None
        self.pad_id, self.pad_side = pad_id, pad_side
        self.lowercase, self.unescape_html = lowercase, unescape_html
        self.prompts: Mapping[str, str] = {} if prompts is None else prompts
        self.default_prompt_name = default_prompt_name
        self._check()
        self.prompts = dict(self.prompts)
        added = self.tokenizer.num_special_tokens_to_add(False)
        if max_length <= added:
            raise ArtifactError(
                f"max_length counts the {added} special tokens that the tokenizer adds to every text, so it must be "
                f"larger than {added}; got {max_length}."
            )
        self.tokenizer.enable_truncation(max_length, direction=self.truncation_side)
        for name, prompt in self.prompts.items():
            if self.truncation_side == "right" and len(self._encode(prompt)) >= max_length:
                raise ArtifactError(
                    f"The prompt {name} alone has max_length = {max_length} tokens, so no text would be read after it; "
                    "shorten it, or give a larger max_length."
                )
        self._use("" if default_prompt_name is None else self.prompts[default_prompt_name])

    @property
    def fixed_length(self) -> bool:
        """True if every text is filled up to `max_length`."""
        return self.pad_id is not None

    def prompted(self, name: str) -> Self:
        """Make the preprocessing that puts the prompt of that name before each text; it shares the tokenizer.

        Raises:
            KeyError: there is no such prompt.
        """
        prompted = copy.copy(self)
        prompted._use(self.prompts[name])
        return prompted

    def prompted_with(self, words: str) -> Self:
        """Make the preprocessing that puts these words before each text, whatever prompts there are; it shares the
        tokenizer.

        Raises:
            InputError: the words are not a string, or leave no room for a text.
        """
        if not isinstance(words, str):
            raise InputError(f"A prompt is a string; got {type(words).__name__}.")
        if self.truncation_side == "right" and len(self._encode(words)) >= self._max_tokens:
            raise InputError(
                f"The prompt {words[:40]!r} alone has as many tokens as the encoder reads ({self._max_tokens}), so no "
                "text would be read after it; shorten it."
            )
        prompted = copy.copy(self)
        prompted._use(words)
        return prompted

    def shortened(self, max_tokens: int) -> Self:
        """Make the preprocessing that reads at most so many ids of a text, special tokens included; it shares the
        tokenizer. What is padded is padded as before.

        Raises:
            InputError: the special tokens alone are as many.
        """
        added = self.tokenizer.num_special_tokens_to_add(False)
        if max_tokens <= added:
            raise InputError(
                f"The tokenizer adds {added} special tokens to every text, so at least {added + 1} are read; got "
                f"{max_tokens}."
            )
        shortened = copy.copy(self)
        shortened._max_tokens = min(max_tokens, self.max_length)
        return shortened

    def whole(self) -> Self:
        """Make the preprocessing that refuses a text of which it would drop a part; it shares the tokenizer."""
        whole = copy.copy(self)
        whole.truncates = False
        return whole

    def too_long(self) -> InputError:
        """Make the error of a text that is not to be truncated."""
        return InputError(
            f"The text has more than the {self._max_tokens} tokens that are read of it, its prompt and special tokens "
            "included; shorten it, or let it be truncated."
        )

    def prepare(self, item: Any) -> Array:
        """Tokenize one string, after its prompt.

        Raises:
            InputError: it is not a string; is empty, blank or invisible; has no known token; or is too long for a
                preprocessing that does not truncate (`whole`).
        """
        return self.from_ids(self.token_ids(item))

    def token_ids(self, item: Any) -> list[int]:
        """Tokenize one string, after its prompt: at most ``max_length`` ids, without padding.

        Raises:
            InputError: as for `prepare`.
        """
        if not isinstance(item, str):
            raise InputError(f"A text is a string; got {type(item).__name__}.")
        if not is_visible(item):
            why = "; this one holds nothing but invisible characters: leave" if item.strip() else "; leave"
            raise InputError(f"A text must not be empty or blank{why} the item out or give it words.")
        ids = self._encode(self.prompt + item)
        # As many ids as nothing gives: look closer.
        if len(ids) <= self._ids_of_nothing and not self._has_token(item):
            raise InputError(f"The text {item[:40]!r} has no token that the tokenizer knows; give it words.")
        return ids

    def from_ids(self, ids: Sequence[int]) -> Array:
        """Take token ids, special tokens included and at most ``max_length``, as `prepare` gives them."""
        if self.pad_id is None:
            return np.array(ids, dtype=np.int64)
        padded = np.full(self.max_length, self.pad_id, dtype=np.int64)
        padded[slice(len(ids)) if self.pad_side == "right" else slice(self.max_length - len(ids), None)] = ids
        return padded

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
        """Settings, and the tokenizer's file. A setting that is at its default is left out."""
        config = {
            "kind": self.kind,
            "max_length": self.max_length,
            "tokenizer_sha256": hash_bytes(self._json.encode()),
            **({"truncation_side": self.truncation_side} if self.truncation_side != "right" else {}),
            **({"pad_id": self.pad_id} if self.pad_id is not None else {}),
            **({"pad_side": self.pad_side} if self.pad_side != "right" else {}),
            **({"lowercase": True} if self.lowercase else {}),
            **({"unescape_html": True} if self.unescape_html else {}),
            **({"prompts": dict(self.prompts)} if self.prompts else {}),
            **({"default_prompt_name": self.default_prompt_name} if self.default_prompt_name is not None else {}),
        }
        return config, {TOKENIZER_FILE: self._json}

    @classmethod
    def from_parts(cls, config: dict[str, Any], files: dict[str, str]) -> TextPreprocessor:
        """Read back what `to_parts` gave.

        Raises:
            ArtifactError: the tokenizer is missing or was changed.
        """
        require_keys(config, {"max_length", "tokenizer_sha256", *OPTIONS}, "text")
        content = files.get(TOKENIZER_FILE)
        if content is None:
            raise ArtifactError(
                f"The text preprocessing names {TOKENIZER_FILE}, which is missing; make the artifact again."
            )
        if hash_bytes(content.encode()) != config["tokenizer_sha256"]:
            raise ArtifactError(
                f"{TOKENIZER_FILE} was changed since it was written: its hash does not match; make the artifact again."
            )
        options = {name: config[name] for name in OPTIONS if name in config}
        # Not the tokenizer's own side: what was written before it was read truncated on the right.
        return cls(content, config["max_length"], **{"truncation_side": "right", **options})

    def _check(self) -> None:
        """Refuse options of other types, and names that nothing has."""
        for name, value in (("truncation_side", self.truncation_side), ("pad_side", self.pad_side)):
            if value not in SIDES:
                raise ArtifactError(f"{name} is {' or '.join(SIDES)}; got {value!r}.")
        if self.pad_id is not None and (type(self.pad_id) is not int or not 0 <= self.pad_id < 1 << 31):
            raise ArtifactError(f"pad_id is a token id, an integer from 0; got {self.pad_id!r}.")
        for name, flag in (("lowercase", self.lowercase), ("unescape_html", self.unescape_html)):
            if type(flag) is not bool:
                raise ArtifactError(f"{name} is true or false; got {flag!r}.")
        prompts = self.prompts
        if not isinstance(prompts, Mapping) or not all(
            isinstance(name, str) and name and isinstance(words, str) for name, words in prompts.items()
        ):
            raise ArtifactError(f"prompts are names to texts; got {prompts!r}.")
        if self.default_prompt_name is not None and self.default_prompt_name not in prompts:
            raise ArtifactError(
                f"default_prompt_name is one of the prompts ({', '.join(prompts) or 'there are none'}); "
                f"got {self.default_prompt_name!r}."
            )

    def _use(self, prompt: str) -> None:
        self.prompt = prompt
        """Words that are put before each text."""
        self._ids_of_nothing = len(self._encode(prompt)) if prompt else self.tokenizer.num_special_tokens_to_add(False)

    def _try(self) -> None:
        """Tokenize a word, which shows a tokenizer that contradicts itself: the library panics."""
        self.tokenizer.num_special_tokens_to_add(False)
        with suppress(Exception):  # a word-level model may know no unknown token
            self.tokenizer.encode("a")

    def _encode(self, text: str) -> list[int]:
        try:
            encoding = self.tokenizer.encode(self._cleaned(text))
            ids: list[int] = encoding.ids
        except TypeError:
            # Lone surrogates cannot become UTF-8, which is what the tokenizer works on.
            raise InputError("A text must be valid Unicode; this one holds lone surrogates.") from None
        except BaseException as error:  # bare Exception of a word-level model without unknown token, and panics
            raise InputError(
                f"The tokenizer cannot read the text {text[:40]!r} ({_told(error)}); give the tokenizer an unk_token, "
                "or the text words that it knows."
            ) from None
        if not self.truncates and (encoding.overflowing or len(ids) > self._max_tokens):
            raise self.too_long()
        return ids if len(ids) <= self._max_tokens else self._cut(ids, encoding.special_tokens_mask)

    def _cut(self, ids: list[int], is_special: list[int]) -> list[int]:
        """Drop ids of a text, on the side that is truncated, and none of the special ones around it."""
        before = next(place for place, special in enumerate([*is_special, 0]) if not special)
        after = next(place for place, special in enumerate([*reversed(is_special), 0]) if not special)
        text = ids[before : len(ids) - after]
        room = max(0, self._max_tokens - before - after)
        kept = text[len(text) - room :] if self.truncation_side == "left" else text[:room]
        return ids[:before] + kept + ids[len(ids) - after :]

    def _cleaned(self, text: str) -> str:
        if self.unescape_html and "&" in text:
            text = html.unescape(html.unescape(text))
        return text.lower() if self.lowercase else text

    def _has_token(self, item: str) -> bool:
        """True if a text without its prompt has a token that is not one of those added to every text."""
        encoding = self.tokenizer.encode(self._cleaned(item))
        return not all(encoding.special_tokens_mask)


OPTIONS = ("truncation_side", "pad_id", "pad_side", "lowercase", "unescape_html", "prompts", "default_prompt_name")
"""Settings of `TextPreprocessor` that may be left out."""


def _told(error: BaseException) -> str:
    """Sentence of the tokenizer's library, in one line. A panic of it is a `BaseException`; others of these go on.

    Raises:
        BaseException: the error itself, if it is of another kind, such as the user's interrupt.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return reason(error)


def _truncation_side(tokenizer: Tokenizer) -> str:
    """Find the side that a tokenizer.json says."""
    truncation = tokenizer.truncation
    return "right" if truncation is None else str(truncation["direction"]).lower()
