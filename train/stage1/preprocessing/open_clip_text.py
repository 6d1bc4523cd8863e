"""Tokenizers of open_clip, read into our text preprocessing, and proven to give the same ids.

Its texts are cleaned before they are tokenized: by ftfy, and by Python's ``html.unescape``. What ftfy does to single
characters (curly quotes, ligatures, full-width letters, control characters, NFC) is written as steps of the
``tokenizer.json``, and HTML is a setting of `TextPreprocessor`. Not represented is what ftfy guesses from context, so
that these texts have other ids than in open_clip: mojibake ("cafÃ©", which it reads as "café"); entities escaped more
than twice, or for curly quotes beside a "<"; a combining accent behind a curly quote, a ligature or a full-width
letter; and a Greek capital sigma beside a character that cleaning removes, which may become the other small sigma.
"""

from __future__ import annotations

import io
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from fluxtalk.errors import BackendError, UsageError
from fluxtalk.preprocess import TextPreprocessor
from fluxtalk.train.stage1.preprocessing.hf_text import WHITESPACE, escaped_class, plain_json
from fluxtalk.train.stage1.preprocessing.token_proof import LONGEST_PROBE, prove_equal

_END_OF_WORD = "</w>"
_TERMINAL_ESCAPES = "\x1b\\[[\\d;]*[a-zA-Z]"
_CLEANINGS = ("whitespace", "lower", "canonicalize")


def text_preprocessor_of(tokenizer: Any, *, fixed_length: bool | None = None) -> TextPreprocessor:
    """Read a tokenizer of open_clip.

    Its ids of many texts are compared with those of the library, and one that a ``tokenizer.json`` cannot say is
    refused.

    Args:
        tokenizer: a ``SimpleTokenizer`` or ``HFTokenizer``, as ``open_clip.get_tokenizer`` gives it.
        fixed_length: pad every text to the context length, as the library always does. False leaves the padding out,
            which changes nothing for a tower that reads up to the end token, or knows a mask. None is False for a
            ``SimpleTokenizer``, True for an ``HFTokenizer``.

    Raises:
        UsageError: the tokenizer draws tokens at random, or does to ids what cannot be represented.
        BackendError: ftfy or sentencepiece is missing.
    """
    name = type(tokenizer).__name__
    if name not in ("SimpleTokenizer", "HFTokenizer"):
        raise UsageError(f"A tokenizer of open_clip is a SimpleTokenizer or an HFTokenizer; got {name}.")
    if not tokenizer.context_length:
        raise UsageError(f"The {name} has no context_length; make it with the number of tokens that its tower reads.")
    simple = name == "SimpleTokenizer"
    fixed = not simple if fixed_length is None else fixed_length
    backend, pad_id = _simple(tokenizer) if simple else _wrapped(tokenizer)
    cleaning = tokenizer.clean_fn.__name__.removeprefix("_clean_")
    if cleaning not in _CLEANINGS:
        raise UsageError(f"The {name} cleans texts by {', '.join(_CLEANINGS)}; got {cleaning}.")
    backend.normalizer = normalizers.Sequence(
        [*_cleaning(cleaning), *([] if backend.normalizer is None else [backend.normalizer])]
    )
    content = plain_json(backend)
    side = "right" if simple else str(tokenizer.tokenizer.truncation_side)
    pad_side = "right" if simple else str(tokenizer.tokenizer.padding_side)

    def made(max_length: int) -> TextPreprocessor:
        return TextPreprocessor(
            content,
            max_length,
            truncation_side=side,
            pad_id=pad_id if fixed else None,
            pad_side=pad_side if fixed else "right",
            lowercase=cleaning != "whitespace",
            unescape_html=True,
        )

    def prove(preprocess: TextPreprocessor) -> None:
        def library_ids(text: str) -> Sequence[int]:
            ids: list[int] = tokenizer(text, preprocess.max_length)[0].tolist()
            return ids if fixed else _without_padding(ids, pad_id, pad_side)

        prove_equal(preprocess, library_ids, name)

    preprocess = made(tokenizer.context_length)
    prove(preprocess)
    prove(made(max(tokenizer.context_length, LONGEST_PROBE)))
    return preprocess


def _simple(tokenizer: Any) -> tuple[Tokenizer, int]:
    """CLIP's byte-level BPE: the tokenizer, and the id that it pads with."""
    if tokenizer.reduction_fn is not None:
        raise UsageError(
            "This tokenizer shortens texts by a reduction mask, which may be random, so no text has one list of ids; "
            "make it without reduction_mask."
        )
    backend = Tokenizer(
        models.BPE(tokenizer.encoder, list(tokenizer.bpe_ranks), end_of_word_suffix=_END_OF_WORD, fuse_unk=False)
    )
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ids = list(tokenizer.all_special_ids)
    special = [tokenizer.decoder[token] for token in ids]
    if "<" in tokenizer.clean_fn("<"):  # else no text holds one: its brackets are removed first
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}",
        special_tokens=list(zip(special[:2], ids[:2], strict=True)),
    )
    return backend, 0


def _wrapped(tokenizer: Any) -> tuple[Tokenizer, int]:
    """The tokenizer of transformers in an `HFTokenizer`, and the id that it pads with."""
    if tokenizer.tokenizer_mode or tokenizer.strip_sep_token:
        raise UsageError(
            "This HFTokenizer rewrites ids afterwards (tokenizer_mode, strip_sep_token), which a tokenizer.json cannot "
            "say; use a model without."
        )
    backend = getattr(tokenizer.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UsageError(
            f"The HFTokenizer holds {type(tokenizer.tokenizer).__name__}, which is Python code without a "
            "tokenizer.json; use a model with one."
        )
    return Tokenizer.from_str(backend.to_str()), int(tokenizer.tokenizer.pad_token_id)


def _without_padding(ids: list[int], pad_id: int, side: str) -> list[int]:
    """Cut the run of the padding's id at one end."""
    ordered = ids if side == "right" else ids[::-1]
    count = len(ordered)
    while count and ordered[count - 1] == pad_id:
        count -= 1
    kept = ordered[:count]
    return kept if side == "right" else kept[::-1]


def _cleaning(kind: str) -> list[Any]:
    """Write open_clip's cleaning as steps, but for HTML and lower-casing, which come before."""
    punctuation = [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(escaped_class(string.punctuation)), ""),
    ]
    return [
        normalizers.Replace(Regex(_TERMINAL_ESCAPES), ""),
        normalizers.Precompiled(_ftfy_charsmap()),
        normalizers.Replace("\x00", ""),  # which no charsmap can hold
        normalizers.NFC(),
        *(punctuation if kind == "canonicalize" else []),
        normalizers.Replace(Regex(WHITESPACE), " "),
        normalizers.Strip(),
    ]


def _ftfy_charsmap() -> bytes:
    """Compile what ftfy does to single characters into a map as sentencepiece's models have it."""
    try:
        import sentencepiece
        from ftfy import chardata, fixes
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError as error:
        raise BackendError(f"Tokenizers of open_clip need ftfy and sentencepiece: pip install {error.name}.") from None

    def fixed(character: str) -> str:
        text = fixes.fix_c1_controls(character)
        text = text.translate(chardata.LIGATURES).translate(chardata.WIDTH_MAP)
        return str(fixes.uncurl_quotes(text).translate(chardata.CONTROL_CHARS))

    concerned = {*chardata.LIGATURES, *chardata.WIDTH_MAP, *chardata.CONTROL_CHARS, *range(0x80, 0xA0)}
    concerned |= {0x2BC, *range(0x2018, 0x2020)}
    lines = [
        f"{code:X}\t{' '.join(f'{ord(one):X}' for one in fixed(chr(code)))}\n"
        for code in sorted(concerned - {0})
        if fixed(chr(code)) != chr(code)
    ]
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text("".join(lines), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b"]),
            model_writer=model,
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(rules),
            minloglevel=3,
        )
    proto = ModelProto.FromString(model.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)
