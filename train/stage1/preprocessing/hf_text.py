"""Tokenizers of transformers, read into our text preprocessing, and proven to give the same ids."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, processors

from fluxtalk.errors import UsageError
from fluxtalk.preprocess import TextPreprocessor
from fluxtalk.train.stage1.preprocessing.token_proof import LONGEST_PROBE, prove_equal

_NO_LIMIT = 1_000_000
"""From here on, a tokenizer's ``model_max_length`` says that its files say none."""
WHITESPACE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
"""Whitespace of Python's ``re``, which is more than that of the tokenizers library."""


def text_preprocessor_of(
    tokenizer: Any,
    *,
    max_length: int | None = None,
    fixed_length: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    lowercase: bool = False,
) -> TextPreprocessor:
    """Read a tokenizer of transformers.

    Its ids of many texts are compared with those of the library. A tokenizer that a ``tokenizer.json`` cannot say is
    refused.

    Args:
        tokenizer: a ``PreTrainedTokenizerBase``, as ``AutoTokenizer.from_pretrained`` gives it; a sentencepiece model
            is converted.
        max_length: ids of a text at most, special tokens included; None is the tokenizer's ``model_max_length``.
        fixed_length: pad every text to ``max_length``, as models want it that were trained so and read no mask.
        prompts: name to the words that are put before a text.
        default_prompt_name: prompt of texts of which nothing is said.
        lowercase: put lower-casing before the tokenizer's own steps, as the ``do_lower_case`` of a
            sentence-transformers folder does; the tokenizer given is changed, too.

    Raises:
        UsageError: no maximum length is known, it has no token to pad with, or its ids are other ones.
        ArtifactError: a prompt leaves no room for a text, or the default names none.
    """
    name = type(tokenizer).__name__
    length = _max_length(tokenizer, name) if max_length is None else max_length
    if fixed_length and tokenizer.pad_token_id is None:
        raise UsageError(f"The tokenizer {name} has no padding token, and texts of a fixed length need one.")
    is_siglip = name == "SiglipTokenizer"
    backend = _siglip(tokenizer) if is_siglip else _backend(tokenizer, name)
    if lowercase and not is_siglip:
        backend = with_lowercase(backend)
        tokenizer.backend_tokenizer.normalizer = backend.normalizer
    content = plain_json(backend)
    # A name that is not among the prompts is an error, also where all are empty.
    default = default_prompt_name if _telling(prompts) or default_prompt_name not in (prompts or {}) else None

    def made(max_length: int) -> TextPreprocessor:
        return TextPreprocessor(
            content,
            max_length,
            truncation_side=tokenizer.truncation_side,
            pad_id=int(tokenizer.pad_token_id) if fixed_length else None,
            pad_side=tokenizer.padding_side if fixed_length else "right",
            lowercase=is_siglip and bool(tokenizer.do_lower_case),
            prompts=_telling(prompts),
            default_prompt_name=default,
        )

    preprocess = made(length)
    # SigLIP's Python code treats what stands behind one as the inside of a word; the docs say so.
    special = [] if is_siglip else [f"a {token} b" for token in tokenizer.all_special_tokens[:8]]
    # At a length that cuts no probe, too: the ids behind the cut are those of other texts.
    for one in (preprocess, made(max(length, LONGEST_PROBE))):
        prove_equal(one, _library_ids(tokenizer, one), name, special)
    return preprocess


def plain_json(tokenizer: Tokenizer) -> str:
    """Write a ``tokenizer.json`` without padding and truncation, which are ours to say."""
    content = json.loads(tokenizer.to_str())
    return json.dumps({**content, "padding": None, "truncation": None}, ensure_ascii=False)


def with_lowercase(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer, with lower-casing before its own normalizer, unless that begins with it."""
    copied = Tokenizer.from_str(tokenizer.to_str())
    first, own = normalizers.Lowercase(), copied.normalizer
    copied.normalizer = first if own is None else normalizers.Sequence([first, own])
    return copied


def _library_ids(tokenizer: Any, preprocess: TextPreprocessor) -> Callable[[str], Sequence[int]]:
    padding = False if preprocess.pad_id is None else "max_length"

    def library_ids(text: str) -> Sequence[int]:
        ids: Sequence[int] = tokenizer(text, truncation=True, max_length=preprocess.max_length, padding=padding)[
            "input_ids"
        ]
        return ids

    return library_ids


def escaped_class(characters: str) -> str:
    """Write a class of ASCII characters for a regular expression."""
    return "[" + "".join(f"\\x{ord(one):02x}" for one in characters) + "]"


def _telling(prompts: Mapping[str, str] | None) -> dict[str, str]:
    """Drop prompts of which every one is empty: they are sentence-transformers' way to say that there are none."""
    return dict(prompts) if prompts and any(prompts.values()) else {}


def _max_length(tokenizer: Any, name: str) -> int:
    length = tokenizer.model_max_length
    if not isinstance(length, int) or not 0 < length < _NO_LIMIT:
        raise UsageError(
            f"The files of the tokenizer {name} say no maximum length (model_max_length); give max_length, the number "
            "of tokens that the encoder reads."
        )
    return length


def _backend(tokenizer: Any, name: str) -> Tokenizer:
    """Find the tokenizer of the tokenizers library; one that is Python code is converted, if transformers can."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return backend
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    try:
        converted = convert_slow_tokenizer(tokenizer)
    except Exception as error:  # each converter raises its own
        raise UsageError(
            f"The tokenizer {name} is Python code, and transformers cannot convert it to a tokenizer.json "
            f"({' '.join(str(error).split())[:120]}); use a model with a tokenizer.json."
        ) from None
    if not isinstance(converted, Tokenizer):
        raise UsageError(f"The tokenizer {name} is Python code that has no tokenizer.json; use a model with one.")
    return converted


def _siglip(tokenizer: Any) -> Tokenizer:
    """Write SigLIP's Python steps as a ``tokenizer.json``: punctuation removed, spaces joined, then sentencepiece.

    Lower-casing is left to `TextPreprocessor`, because Python's is that of whole words.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(tokenizer.sp_model.serialized_model_proto())
    if proto.trainer_spec.model_type != 1:
        raise UsageError("The sentencepiece model of a SigLIP tokenizer is a unigram model; this is another kind.")
    rule = proto.normalizer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    backend = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))
    charsmap = [normalizers.Precompiled(rule.precompiled_charsmap)] if rule.precompiled_charsmap else []
    joined = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r" +\z"), "")]
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("▁", " "),
            normalizers.Replace(Regex(escaped_class(string.punctuation)), ""),
            normalizers.Replace(Regex(WHITESPACE), " "),
            normalizers.Strip(left=False, right=True),
            normalizers.Prepend("▁"),
            *charsmap,
            *(joined if rule.remove_extra_whitespaces else []),
            normalizers.Replace(" ", "▁"),
        ]
    )
    eos = tokenizer.eos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    for token in tokenizer.added_tokens_decoder.values():
        backend.add_special_tokens([token])
    return backend
