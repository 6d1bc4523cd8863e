"""Texts far longer than an encoder reads: what is cut before they are tokenized changes no id."""

from __future__ import annotations

import pytest

from fluxtalk.preprocess import TextPreprocessor
from fluxtalk.runtime.server.execution.decoding import decode_text
from tests.preprocess.examples import tokenizer_json

TEXTS = {
    "words": "black chess " * 3000 + "queen king",
    "sparse": "white " + "z" * 700 + " " + "black chess king " * 3000 + "z" * 700 + " queen",
    "blank ends": " \u200b" * 2000 + "black chess white queen king" + " \u200b" * 2000,
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pad_id", [None, 0])
@pytest.mark.parametrize("text", TEXTS)
def test_a_long_text_has_the_ids_of_the_whole(text: str, pad_id: int | None, side: str) -> None:
    preprocess = TextPreprocessor(
        tokenizer_json(True), 6, truncation_side=side, pad_id=pad_id, prompts={"query": "king "}
    )
    for one in (preprocess, preprocess.prompted("query")):
        assert decode_text(one, TEXTS[text]).tolist() == one.prepare(TEXTS[text]).tolist()


def test_given_ids_are_padded_where_texts_are() -> None:
    assert decode_text(TextPreprocessor(tokenizer_json(), 4, pad_id=7), [3, 5]).tolist() == [3, 5, 7, 7]
    assert decode_text(TextPreprocessor(tokenizer_json(), 4), [3, 5]).tolist() == [3, 5]
