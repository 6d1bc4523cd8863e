"""Texts: truncation side, padding to a fixed length, prompts, invisible texts, and settings that are refused."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from fluxtalk.errors import ArtifactError, InputError, UsageError
from fluxtalk.preprocess import ImagePreprocessor, Prompting, TextPreprocessor, from_parts
from fluxtalk.preprocess.visible_text import is_visible
from tests.preprocess.examples import picture, tokenizer_json

LONG = "black white chess queen king"  # 3 4 5 6 7, between 1 and 2


def with_side(side: str) -> str:
    tokenizer = Tokenizer.from_str(tokenizer_json(True))
    tokenizer.enable_truncation(9, direction=side)
    return str(tokenizer.to_str())


def again(preprocess: TextPreprocessor) -> TextPreprocessor:
    config, files = preprocess.to_parts()
    read = from_parts(json.loads(json.dumps(config)), files)
    assert isinstance(read, TextPreprocessor)
    assert read.to_parts() == (config, files)
    return read


def test_the_truncation_side_is_the_tokenizers_own_unless_one_is_said() -> None:
    for side, said, ids in (
        ("left", None, [1, 6, 7, 2]),
        ("right", None, [1, 3, 4, 2]),
        ("right", "left", [1, 6, 7, 2]),
        ("left", "right", [1, 3, 4, 2]),
    ):
        preprocess = TextPreprocessor(with_side(side), 4, truncation_side=said)
        assert preprocess.prepare(LONG).tolist() == again(preprocess).prepare(LONG).tolist() == ids


def test_artifacts_from_before_are_read_as_they_were_made() -> None:
    # Written when a tokenizer's own side was not read: the hash of a checkpoint covers these parts.
    config, files = TextPreprocessor(with_side("left"), 4, truncation_side="right").to_parts()
    assert set(config) == {"kind", "max_length", "tokenizer_sha256"}
    read = from_parts(config, files)
    assert read.to_parts() == (config, files)
    assert read.prepare(LONG).tolist() == [1, 3, 4, 2]


@pytest.mark.parametrize(("side", "ids"), [("right", [1, 3, 2, 9, 9]), ("left", [9, 9, 1, 3, 2])])
def test_a_fixed_length_pads_every_text_and_masks_nothing(side: str, ids: list[int]) -> None:
    preprocess = again(TextPreprocessor(tokenizer_json(True), 5, pad_id=9, pad_side=side))
    prepared = [preprocess.prepare(text) for text in ("black", LONG)]
    assert [row.tolist() for row in prepared] == [ids, [1, 3, 4, 5, 2]]
    assert [preprocess.length(row) for row in prepared] == [5, 5]
    assert preprocess.collate(prepared)["mask"].all()
    assert preprocess.from_ids([1, 3, 2]).tolist() == ids


def test_lower_casing_is_pythons() -> None:
    preprocess = again(TextPreprocessor(tokenizer_json(), 5, lowercase=True))
    assert preprocess.prepare("Black CHESS").tolist() == [3, 5]
    assert TextPreprocessor(tokenizer_json(), 5).prepare("Black CHESS").tolist() == [0, 0]


def test_html_is_unescaped_where_asked() -> None:
    preprocess = again(TextPreprocessor(tokenizer_json(), 5, unescape_html=True))
    assert preprocess.prepare("black&amp;nbsp;chess").tolist() == [3, 5]


INVISIBLE = ["\u200b", "\x00", "\u00ad", "\u202e", "\ufe0f", "\ufeff", "\u2066\u2069", "\u3164", " \u200b\t\u2060 "]


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_a_text_of_invisible_characters_is_as_empty_as_a_blank_one(text: str) -> None:
    for preprocess in (
        TextPreprocessor(tokenizer_json(True), 8),
        TextPreprocessor(tokenizer_json(True), 8, prompts={"query": "chess "}, default_prompt_name="query"),
    ):
        with pytest.raises(InputError, match=r"must not be empty or blank; this one holds nothing but invisible"):
            preprocess.prepare(text)


def test_characters_that_show_something_are_visible() -> None:
    invisible = {"Cc", "Cf", "Zs", "Zl", "Zp"}
    drawn = set(range(0x600, 0x606)) | {0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in invisible and code not in drawn:
            assert not is_visible(chr(code)), hex(code)
    for character in ("a", "!", "\u06dd", "\u0301", "日", "🙂", "\ue000", "\ud800"):
        assert is_visible(character), ascii(character)
    assert is_visible("\u200b" * 1000 + "a")


def test_a_text_with_no_token_but_special_ones_is_refused_behind_a_prompt_too() -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json(True))
    tokenizer.model = models.BPE({character: at for at, character in enumerate("_[]abc")}, [])
    for preprocess in (
        TextPreprocessor(str(tokenizer.to_str()), 8),
        TextPreprocessor(str(tokenizer.to_str()), 8, prompts={"query": "ab "}).prompted("query"),
    ):
        with pytest.raises(InputError, match="'xyz' has no token that the tokenizer knows; give it words"):
            preprocess.prepare("xyz")
        assert len(preprocess.prepare("c")) >= 3


def test_a_tokenizer_without_unknown_token_is_a_sentence() -> None:
    preprocess = TextPreprocessor(str(Tokenizer(models.WordLevel({"black": 0})).to_str()), 4)
    assert preprocess.prepare("black").tolist() == [0]
    with pytest.raises(InputError, match=r"cannot read the text 'white' .*give the tokenizer an unk_token"):
        preprocess.prepare("white")


@pytest.mark.parametrize("max_length", ["32", 1.5, None, True, 0, 10**30], ids=repr)
def test_a_max_length_is_an_integer(max_length: Any) -> None:
    with pytest.raises(ArtifactError, match="needs a max_length, an integer of at least 1"):
        TextPreprocessor(tokenizer_json(), max_length)


def test_a_max_length_leaves_room_for_a_token() -> None:
    with pytest.raises(ArtifactError, match="must be larger than 2; got 2"):
        TextPreprocessor(tokenizer_json(True), 2)
    with pytest.raises(ArtifactError, match="The prompt query alone has max_length = 4 tokens"):
        TextPreprocessor(tokenizer_json(True), 4, prompts={"query": "black chess"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"truncation_side": "top"}, "truncation_side is right or left"),
        ({"pad_id": -1}, "pad_id is a token id"),
        ({"pad_id": True}, "pad_id is a token id"),
        ({"lowercase": 1}, "lowercase is true or false"),
        ({"prompts": ["a"]}, "prompts are names to texts"),
        ({"prompts": {"query": 3}}, "prompts are names to texts"),
        ({"default_prompt_name": "query"}, "one of the prompts"),
    ],
)
def test_other_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        TextPreprocessor(tokenizer_json(), 4, **options)


PROMPTS = {"query": "black ", "passage": "white ", "corpus": "king ", "plain": ""}


def test_a_prompt_comes_before_the_text_by_role_or_name() -> None:
    preprocess = again(TextPreprocessor(tokenizer_json(True), 9, prompts=PROMPTS, default_prompt_name="corpus"))

    def ids(**choice: str) -> list[int]:
        return list(Prompting(**choice).apply(preprocess).prepare("chess").tolist())

    assert ids() == preprocess.prepare("chess").tolist() == [1, 7, 5, 2]
    assert ids(role="query") == [1, 3, 5, 2]
    assert ids(role="document") == [1, 4, 5, 2]
    assert ids(name="plain") == [1, 5, 2]


def test_a_prompt_in_words_replaces_every_other() -> None:
    preprocess = TextPreprocessor(tokenizer_json(True), 4, prompts={"query": "black "}, default_prompt_name="query")
    assert Prompting(words="white ").apply(preprocess).prepare("chess").tolist() == [1, 4, 5, 2]
    assert Prompting(words="").apply(preprocess).prepare("chess").tolist() == [1, 5, 2]
    assert preprocess.prepare("chess").tolist() == [1, 3, 5, 2]
    with pytest.raises(InputError, match="alone has as many tokens as the encoder reads \\(4\\)"):
        Prompting(words="white white white").apply(preprocess)
    with pytest.raises(InputError, match="A prompt is a string; got int"):
        TextPreprocessor(tokenizer_json(True), 4).prompted_with(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="A prompt is given in words or chosen by a role; got both"):
        Prompting("query", words="white ")
    with pytest.raises(UsageError, match="A prompt is given in words or chosen by its name; got both"):
        Prompting(name="query", words="")


def test_a_role_without_a_prompt_of_its_own_takes_the_default() -> None:
    for prompts, default, ids in (
        ({"other": "black "}, "other", [1, 3, 5, 2]),
        ({"other": "black "}, None, [1, 5, 2]),
        ({"document": "", "other": "black "}, "other", [1, 5, 2]),
    ):
        preprocess = TextPreprocessor(tokenizer_json(True), 9, prompts=prompts, default_prompt_name=default)
        assert Prompting(role="document").apply(preprocess).prepare("chess").tolist() == ids


def test_unknown_roles_and_prompts_are_refused_with_those_that_exist() -> None:
    preprocess = TextPreprocessor(tokenizer_json(True), 9, prompts=PROMPTS)
    with pytest.raises(UsageError, match="The prompts are query, passage, corpus, plain; got 'ask'"):
        Prompting(name="ask").apply(preprocess)
    with pytest.raises(UsageError, match="There are no prompts here; got 'ask'"):
        Prompting(name="ask").apply(TextPreprocessor(tokenizer_json(), 9))
    with pytest.raises(UsageError, match="A role is query or document; got 'ask'"):
        Prompting(role="ask")
    with pytest.raises(UsageError, match="A role chooses a prompt, and so does its name"):
        Prompting("query", "query")


def test_a_role_changes_nothing_for_other_modalities() -> None:
    preprocess = ImagePreprocessor(8, 8)
    assert Prompting(role="query").apply(preprocess) is preprocess
    assert preprocess.prepare(picture()).shape == (8, 8, 3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_shortened_text_is_what_a_shorter_encoder_would_read(side: str) -> None:
    whole = TextPreprocessor(tokenizer_json(True), 9, truncation_side=side)
    for length in (3, 4, 6, 7, 9, 100):
        expected = TextPreprocessor(tokenizer_json(True), min(length, 9), truncation_side=side)
        assert whole.shortened(length).token_ids(LONG) == expected.token_ids(LONG)
    assert whole.token_ids(LONG) == [1, 3, 4, 5, 6, 7, 2]
    with pytest.raises(InputError, match=r"adds 2 special tokens .* at least 3 are read; got 2"):
        whole.shortened(2)
    padded = TextPreprocessor(tokenizer_json(True), 9, pad_id=0).shortened(4)
    assert padded.prepare(LONG).tolist() == [1, 3, 4, 2, 0, 0, 0, 0, 0]
